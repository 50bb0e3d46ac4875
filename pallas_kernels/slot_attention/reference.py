"""Defines gated slot attention: sequential, to be read and compared with.

Computes in float32, or in float64 when the values come in float64.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.segments import state_runs
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.share import written_share
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.varying import vary_alike

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def slot_attention_reference(
    q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state: SlotState, segment_ids_BT, *, problem: Problem
):
    """Runs a `lax.scan` over time; see `api.slot_attention`."""
    T = q_BTNH.shape[1]
    real_BT = segment_ids_BT != 0
    runs_BT = state_runs(segment_ids_BT)
    last_B1 = jnp.max(jnp.where(real_BT, jnp.arange(T), -1), axis=1, keepdims=True)
    ended_BT = jnp.arange(T) > last_B1

    def step(carry, token):
        state, run_B = carry
        *arrays, token_run_B, real_B, ended_B = token
        before = forget(state, token_run_B != run_B)
        out_BNH, lse_BN, after = slot_attention_step_reference(
            *arrays, before, real_B, problem=problem
        )
        after = jax.tree.map(lambda old, new: _where(ended_B, old, new), state, after)
        return (after, token_run_B), (out_BNH, lse_BN)

    tokens = (q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, runs_BT, real_BT, ended_BT)
    carry = (state, jnp.zeros_like(runs_BT[:, 0]))
    carry, tokens = vary_alike(carry, tokens)
    time_first = tuple(jnp.moveaxis(x, 1, 0) for x in tokens)
    (state, _), results = jax.lax.scan(step, carry, time_first)
    return *(jnp.moveaxis(x, 0, 1) for x in results), state


def forget(state: SlotState, starts_B) -> SlotState:
    """Returns the state without the tokens of an earlier segment, where a segment starts."""
    zeros = {
        name: _where(starts_B, jnp.zeros_like(x), x)
        for name, x in state._asdict().items()
        if name in ("k_slots_BKMH", "v_slots_BKMH", "written_B", "waits_BW")
    }
    return state._replace(**zeros)


def slot_attention_step_reference(
    q_BNH, k_BKH, v_BKH, log_forget_BKM, state: SlotState, real_B, *, problem: Problem
):
    """Runs one token; see `api.slot_attention_step`."""
    state, leaving = push(state, k_BKH, v_BKH, log_forget_BKM, real_B)
    state = write(state, *leaving)
    dtype = state.v_slots_BKMH.dtype
    heads = jnp.array(problem.kv_head_of_query)
    k_BNMH, v_BNMH = state.k_slots_BKMH[:, heads], state.v_slots_BKMH[:, heads]
    scores_BNM = problem.scale * _einsum("BNH,BNMH->BNM", q_BNH.astype(dtype), k_BNMH)
    seen_B11 = (real_B if problem.sinks else real_B & state.written_B)[:, None, None]
    scores_BNM = jnp.where(seen_B11, scores_BNM, 0.0)
    lse_BN1 = jax.nn.logsumexp(scores_BNM, axis=-1, keepdims=True)
    out_BNH = _einsum("BNM,BNMH->BNH", jnp.exp(scores_BNM - lse_BN1), v_BNMH)
    out_BNH = jnp.where(seen_B11, out_BNH, 0.0).astype(v_BKH.dtype)
    return out_BNH, jnp.where(seen_B11, lse_BN1, -jnp.inf)[..., 0], state


def push(state: SlotState, k_BKH, v_BKH, log_forget_BKM, real_B):
    """Adds a position to those that wait, and returns the one that has waited longest."""
    new = (k_BKH, v_BKH, log_forget_BKM, real_B)
    waiting = state[3:]
    longer = [jnp.concatenate([x, y[:, None]], axis=1) for x, y in zip(waiting, new, strict=True)]
    return SlotState(*state[:3], *(x[:, 1:] for x in longer)), [x[:, 0] for x in longer]


def write(state: SlotState, k_BKH, v_BKH, log_forget_BKM, waits_B) -> SlotState:
    """Writes one token to the slots, where one stands there."""
    log_forget_BKM = jnp.where(waits_B[:, None, None], log_forget_BKM, 0.0)
    keep_BKM1 = jnp.exp(log_forget_BKM)[..., None]
    share_BKM1 = written_share(log_forget_BKM)[..., None]
    add = lambda slots, x: keep_BKM1 * slots + share_BKM1 * x[:, :, None].astype(slots.dtype)
    return state._replace(
        k_slots_BKMH=add(state.k_slots_BKMH, k_BKH),
        v_slots_BKMH=add(state.v_slots_BKMH, v_BKH),
        written_B=state.written_B | waits_B,
    )


def _where(chosen_B, x, y):
    return jnp.where(chosen_B.reshape(-1, *[1] * (x.ndim - 1)), x, y)
