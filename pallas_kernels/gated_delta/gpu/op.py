"""Runs the gated delta rule on Hopper: says what is accepted, and puts the kernels together."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.varying import vary_alike

HEAD = 128
HEAD_DIMS = (64, HEAD)
VALUE_DIMS = (64, HEAD, 192, 256)
CHUNK = 64


def gated_delta_gpu(
    q_BTKH, k_BTKH, v_BTNP, log_decay_BTN, beta_BTN, state_BNHP, *, problem: Problem
):
    """Computes `api.gated_delta` by products of bf16 operands, in two parts where one is coarse.

    Only the arguments are saved for the backward, which computes chunk inverses and states again.
    Head dimensions of 64 are padded with zeros and cost as much as 128; values of 192 and 256 are
    taken as two heads of 128.

    Raises:
      NotImplementedError: the kernels are not for this device, jax, dtype or head dimension.
    """
    check_machine(q_BTKH, problem.interpret)
    for name, x in dict(q=q_BTKH, k=k_BTKH, v=v_BTNP).items():
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {x.dtype}; bfloat16 is accepted")
    sizes = ("q and k", q_BTKH.shape[-1], HEAD_DIMS), ("v", v_BTNP.shape[-1], VALUE_DIMS)
    for name, size, accepted in sizes:
        if size not in accepted:
            raise NotImplementedError(
                f"the head dimension of {name} is {size}; {accepted} are accepted"
            )
    T, N, H, P = problem.T, problem.N, problem.H, problem.P
    values = _heads_of_128(v_BTNP, log_decay_BTN, beta_BTN, state_BNHP)
    *sequences, state_BNHP = (q_BTKH, k_BTKH, *values)
    sequences = vary_alike(*map(_filled_up, sequences), _filled_up_state(state_BNHP))
    out_BTNP, state_BNPH = _rule(problem.scale, interpreter(problem.interpret), *sequences)
    out_BTNP = out_BTNP.reshape(*out_BTNP.shape[:2], N, -1)
    state_BNHP = jnp.swapaxes(state_BNPH.reshape(len(state_BNPH), N, -1, HEAD), 2, 3)
    return out_BTNP[:, :T, :, :P], state_BNHP[:, :, :H, :P]


def _heads_of_128(v_BTNP, log_decay_BTN, beta_BTN, state_BNHP):
    """Splits wide values into several heads with the same gates.

    That changes no result, because the columns of the state are independent.
    """
    parts = -(-v_BTNP.shape[3] // HEAD)
    if parts == 1:
        return v_BTNP, log_decay_BTN, beta_BTN, state_BNHP
    fill = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, parts * HEAD - x.shape[3])])
    B, T, N, _ = v_BTNP.shape
    v_BTNP = fill(v_BTNP).reshape(B, T, N * parts, HEAD)
    state_BNHXP = fill(state_BNHP).reshape(*state_BNHP.shape[:3], parts, HEAD)
    state_BNHP = jnp.swapaxes(state_BNHXP, 2, 3).reshape(B, N * parts, -1, HEAD)
    gates = (jnp.repeat(x, parts, axis=2) for x in (log_decay_BTN, beta_BTN))
    return v_BTNP, *gates, state_BNHP


def _filled_up(x):
    """Pads to complete chunks of tokens and, where there are heads, to 128 numbers per head.

    Tokens of zeros change nothing: their decay is 1 and their write strength 0.
    """
    widths = [(0, 0), (0, -x.shape[1] % CHUNK)] + [(0, 0)] * (x.ndim - 2)
    if x.ndim == 4:
        widths[3] = (0, HEAD - x.shape[3])
    return jnp.pad(x, widths)


def _filled_up_state(state_BNHP):
    """Returns the state [B, N, 128, 128] with values as rows, as the kernels store it."""
    H, P = state_BNHP.shape[2:]
    widths = [(0, 0), (0, 0), (0, HEAD - P), (0, HEAD - H)]
    return jnp.pad(jnp.swapaxes(state_BNHP, 2, 3), widths)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rule(scale, interpret, *arrays):
    return vmap_into_batch(functools.partial(_outputs, scale=scale, interpret=interpret))(*arrays)


def _forward(scale, interpret, *arrays):
    return _rule(scale, interpret, *arrays), arrays


def _backward(scale, interpret, arrays, cotangents):
    gradients = functools.partial(_gradients, scale=scale, interpret=interpret)
    return vmap_into_batch(gradients)(*arrays, *cotangents)


_rule.defvjp(_forward, _backward)


def _outputs(q, k, v, log_decay, beta, state_BNPH, *, scale, interpret):
    from pallas_kernels.gated_delta.gpu import gates, intra, scan

    gates_BNZXC = gates.chunk_gates(log_decay, beta, scale=scale)
    inside = intra.intra(q, k, gates_BNZXC, scale=scale, interpret=interpret)
    return scan.outputs(q, k, v, gates_BNZXC, inside, state_BNPH, interpret=interpret)


def _gradients(q, k, v, log_decay, beta, state_BNPH, dout, dstate_BNPH, *, scale, interpret):
    from pallas_kernels.gated_delta.gpu import gates, gradients, intra, sweeps

    gates_BNZXC = gates.chunk_gates(log_decay, beta, scale=scale)
    inside = intra.intra(q, k, gates_BNZXC, scale=scale, interpret=interpret)
    visited, adjoint = sweeps.sweep(
        q, k, v, dout, gates_BNZXC, inside, state_BNPH, dstate_BNPH, interpret=interpret
    )
    found = gradients.gradients(
        q, k, v, dout, gates_BNZXC, visited, adjoint, scale=scale, interpret=interpret
    )
    return (
        _sum_shared(found.dq_BTNH, k.shape[2]),
        _sum_shared(found.dk_BTNH, k.shape[2]),
        found.dv_BTNP,
        _by_token(found.dlog_decay_BNZC),
        _by_token(found.dbeta_BNZC),
        adjoint.initial_BNPH,
    )


def _sum_shared(x_BTNH, key_heads: int):
    """Sums over the value heads of a key head."""
    B, T, N, H = x_BTNH.shape
    if N == key_heads:
        return x_BTNH
    x_BTKRH = x_BTNH.reshape(B, T, key_heads, -1, H)
    return jnp.sum(x_BTKRH, axis=3, dtype=jnp.float32).astype(x_BTNH.dtype)


def _by_token(x_BNZC):
    B, N = x_BNZC.shape[:2]
    return jnp.moveaxis(x_BNZC.reshape(B, N, -1), 1, 2)
