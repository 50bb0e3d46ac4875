"""The recurrence over chunks: outputs and final state, or what the backward reads of every chunk.

A program has one head and half of its values. Everything is transposed, so that the state S^T, with
values as rows, stays in registers and enters products as their left operand:

    R^T = beta V^T - beta e^g (S^T K^T)      U^T = R^T A^T       O^T = scale e^g (S^T Q^T) + U^T P^T
    S^T <- e^g_C S^T + (e^(g_C - g) U^T) K

with A and P of `intra` and g the log decays summed from the start of the chunk. A warpgroup keeps
the state, another one brings chunks into shared memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.gpu import blocks
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HALF, HEAD, registers, transposed
from pallas_kernels.gated_delta.gpu.gates import (
    BETA,
    BETA_ENTRY,
    EXIT,
    GATES,
    OUT_ENTRY,
    SUM,
)
from pallas_kernels.gated_delta.gpu.intra import Intra

STAGES = 2
STATE_WARPGROUP, COPY_WARPGROUP = 0, 1


class Visited(NamedTuple):
    """What the recurrence went through.

    Attributes:
      states_BNZPH: the state that enters each chunk, in bf16: as the products read it.
      writes_BNZXPC: U of each chunk in two bf16 parts.
    """

    states_BNZPH: jax.Array
    writes_BNZXPC: jax.Array


def outputs(q_BTKH, k_BTKH, v_BTNP, gates_BNZXC, intra: Intra, state_BNPH, *, interpret):
    """Output [B, T, N, P] bf16 and final state [B, N, P, H] float32."""
    return _scan(
        (k_BTKH, v_BTNP, gates_BNZXC, intra.inverse, state_BNPH, q_BTKH, intra.scores),
        _body_with_outputs,
        name="gated_delta_scan",
        results=[(v_BTNP.shape, jnp.bfloat16), (state_BNPH.shape, jnp.float32)],
        scratch=dict(
            q_SCH=blocks.operand(STAGES, CHUNK, HEAD),
            scores_SCC=blocks.operand(2 * STAGES, CHUNK, CHUNK),
            out_CP=blocks.operand(CHUNK, HALF),
        ),
        copies=8,
        interpret=interpret,
    )


def visit(k_BTKH, v_BTNP, gates_BNZXC, intra: Intra, state_BNPH, *, interpret) -> Visited:
    B, N, Z = gates_BNZXC.shape[:3]
    return Visited(
        *_scan(
            (k_BTKH, v_BTNP, gates_BNZXC, intra.inverse, state_BNPH),
            _body_with_visits,
            name="gated_delta_visit",
            results=[
                ((B, N, Z, HEAD, HEAD), jnp.bfloat16),
                ((B, N, Z, 2, HEAD, CHUNK), jnp.bfloat16),
            ],
            scratch=dict(
                state_PH=blocks.operand(HALF, HEAD),
                writes_XPC=blocks.operand(2, HALF, CHUNK),
            ),
            copies=5,
            interpret=interpret,
        )
    )


def _scan(inputs, body, *, name, results, scratch, copies, interpret):
    k_BTKH, _, gates_BNZXC, *_ = inputs
    B, N, Z = gates_BNZXC.shape[:3]
    return blocks.kernel(
        functools.partial(body, group=N // k_BTKH.shape[2], chunks=Z, interpret=bool(interpret)),
        *inputs,
        name=name,
        grid=dict(b=B, n=N, half=HEAD // HALF),
        outputs=results,
        scratch=dict(
            k_SCH=blocks.operand(STAGES, CHUNK, HEAD),
            v_SCP=blocks.operand(STAGES, CHUNK, HALF),
            inverse_SCC=blocks.operand(2 * STAGES, CHUNK, CHUNK),
            gates_SXC=blocks.vectors(STAGES, GATES, CHUNK),
            full=plgpu.Barrier(num_arrivals=copies, num_barriers=STAGES),
            empty=plgpu.Barrier(num_arrivals=1, num_barriers=STAGES),
            **scratch,
        ),
        warpgroups=2,
        interpret=interpret,
    )


class _Place(NamedTuple):
    """Where a program works: batch row, value head, key head, its half of the values."""

    b: jax.Array
    n: jax.Array
    key_head: jax.Array
    values: pl.Slice


def _place(group: int) -> _Place:
    b, n, half = (lax.axis_index(axis) for axis in ("b", "n", "half"))
    return _Place(b, n, lax.div(n, jnp.int32(group)), pl.ds(half * HALF, HALF))


def _tokens(chunk):
    return pl.ds(chunk * CHUNK, CHUNK)


def _body_with_outputs(
    k, v, gates, inverse, initial, q, scores, out, final, *, group, chunks, interpret, **buffers
):
    at = _place(group)
    sequence = (k, v, gates, inverse)

    def copies(chunk, stage):
        return (
            *_copies(sequence, buffers, at, chunk, stage),
            (q.at[at.b, _tokens(chunk), at.key_head], buffers["q_SCH"].at[stage]),
            *_both_parts(scores.at[at.b, at.n, chunk], buffers["scores_SCC"], stage),
        )

    out_CP, product = buffers["out_CP"], functools.partial(blocks.product, interpret=interpret)

    def emit(chunk, stage, state16_PH, column, write_parts):
        read_PC = product((state16_PH, transposed(buffers["q_SCH"].at[stage])))
        start_PC = registers(read_PC * column(OUT_ENTRY))
        scores_parts = _transposed_parts(buffers["scores_SCC"], stage)
        out_PC = product(*blocks.precise(write_parts, scores_parts), start=start_PC)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        out_PC_ref = transposed(out_CP)
        out_PC_ref[...] = blocks.rounded(out_PC)
        return ((out_CP, out.at[at.b, _tokens(chunk), at.n, at.values]),)

    def finish(state_PH):
        target = final.at[at.b, at.n, at.values, :]
        if interpret:
            target[...] = state_PH
        else:
            blocks.put(target, state_PH)

    _run(copies, emit, finish, initial, at, buffers, chunks, product)


def _body_with_visits(
    k, v, gates, inverse, initial, states, writes, *, group, chunks, interpret, **buffers
):
    at = _place(group)
    state_PH, writes_XPC = buffers["state_PH"], buffers["writes_XPC"]

    def emit(chunk, _stage, state16_PH, _column, write_parts):
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        state_PH[...] = state16_PH
        writes_XPC[0], writes_XPC[1] = write_parts
        target = writes.at[at.b, at.n, chunk]
        return (
            (state_PH, states.at[at.b, at.n, chunk, at.values]),
            (writes_XPC.at[0], target.at[0, at.values]),
            (writes_XPC.at[1], target.at[1, at.values]),
        )

    copies = functools.partial(_copies, (k, v, gates, inverse), buffers, at)
    product = functools.partial(blocks.product, interpret=interpret)
    _run(copies, emit, lambda state_PH: None, initial, at, buffers, chunks, product)


def _copies(sequence, buffers, at: _Place, chunk, stage):
    k, v, gates, inverse = sequence
    return (
        (k.at[at.b, _tokens(chunk), at.key_head], buffers["k_SCH"].at[stage]),
        *_both_parts(inverse.at[at.b, at.n, chunk], buffers["inverse_SCC"], stage),
        (gates.at[at.b, at.n, chunk], buffers["gates_SXC"].at[stage]),
        (v.at[at.b, _tokens(chunk), at.n, at.values], buffers["v_SCP"].at[stage]),
    )


def _both_parts(source, buffer, stage):
    return [(source.at[part], buffer.at[2 * stage + part]) for part in (0, 1)]


def _transposed_parts(buffer, stage):
    return tuple(transposed(buffer.at[2 * stage + part]) for part in (0, 1))


def _run(copies, emit, finish, initial, at: _Place, buffers, chunks, product):
    full, empty = buffers["full"], buffers["empty"]
    warpgroup = lax.axis_index("warpgroup")

    @pl.when(warpgroup == COPY_WARPGROUP)
    def _bring_chunks():
        plgpu.set_max_registers(40, action="decrease")

        @pl.loop(0, chunks)
        def _(chunk):
            stage = lax.rem(chunk, jnp.int32(STAGES))

            @pl.when(chunk >= STAGES)
            def _():
                plgpu.barrier_wait(empty.at[stage])

            blocks.copy_in(full.at[stage], *copies(chunk, stage))

    @pl.when(warpgroup == STATE_WARPGROUP)
    def _keep_state():
        plgpu.set_max_registers(240, action="increase")
        first = blocks.matrix(initial.at[at.b, at.n, at.values, :])

        def step(chunk, state_PH):
            stage = lax.rem(chunk, jnp.int32(STAGES))
            state16_PH = blocks.rounded(state_PH)
            plgpu.barrier_wait(full.at[stage])
            column, write_PC = _write(state16_PH, buffers, stage, product)
            results = emit(chunk, stage, state16_PH, column, blocks.parts(write_PC))
            state_PH = _next_state(state_PH, write_PC, column, buffers, stage, product)
            plgpu.commit_smem()
            plgpu.barrier_arrive(empty.at[stage])
            for source, target in results:
                plgpu.copy_smem_to_gmem(source, target)
            return state_PH

        finish(lax.fori_loop(0, chunks, step, registers(first)))
        plgpu.wait_smem_to_gmem(0)


def _write(state16_PH, buffers, stage, product):
    """U^T, and a function that gives gates as column factors."""
    gates_XC = buffers["gates_SXC"].at[stage]
    column = lambda gate: blocks.on_columns(blocks.column_vector(gates_XC.at[gate]), (HALF, CHUNK))
    read_PC = product((state16_PH, transposed(buffers["k_SCH"].at[stage])))
    values_PC = blocks.matrix(transposed(buffers["v_SCP"].at[stage])).astype(jnp.float32)
    error_PC = registers(registers(values_PC) * column(BETA) - read_PC * column(BETA_ENTRY))
    inverse_parts = _transposed_parts(buffers["inverse_SCC"], stage)
    return column, product(*blocks.precise(blocks.parts(error_PC), inverse_parts))


def _next_state(state_PH, write_PC, column, buffers, stage, product):
    kept_PH = registers(state_PH * jnp.exp(buffers["gates_SXC"][stage, SUM, CHUNK - 1]))
    high, low = blocks.parts(registers(write_PC * column(EXIT)))
    k_CH = buffers["k_SCH"].at[stage]
    return product((low, k_CH), (high, k_CH), start=kept_PH)
