"""Scans over chunks in either direction: one warpgroup copies, another has the state."""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.gpu import blocks
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HALF, HEAD, registers, transposed
from pallas_kernels.gated_delta.gpu.gates import GATES, SUM

STAGES = 2
STATE_WARPGROUP, COPY_WARPGROUP = 0, 1


class Place(NamedTuple):
    """Says where a program works: batch row, value head, its key head, its half of the values."""

    b: jax.Array
    n: jax.Array
    key_head: jax.Array
    values: pl.Slice


def place(group: int) -> Place:
    b, n, half = (lax.axis_index(axis) for axis in ("b", "n", "half"))
    return Place(b, n, lax.div(n, jnp.int32(group)), pl.ds(half * HALF, HALF))


def grid(gates_BNZXC) -> dict[str, int]:
    B, N = gates_BNZXC.shape[:2]
    return dict(b=B, n=N, half=HEAD // HALF)


def buffers(copies: int) -> dict:
    """Returns shared memory and barriers of every scan; a chunk takes `copies` TMA copies."""
    return dict(
        k_SCH=blocks.operand(STAGES, CHUNK, HEAD),
        values_SCP=blocks.operand(STAGES, CHUNK, HALF),
        inverse_SCC=blocks.operand(2 * STAGES, CHUNK, CHUNK),
        gates_SXC=blocks.vectors(STAGES, GATES, CHUNK),
        full=plgpu.Barrier(num_arrivals=copies, num_barriers=STAGES),
        empty=plgpu.Barrier(num_arrivals=1, num_barriers=STAGES),
    )


def tokens(chunk):
    return pl.ds(chunk * CHUNK, CHUNK)


def copies(k, values, gates, inverse, smem, at: Place, chunk, stage):
    """Returns (source, destination) of the parts of a chunk that every scan reads."""
    return (
        (k.at[at.b, tokens(chunk), at.key_head], smem["k_SCH"].at[stage]),
        *copies_of_parts(inverse.at[at.b, at.n, chunk], smem["inverse_SCC"], stage),
        (gates.at[at.b, at.n, chunk], smem["gates_SXC"].at[stage]),
        (values.at[at.b, tokens(chunk), at.n, at.values], smem["values_SCP"].at[stage]),
    )


def copies_of_parts(source_XCC, buffer_SCC, stage):
    return [(source_XCC.at[part], buffer_SCC.at[2 * stage + part]) for part in (0, 1)]


def parts_at(buffer_SCC, stage):
    return tuple(buffer_SCC.at[2 * stage + part] for part in (0, 1))


def transposed_parts_at(buffer_SCC, stage):
    return tuple(transposed(part) for part in parts_at(buffer_SCC, stage))


def column_factors(smem, stage):
    """Maps each gate to its vector, repeated over the value rows of a transposed matrix."""
    gates_XC = smem["gates_SXC"].at[stage]
    return lambda gate: blocks.on_columns(blocks.column_vector(gates_XC.at[gate]), (HALF, CHUNK))


def decayed(state_PH, smem, stage):
    """Returns the state times the decay over a complete chunk."""
    return registers(state_PH * jnp.exp(smem["gates_SXC"][stage, SUM, CHUNK - 1]))


def run(copies, step, initial, final, smem, *, chunks: int, backwards: bool = False, interpret):
    """Goes through the chunks with a state [P, H] in registers.

    Args:
      copies: (chunk, stage) -> TMA copies into the buffers of a stage.
      step: (chunk, stage, state) -> next state, and copies from shared to global memory.
      initial: the first state, in global memory.
      final: where the last one goes, or None.
    """
    full, empty = smem["full"], smem["empty"]
    warpgroup = lax.axis_index("warpgroup")
    stage_of = lambda turn: lax.rem(turn, jnp.int32(STAGES))
    chunk_of = lambda turn: chunks - 1 - turn if backwards else turn

    @pl.when(warpgroup == COPY_WARPGROUP)
    def _bring_chunks():
        plgpu.set_max_registers(40, action="decrease")

        @pl.loop(0, chunks)
        def _(turn):
            stage = stage_of(turn)

            @pl.when(turn >= STAGES)
            def _():
                plgpu.barrier_wait(empty.at[stage])

            blocks.copy_in(full.at[stage], *copies(chunk_of(turn), stage))

        for turn in range(max(0, chunks - STAGES), chunks):
            plgpu.barrier_wait(empty.at[turn % STAGES])

    @pl.when(warpgroup == STATE_WARPGROUP)
    def _keep_state():
        plgpu.set_max_registers(240, action="increase")

        def turn(turn, state_PH):
            stage, chunk = stage_of(turn), chunk_of(turn)
            plgpu.barrier_wait(full.at[stage])
            state_PH, results = step(chunk, stage, state_PH)
            plgpu.commit_smem()
            plgpu.barrier_arrive(empty.at[stage])
            for source, target in results:
                plgpu.copy_smem_to_gmem(source, target)
            return state_PH

        first = blocks.of_one_device(registers(blocks.matrix(initial)))
        state_PH = lax.fori_loop(0, chunks, turn, registers(first))
        if final is not None:
            blocks.put(final, state_PH, interpret=interpret)
        plgpu.wait_smem_to_gmem(0)
