"""Checks positions in a segment."""

import jax.numpy as jnp
import numpy as np

from hydrahead_jax.ops.masks import segment_positions

IDS = [
    [1, 1, 1, 1, 1, 1],
    [0, 0, 1, 1, 1, 1],
    [1, 1, 2, 2, 2, 3],
    [1, 1, 0, 2, 2, 0],
    [0, 1, 0, 1, 2, 0],
    [0, 0, 0, 0, 0, 0],
]


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
