"""Computes gradients of one part of the keys in plain JAX, by blocks and by their definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.chunked import backward, choose_block
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments, visible_BTS
from pallas_kernels.varying import vary_alike

_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def attention_gradients_chunked(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    out_BTNH,
    lse_BTN,
    dout_BTNH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
):
    """Computes `gradients.attention_gradients` by blocks."""
    length = choose_block(q_BTNH.shape[0] * q_BTNH.shape[2])
    total_BTN = (lse_BTN > -jnp.inf).astype(lse_BTN.dtype)
    start = jnp.asarray(q_start, jnp.int32)
    saved = vary_alike(q_BTNH, k_BSKH, v_BSKH, start, segments, out_BTNH, lse_BTN, total_BTN)
    return backward(problem, length, saved, (dout_BTNH, jnp.zeros_like(lse_BTN)))[:3]


def attention_gradients_reference(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    out_BTNH,
    lse_BTN,
    dout_BTNH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
):
    """Computes `gradients.attention_gradients` from all weights at once, in float32 or float64."""
    dtypes = q_BTNH.dtype, k_BSKH.dtype, v_BSKH.dtype
    dtype = jnp.promote_types(q_BTNH.dtype, jnp.float32)
    q, k, v, out, dout = (x.astype(dtype) for x in (q_BTNH, k_BSKH, v_BSKH, out_BTNH, dout_BTNH))
    reads_NK = jnp.asarray(np.eye(k.shape[2])[list(problem.kv_head_of_query)], dtype)
    k_BSNH, v_BSNH = (_einsum("BSKH,NK->BSNH", x, reads_NK) for x in (k, v))
    seen_BTS = visible_BTS(problem.visibility, problem.T, problem.S, q_start, segments)
    seen_BTNS = seen_BTS[:, :, None, :] & (lse_BTN > -jnp.inf)[..., None]
    scores_BTNS = problem.scale * _einsum("BTNH,BSNH->BTNS", q, k_BSNH)
    scores_BTNS = jnp.where(seen_BTNS, scores_BTNS - lse_BTN[..., None], -jnp.inf)
    weights_BTNS = jnp.exp(scores_BTNS)
    passed_BTNS = _einsum("BTNH,BSNH->BTNS", dout, v_BSNH)
    delta_BTN1 = jnp.sum(out * dout, axis=-1, keepdims=True)
    dscores_BTNS = problem.scale * weights_BTNS * (passed_BTNS - delta_BTN1)
    dq_BTNH = _einsum("BTNS,BSNH->BTNH", dscores_BTNS, k_BSNH)
    dk_BSKH = _einsum("BTNS,BTNH,NK->BSKH", dscores_BTNS, q, reads_NK)
    dv_BSKH = _einsum("BTNS,BTNH,NK->BSKH", weights_BTNS, dout, reads_NK)
    return tuple(x.astype(t) for x, t in zip((dq_BTNH, dk_BSKH, dv_BSKH), dtypes, strict=True))
