"""Brings segment ids into the form that the delta rule needs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


def state_runs(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Numbers the stretches of tokens that share one recurrent state, from 0.

    Padding (id 0) takes the number of the token before it, so it never ends a run; the first
    token that is not padding has number 0, the run of the initial state.
    """
    T = segment_ids_BT.shape[1]
    last_real_BT = jax.lax.cummax(jnp.where(segment_ids_BT != 0, jnp.arange(T), -1), axis=1)
    filled_BT = jnp.take_along_axis(segment_ids_BT, jnp.maximum(last_real_BT, 0), axis=1)
    filled_BT = jnp.where(last_real_BT < 0, 0, filled_BT)
    previous_BT = jnp.pad(filled_BT, ((0, 0), (1, 0)))[:, :-1]
    return jnp.cumsum((filled_BT != previous_BT) & (previous_BT != 0), axis=1)
