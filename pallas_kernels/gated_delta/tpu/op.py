"""Implements the gated delta rule on TPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.gated_delta.problem import Problem
from pallas_kernels.gated_delta.tpu.backward import backward
from pallas_kernels.gated_delta.tpu.blocks import (
    CHUNK,
    LANES,
    TpuBlocks,
    choose_blocks,
    complete_lanes,
)
from pallas_kernels.gated_delta.tpu.forward import forward
from pallas_kernels.gated_delta.tpu.gates import chunk_gates, gate_gradients
from pallas_kernels.gated_delta.tpu.layout import Layout
from pallas_kernels.target import target
from pallas_kernels.tpu_devices import check_device, check_dtypes
from pallas_kernels.varying import vary_alike

MAX_HEAD_DIM = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Says what the kernels are specialised to."""

    problem: Problem
    forward: Layout
    backward: Layout


def gated_delta_tpu(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    log_decay_BTN,
    beta_BTN,
    state_BNHP,
    *,
    problem: Problem,
    blocks: TpuBlocks | None = None,
):
    """Computes `api.gated_delta` by the TPU kernels.

    Head dimensions up to 256 are padded with zeros to complete lanes, 128 or 256.

    Saved for the backward are the state that enters each chunk of 128 tokens and the chunk's
    inverse: H * P / 128 + 256 numbers in bf16 per token and value head (float32: H * P / 128 +
    128). `jax.checkpoint` policies know them as "gated_delta_states" and "gated_delta_inverses".

    Raises:
      NotImplementedError: the kernels are not for this device, dtype or head dimension.
    """
    _check(q_BTKH, k_BTKH, v_BTNP, problem.interpret)
    B = len(q_BTKH)
    at_forward, at_backward = choose_blocks(problem, B, target(q_BTKH).device_kind, blocks)
    heads = at_forward.heads
    keys = lambda x: _fill(x, (1, CHUNK), (2, at_forward.key_heads), (3, LANES))
    values = lambda x: _fill(x, (1, CHUNK), (2, heads), (3, LANES))
    gates = lambda x: _fill(x, (1, CHUNK), (2, heads))
    v_full = values(v_BTNP)
    arrays = (keys(q_BTKH), keys(k_BTKH), v_full, gates(log_decay_BTN), gates(beta_BTN))
    shape = dict(
        length=v_full.shape[1],
        value_heads=v_full.shape[2],
        H=complete_lanes(problem.H),
        P=complete_lanes(problem.P),
    )
    call = Call(
        problem=problem,
        forward=Layout(blocks=at_forward, reverse=False, **shape),
        backward=Layout(blocks=at_backward, reverse=True, **shape),
    )
    flat = (x.reshape(B, x.shape[1], -1) for x in arrays)
    state = _fill(state_BNHP, (1, heads), (2, LANES), (3, LANES))
    out_BTD, state = _rule(call, *vary_alike(*flat, state))
    N, H, P = problem.N, problem.H, problem.P
    out_BTNP = out_BTD.reshape(v_full.shape)[:, : problem.T, :N, :P]
    return out_BTNP, state[:, :N, :H, :P]


def _check(q_BTKH, k_BTKH, v_BTNP, interpret) -> None:
    check_device(q_BTKH, interpret)
    check_dtypes(q_BTKH, k_BTKH, v_BTNP)
    for name, size in (("q and k", q_BTKH.shape[-1]), ("v", v_BTNP.shape[-1])):
        if size > MAX_HEAD_DIM:
            raise NotImplementedError(
                f"the head dimension of {name} is {size}; at most {MAX_HEAD_DIM} is accepted"
            )


def _fill(x, *multiples: tuple[int, int]):
    """Pads the end of axes with zeros, to a multiple: (axis, multiple). Zeros write nothing."""
    widths = [(0, 0)] * x.ndim
    for axis, multiple in multiples:
        widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths) if any(width for _, width in widths) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(call: Call, q_BTD, k_BTD, v_BTD, log_decay_BTN, beta_BTN, state_BNHP):
    gates = _gates(call.forward, log_decay_BTN, beta_BTN, v_BTD)
    return _forward_kernel(call, save=False)(q_BTD, k_BTD, v_BTD, gates, state_BNHP)


def _rule_forward(call: Call, q_BTD, k_BTD, v_BTD, log_decay_BTN, beta_BTN, state_BNHP):
    gates = _gates(call.forward, log_decay_BTN, beta_BTN, v_BTD)
    kernel = _forward_kernel(call, save=True)
    out_BTD, final_BNHP, states, inverses = kernel(q_BTD, k_BTD, v_BTD, gates, state_BNHP)
    states = checkpoint_name(states, "gated_delta_states")
    inverses = checkpoint_name(inverses, "gated_delta_inverses")
    saved = (q_BTD, k_BTD, v_BTD, log_decay_BTN, beta_BTN, states, inverses)
    return (out_BTD, final_BNHP), saved


def _rule_backward(call: Call, saved, cotangents):
    q_BTD, k_BTD, v_BTD, log_decay_BTN, beta_BTN, states, inverses = saved
    dout_BTD, dfinal_BNHP = cotangents
    gates = _gates(call.backward, log_decay_BTN, beta_BTN, v_BTD)
    dq, dk, dv_BTD, *dgates, dstate_BNHP = _backward_kernel(call)(
        q_BTD, k_BTD, v_BTD, dout_BTD, gates, states, inverses, dfinal_BNHP
    )
    dkeys = (_sum_shared(call.backward, x).astype(q_BTD.dtype) for x in (dq, dk))
    return *dkeys, dv_BTD, *gate_gradients(*dgates, beta_BTN), dstate_BNHP


_rule.defvjp(_rule_forward, _rule_backward)


def _forward_kernel(call: Call, *, save: bool):
    kernel = functools.partial(forward, layout=call.forward, problem=call.problem, save=save)
    return vmap_into_batch(kernel)


def _backward_kernel(call: Call):
    kernel = functools.partial(backward, layout=call.backward, problem=call.problem)
    return vmap_into_batch(kernel)


def _gates(layout: Layout, log_decay_BTN, beta_BTN, v_BTD):
    float32 = v_BTD.dtype == jnp.float32
    return chunk_gates(log_decay_BTN, beta_BTN, layout.blocks, float32=float32)


def _sum_shared(layout: Layout, dkey_BTD):
    """Sums over the programs whose value heads read one key head."""
    shared = layout.blocks.programs_a_key_head
    if shared == 1:
        return dkey_BTD
    B, T, _ = dkey_BTD.shape
    dkey_BTKRH = dkey_BTD.reshape(B, T, -1, shared, layout.H)
    return jnp.sum(dkey_BTKRH, axis=3, dtype=jnp.float32).reshape(B, T, -1)
