"""Runs the adjoint recurrence, from the last chunk to the first.

A program has one head and half of its values, and keeps the cotangent dS^T of the state that leaves
a chunk as `scan` keeps the state. With O = scale e^g Q S + P U and the names of `scan`:

    dU^T = e^(g_C - g) (dS^T K^T) + dO^T P       dR^T = dU^T A
    dS^T <- e^g_C dS^T + (scale e^g dO)^T Q - (beta e^g dR)^T K
"""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.gated_delta.gpu import blocks, pipeline
from pallas_kernels.gated_delta.gpu.blocks import registers, transposed
from pallas_kernels.gated_delta.gpu.gates import BETA_ENTRY, EXIT, OUT_ENTRY


class Cotangents(NamedTuple):
    """Carries what the adjoint recurrence computes.

    Attributes:
      states_BNZPH: cotangent of the state that leaves each chunk, in bf16.
      errors_BNZXPC: dR of each chunk, in two bf16 parts.
      initial_BNPH: cotangent of the initial state, float32.
    """

    states_BNZPH: jax.Array
    errors_BNZXPC: jax.Array
    initial_BNPH: jax.Array


def reverse(
    k,
    dout,
    gates,
    inverse,
    last,
    q,
    scores,
    dstates,
    derrors,
    first,
    *,
    group,
    chunks,
    interpret,
    **smem,
):
    at = pipeline.place(group)
    product = functools.partial(blocks.product, interpret=interpret)
    dstate_PH_ref, derror_XPC = smem["state_PH"], smem["parts_XPC"]

    def copies(chunk, stage):
        return (
            *pipeline.copies(k, dout, gates, inverse, smem, at, chunk, stage),
            (q.at[at.b, pipeline.tokens(chunk), at.key_head], smem["q_SCH"].at[stage]),
            (scores.at[at.b, at.n, chunk, 0], smem["scores_SCC"].at[stage]),
        )

    def step(chunk, stage, dstate_PH):
        column = pipeline.column_factors(smem, stage)
        k_CH, q_CH = smem["k_SCH"].at[stage], smem["q_SCH"].at[stage]
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        high, low = blocks.parts(dstate_PH)
        dstate_PH_ref[...] = high
        later_PC = product((low, transposed(k_CH)), (high, transposed(k_CH)))
        dout_PC = blocks.matrix(transposed(smem["values_SCP"].at[stage]))
        dwrite_PC = product(
            (registers(dout_PC), smem["scores_SCC"].at[stage]),
            start=registers(later_PC * column(EXIT)),
        )
        inverse_parts = pipeline.parts_at(smem["inverse_SCC"], stage)
        derror_PC = product(*blocks.precise(blocks.parts(dwrite_PC), inverse_parts))
        derror_XPC[0], derror_XPC[1] = blocks.parts(derror_PC)
        read_PC = blocks.rounded(registers(dout_PC.astype(jnp.float32)) * column(OUT_ENTRY))
        high, low = blocks.parts(registers(derror_PC * -column(BETA_ENTRY)))
        dstate_PH = product(
            (low, k_CH),
            (high, k_CH),
            (read_PC, q_CH),
            start=pipeline.decayed(dstate_PH, smem, stage),
        )
        target = derrors.at[at.b, at.n, chunk]
        return dstate_PH, (
            (dstate_PH_ref, dstates.at[at.b, at.n, chunk, at.values]),
            (derror_XPC.at[0], target.at[0, at.values]),
            (derror_XPC.at[1], target.at[1, at.values]),
        )

    place = (at.b, at.n, at.values)
    pipeline.run(
        copies,
        step,
        last.at[place],
        first.at[place],
        smem,
        chunks=chunks,
        backwards=True,
        interpret=interpret,
    )
