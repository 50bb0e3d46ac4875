"""Reads folders as others write them: to the same numbers, or refused in one short sentence."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf, read_config, save_hf_teacher
from hydrahead_jax.interop.hf_export import write_model
from hydrahead_jax.interop.not_finite import not_finite
from tests.hydrahead_jax.interop import toy

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
UNTIED = toy.TIED_AND_UNTIED[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Writes folders of one teacher: in one file, in shards, and untied."""
    root = tmp_path_factory.mktemp("made")
    params = toy.random_params(toy.TEACHER)
    save_hf_teacher(root / "plain", toy.TEACHER, params, jnp.float32)
    save_hf_teacher(root / "shards", toy.TEACHER, params, jnp.float32, shard_bytes=4000)
    save_hf_teacher(root / "untied", UNTIED, toy.random_params(UNTIED), jnp.float32)
    write_model_folder(root / "hybrid")
    return root


def write_model_folder(folder):
    folder.mkdir()
    write_model(folder, toy.MIXED, toy.random_params(toy.MIXED), jnp.float32)


@pytest.fixture
def folder(made, tmp_path):
    return lambda name: shutil.copytree(made / name, tmp_path / name)


def edit(path, change):
    fields = json.loads(path.read_text())
    fields = change(fields) or fields
    path.write_text(json.dumps(fields))


def edit_weights(folder, change, file=SINGLE):
    weights = load_file(folder / file)
    save_file(change(weights) or weights, folder / file)


def refusal(folder, read=load_hf) -> str:
    """Returns the sentence of a refusal, which is short and names the folder once."""
    with pytest.raises(UserError) as caught:
        read(folder)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.count(str(folder)) == 1
    assert len(sentence) - len(str(folder)) < 300 - len("/a/folder/of/usual/length")
    return sentence


def without_prefix(weights):
    return {name.removeprefix("model."): weight for name, weight in weights.items()}


def test_weights_of_the_model_without_its_head_are_read(folder, made):
    path = folder("plain")
    edit_weights(path, without_prefix)
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    path = folder("untied")
    edit_weights(path, without_prefix)
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "untied")[1])
    edit_weights(path, lambda w: {name: w[name] for name in w if name != HEAD})
    assert "missing weights: lm_head.weight" in refusal(path)


def test_shards_without_prefix_are_read(folder, made):
    path = folder("shards")
    for file in path.glob("*.safetensors"):
        edit_weights(path, without_prefix, file.name)
    edit(path / INDEX, lambda index: {"weight_map": without_prefix(index["weight_map"])})
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    lost = json.loads((path / INDEX).read_text())["weight_map"][DOWN.removeprefix("model.")]
    (path / lost).unlink()
    assert f"missing files: {lost} (" in (sentence := refusal(path))
    assert "missing weights" not in sentence


def test_a_weight_with_and_without_prefix_is_refused(folder):
    path = folder("plain")
    edit_weights(path, lambda weights: {"norm.weight": weights["model.norm.weight"], **weights})
    sentence = refusal(path)
    assert "norm.weight" in sentence and "remove one of the two" in sentence


def test_other_prefixes_are_named(folder):
    path = folder("plain")
    edit_weights(path, lambda w: {f"_orig_mod.{name}": weight for name, weight in w.items()})
    sentence = refusal(path)
    assert "missing weights: model.embed_tokens.weight and 23 more" in sentence
    assert "unused weights: _orig_mod.model.embed_tokens.weight and 23 more" in sentence


def test_an_index_may_name_a_tied_head_that_its_shard_does_not_hold(folder, made):
    path = folder("shards")
    first = json.loads((path / INDEX).read_text())["weight_map"][EMBED]
    edit(path / INDEX, lambda index: index["weight_map"].update({HEAD: first}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])


