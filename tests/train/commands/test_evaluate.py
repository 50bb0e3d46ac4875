"""Runs `python -m train evaluate` on a Hugging Face folder with its own tokenizer."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer

from hydrahead_jax.errors import UserError
from hydrahead_jax.interop import save_hf_teacher
from hydrahead_jax.models import abstract_params
from tests.hydrahead_jax.evals.tokenizers import digit_splitting
from tests.train.small import TEACHER, write_texts
from train.commands.evaluate import evaluate_saved
from train.data.tokenizer import END_OF_TEXT


@pytest.fixture
def stock(tmp_path):
    """Writes a model whose tokenizer has no needle symbols, and is set to cut long texts off."""
    tokenizer = Tokenizer.from_str(digit_splitting().to_str())
    tokenizer.add_special_tokens([END_OF_TEXT])
    config = dataclasses.replace(TEACHER, vocab=tokenizer.get_vocab_size(), max_length=512)
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    params = jax.tree.map(draw, abstract_params(config))
    save_hf_teacher(tmp_path / "stock", config, params, jnp.float32)
    tokenizer.enable_truncation(50)
    tokenizer.save(str(tmp_path / "stock" / "tokenizer.json"))
    return tmp_path / "stock"


def test_a_stock_model_is_asked_in_the_words_of_ruler(stock, tmp_path):
    settings = ("lengths=(600,)", "documents=1", "batch=1", "reply=2", "text_windows=1")
    settings += ("kv_cache=fp8",)
    text, said = write_texts(tmp_path / "text"), []
    out = tmp_path / "report.json"
    report = evaluate_saved(stock, settings, text, out=out, say=said.append)
    assert json.loads(json.dumps(report)) == json.loads(said[0]) == json.loads(out.read_text())
    assert report["settings"]["template"] == "auto" and report["settings"]["kv_cache"] == "fp8"
    assert report["niah_multikey_2"] == {"600": 0.0} and report["text_loss"] > 1
    with pytest.raises(UserError, match="niah_single_1: 99 tokens are too few"):
        evaluate_saved(stock, ("lengths=(99,)",), text)
    with pytest.raises(UserError, match="niah_single: the tokenizer has no <key_00>"):
        evaluate_saved(stock, ("lengths=(600,)", "template=symbols"), text)
    with pytest.raises(
        UserError, match="template: 'nosuch' must be one of 'auto', 'symbols', 'ruler'"
    ):
        evaluate_saved(stock, ("template=nosuch",), text)
    with pytest.raises(UserError, match="there is no format 'int3'; use one of bf16, fp8"):
        evaluate_saved(stock, ("kv_cache=int3",), text)
