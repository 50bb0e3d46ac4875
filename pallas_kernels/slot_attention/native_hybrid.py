"""Defines native hybrid attention: one softmax over a window of tokens and the slots before it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.merge import merge
from pallas_kernels.slot_attention.api import slot_attention
from pallas_kernels.slot_attention.state import SlotState


def native_hybrid_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    log_forget_BTKM: Float[Array, "B T K M"],
    *,
    window: int,
    rotated: tuple[Float[Array, "B T N H"], Float[Array, "B T K H"]] | None = None,
    kv_head_of_query: tuple[int, ...] | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    sinks: bool = True,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"], SlotState]:
    """Attends to the nearest `window` tokens and, in the same softmax, to slots of those before.

    `attention` over the window and `slot_attention` with `shift=window`, merged by their
    log-sum-exps (arXiv 2510.07019). A window of 0 leaves the slots alone; one of T or more is
    softmax attention with M keys of logit 0 and value 0 beside the tokens.

    Args:
      window: tokens that the window sees, the query's own included; 0 for none.
      rotated: queries and keys of the window, with rotary embedding; those of the slots if None.

    Other arguments, results and errors as `slot_attention`.

    Returns:
      The output in the dtype of v, the log-sum-exp over window and slots, and the state of the
      slots after the last token.

    Raises:
      ValueError: the window is negative, or as `slot_attention`.
    """
    if window < 0:
        raise ValueError(f"window={window}; a window sees 0 tokens or more")
    shared = {
        "kv_head_of_query": kv_head_of_query,
        "segment_ids_BT": segment_ids_BT,
        "scale": scale,
    }
    out_BTNH, lse_BTN, state = slot_attention(
        q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, shift=window, sinks=sinks, **shared
    )
    if not window:
        return out_BTNH, lse_BTN, state
    q_rotated_BTNH, k_rotated_BTKH = rotated or (q_BTNH, k_BTKH)
    seen_BTNH, seen_lse_BTN = attention(
        q_rotated_BTNH,
        k_rotated_BTKH,
        v_BTKH,
        window=window,
        return_lse=True,
        **shared,
    )
    both = jnp.stack([out_BTNH, seen_BTNH]), jnp.stack([lse_BTN, seen_lse_BTN])
    return *merge(*both), state
