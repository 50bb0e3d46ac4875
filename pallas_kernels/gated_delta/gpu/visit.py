"""Runs the recurrence of `scan` once more, for what the backward reads of every chunk."""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu

from pallas_kernels.gated_delta.gpu import blocks, pipeline, scan


class Visited(NamedTuple):
    """Records what the recurrence computed for each chunk.

    Attributes:
      states_BNZPH: the state that enters each chunk, in bf16: as the products read it.
      writes_BNZXPC: U of each chunk in two bf16 parts.
    """

    states_BNZPH: jax.Array
    writes_BNZXPC: jax.Array


def visit(k, v, gates, inverse, initial, states, writes, *, group, chunks, interpret, **smem):
    at = pipeline.place(group)
    product = functools.partial(blocks.product, interpret=interpret)
    state_PH_ref, writes_XPC = smem["state_PH"], smem["parts_XPC"]

    def step(chunk, stage, state_PH):
        state16_PH = blocks.rounded(state_PH)
        write_PC = scan.write(state16_PH, smem, stage, product)
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        state_PH_ref[...] = state16_PH
        writes_XPC[0], writes_XPC[1] = blocks.parts(write_PC)
        target = writes.at[at.b, at.n, chunk]
        return scan.next_state(state_PH, write_PC, smem, stage, product), (
            (state_PH_ref, states.at[at.b, at.n, chunk, at.values]),
            (writes_XPC.at[0], target.at[0, at.values]),
            (writes_XPC.at[1], target.at[1, at.values]),
        )

    copies = functools.partial(pipeline.copies, k, v, gates, inverse, smem, at)
    first = initial.at[at.b, at.n, at.values]
    pipeline.run(copies, step, first, None, smem, chunks=chunks, interpret=interpret)
