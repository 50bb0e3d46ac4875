"""Compares our teacher with transformers' Qwen3ForCausalLM, on random weights, both ways."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.interop import load_hf, save_hf_teacher
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.with_torch import torch, transformers

ATOL = 1e-4


def torch_logits(model, tokens_BT, real_BT):
    with torch.inference_mode():
        mask = torch.tensor(real_BT)
        return model(input_ids=torch.tensor(tokens_BT), attention_mask=mask).logits.numpy()


def assert_same_logits(config, params, model):
    tokens_BT = toy.random_tokens(config, 2, 24)
    real_BT = np.ones_like(tokens_BT)
    real_BT[1, :7] = 0
    theirs_BTV = torch_logits(model, tokens_BT, real_BT)
    ours_BTV = toy.logits(config, params, tokens_BT, real_BT)
    assert np.ptp(theirs_BTV) > 1
    np.testing.assert_allclose(ours_BTV[real_BT == 1], theirs_BTV[real_BT == 1], atol=ATOL, rtol=0)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("max_shard_size", ["50GB", "8KB"], ids=["single", "sharded"])
def test_import(tmp_path, tied, max_shard_size):
    torch.manual_seed(0)
    settings = transformers.Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = transformers.Qwen3ForCausalLM(settings).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=1.0, std=0.2)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    config, params = load_hf(tmp_path)
    assert config == dataclasses.replace(toy.TEACHER, tied_embeddings=tied)
    assert_same_logits(config, params, model)


@pytest.mark.parametrize("config", toy.TIED_AND_UNTIED, ids=["tied", "untied"])
@pytest.mark.parametrize("shard_bytes", [10**9, 8000], ids=["single", "sharded"])
def test_export(tmp_path, config, shard_bytes):
    params = toy.random_params(config)
    save_hf_teacher(tmp_path, config, params, dtype=jnp.float32, shard_bytes=shard_bytes)
    model, report = transformers.Qwen3ForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.dtype == torch.float32
    assert_same_logits(config, params, model.eval())


def test_bfloat16_weights_are_the_same_numbers(tmp_path):
    params = toy.random_params(toy.TEACHER)
    save_hf_teacher(tmp_path, toy.TEACHER, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    _, ours = load_hf(tmp_path)
    theirs = model.model.embed_tokens.weight.float().detach().numpy()
    np.testing.assert_array_equal(np.asarray(ours["w_embed_VD"], np.float32), theirs)
