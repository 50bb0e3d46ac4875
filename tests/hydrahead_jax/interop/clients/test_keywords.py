"""Checks that forward ignores no keyword: each is computed, or refused by name."""

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    assert_close,
    assert_refused,
    load,
    logits,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch


@pytest.mark.parametrize(
    "name",
    ["no_such_argument", "token_type_ids", "head_mask", "encoder_hidden_states", "pixel_values"],
)
def test_an_unknown_keyword_is_named(model, name):
    assert_refused(lambda: model(tokens(1, 5), **{name: torch.ones(1, 5)}), name)
    assert_refused(lambda: model.model(tokens(1, 5), **{name: torch.ones(1, 5)}), name)


@pytest.mark.parametrize("how", ["argument", "config"])
def test_attention_weights_are_right_or_refused(model, how):
    options = {"output_attentions": True} if how == "argument" else {}
    if how == "config":
        try:
            model.config.output_attentions = True
        except ValueError:
            return
    try:
        out = model(tokens(1, 5), **options)
    except ValueError:
        assert_refused(lambda: model(tokens(1, 5), **options), "output_attentions")
    else:
        assert out.attentions and all(weights is not None for weights in out.attentions)


def test_hidden_states_are_given_when_asked_for(model):
    batch = padded_batch()
    with torch.inference_mode():
        plain = model(**batch, use_cache=False)
        out = model(**batch, use_cache=False, output_hidden_states=True)
        assert plain.hidden_states is None
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        assert_close(out.hidden_states[0], model.get_input_embeddings()(batch["input_ids"]))
        assert_close(model.lm_head(out.hidden_states[-1]), plain.logits)
        seen = []
        layer = model.model.layers[0]
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
        model(**batch, use_cache=False)
    after_first = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert_close(out.hidden_states[1], after_first)


@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_implementations_agree(folder, model, kind):
    other = load(folder, attn_implementation=kind)
    real = padded_batch()["attention_mask"] == 1
    assert_close(logits(other, **padded_batch())[real], logits(model, **padded_batch())[real])
    assert_close(logits(other, tokens(1, 80)), logits(model, tokens(1, 80)))


def test_a_missing_attention_implementation_is_refused(folder):
    with pytest.raises((ValueError, ImportError)):
        load(folder, attn_implementation="no_such_implementation")


def test_a_mask_of_four_dimensions_is_right_or_refused(model):
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    assert_refused(lambda: model(tokens(1, 5), attention_mask=mask), "attention_mask")
