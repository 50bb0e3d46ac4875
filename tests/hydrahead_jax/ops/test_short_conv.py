"""Compares the short convolution with one loop over tokens and taps."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.short_conv import short_conv
from tests.tolerances import OP, assert_close

TAPS = 4


def naive(x_BTNH, weight_WNH, tail_BWNH, segment_ids_BT, tail_ids_BW):
    inputs = np.concatenate([tail_BWNH, x_BTNH], axis=1)
    ids = np.concatenate([tail_ids_BW, segment_ids_BT], axis=1)
    out = np.zeros_like(x_BTNH)
    for b, t in np.ndindex(x_BTNH.shape[:2]):
        now = t + TAPS - 1
        for back in range(TAPS):
            if ids[b, now] != 0 and ids[b, now - back] == ids[b, now]:
                out[b, t] += weight_WNH[TAPS - 1 - back] * inputs[b, now - back]
    return out


def make(length, ids, tail_ids, seed=0):
    rng = np.random.default_rng(seed)
    batch = len(ids)
    arrays = (
        rng.normal(size=(batch, length, 2, 3)),
        rng.normal(size=(TAPS, 2, 3)),
        rng.normal(size=(batch, TAPS - 1, 2, 3)),
    )
    return (*(x.astype(np.float32) for x in arrays), np.array(ids), np.array(tail_ids))


@pytest.mark.parametrize(
    ("ids", "tail_ids"),
    [
        ([[1] * 9, [2] * 9], [[0, 0, 0], [2, 2, 2]]),
        ([[0, 0, 1, 1, 1, 2, 2, 3, 3], [1, 2, 3, 4, 4, 4, 4, 0, 0]], [[1, 1, 1], [0, 0, 1]]),
        ([[1], [0]], [[0, 1, 1], [1, 1, 1]]),
    ],
    ids=["one document", "packed and padded", "one token"],
)
def test_equals_the_loop(ids, tail_ids):
    arrays = make(len(ids[0]), ids, tail_ids)
    assert_close(short_conv(*map(jnp.asarray, arrays)), naive(*arrays), OP)


@pytest.mark.parametrize("split", range(1, 9))
def test_the_tail_continues_a_sequence(split):
    x, weight, tail, ids, tail_ids = make(9, [[1] * 9], [[0, 0, 0]])
    whole = short_conv(*map(jnp.asarray, (x, weight, tail, ids, tail_ids)))
    padded, padded_ids = np.concatenate([tail, x], 1), np.concatenate([tail_ids, ids], 1)
    second = short_conv(
        *map(
            jnp.asarray,
            (
                x[:, split:],
                weight,
                padded[:, split : split + TAPS - 1],
                ids[:, split:],
                padded_ids[:, split : split + TAPS - 1],
            ),
        )
    )
    assert_close(second, whole[:, split:], OP)
