"""Checks saving, loading, dtypes, copies, and the auto classes."""

import copy
import json
import pickle

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    CONFIG,
    assert_close,
    load,
    logits,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch, transformers

FLOAT32 = ("a_log", "dt_bias", "gamma")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard_size", ["5GB", "40KB"])
def test_a_saved_model_is_the_same_bit_by_bit(folder, tmp_path, dtype, shard_size):
    model = load(folder, dtype=dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    again = load(tmp_path, dtype="auto")
    first, second = model.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert weight.dtype == second[name].dtype, name
        assert torch.equal(weight, second[name]), name
    assert torch.equal(logits(model, **padded_batch()), logits(again, **padded_batch()))
    assert (tmp_path / "modeling_hydrahead.py").is_file()
    assert "AutoModelForCausalLM" in json.loads((tmp_path / "config.json").read_text())["auto_map"]


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
def test_bfloat16_keeps_some_parameters_in_float32(folder, argument):
    if argument == "torch_dtype" and not accepts_torch_dtype(folder):
        pytest.skip("this transformers has no torch_dtype any more")
    model = load(folder, **{argument: torch.bfloat16})
    for name, weight in model.named_parameters():
        kept = name.rsplit(".", 1)[-1] in FLOAT32
        assert weight.dtype == (torch.float32 if kept else torch.bfloat16), name
    exact = logits(load(folder), **padded_batch())
    with torch.inference_mode():
        made = model(**padded_batch(), use_cache=True)
    out = made.logits
    assert out.dtype == torch.bfloat16
    assert made.past_key_values.layers[0].recurrent_states[0].dtype == torch.float32
    real = padded_batch()["attention_mask"] == 1
    difference = (out.float() - exact)[real]
    assert difference.square().mean() < 0.05**2 * exact[real].var()


def accepts_torch_dtype(folder) -> bool:
    try:
        load(folder, torch_dtype=torch.bfloat16)
    except TypeError:
        return False
    return True


def test_dtype_auto_is_that_of_the_folder(folder, tmp_path):
    assert load(folder, dtype="auto").dtype == torch.float32
    load(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    again = load(tmp_path, dtype="auto")
    assert again.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert again.model.layers[0].self_attn.gdn.a_log.dtype == torch.float32


def test_auto_model_is_the_decoder_without_its_head(folder, model):
    decoder = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        hidden = decoder(**padded_batch(), use_cache=False).last_hidden_state
        assert_close(model.lm_head(hidden), logits(model, **padded_batch()))


def test_auto_config_and_tokenizer(folder):
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert config.model_type == "hydrahead"
    assert config.num_hidden_layers == CONFIG.layers
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer("w5 w7")["input_ids"] == [5, 7]


def test_config_can_be_pickled_and_copied(model):
    for again in (pickle.loads(pickle.dumps(model.config)), copy.deepcopy(model.config)):
        assert again.to_dict() == model.config.to_dict()
        again_model = type(model)(again)
        again_model.load_state_dict(model.state_dict())
        assert_close(logits(again_model.eval(), tokens(1, 5)), logits(model, tokens(1, 5)))


def test_a_copy_is_the_same_and_lives_on_its_own(model):
    other = copy.deepcopy(model)
    expected = logits(model, **padded_batch())
    assert torch.equal(logits(other, **padded_batch()), expected)
    with torch.no_grad():
        other.model.layers[0].self_attn.gdn.a_log.add_(1)
    assert torch.equal(logits(model, **padded_batch()), expected)
    assert not torch.equal(logits(other, **padded_batch()), expected)


def test_embeddings_can_be_resized(model, tmp_path):
    expected = logits(model, **padded_batch())
    model.resize_token_embeddings(104, mean_resizing=False)
    assert model.config.vocab_size == 104
    assert_close(logits(model, **padded_batch())[..., :97], expected)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    assert_close(logits(load(tmp_path), **padded_batch())[..., :97], expected)
    labels = torch.full((1, 9), 103)
    assert torch.isfinite(model(labels, labels=labels).loss)
