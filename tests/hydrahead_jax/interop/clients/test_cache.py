"""Checks the cache: several turns, its operations, and the kinds of cache that do not suit."""

import copy

import pytest

from tests.hydrahead_jax.interop.clients.tiny import (
    assert_close,
    assert_refused,
    is_newer_than,
    logits,
    new_tokens,
    padded_batch,
    tokens,
)
from tests.hydrahead_jax.interop.with_torch import torch, transformers

NAMES = ["past_key_values", *(["cache"] if is_newer_than("5.24") else [])]


def prefill(model, input_ids, **inputs):
    with torch.inference_mode():
        return model(input_ids=input_ids, use_cache=True, **inputs).past_key_values


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_several_turns_on_one_cache(model, name):
    """Each turn passes all of the conversation so far, of which the cache holds a part."""
    conversation, alone, cache = tokens(1, 40), tokens(1, 40), None
    for turn in range(3):
        question = tokens(1, 7, seed=turn + 1)
        conversation = torch.cat([conversation, question], dim=1)
        alone = torch.cat([alone, question], dim=1)
        out = model.generate(
            conversation,
            attention_mask=torch.ones_like(conversation),
            max_new_tokens=9,
            return_dict_in_generate=True,
            **({} if cache is None else {name: cache}),
        )
        conversation, cache = out.sequences, getattr(out, NAMES[-1])
        alone = model.generate(alone, max_new_tokens=9, use_cache=False)
        assert conversation.tolist() == alone.tolist()


@pytest.mark.parametrize("name", NAMES)
def test_forward_takes_each_name_of_the_cache(model, name):
    batch = tokens(2, 50)
    cache = prefill(model, batch[:, :40])
    assert cache.get_seq_length() == 40
    actual = logits(model, batch[:, 40:], use_cache=True, **{name: cache})
    assert_close(actual, logits(model, batch)[:, 40:])
    assert cache.get_seq_length() == 50


@pytest.mark.parametrize("name", NAMES)
def test_output_has_the_cache_by_each_name(model, name):
    with torch.inference_mode():
        out = model(tokens(1, 5), use_cache=True)
        assert getattr(out, name).get_seq_length() == 5
        assert getattr(model(tokens(1, 5), use_cache=False), name) is None


def test_rows_of_a_cache_can_be_picked_and_repeated(model):
    batch = tokens(3, 50)
    expected = logits(model, batch)[:, 40:]
    cache = prefill(model, batch[:, :40])
    cache.batch_select_indices(torch.tensor([2, 0]))
    rest = batch[[2, 0], 40:]
    assert_close(logits(model, rest, past_key_values=cache), expected[[2, 0]])
    cache = prefill(model, batch[:, :40])
    cache.batch_repeat_interleave(2)
    rest = batch[:, 40:].repeat_interleave(2, dim=0)
    assert_close(logits(model, rest, past_key_values=cache), expected.repeat_interleave(2, dim=0))
    cache = prefill(model, batch[:, :40])
    cache.reorder_cache(torch.tensor([1, 1, 0]))
    rest = batch[[1, 1, 0], 40:]
    assert_close(logits(model, rest, past_key_values=cache), expected[[1, 1, 0]])


def test_padding_moves_with_its_rows(model):
    batch = padded_batch()
    expected = logits(model, **batch)[:, -9:]
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache = prefill(model, ids[:, :-9], attention_mask=mask[:, :-9])
    cache.reorder_cache(torch.tensor([1, 0]))
    inputs = {"attention_mask": mask[[1, 0]], "past_key_values": cache}
    assert_close(logits(model, ids[[1, 0], -9:], **inputs), expected[[1, 0]])


def test_a_reset_cache_is_an_empty_one(model):
    batch = tokens(2, 50)
    cache = prefill(model, tokens(2, 30, seed=1))
    cache.reset()
    assert cache.get_seq_length() == 0
    assert_close(logits(model, batch, past_key_values=cache), logits(model, batch))


def test_a_copied_cache_lives_on_its_own(model):
    batch = tokens(1, 50)
    cache = prefill(model, batch[:, :40])
    other = copy.deepcopy(cache)
    logits(model, batch[:, :7], past_key_values=other)
    assert_close(logits(model, batch[:, 40:], past_key_values=cache), logits(model, batch)[:, 40:])


def test_crop_is_refused(model):
    cache = prefill(model, tokens(1, 40))
    for count in (30, -5):
        assert_refused(lambda count=count: cache.crop(count), "crop|roll|state")


class Stream:
    """Replaces the stream of an accelerator, to and from which caches are offloaded."""

    def __enter__(self):
        return self

    def __exit__(self, *details):
        return None

    def wait_stream(self, other):
        return None


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_offloaded_cache_is_right(model, monkeypatch, options):
    if not torch.accelerator.is_available():
        monkeypatch.setattr(torch, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: Stream())
    moved = []
    offload = transformers.DynamicCache.offload
    monkeypatch.setattr(
        transformers.DynamicCache,
        "offload",
        lambda self, layer, *args, **kwargs: (
            moved.append(layer),
            offload(self, layer, *args, **kwargs),
        ),
    )
    expected = new_tokens(model, padded_batch(), 12, **options)
    options["cache_implementation"] = "offloaded"
    assert new_tokens(model, padded_batch(), 12, **options) == expected
    assert {0, 1} <= set(moved)


@pytest.mark.parametrize("kind", ["static", "offloaded_static", "quantized"])
def test_other_caches_are_refused(model, kind):
    assert_refused(
        lambda: new_tokens(model, padded_batch(), 4, cache_implementation=kind),
        f"cache_implementation='{kind}' is not supported",
    )
    config = transformers.GenerationConfig(cache_implementation=kind)
    assert_refused(
        lambda: new_tokens(model, padded_batch(), 4, generation_config=config), f"'{kind}' is not"
    )


def test_dynamic_cache_by_name_is_the_usual_one(model):
    expected = new_tokens(model, padded_batch(), 8)
    actual = new_tokens(model, padded_batch(), 8, cache_implementation="dynamic")
    assert actual == expected


def test_a_static_cache_object_is_refused(model):
    static = transformers.StaticCache(config=model.config, max_cache_len=64)
    assert_refused(
        lambda: logits(model, tokens(1, 5), past_key_values=static), "past_key_values|cache"
    )


@pytest.mark.parametrize("with_config", [True, False])
def test_a_dynamic_cache_object_is_right(model, with_config):
    """Users write `past_key_values=DynamicCache(config=model.config)`, and without the config."""
    batch = tokens(1, 50)
    cache = transformers.DynamicCache(**{"config": model.config} if with_config else {})
    logits(model, batch[:, :40], past_key_values=cache, use_cache=True)
    assert_close(logits(model, batch[:, 40:], past_key_values=cache), logits(model, batch)[:, 40:])


def test_continuous_batching_is_right_or_refused(model):
    prompts = [row.tolist() for row in tokens(2, 12)]
    assert_refused(
        lambda: model.generate_batch(inputs=prompts, progress_bar=False), "continuous batching"
    )
