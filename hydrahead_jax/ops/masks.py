"""Reads from segment ids where a token stands."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from pallas_kernels.gated_delta.segments import state_runs


def segment_positions(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns the position of each token in its segment, from 0.

    Padding has position 0 and is not counted.
    """
    real_BT = segment_ids_BT != 0
    count_BT = jnp.cumsum(real_BT, axis=1) - 1
    starts_BT = jnp.diff(state_runs(segment_ids_BT), axis=1, prepend=0) != 0
    first_BT = jax.lax.cummax(jnp.where(starts_BT & real_BT, count_BT, 0), axis=1)
    return jnp.where(real_BT, count_BT - first_BT, 0)
