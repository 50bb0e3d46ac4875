"""Defines softmax attention: every score at once, to be read and compared with.

Computes in float32, or in float64 when the queries come in float64.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments, Visibility, visible_BTS

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def attention_reference(
    q_BTNH, k_BSKH, v_BSKH, *, q_start, segments: Segments | None, problem: Problem
):
    """Returns `api.attention`'s output [B, T, N, H] and log-sum-exp [B, T, N]."""
    seen_BTS = visible_BTS(problem.visibility, problem.T, problem.S, q_start, segments)
    out_BTNH, lse_BTN = _softmax_attention(q_BTNH, k_BSKH, v_BSKH, seen_BTS, problem)
    return out_BTNH.astype(q_BTNH.dtype), lse_BTN


def attention_decode_reference(
    q_BNH, k_BSKH, v_BSKH, lengths_B, *, segments: Segments | None, problem: Problem
):
    """Returns `api.attention_decode`'s output [B, N, H] and log-sum-exp [B, N]."""
    seen_BTS = problem.visibility(lengths_B[:, None, None] - 1, jnp.arange(problem.S))
    if segments is not None:
        seen_BTS &= visible_BTS(Visibility(causal=False), 1, problem.S, 0, segments)
    out_BTNH, lse_BTN = _softmax_attention(q_BNH[:, None], k_BSKH, v_BSKH, seen_BTS, problem)
    return out_BTNH[:, 0].astype(q_BNH.dtype), lse_BTN[:, 0]


def _softmax_attention(q_BTNH, k_BSKH, v_BSKH, seen_BTS, problem: Problem):
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    heads = jnp.array(problem.kv_head_of_query)
    q_BTNH, k_BSKH, v_BSKH = (x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH))
    k_BSNH, v_BSNH = k_BSKH[:, :, heads], v_BSKH[:, :, heads]
    seen_BTNS = seen_BTS[:, :, None, :]
    scores_BTNS = problem.scale * _einsum("BTNH,BSNH->BTNS", q_BTNH, k_BSNH)
    scores_BTNS = jnp.where(seen_BTNS, scores_BTNS, -jnp.inf)
    seen_BTN = jnp.any(jnp.broadcast_to(seen_BTNS, scores_BTNS.shape), axis=-1)
    peak_BTN = jnp.where(seen_BTN, jnp.max(scores_BTNS, axis=-1), 0.0)
    peak_BTN = jax.lax.stop_gradient(peak_BTN)
    weights_BTNS = jnp.exp(scores_BTNS - peak_BTN[..., None])
    total_BTN = jnp.where(seen_BTN, jnp.sum(weights_BTNS, axis=-1), 1.0)
    weights_BTNS = weights_BTNS / total_BTN[..., None]
    lse_BTN = jnp.where(seen_BTN, peak_BTN + jnp.log(total_BTN), -jnp.inf)
    return _einsum("BTNS,BSNH->BTNH", weights_BTNS, v_BSNH), lse_BTN
