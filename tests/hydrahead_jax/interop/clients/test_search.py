"""Checks decoding over several continuations: beams, assistants, prompt lookup, contrast."""

import pytest

from hydrahead_jax.interop.hf_config import to_hf_config
from tests.hydrahead_jax.interop import toy
from tests.hydrahead_jax.interop.clients.tiny import (
    assert_refused,
    load,
    new_tokens,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch, transformers


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_beams_are_those_without_a_cache(model, options):
    cached = new_tokens(model, padded_batch(), 12, **options)
    assert cached == new_tokens(model, padded_batch(), 12, use_cache=False, **options)


def test_sampled_beams_are_those_without_a_cache(model):
    options = {"num_beams": 3, "do_sample": True}
    torch.manual_seed(0)
    cached = new_tokens(model, padded_batch(), 12, **options)
    torch.manual_seed(0)
    assert cached == new_tokens(model, padded_batch(), 12, use_cache=False, **options)


def right_or_refused(model, match, **options):
    """Checks that options give the greedy tokens, or are refused in one sentence."""
    prompt = {"input_ids": tokens(1, 30).repeat(1, 2)}
    expected = new_tokens(model, prompt, 16, use_cache=False)
    try:
        assert new_tokens(model, prompt, 16, **options) == expected
    except ValueError:
        assert_refused(lambda: new_tokens(model, prompt, 16, **options), match)


def test_assisted_decoding_is_greedy_decoding_or_refused(folder, model):
    right_or_refused(model, "assisted", assistant_model=load(folder))


def test_prompt_lookup_is_greedy_decoding_or_refused(model):
    right_or_refused(model, "assisted|prompt lookup", prompt_lookup_num_tokens=3)


def test_a_hybrid_that_assists_another_model_is_right_or_refused(model):
    settings = transformers.Qwen3Config(**to_hf_config(toy.TEACHER, "float32"))
    target = transformers.Qwen3ForCausalLM(settings).eval()
    target.generation_config = transformers.GenerationConfig(do_sample=False, pad_token_id=0)
    right_or_refused(target, "assist|cropped", assistant_model=model)


def test_contrastive_search_is_refused(model):
    assert_refused(
        lambda: new_tokens(model, {"input_ids": tokens(1, 10)}, 4, penalty_alpha=0.6, top_k=4),
        "[Cc]ontrastive",
    )
