"""Runs the gated delta rule forward, in one TPU kernel.

A program takes a few heads and a few chunks of 128 tokens; the state of each head stays in VMEM
from one grid step to the next. With S the state that enters a chunk and D_ij the decay of the
tokens after j up to i times the write strength of j, for j <= i:

    L = strictly lower (K K^T * D)            E = (I + L)^-1 (V - exp(g) K S)
    O = scale (exp(g) Q S + (Q K^T * D) E)    S' = exp(g_C) S + K^T (beta exp(g_C - g) E)

E_i is the error of prediction v_i - S^T k_i when token i comes; beta_i E_i is what it writes.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.tpu.blocks import CHUNK
from pallas_kernels.gated_delta.tpu.gates import BlockGates, Gates
from pallas_kernels.gated_delta.tpu.inverse import unit_lower_inverse
from pallas_kernels.gated_delta.tpu.layout import Layout
from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.interleave import interleave
from pallas_kernels.varying import array_type


def forward(q_BTD, k_BTD, v_BTD, gates: Gates, state_BNHP, *, layout, problem, save):
    """Calls the kernel; heads lie side by side, T is a multiple of the layout's step.

    Returns:
      Output [B, T, N * P] and final state; with `save` also what the backward needs: the state
      that enters each chunk [B, N, chunks, H, P] and the factor of each chunk's inverse, its parts
      side by side [B, N, T, parts * C], both in the dtype of v.
    """
    inputs = (q_BTD, k_BTD, v_BTD, *gates, state_BNHP)
    out = functools.partial(array_type, like=inputs)
    B, N, H, P = state_BNHP.shape
    T, dtype = v_BTD.shape[1], v_BTD.dtype
    outputs = [out(v_BTD.shape, dtype), out(state_BNHP.shape, jnp.float32)]
    specs = [layout.values(), layout.state()]
    if save:
        parts = 1 if dtype == jnp.float32 else 2
        outputs += [out((B, N, T // CHUNK, H, P), dtype), out((B, N, T, parts * CHUNK), dtype)]
        specs += [layout.states(), layout.inverses(parts)]
    keys, gate = layout.keys(), layout.gates()
    return pl.pallas_call(
        functools.partial(_kernel, layout=layout, scale=problem.scale),
        grid=layout.grid(B),
        in_specs=[keys, keys, layout.values(), *[gate] * len(gates), layout.state()],
        out_specs=specs,
        out_shape=outputs,
        scratch_shapes=[layout.carry()],
        name="gated_delta_forward",
        interpret=problem.interpret,
        compiler_params=layout.compiler_params(),
    )(*inputs)


def _kernel(q_ref, k_ref, v_ref, *refs, layout: Layout, scale):
    gate_refs, refs = refs[: len(Gates._fields)], refs[len(Gates._fields) :]
    initial_ref, out_ref, final_ref, *saved_refs, carry_ref = refs
    float32 = v_ref.dtype == jnp.float32
    products = Products(float32=float32, packed=layout.blocks.packed)
    gates = BlockGates(gate_refs, float32=float32)
    blocks, H, P = layout.blocks, layout.H, layout.P
    step = pl.program_id(2)

    @pl.when(step == 0)
    def _():
        carry_ref[...] = initial_ref[0]

    @functools.cache
    def scores(key_head: int, piece: int):
        """Returns keys above queries, and their products with the keys, once for a group."""
        t, h = _span(piece, CHUNK), _span(key_head, H)
        k_CH = k_ref[0, t, h]
        keys_queries = products.round(jnp.concatenate([k_CH, q_ref[0, t, h]], 0))
        return keys_queries, products(keys_queries, products.round(k_CH), transpose_right=True)

    finished = set()

    def chain(head: int, piece: int):
        t, p = _span(piece, CHUNK), _span(head, P)
        keys_queries, pairs = scores(head // blocks.group, piece)
        yield
        decay_CC = gates.decay(head, piece)
        inverse = yield from unit_lower_inverse(pairs[:CHUNK] * decay_CC, products)
        read = products.split(pairs[CHUNK:] * (scale * decay_CC))
        while piece and (head, piece - 1) not in finished:
            yield
        state_HP = carry_ref[head]
        if saved_refs:
            states_ref, inverses_ref = saved_refs
            states_ref[0, head, piece] = state_HP.astype(states_ref.dtype)
            inverses_ref[0, head, t] = jnp.concatenate(inverse, 1)
        seen = products(keys_queries, products.round(state_HP))
        yield
        kept_CP = gates.kept(head, piece, P)
        target_CP = v_ref[0, t, p].astype(jnp.float32) - kept_CP * seen[:CHUNK]
        error_CP = products(inverse, products.split(target_CP))
        yield
        out_CP = products(read, products.split(error_CP))
        yield
        out_CP = scale * kept_CP * seen[CHUNK:] + out_CP
        out_ref[0, t, p] = out_CP.astype(out_ref.dtype)
        k_HC = transpose((keys_queries[0][:CHUNK],))
        added_HP = products(k_HC, products.split(gates.to_exit(head, piece, P) * error_CP))
        yield
        carry_ref[head] = gates.through(head, piece, P) * state_HP + added_HP
        finished.add((head, piece))

    order = [(head, piece) for piece in range(blocks.pieces) for head in range(blocks.heads)]
    interleave([chain(*task) for task in order], blocks.skew)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        final_ref[0] = carry_ref[...]


def _span(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
