"""Tests that a packed cache holds the same whichever way its tokens came."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import KV_FORMATS, KVFormat, PackedKV
from pallas_kernels.kv_cache.fp8 import Fp8
from pallas_kernels.kv_cache.int4 import Int4
from pallas_kernels.kv_cache.raw import Raw
from pallas_kernels.kv_cache.turboquant import TurboQuant4
from pallas_kernels.kv_cache.ultraquant import UltraQuant

B, S, K, H = 2, 9, 3, 32
FORMATS = [
    KVFormat(keys=UltraQuant(), values=UltraQuant(rotated=False), sinks=2, recent=3),
    KVFormat(keys=TurboQuant4(), values=Int4(), recent=4),
    KVFormat(keys=Raw(), values=Fp8(), sinks=1),
    KV_FORMATS["bf16"],
]
formats = pytest.mark.parametrize("format", FORMATS, ids=lambda x: f"{x.keys}-{x.values}")
PADDING = np.array([0, 4])  # slots before the first token of each row


def tokens(seed: int = 0):
    k, v = np.random.default_rng(seed).normal(size=(2, B, S, K, H)).astype(np.float32)
    return jnp.asarray(k), jnp.asarray(v)


append = jax.jit(PackedKV.append)
decoded = jax.jit(lambda cache: cache.decoded(jnp.float32))


def filled(format, steps, *, dtype=jnp.float32, padding=PADDING) -> PackedKV:
    """Returns a cache to which S tokens were appended in steps of these sizes."""
    cache, start = PackedKV.empty(format, B, S, K, H, dtype), 0
    k, v = tokens()
    for size in steps:
        new = slice(start, start + size)
        real_BT = np.arange(S)[new] >= padding[:, None]
        cache = append(cache, k[:, new], v[:, new], start, real_BT)
        start += size
    return cache


@functools.cache
def at_once(format) -> PackedKV:
    return filled(format, [S])


@pytest.mark.parametrize(
    ("format", "steps"), [*((format, (1,) * S) for format in FORMATS), (FORMATS[0], (4, 1, 4))]
)
def test_tokens_appended_in_steps_are_stored_as_all_at_once(format, steps):
    jax.tree.map(np.testing.assert_array_equal, filled(format, steps), at_once(format))


@formats
def test_sinks_and_recent_tokens_are_read_as_given_and_all_others_encoded(format):
    """Sinks are counted from the first token of a row, not from its padding."""
    found, given = decoded(at_once(format)), tokens()
    encoded = [
        jax.jit(lambda x, side=side: side.decode(side.encode(x)))(x)
        for side, x in zip((format.keys, format.values), given, strict=True)
    ]
    slots_S = np.arange(S)
    is_sink_BS = (slots_S >= PADDING[:, None]) & (slots_S < PADDING[:, None] + format.sinks)
    is_raw_BS = is_sink_BS | (slots_S >= S - format.recent)
    for x_BSKH, raw_BSKH, low_BSKH in zip(found, given, encoded, strict=True):
        wanted = np.where(is_raw_BS[..., None, None], raw_BSKH, low_BSKH)
        np.testing.assert_allclose(x_BSKH, wanted, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(x_BSKH)[is_raw_BS], wanted[is_raw_BS])


def test_a_cache_that_is_written_again_from_an_earlier_slot():
    """What the ring has lost is read encoded; what was written later is gone."""
    format, (k, _), (other_k, other_v) = FORMATS[0], tokens(), tokens(1)
    cache = filled(format, (4, 1, 4), padding=np.zeros(2))
    ones = np.ones((B, 1), bool)
    cache = append(cache, other_k[:, 7:8], other_v[:, 7:8], 7, ones)
    assert (cache.raw.since, cache.raw.length) == (6, 8)
    np.testing.assert_array_equal(cache.raw.slots_BX(), [[0, 1, 6, 7, -1]] * B)
    found_k, _ = decoded(cache)
    np.testing.assert_array_equal(found_k[:, [0, 1, 6]], k[:, [0, 1, 6]])
    np.testing.assert_array_equal(found_k[:, 7], other_k[:, 7])
    cache = append(cache, other_k[:, :1], other_v[:, :1], 0, ones)
    np.testing.assert_array_equal(cache.raw.slots_BX(), [[0, -1, -1, -1, -1]] * B)


def test_a_row_that_has_no_token_yet_has_no_sinks():
    cache, (k, v) = PackedKV.empty(FORMATS[0], B, S, K, H), tokens()
    cache = append(cache, k[:, :4], v[:, :4], 0, np.array([[True] * 4, [False] * 4]))
    np.testing.assert_array_equal(cache.raw.slots_BX(), [[0, 1, 3, -1, 2], [-1] * 5])


def test_pick_keeps_the_heads_that_are_named():
    """Keys as given, encoded values and sinks have their heads at different axes."""
    cache = at_once(FORMATS[2])
    picked = cache.pick((2, 0))
    assert picked.shape == (B, S, 2, H)
    for x, complete in zip(decoded(picked), decoded(cache), strict=True):
        np.testing.assert_array_equal(x, complete[:, :, [2, 0]])


def test_slots_are_those_of_the_release():
    format, (k, v) = FORMATS[0], tokens()
    slots = np.asarray(jax.jit(PackedKV.slots)(at_once(format)))
    parts = jax.jit(lambda k, v: (*format.keys.encode(k), *format.values.encode(v)))(k, v)
    np.testing.assert_array_equal(slots, np.concatenate(parts, axis=-1))
    for head_dim, size in ((128, 136), (256, 272)):
        empty = PackedKV.empty(format, B, S, K, head_dim)
        found = jax.eval_shape(PackedKV.slots, empty)
        assert (found.shape, found.dtype) == ((B, S, K, size), np.uint8)


def test_a_donated_cache_is_written_in_place():
    cache, (k, v) = jax.tree.map(jnp.copy, at_once(FORMATS[2])), tokens()
    arguments = cache, k[:, :1], v[:, :1], jnp.int32(8)
    update = jax.jit(PackedKV.append, donate_argnums=0).lower(*arguments).compile()
    stored = sum(x.nbytes for x in (*cache.keys, *cache.values))
    assert update.memory_analysis().alias_size_in_bytes >= stored
    assert update(*arguments).shape == (B, S, K, H)
    assert all(x.is_deleted() for x in (*cache.keys, *cache.values))
