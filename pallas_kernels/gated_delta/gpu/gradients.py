"""Gradients of everything a chunk reads, all chunks in parallel.

With S the state that enters a chunk, dS the cotangent of the one that leaves it, and U, R, A, P, D
as in `scan` and `intra` (L = beta K K^T * D below the diagonal; Q comes with the scale):

    dQ = e^g dO S^T + dQK K                          dQK = dO U^T * D
    dK = -beta e^g dR S^T + e^(g_C - g) U dS^T + (dKK + dKK^T) K + dQK^T Q
    dKK = dL * D beta below the diagonal, dL = -dR U^T
    dV = beta dR                                     dbeta = rows of dR * (V - e^g K S) + dL * L / beta

The gradient of a log decay at m sums what crosses m: M_ij = (dP * P + dL * L)_ij with j < m <= i,
what tokens from m on read of S, what tokens before m write for dS, and e^g_C <S, dS>. Nothing is
subtracted, and the diagonal of M takes no part: a decay of e^-20 keeps its digits beside them.
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
from pallas_kernels.gated_delta.gpu.reverse import Cotangents
from pallas_kernels.gated_delta.gpu.scan import Visited

READS, WRITES, STATE = range(3)


class Gradients(NamedTuple):
    """dq and dk of each value head; the gates' gradients [B, N, Z, C] in float32."""

    dq_BTNH: jax.Array
    dk_BTNH: jax.Array
    dv_BTNP: jax.Array
    dlog_decay_BNZC: jax.Array
    dbeta_BNZC: jax.Array


def gradients(
    q_BTKH,
    k_BTKH,
    v_BTNP,
    dout_BTNP,
    gates_BNZXC,
    visited: Visited,
    cotangents: Cotangents,
    *,
    scale,
    interpret,
) -> Gradients:
    B, N, Z = gates_BNZXC.shape[:3]
    return Gradients(
        *blocks.kernel(
            functools.partial(
                _body, group=N // k_BTKH.shape[2], scale=scale, interpret=bool(interpret)
            ),
            *(q_BTKH, k_BTKH, v_BTNP, dout_BTNP, gates_BNZXC, *visited, *cotangents[:2]),
            name="gated_delta_gradients",
            grid=dict(b=B, n=N, z=Z),
            outputs=[(v_BTNP.shape, jnp.bfloat16)] * 3 + [((B, N, Z, CHUNK), jnp.float32)] * 2,
            scratch=dict(
                q_CH=blocks.operand(CHUNK, HEAD),
                k_CH=blocks.operand(CHUNK, HEAD),
                v_CP=blocks.operand(CHUNK, HEAD),
                dout_CP=blocks.operand(CHUNK, HEAD),
                row_gates_XC=blocks.vectors(GATES, CHUNK),
                column_gates_XC=blocks.vectors(GATES, CHUNK),
                writes_XPC=blocks.operand(2, HEAD, CHUNK),
                derror_PC=blocks.operand(HEAD, CHUNK),
                state_PH=blocks.operand(HEAD, HEAD),
                dstate_PH=blocks.operand(HEAD, HEAD),
                dscores_high_CC=blocks.operand(CHUNK, CHUNK),
                dscores_low_CC=blocks.operand(CHUNK, CHUNK),
                dkeys_CC=blocks.operand(CHUNK, CHUNK),
                crossing_XCC=blocks.operand(2, CHUNK, CHUNK),
                sums_XC=blocks.vectors(3, CHUNK),
                dlog_decay_C=blocks.vectors(CHUNK),
                dbeta_C=blocks.vectors(CHUNK),
                inside_loaded=plgpu.Barrier(num_arrivals=8),
                states_loaded=plgpu.Barrier(num_arrivals=3),
            ),
            interpret=interpret,
        )
    )


