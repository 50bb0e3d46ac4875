"""Defines what slot attention carries from one token to the next."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SlotState(NamedTuple):
    """Carries the slots, and the tokens that no step has written yet.

    Attributes:
      k_slots_BKMH: keys of the slots, float32.
      v_slots_BKMH: values of the slots, float32.
      written_B: whether the slots hold a token of the present segment.
      k_waiting_BWKH: keys of the last W positions, the oldest first; W is the op's `shift`.
      v_waiting_BWKH: values of these positions.
      log_forget_waiting_BWKM: forget gates of these positions, float32.
      waits_BW: whether a token of the present segment stands at these positions.
    """

    k_slots_BKMH: jax.Array
    v_slots_BKMH: jax.Array
    written_B: jax.Array
    k_waiting_BWKH: jax.Array
    v_waiting_BWKH: jax.Array
    log_forget_waiting_BWKM: jax.Array
    waits_BW: jax.Array


def empty_state(k_BTKH, v_BTKH, log_forget_BTKM, shift: int) -> SlotState:
    """Returns the state before the first token, for arrays of these shapes and dtypes."""
    B, _, K, H = k_BTKH.shape
    M = log_forget_BTKM.shape[-1]
    dtype = jnp.promote_types(v_BTKH.dtype, jnp.float32)
    return SlotState(
        k_slots_BKMH=jnp.zeros((B, K, M, H), dtype),
        v_slots_BKMH=jnp.zeros((B, K, M, H), dtype),
        written_B=jnp.zeros(B, bool),
        k_waiting_BWKH=jnp.zeros((B, shift, K, H), k_BTKH.dtype),
        v_waiting_BWKH=jnp.zeros((B, shift, K, H), v_BTKH.dtype),
        log_forget_waiting_BWKM=jnp.zeros((B, shift, K, M), dtype),
        waits_BW=jnp.zeros((B, shift), bool),
    )
