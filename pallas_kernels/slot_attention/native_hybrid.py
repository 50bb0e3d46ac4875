"""Defines native hybrid attention: one softmax over a window of tokens and the slots before it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.api import attention, attention_decode
from pallas_kernels.attention.merge import merge
from pallas_kernels.slot_attention.api import slot_attention, slot_attention_step
from pallas_kernels.slot_attention.state import SlotState


class HybridResults(NamedTuple):
    """Carries the results of native hybrid attention; a step's have no T.

    Attributes:
      out_BTNH: the output, in the dtype of v.
      lse_BTN: log-sum-exp over window and slots, float32.
      state: slots and waiting tokens after the last token.
      slots_lse_BTN: log-sum-exp over the slots; exp(slots_lse - lse) is their share of the softmax.
      window_lse_BTN: log-sum-exp over the window.
    """

    out_BTNH: jax.Array
    lse_BTN: jax.Array
    state: SlotState
    slots_lse_BTN: jax.Array
    window_lse_BTN: jax.Array


def native_hybrid_attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    log_forget_BTKM: Float[Array, "B T K M"],
    *,
    window: int,
    rotated: tuple[Float[Array, "B T N H"], Float[Array, "B S K H"]] | None = None,
    kv_head_of_query: tuple[int, ...] | None = None,
    state: SlotState | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    sinks: bool = True,
) -> HybridResults:
    """Attends to the nearest `window` tokens and, in the same softmax, to slots of those before.

    `attention` over the window and `slot_attention` with `shift=window`, merged by their
    log-sum-exps (arXiv 2510.07019). A window of 0 leaves the slots alone; one of T or more is
    softmax attention with M keys of logit 0 and value 0 beside the tokens.

    Args:
      window: tokens that the window sees, the query's own included; 0 for none.
      rotated: queries and keys of the window, with rotary embedding; those of the slots if None.
        With a state the keys of its waiting positions stand before those of the tokens.
      state: as in `slot_attention`; the window sees its waiting tokens.

    Other arguments and errors as `slot_attention`.

    Raises:
      ValueError: the window is negative, or as `slot_attention`.
    """
    if window < 0:
        raise ValueError(f"window={window}; a window sees 0 tokens or more")
    shared = {"kv_head_of_query": kv_head_of_query, "scale": scale}
    *slots, after = slot_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        log_forget_BTKM,
        shift=window,
        state=state,
        segment_ids_BT=segment_ids_BT,
        sinks=sinks,
        **shared,
    )
    if not window:
        return _slots_alone(slots, after)
    keys, ids_BS = (k_BTKH, v_BTKH), segment_ids_BT
    if state is not None:
        waiting = (state.k_waiting_BWKH, state.v_waiting_BWKH)
        keys = [
            jnp.concatenate([x.astype(y.dtype), y], 1) for x, y in zip(waiting, keys, strict=True)
        ]
        segment_ids_BT, ids_BS = _with_waiting(segment_ids_BT, state, q_BTNH.shape[1])
    q_rotated_BTNH, k_rotated_BSKH = rotated or (q_BTNH, keys[0])
    seen = attention(
        q_rotated_BTNH,
        k_rotated_BSKH,
        keys[1],
        window=window,
        segment_ids_BT=segment_ids_BT,
        kv_segment_ids_BS=ids_BS,
        q_start=0 if state is None else window,
        return_lse=True,
        **shared,
    )
    return _merged(slots, seen, after)


def native_hybrid_attention_step(
    q_BNH: Float[Array, "B N H"],
    k_BKH: Float[Array, "B K H"],
    v_BKH: Float[Array, "B K H"],
    log_forget_BKM: Float[Array, "B K M"],
    state: SlotState,
    *,
    rotated: tuple[Float[Array, "B N H"], Float[Array, "B W K H"]] | None = None,
    kv_head_of_query: tuple[int, ...] | None = None,
    real_B: Bool[Array, "B"] | None = None,
    scale: float | None = None,
    sinks: bool = True,
) -> HybridResults:
    """Runs `native_hybrid_attention` for one token of the state's segment, the decode step.

    The window is as long as the state has waiting positions: after the step these are the window.

    Args:
      rotated: query, and keys of the last W positions, the present one included; those of the slots
        if None.
      real_B: False for rows whose token is padding.

    Other arguments, results and errors as `slot_attention_step`.
    """
    shared = {"kv_head_of_query": kv_head_of_query, "scale": scale}
    *slots, after = slot_attention_step(
        q_BNH, k_BKH, v_BKH, log_forget_BKM, state, real_B=real_B, sinks=sinks, **shared
    )
    B, window = after.waits_BW.shape
    if not window:
        return _slots_alone(slots, after)
    q_rotated_BNH, k_rotated_BWKH = rotated or (q_BNH, after.k_waiting_BWKH)
    seen = attention_decode(
        q_rotated_BNH,
        k_rotated_BWKH,
        after.v_waiting_BWKH.astype(v_BKH.dtype),
        jnp.full(B, window),
        segment_ids_B=after.waits_BW[:, -1].astype(jnp.int32),
        kv_segment_ids_BS=after.waits_BW.astype(jnp.int32),
        return_lse=True,
        **shared,
    )
    return _merged(slots, seen, after)


def _with_waiting(segment_ids_BT, state: SlotState, T: int):
    """Returns the segments of the queries, and of the waiting positions and the tokens."""
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((state.waits_BW.shape[0], T), jnp.int32)
    first_B1 = jnp.argmax(segment_ids_BT != 0, axis=1, keepdims=True)
    own_B1 = jnp.take_along_axis(segment_ids_BT, first_B1, axis=1)
    waiting_BW = jnp.where(state.waits_BW, own_B1, 0)
    return segment_ids_BT, jnp.concatenate([waiting_BW, segment_ids_BT], axis=1)


def _slots_alone(slots, state: SlotState) -> HybridResults:
    out_BTNH, lse_BTN = slots
    return HybridResults(out_BTNH, lse_BTN, state, lse_BTN, jnp.full_like(lse_BTN, -jnp.inf))


def _merged(slots, seen, state: SlotState) -> HybridResults:
    (slots_BTNH, slots_lse_BTN), (seen_BTNH, seen_lse_BTN) = slots, seen
    both = jnp.stack([slots_BTNH, seen_BTNH]), jnp.stack([slots_lse_BTN, seen_lse_BTN])
    return HybridResults(*merge(*both), state, slots_lse_BTN, seen_lse_BTN)