def _body(
    q,
    k,
    v,
    dout,
    gates,
    states,
    writes,
    dstates,
    derrors,
    dq,
    dk,
    dv,
    dlog_decay,
    dbeta,
    *,
    group,
    scale,
    interpret,
    **smem,
):
    b, n, z = (lax.axis_index(axis) for axis in ("b", "n", "z"))
    tokens, key_head = pl.ds(z * CHUNK, CHUNK), lax.div(n, jnp.int32(group))
    product = functools.partial(blocks.product, interpret=interpret)
    blocks.copy_in(
        smem["inside_loaded"],
        (k.at[b, tokens, key_head], smem["k_CH"]),
        (q.at[b, tokens, key_head], smem["q_CH"]),
        (gates.at[b, n, z], smem["row_gates_XC"]),
        (gates.at[b, n, z], smem["column_gates_XC"]),
        (derrors.at[b, n, z], smem["derror_PC"]),
        (writes.at[b, n, z, 0], smem["writes_XPC"].at[0]),
        (writes.at[b, n, z, 1], smem["writes_XPC"].at[1]),
        (dout.at[b, tokens, n], smem["dout_CP"]),
    )
    blocks.copy_in(
        smem["states_loaded"],
        (states.at[b, n, z], smem["state_PH"]),
        (dstates.at[b, n, z], smem["dstate_PH"]),
        (v.at[b, tokens, n], smem["v_CP"]),
    )
    plgpu.barrier_wait(smem["inside_loaded"])
    row = lambda gate: blocks.row_vector(smem["row_gates_XC"].at[gate])
    dbeta_C = _inside(row, smem, product, scale)
    plgpu.barrier_wait(smem["states_loaded"])
    reads_C, read_errors_C, writes_C = _query_and_key_gradients(row, smem, product)
    value_errors_C = _value_gradient(row, smem)
    entry_C = row(OUT_ENTRY) * (1 / scale)
    smem["dbeta_C"][...] = dbeta_C + value_errors_C - entry_C * read_errors_C
    smem["sums_XC"][READS] = reads_C - row(BETA_ENTRY) * read_errors_C
    smem["sums_XC"][WRITES] = writes_C
    smem["sums_XC"][STATE] = _state_overlap(smem)
    smem["dlog_decay_C"][...] = _decay_gradient(smem, product)
    blocks.copy_out(
        (smem["q_CH"], dq.at[b, tokens, n]),
        (smem["k_CH"], dk.at[b, tokens, n]),
        (smem["v_CP"], dv.at[b, tokens, n]),
        (smem["dlog_decay_C"], dlog_decay.at[b, n, z]),
        (smem["dbeta_C"], dbeta.at[b, n, z]),
    )
    plgpu.wait_smem_to_gmem(0)


def _inside(row, smem, product, scale):
    """Leaves dQK, dKK and M in shared memory; returns the part of dbeta that comes through L."""
    i_CC, j_CC = blocks.indices()
    k_CH, writes_XPC = smem["k_CH"], smem["writes_XPC"]
    sum_1C = blocks.on_columns(blocks.column_vector(smem["column_gates_XC"].at[SUM]))
    difference_CC = registers(blocks.on_rows(row(SUM)) - sum_1C)
    decay_CC = registers(jnp.exp(registers(jnp.where(i_CC >= j_CC, difference_CC, -jnp.inf))))
    both = lambda left: ((left, writes_XPC.at[1]), (left, writes_XPC.at[0]))

    keys_CC = product((k_CH, transposed(k_CH)))
    dlower_CC = product(*both(transposed(smem["derror_PC"])))
    dlower_CC = registers(jnp.where(i_CC > j_CC, -dlower_CC * decay_CC, 0.0))
    smem["dkeys_CC"][...] = blocks.rounded(dlower_CC * blocks.on_rows(row(BETA)))
    crossing_CC = registers(dlower_CC * keys_CC)
    dbeta_C = jnp.sum(crossing_CC, axis=1)
    crossing_CC = registers(crossing_CC * blocks.on_rows(row(BETA)))

    dscores_CC = product(*both(smem["dout_CP"]))
    dscores_CC = registers(dscores_CC * decay_CC * scale)
    smem["dscores_high_CC"][...], smem["dscores_low_CC"][...] = blocks.parts(dscores_CC)
    scores_CC = product((smem["q_CH"], transposed(k_CH)))
    crossing_CC += jnp.where(i_CC > j_CC, dscores_CC * scores_CC, 0.0)
    crossing_XCC = smem["crossing_XCC"]
    crossing_XCC[0], crossing_XCC[1] = blocks.parts(registers(crossing_CC))
    plgpu.commit_smem()
    return dbeta_C


def _half(start: int, smem):
    """Half of the key dimension: the columns of q, k, S, dS from `start`."""
    columns = pl.ds(start, HALF)
    return (smem[name].at[:, columns] for name in ("q_CH", "k_CH", "state_PH", "dstate_PH"))


