"""Reads weights as others write them: to the same numbers, or refused in one short sentence."""

import json
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf, read_config, save_hf_teacher
from hydrahead_jax.interop.not_finite import not_finite
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.hf_folder import DOWN, INDEX, SINGLE, edit, edit_weights, refusal

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def without_prefix(weights):
    return {name.removeprefix("model."): weight for name, weight in weights.items()}


def test_weights_of_the_model_without_its_head_are_read(copied, made):
    path = copied("plain")
    edit_weights(path, without_prefix)
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    path = copied("untied")
    edit_weights(path, without_prefix)
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "untied")[1])
    edit_weights(path, lambda w: {name: w[name] for name in w if name != HEAD})
    assert "missing weights: lm_head.weight" in refusal(path)


def test_shards_without_prefix_are_read(copied, made):
    path = copied("shards")
    for file in path.glob("*.safetensors"):
        edit_weights(path, without_prefix, file.name)
    edit(path / INDEX, lambda index: {"weight_map": without_prefix(index["weight_map"])})
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    lost = json.loads((path / INDEX).read_text())["weight_map"][DOWN.removeprefix("model.")]
    (path / lost).unlink()
    assert f"missing files: {lost} (" in (sentence := refusal(path))
    assert "missing weights" not in sentence


def test_a_weight_with_and_without_prefix_is_refused(copied):
    path = copied("plain")
    edit_weights(path, lambda weights: {"norm.weight": weights["model.norm.weight"], **weights})
    sentence = refusal(path)
    assert "norm.weight" in sentence and "remove one of the two" in sentence


def test_other_prefixes_are_named(copied):
    path = copied("plain")
    edit_weights(path, lambda w: {f"_orig_mod.{name}": weight for name, weight in w.items()})
    sentence = refusal(path)
    assert "missing weights: model.embed_tokens.weight and 23 more" in sentence
    assert "unused weights: _orig_mod.model.embed_tokens.weight and 23 more" in sentence


def test_an_index_may_name_a_tied_head_that_its_shard_does_not_hold(copied, made):
    path = copied("shards")
    first = json.loads((path / INDEX).read_text())["weight_map"][EMBED]
    edit(path / INDEX, lambda index: index["weight_map"].update({HEAD: first}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])


def test_a_tied_head_may_be_equal_and_not_differ(copied, made):
    path = copied("plain")
    edit_weights(path, lambda weights: weights.update({HEAD: weights[EMBED].copy()}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])
    edit_weights(path, lambda weights: weights.update({HEAD: weights[EMBED] + 1}))
    assert "holds lm_head.weight with other numbers than the embeddings" in refusal(path)


@pytest.mark.parametrize(
    "file", ["../model-1.safetensors", "/elsewhere/x.safetensors", "", ".", 1, None]
)
def test_an_index_that_points_out_of_the_folder_is_refused(copied, file):
    path = copied("shards")
    edit(path / INDEX, lambda index: index["weight_map"].update({DOWN: file}))
    assert f"puts {DOWN} into" in refusal(path)


def test_a_shard_under_two_names_is_one(copied, made):
    path = copied("shards")
    edit(path / INDEX, lambda i: i["weight_map"].update({DOWN: "./" + i["weight_map"][DOWN]}))
    assert toy.same_tree(load_hf(path)[1], load_hf(made / "plain")[1])


def test_a_weight_in_two_shards_is_refused(copied):
    path = copied("shards")
    shards = sorted(file.name for file in path.glob("*.safetensors"))
    weights = load_file(path / shards[0])
    edit_weights(path, lambda found: found.update(weights), shards[-1])
    sentence = refusal(path)
    assert f"holds {next(iter(weights))}" in sentence and shards[0] in sentence


def test_a_weight_that_no_index_names_is_named(copied):
    path = copied("shards")
    shard = sorted(file.name for file in path.glob("*.safetensors"))[0]
    edit_weights(path, lambda weights: weights.update({"extra": np.zeros(3, np.float32)}), shard)
    assert refusal(path).endswith("unused weights: extra; download it again")


def test_names_of_any_length_are_shown_in_short(copied):
    path = copied("shards")
    edit(path / INDEX, lambda fields: fields["weight_map"].update({"w\n" * 300: "x" * 400}))
    assert "missing files: xxx" in refusal(path)


def test_weights_behind_a_broken_link_are_named(copied):
    path = copied("plain")
    (path / SINGLE).unlink()
    (path / SINGLE).symlink_to("../../blobs/0f")
    assert f"{path / SINGLE} is a link that leads nowhere" in refusal(path)


def test_many_more_layers_than_weights_are_refused_at_once(copied):
    path = copied("plain")
    edit(path / "config.json", lambda fields: fields | {"num_hidden_layers": 4000})
    assert "there are 4000 layers and 24 weights" in refusal(path)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float64, ml_dtypes.float8_e4m3fn])
def test_number_formats_that_are_not_read_are_named(copied, dtype):
    path = copied("plain")
    edit_weights(path, lambda weights: weights.update({DOWN: weights[DOWN].astype(dtype)}))
    assert f"unsupported number formats: {DOWN} is " in refusal(path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model-q4.gguf", "adapter_model.safetensors"]
)
def test_other_weight_files_are_named(copied, name):
    path = copied("plain")
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
def test_weights_that_are_not_finite_are_named(copied, kind, dtype):
    path = copied(kind)
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


def test_weights_that_a_dtype_cannot_hold_are_named(copied):
    path = copied("plain")
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
