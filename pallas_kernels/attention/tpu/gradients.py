"""Computes the gradients of one part of the keys by the backward TPU kernel alone."""

import jax.numpy as jnp

from pallas_kernels.attention.tpu.op import fill, heads_apart, prepare, side_by_side
from pallas_kernels.attention.tpu.rule import gradients


def attention_gradients_tpu(q_BTNH, k_BSKH, v_BSKH, out_BTNH, lse_BTN, dout_BTNH, **arguments):
    """Computes `gradients.attention_gradients`; refuses what `attention_tpu` does.

    The kernel's weights are 2^(scale log2(e) (s - m) - log2 l), with lse = scale m and l = 1.
    """
    problem, blocks, *arrays, ids, starts = prepare(q_BTNH, k_BSKH, v_BSKH, **arguments)
    queries = blocks.padded_queries(problem.T)
    top_BTN = jnp.where(lse_BTN > -jnp.inf, lse_BTN / problem.scale, 0.0)
    top_BNT = fill(jnp.swapaxes(top_BTN, 1, 2), 2, queries)
    zeros_BNT = jnp.zeros_like(top_BNT)
    rows_BN3T = jnp.stack([top_BNT, zeros_BNT, zeros_BNT], axis=2)
    of_queries = (side_by_side(x, queries) for x in (out_BTNH, dout_BTNH))
    arrays = (*arrays, *of_queries, rows_BN3T)
    dq_BTD, *dkv_BSD = gradients(problem, blocks, arrays, ids, starts)
    return heads_apart(dq_BTD, q_BTNH), *(heads_apart(x, k_BSKH) for x in dkv_BSD)