def _query_and_key_gradients(row, smem, product):
    """Leaves dQ in place of Q and dK in place of K.

    Returns:
      Row sums: of Q times the part of dQ through S, of dR * (K S), and of K times the part of dK
      through dS.
    """
    sums = [0.0, 0.0, 0.0]
    for start in (0, HALF):
        q_CH, k_CH, state_PH, dstate_PH = _half(start, smem)
        reads_C, dq_CH = _query_gradient(row, q_CH, k_CH, state_PH, smem, product)
        read_errors_C, writes_C, dk_CH = _key_gradient(
            row, q_CH, k_CH, state_PH, dstate_PH, smem, product
        )
        q_CH[...], k_CH[...] = dq_CH, dk_CH
        found = (reads_C, read_errors_C, writes_C)
        sums = [total + part for total, part in zip(sums, found, strict=True)]
    return sums


def _query_gradient(row, q_CH, k_CH, state_PH, smem, product):
    dq_CH = product((smem["dout_CP"], state_PH))
    dq_CH = registers(dq_CH * blocks.on_rows(row(OUT_ENTRY)))
    reads_C = jnp.sum(registers(dq_CH * _floats(q_CH)), axis=1)
    high_CC, low_CC = smem["dscores_high_CC"], smem["dscores_low_CC"]
    return reads_C, blocks.rounded(product((low_CC, k_CH), (high_CC, k_CH), start=dq_CH))


def _key_gradient(row, q_CH, k_CH, state_PH, dstate_PH, smem, product):
    dkeys_CC, writes_XPC = smem["dkeys_CC"], smem["writes_XPC"]
    read_CH = product((transposed(smem["derror_PC"]), state_PH))
    read_errors_C = jnp.sum(registers(read_CH * _floats(k_CH)), axis=1)
    dk_CH = registers(read_CH * blocks.on_rows(-row(BETA_ENTRY)))
    written_CH = product(*((transposed(writes_XPC.at[part]), dstate_PH) for part in (1, 0)))
    written_CH = registers(written_CH * blocks.on_rows(row(EXIT)))
    writes_C = jnp.sum(registers(written_CH * _floats(k_CH)), axis=1)
    dk_CH = product(
        (dkeys_CC, k_CH),
        (transposed(dkeys_CC), k_CH),
        (transposed(smem["dscores_high_CC"]), q_CH),
        start=registers(dk_CH + written_CH),
    )
    return read_errors_C, writes_C, blocks.rounded(dk_CH)


def _value_gradient(row, smem):
    """Leaves dV in place of V; returns the row sums of dR * V."""
    value_errors_C = 0.0
    for start in (0, HALF):
        derror_CP = _floats(transposed(smem["derror_PC"].at[pl.ds(start, HALF)]))
        v_CP = smem["v_CP"].at[:, pl.ds(start, HALF)]
        value_errors_C += jnp.sum(registers(derror_CP * _floats(v_CP)), axis=1)
        v_CP[...] = blocks.rounded(derror_CP * blocks.on_rows(row(BETA)))
    return value_errors_C


def _state_overlap(smem):
    """64 numbers whose sum is e^g_C <S, dS>."""
    total_C = 0.0
    for rows in (pl.ds(0, HALF), pl.ds(HALF, HALF)):
        for columns in (pl.ds(0, HALF), pl.ds(HALF, HALF)):
            state, dstate = (smem[x].at[rows, columns] for x in ("state_PH", "dstate_PH"))
            total_C += jnp.sum(registers(_floats(state) * _floats(dstate)), axis=1)
    return total_C * jnp.exp(smem["column_gates_XC"][SUM, CHUNK - 1])


def _decay_gradient(smem, product):
    """Row m: what crosses token m."""
    m_CC, i_CC = blocks.indices()
    before_CC = blocks.rounded(jnp.where(i_CC < m_CC, 1.0, 0.0))
    crossed_CC = product(
        *((before_CC, transposed(smem["crossing_XCC"].at[part])) for part in (1, 0))
    )
    reads_1C, writes_1C, state_1C = (
        blocks.on_columns(blocks.column_vector(smem["sums_XC"].at[x]))
        for x in (READS, WRITES, STATE)
    )
    crossing_CC = registers(jnp.where(i_CC >= m_CC, crossed_CC + reads_1C, writes_1C))
    return jnp.sum(registers(crossing_CC + state_1C), axis=1)


def _floats(ref):
    return registers(registers(blocks.matrix(ref)).astype(jnp.float32))
