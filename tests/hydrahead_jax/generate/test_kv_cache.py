"""Checks generation with a KV cache in few bits."""

import dataclasses

import numpy as np

from hydrahead_jax.evals import text_loss
from hydrahead_jax.generate import api, generate
from hydrahead_jax.mixers import attend
from pallas_kernels import KV_FORMATS, attention_decode
from tests.hydrahead_jax.models.toy import WIDE_HEADS, random_params
from tests.tolerances import OP

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14]]
ULTRAQUANT = KV_FORMATS["ultraquant"]


def run(kv_cache=None) -> list[list[int]]:
    """Reads the longest prompt in two chunks of 4."""
    settings = {"max_new_tokens": 8, "prefill_chunk": 4, "kv_cache": kv_cache}
    return generate(WIDE_HEADS, random_params(WIDE_HEADS), PROMPTS, **settings)


def test_a_format_of_few_bits_changes_replies_and_the_usual_one_compiles_nothing():
    plain, compiled = run(), api._run._cache_size()
    assert run("bf16") == run([None]) == run({}) == plain
    assert api._run._cache_size() == compiled
    packed = run("ultraquant")
    assert [len(reply) for reply in packed] == [8, 8, 8] and packed != plain


def test_kernels_get_as_many_slots_as_they_take(monkeypatch):
    slots, config = [], dataclasses.replace(WIDE_HEADS, max_length=WIDE_HEADS.max_length + 1)

    def decode(q_BNH, *, cache, **settings):
        slots.append(cache.shape[1])
        return attention_decode(q_BNH, cache=cache, **settings)

    monkeypatch.setattr(attend, "attention_decode", decode)
    settings = {"max_new_tokens": 3, "kv_cache": "ultraquant"}
    generate(config, random_params(config), PROMPTS, **settings)
    assert slots and set(slots) == {48}


def test_text_loss_reads_what_is_stored():
    text = np.random.default_rng(0).integers(WIDE_HEADS.vocab, size=50)
    measure = lambda kv_cache: (
        text_loss(
            WIDE_HEADS, random_params(WIDE_HEADS), text, length=24, windows=3, kv_cache=kv_cache
        ).mean
    )
    plain, exact = measure(None), measure(dataclasses.replace(ULTRAQUANT, sinks=24))
    assert abs(exact - plain) < OP * plain
