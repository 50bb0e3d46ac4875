"""Computes native hybrid attention of one call's tokens, after those in a layer's state or not."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from hydrahead_jax.config import NativeHybrid
from hydrahead_jax.mixers.parallel import native_hybrid_on
from hydrahead_jax.mixers.types import Stream
from hydrahead_jax.ops.rope import rope
from pallas_kernels import native_hybrid_attention, native_hybrid_attention_step
from pallas_kernels.slot_attention.state import SlotState


def attend_slots(
    inputs,
    kv_head_of_query: tuple[int, ...],
    stream: Stream,
    state: SlotState | None,
    choices: NativeHybrid,
    *,
    rope_theta: float,
):
    """Returns heads [B, T, N, H], the state after T tokens, and two log-sum-exps [B, T, N].

    The state holds keys without rotary embedding. The window's are rotated whenever they are read,
    which takes less time than reading rotated copies from memory.

    Args:
      inputs: (q, k, v, log_forget), queries and keys without rotary embedding.
    """
    turn = functools.partial(rope, theta=rope_theta)
    settings = {"kv_head_of_query": kv_head_of_query, "sinks": choices.sinks}
    if stream.layout is None and state is not None:
        one = inputs[0].shape[1] == 1
        run = _step if one else functools.partial(_after_state, window=choices.window)
        return run(inputs, turn, stream, state, settings)
    rotated = tuple(turn(x, stream.positions_BT) for x in inputs[:2])
    settings |= {"window": choices.window, "rotated": rotated}
    if stream.layout is not None:
        out_BTNH, *lse = native_hybrid_on(stream.layout, inputs, stream, **settings)
        return out_BTNH, None, lse
    found = native_hybrid_attention(*inputs, segment_ids_BT=stream.segment_ids_BT, **settings)
    return found.out_BTNH, None, (found.slots_lse_BTN, found.window_lse_BTN)


def _after_state(
    inputs, turn: Callable, stream: Stream, state: SlotState, settings: dict, *, window: int
):
    """Runs several tokens; those that wait stand before them in the window."""
    q_BTNH, k_BTKH, *_ = inputs
    k_BSKH, positions_BS = _with_waiting(k_BTKH, stream, state)
    found = native_hybrid_attention(
        *inputs,
        window=window,
        rotated=(turn(q_BTNH, stream.positions_BT), turn(k_BSKH, positions_BS)),
        state=state,
        segment_ids_BT=stream.segment_ids_BT,
        **settings,
    )
    return found.out_BTNH, found.state, (found.slots_lse_BTN, found.window_lse_BTN)


def _step(inputs, turn: Callable, stream: Stream, state: SlotState, settings: dict):
    """Runs one token, the last of its window."""
    q_B1NH, k_B1KH, *_ = inputs
    k_BSKH, positions_BS = _with_waiting(k_B1KH, stream, state)
    found = native_hybrid_attention_step(
        *(x[:, 0] for x in inputs),
        state,
        rotated=(turn(q_B1NH, stream.positions_BT)[:, 0], turn(k_BSKH[:, 1:], positions_BS[:, 1:])),
        real_B=stream.segment_ids_BT[:, 0] != 0,
        **settings,
    )
    lse = (found.slots_lse_BTN[:, None], found.window_lse_BTN[:, None])
    return found.out_BTNH[:, None], found.state, lse


def _with_waiting(k_BTKH, stream: Stream, state: SlotState):
    """Returns keys and positions of the waiting tokens and of these; the former end at these."""
    earlier_BW = stream.positions_BT[:, :1] + jnp.arange(-state.waits_BW.shape[1], 0)
    k_BSKH = jnp.concatenate([state.k_waiting_BWKH.astype(k_BTKH.dtype), k_BTKH], axis=1)
    return k_BSKH, jnp.concatenate([earlier_BW, stream.positions_BT], axis=1)
