"""The gated delta rule on Hopper GPUs: the kernels put together, forward and backward."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.gpu import gradients, intra, reverse, scan
from pallas_kernels.gated_delta.gpu.blocks import CHUNK
from pallas_kernels.gated_delta.gpu.gates import chunk_gates


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def rule(q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNPH, scale, interpret):
    """Output bf16 and final state, for T a multiple of the chunk and the state transposed."""
    gates_BNZXC = chunk_gates(log_decay_BTN, beta_BTN, scale=scale)
    inside = intra.intra(q_BTKH, k_BTKH, gates_BNZXC, scale=scale, interpret=interpret)
    return scan.outputs(
        q_BTKH, k_BTKH, v_BTNP, gates_BNZXC, inside, state_BNPH, interpret=interpret
    )


def _forward(q, k, v, log_decay, beta, state, scale, interpret):
    results = rule(q, k, v, log_decay, beta, state, scale, interpret)
    return results, (q, k, v, log_decay, beta, state)


def _backward(scale, interpret, saved, cotangents):
    """Nothing but the inputs is kept: chunk inverses and states are computed again."""
    q, k, v, log_decay, beta, state = saved
    dout, dstate = cotangents
    gates = chunk_gates(log_decay, beta, scale=scale)
    inside = intra.intra(q, k, gates, scale=scale, interpret=interpret)
    visited = scan.visit(k, v, gates, inside, state, interpret=interpret)
    adjoint = reverse.reverse(q, k, dout, gates, inside, dstate, interpret=interpret)
    found = gradients.gradients(
        q, k, v, dout, gates, visited, adjoint, scale=scale, interpret=interpret
    )
    return (
        _sum_over_group(found.dq_BTNH, q),
        _sum_over_group(found.dk_BTNH, k),
        found.dv_BTNP,
        _by_token(found.dlog_decay_BNZC),
        _by_token(found.dbeta_BNZC),
        adjoint.initial_BNPH,
    )


rule.defvjp(_forward, _backward)


def _sum_over_group(x_BTNH, like_BTKH):
    """The value heads of a key head added up."""
    B, T, K, H = like_BTKH.shape
    if x_BTNH.shape[2] == K:
        return x_BTNH
    grouped = x_BTNH.reshape(B, T, K, -1, H)
    return jnp.sum(grouped, axis=3, dtype=jnp.float32).astype(like_BTKH.dtype)


def _by_token(x_BNZC):
    B, N = x_BNZC.shape[:2]
    return jnp.moveaxis(x_BNZC.reshape(B, N, -1), 1, 2)


def padded_rule(q, k, v, log_decay, beta, state_BNHP, *, scale, interpret):
    """`rule` for any T, with the state as the public functions have it.

    Tokens of zeros at the end change nothing: their decay is 1 and their write strength 0.
    """
    T = q.shape[1]
    pad = lambda x: jnp.pad(x, [(0, 0), (0, -T % CHUNK)] + [(0, 0)] * (x.ndim - 2))
    inputs = (pad(x) for x in (q, k, v, log_decay, beta))
    out, state_BNPH = rule(*inputs, jnp.swapaxes(state_BNHP, 2, 3), scale, interpret)
    return out[:, :T], jnp.swapaxes(state_BNPH, 2, 3)
