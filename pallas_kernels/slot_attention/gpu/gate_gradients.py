"""Computes the gradients of shares and log decays; `written_chunk` states the algebra."""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.gpu.passes import Readers, readers_between
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import floats, on_rows, registers, rounded, transposed
from pallas_kernels.slot_attention.gpu import decays, written_chunk
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates, Pair
from pallas_kernels.slot_attention.gpu.decays import TILE, fresh
from pallas_kernels.slot_attention.gpu.written_chunk import SIDES


class GateGradients(NamedTuple):
    """Carries gradients in float32, without what comes through the slots that enter a chunk."""

    dlog_decay_BKZCM: jax.Array
    dshare_BKZCM: jax.Array


def gate_gradients(
    rows: Pair,
    written: Pair,
    weights: Pair,
    gates: Gates,
    dstates_BKZXHM,
    readers: Readers,
    *,
    interpret,
) -> GateGradients:
    """Runs one program per chunk, for both sides one after the other."""
    B, K, Z = dstates_BKZXHM.shape[:3]
    H = rows.k.shape[3]
    return GateGradients(
        *blocks.kernel(
            functools.partial(_body, interpret=bool(interpret)),
            *(rows, written, weights, gates, dstates_BKZXHM, readers),
            name="slot_attention_gates",
            grid=dict(b=B, k=K, z=Z),
            outputs=[((B, K, Z, CHUNK, SLOTS), jnp.float32)] * 2,
            scratch=dict(
                chunk=written_chunk.buffers(H, written=True),
                halves_1CM=blocks.operand(1, CHUNK, SLOTS),
                dlog_1CM=blocks.operand(1, CHUNK, SLOTS),
                scores_CC_ref=blocks.operand(CHUNK, CHUNK),
            ),
            interpret=interpret,
        )
    )


def _body(
    rows,
    written,
    weights,
    gates,
    dstates,
    readers,
    dlog_decay,
    dshare,
    *,
    chunk,
    halves_1CM,
    dlog_1CM,
    scores_CC_ref,
    interpret,
):
    b, kv_head, z = written_chunk.place()
    product = functools.partial(blocks.product, interpret=interpret)

    def passed_on(counts_CC, dlog_CM, dlog_decay_CM):
        """Adds gradients of sums of log decays to those of the tokens that count for them."""
        dlog_1CM[0] = rounded(dlog_CM)
        plgpu.commit_smem()
        return product((decays.ones(counts_CC), fresh(dlog_1CM)), start=dlog_decay_CM)

    def add_head(side, x, found):
        dlog_decay_CM, dshare_CM = found
        written_chunk.load_head(chunk, rows, weights, side, readers.order_N[x])
        rows_CC, columns_CC = decays.indices()
        scores_CC = product((fresh(chunk.rows_1CH), transposed(fresh(chunk.written_1CH))))
        own_C = jnp.sum(registers(jnp.where(rows_CC == columns_CC, scores_CC, 0.0)), axis=1)
        dshare_CM = registers(dshare_CM + floats(chunk.weights_CM) * on_rows(own_C, TILE))
        scores_CC = rounded(scores_CC)
        mirrored_CC = rounded(
            product((fresh(chunk.written_1CH), transposed(fresh(chunk.rows_1CH))))
        )
        scores_CC_ref[...] = jnp.where(rows_CC > columns_CC, scores_CC, mirrored_CC)

        def add(number, found):
            dlog_decay_CM, dshare_CM = found
            half = decays.half_of(number)
            decay_CM = written_chunk.decay(chunk, half, product)
            halves_1CM[0] = rounded(decay_CM * written_chunk.factors(chunk, half))
            plgpu.commit_smem()
            crossing_CC = decays.masked(
                decays.crosses_either_way(half, rows_CC, columns_CC),
                registers(blocks.matrix(scores_CC_ref)),
            )
            d_CM = registers(decay_CM * product((crossing_CC, fresh(halves_1CM))))
            second_CM = decays.is_second(half)
            dshare_CM = registers(dshare_CM + jnp.where(second_CM, 0.0, d_CM))
            counts_CC = decays.counts(half, columns_CC, rows_CC)
            dlog_CM = registers(d_CM * written_chunk.factors(chunk, half))
            return passed_on(counts_CC, dlog_CM, dlog_decay_CM), dshare_CM

        return lax.fori_loop(0, decays.HALVES, add, (dlog_decay_CM, dshare_CM))

    def add_side(side, found):
        dlog_decay_CM, dshare_CM = found
        written_chunk.load(chunk, gates, dstates, written, side)
        rows_CC, columns_CC = decays.indices()
        exit_CM = decays.decay(chunk.gates_XCM, columns_CC > rows_CC, product)
        d_CM = registers(exit_CM * product((fresh(chunk.written_1CH), fresh(chunk.dstate_1HM))))
        dlog_CM = registers(d_CM * floats(chunk.share_CM))
        dlog_decay_CM = passed_on(rows_CC > columns_CC, dlog_CM, dlog_decay_CM)
        found = dlog_decay_CM, registers(dshare_CM + d_CM)
        add = functools.partial(add_head, side)
        return lax.fori_loop(*readers_between(readers, kv_head), add, found)

    zero_CM = registers(jnp.zeros(TILE, jnp.float32))
    found = lax.fori_loop(0, SIDES, add_side, (zero_CM, zero_CM))
    for target, x_CM in zip((dlog_decay, dshare), found, strict=True):
        blocks.put(target.at[b, kv_head, z], x_CM, interpret=interpret)
