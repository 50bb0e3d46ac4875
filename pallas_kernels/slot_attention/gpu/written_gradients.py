"""Computes the gradients of keys and values; `written_chunk` states the algebra."""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.passes import Readers, readers_between
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import floats, on_rows, registers, rounded, transposed
from pallas_kernels.slot_attention.gpu import decays, written_chunk
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates, Pair
from pallas_kernels.slot_attention.gpu.decays import TILE, fresh
from pallas_kernels.slot_attention.gpu.written_chunk import SIDES


def written_gradients(
    rows: Pair, weights: Pair, gates: Gates, dstates_BKZXHM, readers: Readers, *, interpret
) -> Pair:
    """Returns the gradients of keys and values, bf16."""
    B, T, _, H = rows.k.shape
    K, Z = dstates_BKZXHM.shape[1:3]
    return Pair(
        *blocks.kernel(
            functools.partial(_body, interpret=bool(interpret)),
            *(rows, weights, gates, dstates_BKZXHM, readers),
            name="slot_attention_written",
            grid=dict(b=B, k=K, z=Z, side=SIDES),
            outputs=[((B, T, K, H), jnp.bfloat16)] * SIDES,
            scratch=dict(
                chunk=written_chunk.buffers(H),
                halves_CM=blocks.operand(CHUNK, SLOTS),
                dwritten_CH=blocks.operand(CHUNK, H),
            ),
            interpret=interpret,
        )
    )


def _body(
    rows, weights, gates, dstates, readers, dk, dv, *, chunk, halves_CM, dwritten_CH, interpret
):
    (b, kv_head, z), side = written_chunk.place(), lax.axis_index("side")
    product = functools.partial(blocks.product, interpret=interpret)
    written_chunk.load(chunk, gates, dstates, None, side)
    i_CC, t_CC = decays.indices()

    def add_head(x, dwritten_CH):
        written_chunk.load_head(chunk, rows, weights, side, readers.order_N[x])
        own_C = jnp.sum(registers(floats(chunk.weights_CM) * floats(chunk.share_CM)), axis=1)
        i_CC, t_CC = decays.indices()
        own_CC = registers(jnp.where(t_CC == i_CC, on_rows(own_C, TILE), 0.0))

        def add(number, shares_CC):
            half = decays.half_of(number)
            decay_CM = written_chunk.decay(chunk, half, product)
            decayed_CM = rounded(decay_CM * written_chunk.factors(chunk, half))
            halves_CM[...] = decayed_CM
            plgpu.commit_smem()
            crossing_CC = product((decayed_CM, transposed(halves_CM)))
            return registers(jnp.where(decays.crosses(half, t_CC, i_CC), crossing_CC, shares_CC))

        shares_CC = lax.fori_loop(0, decays.HALVES, add, own_CC)
        return product((rounded(shares_CC), fresh(chunk.rows_1CH)), start=dwritten_CH)

    exit_CM = decays.decay(chunk.gates_XCM, t_CC > i_CC, product) * floats(chunk.share_CM)
    total_CH = product((rounded(exit_CM), transposed(fresh(chunk.dstate_1HM))))
    total_CH = lax.fori_loop(*readers_between(readers, kv_head), add_head, total_CH)
    dwritten_CH[...] = rounded(total_CH)
    plgpu.commit_smem()
    for number, target in enumerate((dk, dv)):

        @pl.when(side == number)
        def _(target=target):
            place = (b, pl.ds(z * CHUNK, CHUNK), kv_head)
            plgpu.copy_smem_to_gmem(dwritten_CH, target.at[place])

    plgpu.wait_smem_to_gmem(0)
