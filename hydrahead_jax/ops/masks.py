"""Who may attend to whom."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.gated_delta.segments import state_runs


def attention_mask(
    segment_ids_BT: Int[Array, "B T"], key_segment_ids_BS: Int[Array, "B S"], start: int | Array
) -> Bool[Array, "B T S"]:
    """Causal within a segment. `start` is the index of query 0 among the keys; id 0 is padding."""
    T, S = segment_ids_BT.shape[1], key_segment_ids_BS.shape[1]
    causal_TS = jnp.arange(S) <= start + jnp.arange(T)[:, None]
    same_BTS = segment_ids_BT[:, :, None] == key_segment_ids_BS[:, None, :]
    return causal_TS & same_BTS & (segment_ids_BT != 0)[:, :, None]


def segment_positions(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Position of each token in its segment, from 0; padding has position 0 and is not counted."""
    real_BT = segment_ids_BT != 0
    count_BT = jnp.cumsum(real_BT, axis=1) - 1
    starts_BT = jnp.diff(state_runs(segment_ids_BT), axis=1, prepend=0) != 0
    first_BT = jax.lax.cummax(jnp.where(starts_BT & real_BT, count_BT, 0), axis=1)
    return jnp.where(real_BT, count_BT - first_BT, 0)
