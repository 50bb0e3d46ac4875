"""Masks and positions against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from hydrahead_jax.ops.masks import attention_mask, segment_positions

IDS = [
    [1, 1, 1, 1, 1, 1],
    [0, 0, 1, 1, 1, 1],
    [1, 1, 2, 2, 2, 3],
    [1, 1, 0, 2, 2, 0],
    [0, 1, 0, 1, 2, 0],
    [0, 0, 0, 0, 0, 0],
]


@pytest.mark.parametrize("start", [0, 2])
def test_a_query_sees_earlier_keys_of_its_segment(start):
    """With a start, the keys before the queries come from a cache."""
    keys_BS = np.array(IDS)
    ids_BT = keys_BS[:, start:]
    B, T, S = len(IDS), ids_BT.shape[1], keys_BS.shape[1]
    wanted = np.zeros((B, T, S), bool)
    for b, t, s in np.ndindex(wanted.shape):
        query, key = ids_BT[b, t], keys_BS[b, s]
        wanted[b, t, s] = query != 0 and query == key and s <= t + start
    found = attention_mask(jnp.asarray(ids_BT), jnp.asarray(keys_BS), start)
    np.testing.assert_array_equal(found, wanted)


def test_positions_count_the_tokens_of_a_segment():
    wanted = [
        [0, 1, 2, 3, 4, 5],
        [0, 0, 0, 1, 2, 3],
        [0, 1, 0, 1, 2, 0],
        [0, 1, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(segment_positions(jnp.array(IDS)), wanted)
