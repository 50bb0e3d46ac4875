"""Defines the gated delta rule: sequential, to be read and compared with.

Computes in float32, or in float64 when the values come in float64.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.gated_delta.segments import state_runs
from pallas_kernels.varying import vary_alike

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def gated_delta_step_reference(
    q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, state_BNHP, *, scale, interpret=False
):
    """Runs one token; see `api.gated_delta_step`."""
    dtype = jnp.promote_types(v_BNP.dtype, jnp.float32)
    group = v_BNP.shape[1] // k_BKH.shape[1]
    q_BNH = jnp.repeat(q_BKH, group, axis=1).astype(dtype)
    k_BNH = jnp.repeat(k_BKH, group, axis=1).astype(dtype)
    state_BNHP = state_BNHP * jnp.exp(log_decay_BN)[..., None, None]
    read_BNP = _einsum("BNHP,BNH->BNP", state_BNHP, k_BNH)
    write_BNP = beta_BN[..., None] * (v_BNP.astype(dtype) - read_BNP)
    state_BNHP = state_BNHP + _einsum("BNH,BNP->BNHP", k_BNH, write_BNP)
    out_BNP = scale * _einsum("BNHP,BNH->BNP", state_BNHP, q_BNH)
    return out_BNP.astype(v_BNP.dtype), state_BNHP


def gated_delta_reference(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    log_decay_BTN,
    beta_BTN,
    state_BNHP,
    segment_ids_BT=None,
    *,
    problem: Problem,
):
    """Runs a `lax.scan` over time; see `api.gated_delta`."""
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones(q_BTKH.shape[:2], jnp.int32)
    runs_BT = state_runs(segment_ids_BT)
    starts_BT = jnp.diff(runs_BT, axis=1, prepend=0) > 0

    def step(state_BNHP, token):
        q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, starts_B, real_B = token
        before_BNHP = jnp.where(starts_B[:, None, None, None], 0.0, state_BNHP)
        out_BNP, after_BNHP = gated_delta_step_reference(
            q_BKH, k_BKH, v_BNP, log_decay_BN, beta_BN, before_BNHP, scale=problem.scale
        )
        state_BNHP = jnp.where(real_B[:, None, None, None], after_BNHP, before_BNHP)
        return state_BNHP, jnp.where(real_B[:, None, None], out_BNP, 0.0)

    tokens = (q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, starts_BT, segment_ids_BT != 0)
    state_BNHP, *tokens = vary_alike(state_BNHP, *tokens)
    time_first = tuple(jnp.moveaxis(x, 1, 0) for x in tokens)
    state_BNHP, out_TBNP = jax.lax.scan(step, state_BNHP, time_first)
    return jnp.moveaxis(out_TBNP, 0, 1), state_BNHP
