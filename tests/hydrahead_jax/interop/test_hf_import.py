"""Reads Hugging Face folders: formats, dtypes, and every way in which one can be wrong."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import load_hf, save_hf_teacher
from hydrahead_jax.interop.hf_export import write_model
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.hf_folder import DOWN, INDEX, edit_config, edit_weights


@pytest.fixture
def params():
    return toy.random_params(toy.TEACHER)


@pytest.fixture
def folder(tmp_path, params):
    save_hf_teacher(tmp_path, toy.TEACHER, params)
    return tmp_path


def in_bfloat16(params):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


@pytest.mark.parametrize("config", toy.TIED_AND_UNTIED, ids=["tied", "untied"])
def test_bfloat16_is_kept(tmp_path, config):
    params = toy.random_params(config)
    save_hf_teacher(tmp_path, config, params)
    loaded_config, loaded = load_hf(tmp_path)
    assert loaded_config == config
    assert toy.same_tree(loaded, in_bfloat16(params))


def test_dtype_may_be_asked_for(folder, params):
    _, loaded = load_hf(folder, jnp.float32)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), in_bfloat16(params))
    assert toy.same_tree(loaded, rounded)


def test_float32_is_exact(tmp_path, params):
    save_hf_teacher(tmp_path, toy.TEACHER, params, dtype=jnp.float32)
    assert toy.same_tree(load_hf(tmp_path)[1], params)


def test_shards_hold_the_same_as_one_file(tmp_path, folder):
    _, params = load_hf(folder)
    shards = tmp_path / "shards"
    save_hf_teacher(shards, toy.TEACHER, params, shard_bytes=4000)
    assert len(list(shards.glob("model-*-of-*.safetensors"))) > 3
    assert toy.same_tree(load_hf(shards)[1], params)
    sizes = [path.stat().st_size for path in shards.glob("model-*.safetensors")]
    assert json.loads((shards / INDEX).read_text())["metadata"]["total_size"] < sum(sizes)


def test_saving_again_leaves_nothing_of_the_first_time(folder, params):
    (folder / "tokenizer.json").write_text("{}")
    save_hf_teacher(folder, toy.TEACHER, params, shard_bytes=4000)
    assert not (folder / "model.safetensors").exists()
    save_hf_teacher(folder, toy.TEACHER, params)
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize("config", toy.HYBRIDS.values(), ids=toy.HYBRIDS)
def test_hybrid_is_read_back(tmp_path, config):
    params = toy.random_params(config)
    write_model(tmp_path, config, params, jnp.float32)
    loaded_config, loaded = load_hf(tmp_path)
    assert loaded_config == config
    assert toy.same_tree(loaded, params)


def test_what_bfloat16_would_spoil_stays_float32(tmp_path):
    params = toy.random_params(toy.MIXED)
    write_model(tmp_path, toy.MIXED, params, jnp.bfloat16)
    for dtype in (None, jnp.bfloat16):
        gdn = load_hf(tmp_path, dtype)[1]["layers"][0]["mixer"]["gdn"]
        for name in ("a_log_N", "dt_bias_N", "gamma_N"):
            assert (gdn[name] == params["layers"][0]["mixer"]["gdn"][name]).all()
            assert gdn[name].dtype == jnp.float32
        assert gdn["w_a_DN"].dtype == jnp.bfloat16


def test_missing_unused_and_misshaped_weights_are_listed_together(folder):
    def change(weights):
        del weights["model.norm.weight"]
        weights["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
        weights[DOWN] = weights[DOWN].T.copy()
        name = "model.layers.0.input_layernorm.weight"
        weights[name] = weights[name].astype(np.int32)

    edit_weights(folder, change)
    with pytest.raises(UserError) as caught:
        load_hf(folder)
    message = str(caught.value)
    assert "missing weights: model.norm.weight; unused weights: model.layers.7.mlp.up_" in message
    assert message.endswith("; and more; download it again") and len(message) < 300
    edit_weights(folder, lambda weights: weights.update({"model.norm.weight": np.ones(32)}))
    edit_weights(folder, lambda weights: weights.__delitem__("model.layers.7.mlp.up_proj.weight"))
    with pytest.raises(UserError) as caught:
        load_hf(folder)
    message = str(caught.value)
    assert f"wrong shapes: {DOWN} is (48, 32) in place of (32, 48)" in message
    assert re.search("(; and more|weight is I32 and 1 more); download it again$", message)


def test_missing_shard_is_named_with_other_problems(tmp_path, params):
    save_hf_teacher(tmp_path, toy.TEACHER, params, shard_bytes=4000)
    index = json.loads((tmp_path / INDEX).read_text())
    shard = index["weight_map"][DOWN]
    (tmp_path / shard).unlink()
    edit_config(tmp_path, vocab_size=98)
    with pytest.raises(UserError) as caught:
        load_hf(tmp_path)
    message = str(caught.value)
    assert f"missing files: {shard} (" in message
    assert "model.embed_tokens.weight is (97, 32) in place of (98, 32)" in message
    assert "missing weights" not in message


@pytest.mark.parametrize("kept", [0, 5, 2000])
def test_truncated_file_is_one_sentence(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model.safetensors is not a readable safetensors file"):
        load_hf(folder)


def test_folder_without_weights_or_config(tmp_path, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds neither model\.safetensors nor"):
        load_hf(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        load_hf(folder)
    with pytest.raises(UserError, match=r"there is no folder .*nothing; check the path$"):
        load_hf(tmp_path / "nothing")
    (folder / "config.json").write_text('{"model_type"')
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_hf(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json must hold a JSON object"):
        load_hf(folder)


def test_hybrid_is_not_saved_as_a_teacher(tmp_path):
    config = dataclasses.replace(toy.TEACHER, mixers=toy.MIXED.mixers)
    with pytest.raises(UserError, match="layers without full attention"):
        save_hf_teacher(tmp_path, config, toy.random_params(config))
