"""Computes gradients of everything a chunk reads, all chunks in parallel.

With S the state that enters a chunk, dS the cotangent of the one that leaves it, and U, R, A, P, D
as in `scan` and `intra` (L = beta K K^T * D below the diagonal; Q comes with the scale):

    dQ = e^g dO S^T + dQK K                          dQK = dO U^T * D
    dK = -beta e^g dR S^T + e^(g_C - g) U dS^T + (dKK + dKK^T) K + dQK^T Q
    dKK = dL * D beta below the diagonal, dL = -dR U^T
    dV = beta dR              dbeta = row sums of dR * (V - e^g K S) + dL * L / beta

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
from pallas_kernels.gated_delta.gpu.blocks import CHUNK, HALF, HEAD, floats, registers, transposed
from pallas_kernels.gated_delta.gpu.gates import BETA, BETA_ENTRY, EXIT, GATES, OUT_ENTRY, SUM
from pallas_kernels.gated_delta.gpu.reverse import Cotangents
from pallas_kernels.gated_delta.gpu.visit import Visited

HALVES = HEAD // HALF
READS, READ_ERRORS, WRITES, VALUE_ERRORS, STATE = range(5)  # the sums that each half finds
SUMS = 5
DBETA = HALVES * SUMS


class Gradients(NamedTuple):
    """Carries dq and dk of each value head, and the gates' gradients [B, N, Z, C] in float32."""

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
    """Runs one program per chunk and head; two warpgroups share it, each half of the columns."""
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
            scratch=_buffers(),
            warpgroups=HALVES,
            interpret=interpret,
        )
    )


