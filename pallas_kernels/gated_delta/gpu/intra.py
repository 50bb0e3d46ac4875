"""Computes all inside a chunk: the inverse of its triangular system and its attention scores."""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.gated_delta.gpu import blocks, solve
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HEAD, registers
from pallas_kernels.gated_delta.gpu.gates import BETA, GATES, SUM


class Intra(NamedTuple):
    """Carries chunk by chunk matrices [B, N, Z, 2, C, C] in two bf16 parts.

    Attributes:
      inverse: (I + L)^-1 with L_ij = beta_i k_i.k_j, times the decay from j to i.
      scores: scale * q_i.k_j times the decay from j to i.
    """

    inverse: jax.Array
    scores: jax.Array


def intra(q_BTKH, k_BTKH, gates_BNZXC, *, scale, interpret) -> Intra:
    B, N, Z = gates_BNZXC.shape[:3]
    chunk_pair = ((B, N, Z, 2, CHUNK, CHUNK), jnp.bfloat16)
    return Intra(
        *blocks.kernel(
            functools.partial(
                _body, group=N // k_BTKH.shape[2], scale=scale, interpret=bool(interpret)
            ),
            q_BTKH,
            k_BTKH,
            gates_BNZXC,
            name="gated_delta_intra",
            grid=dict(b=B, n=N, z=Z),
            outputs=[chunk_pair, chunk_pair],
            scratch=[
                blocks.operand(CHUNK, HEAD),
                blocks.operand(CHUNK, HEAD),
                blocks.vectors(GATES, CHUNK),
                blocks.vectors(GATES, CHUNK),
                blocks.vectors(CHUNK, solve.ROW),
                blocks.operand(2, CHUNK, 32),
                blocks.operand(2, CHUNK, CHUNK),
                blocks.operand(2, CHUNK, CHUNK),
                plgpu.Barrier(num_arrivals=4),
            ],
            interpret=interpret,
        )
    )


def _body(
    q_BTKH,
    k_BTKH,
    gates_BNZXC,
    inverse_BNZXCC,
    scores_BNZXCC,
    q_CH,
    k_CH,
    row_gates_XC,
    column_gates_XC,
    lower_CX,
    narrow_XCX,
    inverse_XCC,
    scores_XCC,
    loaded,
    *,
    group,
    scale,
    interpret,
):
    b, n, z = (lax.axis_index(axis) for axis in ("b", "n", "z"))
    tokens, key_head = pl.ds(z * CHUNK, CHUNK), lax.div(n, jnp.int32(group))
    blocks.copy_in(
        loaded,
        (k_BTKH.at[b, tokens, key_head], k_CH),
        (q_BTKH.at[b, tokens, key_head], q_CH),
        (gates_BNZXC.at[b, n, z], row_gates_XC),
        (gates_BNZXC.at[b, n, z], column_gates_XC),
    )
    plgpu.barrier_wait(loaded)
    product = functools.partial(blocks.product, interpret=interpret)
    i_CC, j_CC = blocks.indices()
    beta_C1 = blocks.on_rows(blocks.row_vector(row_gates_XC.at[BETA]))
    keys_CC = product((k_CH, blocks.transposed(k_CH)))
    below_CC = registers(jnp.where(i_CC > j_CC, keys_CC * beta_C1, 0.0))
    inverse_CC = _inverse(below_CC, lower_CX, narrow_XCX, product, interpret)
    sum_C1 = blocks.on_rows(blocks.row_vector(row_gates_XC.at[SUM]))
    sum_1C = blocks.on_columns(blocks.column_vector(column_gates_XC.at[SUM]))
    decay_CC = registers(jnp.exp(registers(jnp.where(i_CC >= j_CC, sum_C1 - sum_1C, -jnp.inf))))
    _put_parts(inverse_XCC, registers(inverse_CC * decay_CC))
    scores_CC = product((q_CH, blocks.transposed(k_CH)))
    _put_parts(scores_XCC, registers(scores_CC * decay_CC * scale))
    blocks.copy_out(
        (inverse_XCC.at[0], inverse_BNZXCC.at[b, n, z, 0]),
        (inverse_XCC.at[1], inverse_BNZXCC.at[b, n, z, 1]),
        (scores_XCC.at[0], scores_BNZXCC.at[b, n, z, 0]),
        (scores_XCC.at[1], scores_BNZXCC.at[b, n, z, 1]),
    )
    plgpu.wait_smem_to_gmem(0)


def _inverse(below_CC, lower_CX, narrow_XCX, product, interpret):
    """Computes (I + below)^-1: blocks of 32 by substitution, then one merge.

        X[1, 0] = -X[1, 1] L[1, 0] X[0, 0]

    The merge runs on the tensor cores, on complete rows: the other half of the products is zero.
    """
    if interpret:
        diagonal_CC = registers(solve.inverse_of_diagonal_blocks(below_CC))
    else:
        wide = registers(
            lax.concatenate([below_CC, registers(below_CC[:, : solve.ROW - CHUNK])], 1)
        )
        blocks.put(lower_CX, wide)
        solve.invert_diagonal_blocks(lower_CX)
        solved_CX = blocks.matrix(lower_CX)
        i_CC, j_CC = blocks.indices()
        same_CC = i_CC // solve.BLOCK == j_CC // solve.BLOCK
        diagonal_CC = registers(jnp.where(same_CC, registers(solved_CX[:, :CHUNK]), 0.0))
    left_CX, right_CX = registers(diagonal_CC[:, :32]), registers(diagonal_CC[:, 32:])
    lower_left_CX = registers(below_CC[:, :32])
    first = tuple(narrow_XCX.at[part, pl.ds(0, 32)] for part in (0, 1))
    second = tuple(narrow_XCX.at[part, pl.ds(32, 32)] for part in (0, 1))
    _put_parts(narrow_XCX, left_CX)
    plgpu.commit_smem()
    across_CX = product(*blocks.precise(blocks.parts(lower_left_CX), first))
    _put_parts(narrow_XCX, across_CX)
    plgpu.commit_smem()
    corner_CX = product(*blocks.precise(blocks.parts(right_CX), second))
    return registers(lax.concatenate([registers(left_CX - corner_CX), right_CX], 1))


def _put_parts(ref, x) -> None:
    ref[0], ref[1] = blocks.parts(x)
