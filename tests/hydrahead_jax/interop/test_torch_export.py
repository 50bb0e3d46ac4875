"""Checks that an exported model in PyTorch computes what ours computes."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.interop import check_parity, export_torch, load_hf, parity, torch_export
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.with_torch import load, torch, transformers

ATOL = 1e-4
NEW_TOKENS = 24


def batch():
    """Returns rows of 72 tokens, more than a chunk; the second row begins with 13 of padding."""
    tokens_BT = toy.random_tokens(toy.MIXED, 2, 72)
    real_BT = np.ones_like(tokens_BT)
    real_BT[1, :13] = 0
    return tokens_BT, real_BT


def as_torch(tokens_BT, real_BT):
    return {"input_ids": torch.tensor(tokens_BT), "attention_mask": torch.tensor(real_BT)}


def greedy(model, tokens_BT, real_BT, **options):
    model.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    inputs = as_torch(tokens_BT, real_BT)
    out_BT = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **options)
    return out_BT[:, tokens_BT.shape[1] :].numpy()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return toy.write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_exporter_compares_logits_and_64_greedy_tokens(tmp_path, tokenizer):
    params = toy.random_params(toy.MIXED)
    report = export_torch(tmp_path / "out", toy.MIXED, params, tokenizer)
    assert 0 < report.max_abs_logit_difference <= ATOL
    assert report.parity.greedy_tokens_equal
    assert report.parity.new_tokens == 64
    assert "generation gives the same 64 tokens" in str(report)
    assert "the same 64 tokens" in (tmp_path / "out" / "README.md").read_text()
    other = toy.random_params(toy.MIXED, seed=1)
    parity = check_parity(tmp_path / "out", toy.MIXED, other)
    assert parity.max_abs_logit_difference > 0.1
    assert not parity.greedy_tokens_equal


def test_exporter_compares_a_native_hybrid(tmp_path, tokenizer):
    params = toy.random_params(toy.NATIVE_HYBRID)
    report = export_torch(tmp_path / "out", toy.NATIVE_HYBRID, params, tokenizer)
    assert 0 < report.max_abs_logit_difference <= ATOL
    assert report.parity.greedy_tokens_equal and report.parity.new_tokens == 64
    card = (tmp_path / "out" / "README.md").read_text()
    assert "1 of 4 layers see all tokens" in card and "delta rule" not in card
    assert "| 1 | all tokens | 4 | True | 8.0 |\n| 2 | 0 | 3 | True | 2.0 |" in card
    assert "Layers 3 have value_silu=True, output_norm=True, qk_norm=False." in card
    config, loaded = load_hf(tmp_path / "out")
    assert config == toy.NATIVE_HYBRID and toy.same_tree(loaded, params)


@pytest.mark.parametrize("config", toy.HYBRIDS.values(), ids=toy.HYBRIDS)
def test_every_choice(tmp_path, tokenizer, monkeypatch, config):
    """Logits equal ours; generation with a cache equals PyTorch's own without one."""
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    params = toy.random_params(config)
    export_torch(tmp_path / "out", config, params, tokenizer)
    model = load(tmp_path / "out")
    tokens_BT, real_BT = batch()
    with torch.inference_mode():
        theirs_BTV = model(**as_torch(tokens_BT, real_BT)).logits.numpy()
    ours_BTV = toy.logits(config, params, tokens_BT, real_BT)
    assert np.ptp(ours_BTV) > 1
    np.testing.assert_allclose(ours_BTV[real_BT == 1], theirs_BTV[real_BT == 1], atol=ATOL, rtol=0)
    cached_BT = greedy(model, tokens_BT, real_BT)
    np.testing.assert_array_equal(cached_BT, greedy(model, tokens_BT, real_BT, use_cache=False))


def test_tokenizer_loads_from_the_export(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(torch_export, "torch_is_installed", lambda: False)
    export_torch(tmp_path / "out", toy.MIXED, toy.random_params(toy.MIXED), tokenizer)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.eos_token_id == 96
    assert load(tmp_path / "out").generation_config.eos_token_id == 96


def test_the_check_of_a_rounded_export_is_as_exact(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(parity, "_WORDS", 40)
    params = toy.random_params(toy.MIXED)
    report = export_torch(tmp_path / "out", toy.MIXED, params, tokenizer, dtype=jnp.bfloat16)
    assert 0 < report.max_abs_logit_difference <= ATOL
    unrounded = check_parity(tmp_path / "out", toy.MIXED, params)
    assert unrounded.max_abs_logit_difference > 10 * report.max_abs_logit_difference