def _buffers() -> dict:
    """Returns the buffers; matrices of which a warpgroup needs half are cut along their columns."""
    return dict(
        q_XCH=blocks.operand(HALVES, CHUNK, HALF),
        k_XCH=blocks.operand(HALVES, CHUNK, HALF),
        dout_CP=blocks.operand(CHUNK, HEAD),
        row_gates_XC=blocks.vectors(GATES, CHUNK),
        column_gates_XC=blocks.vectors(GATES, CHUNK),
        writes_XPC=blocks.operand(2, HEAD, CHUNK),
        derror_PC=blocks.operand(HEAD, CHUNK),
        state_XPH=blocks.operand(HALVES, HEAD, HALF),
        dstate_XPH=blocks.operand(HALVES, HEAD, HALF),
        dscores_high_CC=blocks.operand(CHUNK, CHUNK),
        dscores_low_CC=blocks.operand(CHUNK, CHUNK),
        dkeys_CC=blocks.operand(CHUNK, CHUNK),
        crossing_XCC=blocks.operand(2, CHUNK, CHUNK),
        values_XCP=blocks.operand(HALVES, CHUNK, HALF),
        sums_XC=blocks.vectors(DBETA + 1, CHUNK),
        dlog_decay_C=blocks.vectors(CHUNK),
        inside_loaded=plgpu.Barrier(num_arrivals=12),
        states_loaded=plgpu.Barrier(num_arrivals=4),
        values_loaded=plgpu.Barrier(num_arrivals=2),
        inside_done=plgpu.Barrier(num_arrivals=HALVES),
        sums_done=plgpu.Barrier(num_arrivals=HALVES),
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
    b, n, z, half = (lax.axis_index(axis) for axis in ("b", "n", "z", "warpgroup"))
    tokens, key_head = pl.ds(z * CHUNK, CHUNK), lax.div(n, jnp.int32(group))
    columns = [pl.ds(x * HALF, HALF) for x in range(HALVES)]
    halves_of = lambda source, buffer: [
        (source.at[..., columns[x]], buffer.at[x]) for x in range(HALVES)
    ]
    product = functools.partial(blocks.product, interpret=interpret)
    row = lambda gate: blocks.row_vector(smem["row_gates_XC"].at[gate])

    @pl.when(half == 0)
    def _load():
        blocks.copy_in(
            smem["inside_loaded"],
            *halves_of(k.at[b, tokens, key_head], smem["k_XCH"]),
            *halves_of(q.at[b, tokens, key_head], smem["q_XCH"]),
            (gates.at[b, n, z], smem["row_gates_XC"]),
            (gates.at[b, n, z], smem["column_gates_XC"]),
            (derrors.at[b, n, z, 0], smem["derror_PC"]),
            *(
                (derrors.at[b, n, z, 1, x], y)
                for x, y in zip(columns, _low_errors(smem), strict=True)
            ),
            (writes.at[b, n, z, 0], smem["writes_XPC"].at[0]),
            (writes.at[b, n, z, 1], smem["writes_XPC"].at[1]),
            (dout.at[b, tokens, n], smem["dout_CP"]),
        )
        blocks.copy_in(
            smem["states_loaded"],
            *halves_of(states.at[b, n, z], smem["state_XPH"]),
            *halves_of(dstates.at[b, n, z], smem["dstate_XPH"]),
        )

    plgpu.barrier_wait(smem["inside_loaded"])
    decay_CC = _decay(row, smem)
    lax.cond(
        half == 0,
        lambda: _scores_gradient(decay_CC, smem, product, scale),
        lambda: _system_gradient(row, decay_CC, smem, product),
    )
    blocks.meet(smem["inside_done"])

    @pl.when(half == 0)
    def _cross():
        smem["dlog_decay_C"][...] = _crossing(smem, product)
        plgpu.commit_smem()
        blocks.copy_in(smem["values_loaded"], *halves_of(v.at[b, tokens, n], smem["values_XCP"]))

    plgpu.barrier_wait(smem["states_loaded"])
    put_sum = functools.partial(_put_sum, smem["sums_XC"], half)
    _query_and_key_gradients(row, half, smem, product, put_sum)
    put_sum(STATE, _state_overlap(half, smem))
    plgpu.barrier_wait(smem["values_loaded"])
    for x in range(HALVES):
        pl.when(half == x)(functools.partial(_value_gradient, row, x, smem, put_sum))
    blocks.meet(smem["sums_done"])

    @pl.when(half == 0)
    def _finish():
        _gate_gradients(smem, scale)
        blocks.copy_out(
            (smem["dlog_decay_C"], dlog_decay.at[b, n, z]),
            (smem["sums_XC"].at[DBETA], dbeta.at[b, n, z]),
        )

    mine = pl.ds(half * HALF, HALF)
    blocks.copy_out(
        (smem["q_XCH"].at[half], dq.at[b, tokens, n, mine]),
        (smem["k_XCH"].at[half], dk.at[b, tokens, n, mine]),
        (smem["values_XCP"].at[half], dv.at[b, tokens, n, mine]),
    )
    plgpu.wait_smem_to_gmem(0)


def _put_sum(sums_XC, half, kind: int, sum_C) -> None:
    sums_XC[half * SUMS + kind] = sum_C


def _decay(row, smem):
    i_CC, j_CC = blocks.indices()
    sum_1C = blocks.on_columns(blocks.column_vector(smem["column_gates_XC"].at[SUM]))
    difference_CC = registers(blocks.on_rows(row(SUM)) - sum_1C)
    return registers(jnp.exp(registers(jnp.where(i_CC >= j_CC, difference_CC, -jnp.inf))))


def _with_keys(left_XCH, k_XCH, product):
    return product(*((left_XCH.at[x], transposed(k_XCH.at[x])) for x in range(HALVES)))


def _low_errors(smem):
    """Returns the second part of dR, in two halves of P; it lies where V will be."""
    return tuple(smem["values_XCP"].at[x] for x in range(HALVES))


def _scores_gradient(decay_CC, smem, product, scale) -> None:
    """Leaves dQK, and its share of M, in shared memory."""
    i_CC, j_CC = blocks.indices()
    dscores_CC = product(*((smem["dout_CP"], smem["writes_XPC"].at[part]) for part in (1, 0)))
    dscores_CC = registers(dscores_CC * decay_CC * scale)
    smem["dscores_high_CC"][...], smem["dscores_low_CC"][...] = blocks.parts(dscores_CC)
    scores_CC = _with_keys(smem["q_XCH"], smem["k_XCH"], product)
    crossing_CC = jnp.where(i_CC > j_CC, dscores_CC * scores_CC, 0.0)
    _put_parts(smem["crossing_XCC"], registers(crossing_CC))


def _system_gradient(row, decay_CC, smem, product) -> None:
    """Leaves dKK, its share of M where V will be, and the part of dbeta through L.

    dR is taken in two parts here: with keys that repeat, dL * L nearly cancels in both gates.
    """
    i_CC, j_CC = blocks.indices()
    high_PC, writes_PC = smem["derror_PC"], smem["writes_XPC"].at[0]
    dlower_CC = product(
        *(
            (transposed(low_PC), writes_PC.at[pl.ds(x * HALF, HALF)])
            for x, low_PC in enumerate(_low_errors(smem))
        ),
        (transposed(high_PC), smem["writes_XPC"].at[1]),
        (transposed(high_PC), writes_PC),
    )
    dlower_CC = registers(jnp.where(i_CC > j_CC, -dlower_CC * decay_CC, 0.0))
    beta_C1 = blocks.on_rows(row(BETA))
    smem["dkeys_CC"][...] = blocks.rounded(dlower_CC * beta_C1)
    keys_CC = _with_keys(smem["k_XCH"], smem["k_XCH"], product)
    through_CC = registers(dlower_CC * keys_CC)
    _put_parts(smem["values_XCP"], registers(through_CC * beta_C1))
    smem["sums_XC"][DBETA] = jnp.sum(through_CC, axis=1)


def _crossing(smem, product):
    """Returns, for each m, the sum of M_ij over j < m <= i."""
    m_CC, i_CC = blocks.indices()
    before_CC = blocks.rounded(jnp.where(i_CC < m_CC, 1.0, 0.0))
    shares = (smem["crossing_XCC"], smem["values_XCP"])
    crossed_CC = product(
        *((before_CC, transposed(share.at[part])) for part in (1, 0) for share in shares)
    )
    return jnp.sum(registers(jnp.where(i_CC >= m_CC, crossed_CC, 0.0)), axis=1)


def _query_and_key_gradients(row, half, smem, product, put_sum) -> None:
    """Leaves dQ in place of Q and dK in place of K."""
    q_CH, k_CH, state_PH, dstate_PH = (
        smem[x].at[half] for x in ("q_XCH", "k_XCH", "state_XPH", "dstate_XPH")
    )
    high_CC, low_CC = smem["dscores_high_CC"], smem["dscores_low_CC"]
    dkeys_CC, writes_XPC = smem["dkeys_CC"], smem["writes_XPC"]
    dq_CH = product((smem["dout_CP"], state_PH))
    dq_CH = registers(dq_CH * blocks.on_rows(row(OUT_ENTRY)))
    put_sum(READS, jnp.sum(registers(dq_CH * floats(q_CH)), axis=1))
    dq_CH = blocks.rounded(product((low_CC, k_CH), (high_CC, k_CH), start=dq_CH))

    read_CH = product((transposed(smem["derror_PC"]), state_PH))
    put_sum(READ_ERRORS, jnp.sum(registers(read_CH * floats(k_CH)), axis=1))
    dk_CH = registers(read_CH * blocks.on_rows(-row(BETA_ENTRY)))
    written_CH = product(*((transposed(writes_XPC.at[part]), dstate_PH) for part in (1, 0)))
    written_CH = registers(written_CH * blocks.on_rows(row(EXIT)))
    put_sum(WRITES, jnp.sum(registers(written_CH * floats(k_CH)), axis=1))
    dk_CH = product(
        (dkeys_CC, k_CH),
        (transposed(dkeys_CC), k_CH),
        (transposed(high_CC), q_CH),
        start=registers(dk_CH + written_CH),
    )
    q_CH[...], k_CH[...] = dq_CH, blocks.rounded(dk_CH)


def _value_gradient(row, half: int, smem, put_sum) -> None:
    """Leaves dV in place of V."""
    v_CP = smem["values_XCP"].at[half]
    derror_CP = floats(transposed(smem["derror_PC"].at[pl.ds(half * HALF, HALF)]))
    put_sum(VALUE_ERRORS, jnp.sum(registers(derror_CP * floats(v_CP)), axis=1))
    v_CP[...] = blocks.rounded(derror_CP * blocks.on_rows(row(BETA)))


def _state_overlap(half, smem):
    """Returns 64 numbers whose sum is the half's share of e^g_C <S, dS>."""
    total_C = 0.0
    for start in (0, HALF):
        state, dstate = (smem[x].at[half, pl.ds(start, HALF)] for x in ("state_XPH", "dstate_XPH"))
        total_C += jnp.sum(registers(floats(state) * floats(dstate)), axis=1)
    return total_C * jnp.exp(smem["column_gates_XC"][SUM, CHUNK - 1])


def _gate_gradients(smem, scale) -> None:
    """Sums what both warpgroups found, and what crosses each token m by way of the states."""
    m_CC, i_CC = blocks.indices()
    gate = lambda kind: blocks.column_vector(smem["column_gates_XC"].at[kind])
    read = lambda index: blocks.column_vector(smem["sums_XC"].at[index])
    total = lambda kind: read(kind) + read(SUMS + kind)
    read_errors_C = total(READ_ERRORS)
    entry_C = gate(OUT_ENTRY) * (1 / scale)
    smem["sums_XC"][DBETA] = read(DBETA) + total(VALUE_ERRORS) - entry_C * read_errors_C
    reads_1C = blocks.on_columns(total(READS) - gate(BETA_ENTRY) * read_errors_C)
    writes_1C, state_1C = blocks.on_columns(total(WRITES)), blocks.on_columns(total(STATE))
    through_CC = registers(jnp.where(i_CC >= m_CC, reads_1C, writes_1C) + state_1C)
    crossing_C = blocks.row_vector(smem["dlog_decay_C"])
    smem["dlog_decay_C"][...] = crossing_C + jnp.sum(through_CC, axis=1)


def _put_parts(ref_XCC, x_CC) -> None:
    ref_XCC[0], ref_XCC[1] = blocks.parts(x_CC)
