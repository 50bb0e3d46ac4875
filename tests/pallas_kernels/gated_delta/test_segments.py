"""Checks runs of tokens that share a state."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.gated_delta.segments import state_runs


def test_a_run_ends_where_another_document_starts():
    ids = [
        [1, 1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0, 1],
        [1, 1, 2, 2, 2, 3],
        [5, 0, 0, 5, 0, 6],
        [0, 1, 0, 2, 2, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    wanted = [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 2],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(state_runs(jnp.array(ids)), wanted)