def test_a_tied_head_may_be_equal_and_not_differ(folder, made):
    path = folder("plain")
    edit_weights(path, lambda weights: weights.update({HEAD: weights[EMBED].copy()}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    edit_weights(path, lambda weights: weights.update({HEAD: weights[EMBED] + 1}))
    assert "holds lm_head.weight with other numbers than the embeddings" in refusal(path)


@pytest.mark.parametrize(
    "file", ["../model-1.safetensors", "/elsewhere/x.safetensors", "", ".", 1, None]
)
def test_an_index_that_points_out_of_the_folder_is_refused(folder, file):
    path = folder("shards")
    edit(path / INDEX, lambda index: index["weight_map"].update({DOWN: file}))
    assert f"puts {DOWN} into" in refusal(path)


def test_a_shard_under_two_names_is_one(folder, made):
    path = folder("shards")
    edit(path / INDEX, lambda i: i["weight_map"].update({DOWN: "./" + i["weight_map"][DOWN]}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])


def test_a_weight_in_two_shards_is_refused(folder):
    path = folder("shards")
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    weights = load_file(path / shards[0])
    edit_weights(path, lambda found: found.update(weights), shards[-1])
    sentence = refusal(path)
    assert f"holds {next(iter(weights))}" in sentence and shards[0] in sentence


def test_a_weight_that_no_index_names_is_named(folder):
    path = folder("shards")
    shard = sorted(file.name for file in path.glob("*.safetensors"))[0]
    edit_weights(path, lambda weights: weights.update({"extra": np.zeros(3, np.float32)}), shard)
    assert refusal(path).endswith("unused weights: extra; download it again")


def test_names_of_any_length_are_shown_in_short(folder):
    path = folder("shards")
    edit(path / INDEX, lambda fields: fields["weight_map"].update({"w\n" * 300: "x" * 400}))
    assert "missing files: xxx" in refusal(path)


def test_weights_behind_a_broken_link_are_named(folder):
    path = folder("plain")
    (path / SINGLE).unlink()
    (path / SINGLE).symlink_to("../../blobs/0f")
    assert f"{path / SINGLE} is a link that leads nowhere" in refusal(path)


def test_many_more_layers_than_weights_are_refused_at_once(folder):
    path = folder("plain")
    edit(path / "config.json", lambda fields: fields | {"num_hidden_layers": 4000})
    assert "there are 4000 layers and 24 weights" in refusal(path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float64, ml_dtypes.float8_e4m3fn])
def test_number_formats_that_are_not_read_are_named(folder, dtype):
    path = folder("plain")
    edit_weights(path, lambda weights: weights.update({DOWN: weights[DOWN].astype(dtype)}))
    assert f"unsupported number formats: {DOWN} is " in refusal(path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model-q4.gguf", "adapter_model.safetensors"]
)
def test_other_weight_files_are_named(folder, name):
    path = folder("plain")
    (path / SINGLE).rename(path / name)
    assert f"in place of {name}" in refusal(path)


def test_a_hub_id_is_told_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (load_hf, read_config):
        with pytest.raises(
            UserError, match=r"no folder Qwen/Qwen3-0\.6B; .*`hf download ID --local"
        ):
            read("Qwen/Qwen3-0.6B")
    assert refusal(tmp_path / "none") == (f"there is no folder {tmp_path / 'none'}; check the path")


SIZES = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "num_hidden_layers",
]
IMPOSSIBLE = [0, -1, 1.5, 32.0, "32", None, True, [32], {"a": 1}, 10**12, math.nan, math.inf]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["plain", "hybrid"])
def test_impossible_sizes_are_named(folder, kind, name):
    path = folder(kind)
    for value in IMPOSSIBLE:
        edit(path / "config.json", lambda config, value=value: config.update({name: value}))
        sentence = refusal(path, read_config)
        assert sentence.startswith(f"{path / 'config.json'}: ") and name in sentence


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize(
    "value", [0, -1e-6, "1e-6", None, True, [1.0], math.nan, math.inf, 10**400]
)
def test_impossible_numbers_are_named(folder, name, value):
    path = folder("plain")
    edit(path / "config.json", lambda config: config.update({name: value}))
    assert name in refusal(path, read_config)


