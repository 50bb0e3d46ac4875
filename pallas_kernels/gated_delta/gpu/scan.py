"""Runs the recurrence over chunks: computes outputs and final state.

A program has one head and half of its values. Everything is transposed, so that the state S^T, with
values as rows, stays in registers and enters products as their left operand:

    R^T = beta V^T - beta e^g (S^T K^T)      U^T = R^T A^T       O^T = scale e^g (S^T Q^T) + U^T P^T
    S^T <- e^g_C S^T + (e^(g_C - g) U^T) K

with A and P of `intra` and g the log decays summed from the start of the chunk.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.gated_delta.gpu import blocks, pipeline
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HALF, HEAD, registers, transposed
from pallas_kernels.gated_delta.gpu.gates import BETA, BETA_ENTRY, EXIT, OUT_ENTRY
from pallas_kernels.gated_delta.gpu.intra import Intra
from pallas_kernels.gated_delta.gpu.pipeline import STAGES


def outputs(q_BTKH, k_BTKH, v_BTNP, gates_BNZXC, intra: Intra, state_BNPH, *, interpret):
    """Returns output [B, T, N, P] bf16 and final state [B, N, P, H] float32."""
    Z, group = gates_BNZXC.shape[2], v_BTNP.shape[2] // k_BTKH.shape[2]
    return blocks.kernel(
        functools.partial(_outputs_body, group=group, chunks=Z, interpret=bool(interpret)),
        *(k_BTKH, v_BTNP, gates_BNZXC, intra.inverse, state_BNPH, q_BTKH, intra.scores),
        name="gated_delta_scan",
        grid=pipeline.grid(gates_BNZXC),
        outputs=[(v_BTNP.shape, jnp.bfloat16), (state_BNPH.shape, jnp.float32)],
        scratch=dict(
            **pipeline.buffers(copies=8),
            q_SCH=blocks.operand(STAGES, CHUNK, HEAD),
            scores_SCC=blocks.operand(2 * STAGES, CHUNK, CHUNK),
            out_CP=blocks.operand(CHUNK, HALF),
        ),
        warpgroups=2,
        interpret=interpret,
    )


def _outputs_body(
    k, v, gates, inverse, initial, q, scores, out, final, *, group, chunks, interpret, **smem
):
    at = pipeline.place(group)
    product = functools.partial(blocks.product, interpret=interpret)
    overlapped = functools.partial(blocks.overlapped, interpret=interpret)

    def copies(chunk, stage):
        return (
            *pipeline.copies(k, v, gates, inverse, smem, at, chunk, stage),
            (q.at[at.b, pipeline.tokens(chunk), at.key_head], smem["q_SCH"].at[stage]),
            *pipeline.copies_of_parts(scores.at[at.b, at.n, chunk], smem["scores_SCC"], stage),
        )

    def step(chunk, stage, state_PH):
        column = pipeline.column_factors(smem, stage)
        state16_PH = blocks.rounded(state_PH)
        error_parts, read_PC = overlapped(
            [(state16_PH, transposed(smem["k_SCH"].at[stage]))],
            [(state16_PH, transposed(smem["q_SCH"].at[stage]))],
            lambda read_PC: blocks.parts(_error(read_PC, smem, stage)),
        )
        write_PC = _write(error_parts, smem, stage, product)
        scores_parts = pipeline.transposed_parts_at(smem["scores_SCC"], stage)

        def put_out(out_PC):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out_PC_ref = transposed(smem["out_CP"])
            out_PC_ref[...] = blocks.rounded(out_PC)

        _, state_PH = overlapped(
            blocks.precise(blocks.parts(write_PC), scores_parts),
            _state_terms(write_PC, smem, stage),
            put_out,
            starts=(
                registers(read_PC * column(OUT_ENTRY)),
                pipeline.decayed(state_PH, smem, stage),
            ),
        )
        target = out.at[at.b, pipeline.tokens(chunk), at.n, at.values]
        return state_PH, ((smem["out_CP"], target),)

    place = (at.b, at.n, at.values)
    pipeline.run(
        copies, step, initial.at[place], final.at[place], smem, chunks=chunks, interpret=interpret
    )


def write(state16_PH, smem, stage, product):
    """Computes U^T, what each token writes."""
    read_PC = product((state16_PH, transposed(smem["k_SCH"].at[stage])))
    return _write(blocks.parts(_error(read_PC, smem, stage)), smem, stage, product)


def next_state(state_PH, write_PC, smem, stage, product):
    start = pipeline.decayed(state_PH, smem, stage)
    return product(*_state_terms(write_PC, smem, stage), start=start)


def _error(read_PC, smem, stage):
    """Computes R^T."""
    column = pipeline.column_factors(smem, stage)
    values_PC = blocks.matrix(transposed(smem["values_SCP"].at[stage]))
    values_PC = registers(values_PC.astype(jnp.float32))
    return registers(values_PC * column(BETA) - read_PC * column(BETA_ENTRY))


def _write(error_parts, smem, stage, product):
    inverse_parts = pipeline.transposed_parts_at(smem["inverse_SCC"], stage)
    return product(*blocks.precise(error_parts, inverse_parts))


def _state_terms(write_PC, smem, stage):
    column = pipeline.column_factors(smem, stage)
    high, low = blocks.parts(registers(write_PC * column(EXIT)))
    k_CH = smem["k_SCH"].at[stage]
    return (low, k_CH), (high, k_CH)