LONG = "x" * 5000
OTHERS = [
    ({"num_attention_heads": 5}, "5 query heads are not a multiple of 2 KV heads"),
    ({"head_dim": 7}, "head_dim=7 must be even"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 must be"),
    ({"num_attention_heads": 10**9, "num_key_value_heads": 1}, "num_attention_heads=1000000000"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes' must be true or false"),
    ({"tie_word_embeddings": None}, "tie_word_embeddings=None must be true or false"),
    ({"hidden_act": None}, "hidden_act=None"),
    ({"hidden_act": "gelu_pytorch_tanh"}, "hidden_act='gelu_pytorch_tanh'"),
    ({"hidden_act": LONG}, "hidden_act='xxx"),
    ({"model_type": LONG}, "model_type is 'xxx"),
    ({"model_type": None}, "model_type is None"),
    ({"model_type": []}, "model_type is []"),
    ({"compression_config": {"a": 1}}, "not supported: compression_config"),
    ({"layer_types": 2}, "layer_types=2 must be a list"),
    ({"layer_types": "full_attention"}, "layer_types='full_attention' must be a list"),
    ({"layer_types": ["full_attention"]}, "layer_types has 1 layers and num_hidden_layers is 2"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types with chunked_"),
    ({"layer_types": ["full_attention", None]}, "layer_types with None"),
    ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "with sliding_attention"),
]
ROPE = [
    ("default", "rope_parameters='default' must be a JSON object"),
    ([4.0], "rope_parameters=[4.0] must be a JSON object"),
    (4, "rope_parameters=4 must be"),
    ({"rope_type": None}, "RoPE of type None"),
    ({"rope_type": ["yarn"]}, "RoPE of type ['yarn']"),
    ({"rope_type": LONG}, "RoPE of type 'xxx"),
    ({"factor": 4.0}, "RoPE of type unknown"),
    ({"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, "RoPE of type unknown"),
    ({"full_attention": "yarn"}, "RoPE of type unknown"),
    ({"rope_type": "default", "type": "yarn", "factor": 4.0}, "RoPE of type 'yarn'"),
    ({"type": "linear", "factor": 2.0}, "RoPE of type 'linear'"),
    *(
        ({"rope_type": kind}, f"type '{kind}'")
        for kind in ("dynamic", "longrope", "llama3", "mrope")
    ),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ({"rope_type": "default", "rope_theta": 0}, "rope_theta=0 must be a positive finite number"),
    ({"rope_type": "default", "rope_theta": "1e6"}, "rope_theta='1e6' must be"),
    ({"full_attention": {"rope_type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
    ({"full_attention": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor=0.25"),
    ({"sliding_attention": {"rope_type": "default"}}, "settings for 'sliding_attention'"),
    (
        {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_theta": 1e4}},
        "settings for 'sliding_attention'",
    ),
    ({"full_attention": {}, "rope_type": "yarn"}, "settings for full_attention and others beside"),
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *OTHERS,
        *(({place: rope}, m) for rope, m in ROPE for place in ("rope_parameters", "rope_scaling")),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ],
)
def test_what_cannot_be_computed_is_named(folder, changes, message):
    path = folder("plain")
    edit(path / "config.json", lambda config: config.update(changes))
    if "rope_scaling" in changes:
        message = message.replace("rope_parameters=", "rope_scaling=")
    assert message in refusal(path, read_config)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e6, "factor": 1.0},
        {"rope_theta": 5e6, "partial_rotary_factor": 1.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 5e6}},
    ],
)
def test_plain_rope_in_every_form_is_read(folder, rope):
    path = folder("plain")
    edit(path / "config.json", lambda config: config.update(rope_parameters=rope))
    assert read_config(path).rope_theta == 5e6


MIXERS = [
    (None, "mixers: None must be a list"),
    (LONG, "xxx' must be a list"),
    (
        [{"kind": ["hydra"]}] * 3,
        "mixers.0: {'kind': ['hydra']} must be an object with kind ",
    ),
    ([{"kind": "hydra", "fa_heads": LONG}] * 3, "mixers.0.fa_heads: 'xxx"),
    ([{"kind": "hydra", "fa_heads": [0] * 999}] * 3, "layer 0: fa_heads=(0, 0, 0, 0, 0, 0, ...)"),
    ([{"kind": "hydra", "fa_heads": [0], "choices": LONG}] * 3, "mixers.0.choices: 'xxx"),
    ([{"kind": "hydra", "fa_heads": [0], LONG: 1}] * 3, "mixers.0: there is no field 'xxx"),
    (
        [{"kind": "hydra", "fa_heads": [0], "choices": {"log_scale_base": math.nan}}] * 3,
        "log_scale_base=nan must be above 1",
    ),
    ([], "num_hidden_layers is 3 and 'mixers' has 0 layers"),
]


@pytest.mark.parametrize(("mixers", "message"), MIXERS)
def test_impossible_mixers_are_named(folder, mixers, message):
    path = folder("hybrid")
    edit(path / "config.json", lambda config: config.update(mixers=mixers))
    assert message in refusal(path, read_config)


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_not_finite_are_counted(name):
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    limits = jnp.finfo(dtype)
    ordinary = [0.0, -0.0, 1.0, float(limits.max), float(limits.min), float(limits.tiny)]
    array = np.array([ordinary, [*ordinary[:2], np.nan, -np.nan, np.inf, -np.inf]]).astype(dtype)
    assert not_finite(array[:1]) == ""
    assert not_finite(array) == not_finite(array.T) == "2 NaN and 2 infinite of 12 numbers"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["plain", "shards", "hybrid"])
def test_weights_that_are_not_finite_are_named(folder, kind, dtype):
    path = folder(kind)
    file = path / SINGLE
    if kind == "shards":
        file = path / json.loads((path / INDEX).read_text())["weight_map"][DOWN]

    def spoil(weights):
        for weight in weights.values():
            weight.reshape(-1)[:1] = np.inf
        weights[DOWN][0, :3] = np.nan
        return {name: weight.astype(dtype) for name, weight in weights.items() if name == DOWN} | {
            name: weight for name, weight in weights.items() if name != DOWN
        }

    spoiled = len(load_file(file))
    edit_weights(path, spoil, file.name)
    sentence = refusal(path)
    assert sentence.startswith(str(file)) and "infinite of" in sentence
    assert f"and {spoiled - 1} more weights are like it" in sentence or spoiled == 1

    def mend(weights):
        for name, weight in weights.items():
            if name != DOWN:
                weight.reshape(-1)[:1] = 0

    edit_weights(path, mend, file.name)
    size = load_file(file)[DOWN].size
    wanted = f"{file}: {DOWN} has 3 NaN and 0 infinite of {size} numbers; download"
    assert refusal(path).startswith(wanted)
    edit_weights(path, lambda weights: weights[DOWN].__setitem__((0, slice(3)), 0), file.name)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(load_hf(path)[1]))


def test_weights_that_a_dtype_cannot_hold_are_named(folder):
    path = folder("plain")
    edit_weights(path, lambda weights: weights[DOWN].__setitem__((0, 0), 1e5))
    load_hf(path, jnp.bfloat16)
    said = refusal(path, lambda folder: load_hf(folder, jnp.float16))
    assert f"{DOWN} has numbers that float16 cannot hold" in said


@pytest.mark.parametrize("number", [math.nan, 1e5])
def test_a_model_with_numbers_that_are_not_finite_is_not_written(tmp_path, number):
    params = toy.random_params(toy.TEACHER)
    params["final_norm_D"] = params["final_norm_D"].at[3].set(number)
    wanted = f"{int(math.isnan(number))} NaN and {int(not math.isnan(number))} infinite of 32"
    with pytest.raises(UserError, match=f"model.norm.weight in float16 has {wanted} numbers"):
        save_hf_teacher(tmp_path, toy.TEACHER, params, jnp.float16)
    assert not list(tmp_path.iterdir())
