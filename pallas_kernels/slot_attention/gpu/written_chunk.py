"""Loads a chunk for the gradients of what it writes.

A program has one chunk of one KV head. It has two sides: queries, keys and dL, and output
gradients, values and P, called rows x, written y and weights c. dS is the gradient of the slots
that leave the chunk. With the decays in halves as in `decays`, f the weights c in second halves and
the shares in first ones, Z = G f, and X Y^T mirrored at its diagonal to a symmetric matrix:

    dY^T = (Z Z^T)^T X + exit dS^T      D = (X Y^T) Z      dshare = G D      d log G = Z D

with products of tokens restricted to pairs that cross the middle of a block, and summed over L.
Nothing is subtracted: a decay of e^-20 keeps its digits.
"""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import floats, registers
from pallas_kernels.slot_attention.gpu import decays
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates, Pair

SIDES = 2


class WrittenChunk(NamedTuple):
    """Holds what a program reads of its chunk, in shared memory."""

    gates_XCM: jax.Ref
    share_CM: jax.Ref
    dstate_1HM: jax.Ref
    rows_1CH: jax.Ref
    weights_CM: jax.Ref
    written_1CH: jax.Ref | None
    loaded: jax.Ref
    full: jax.Ref


def buffers(H: int, *, written: bool = False) -> WrittenChunk:
    tile = blocks.operand(CHUNK, SLOTS)
    return WrittenChunk(
        gates_XCM=blocks.operand(2, CHUNK, SLOTS),
        share_CM=tile,
        dstate_1HM=blocks.operand(1, H, SLOTS),
        rows_1CH=blocks.operand(1, CHUNK, H),
        weights_CM=tile,
        written_1CH=blocks.operand(1, CHUNK, H) if written else None,
        loaded=plgpu.Barrier(num_arrivals=5 if written else 4),
        full=plgpu.Barrier(num_arrivals=2),
    )


def load(chunk: WrittenChunk, gates: Gates, dstates, written: Pair | None, side) -> None:
    b, kv_head, z = place()
    tokens = b, pl.ds(z * CHUNK, CHUNK), kv_head
    plgpu.commit_smem()
    blocks.copy_in(
        chunk.loaded,
        *decays.gate_copies(gates, tokens, chunk.gates_XCM, chunk.share_CM),
        (dstates.at[b, kv_head, z, side], chunk.dstate_1HM.at[0]),
    )
    for number, written_BTKH in enumerate(written or ()):

        @pl.when(side == number)
        def _(written_BTKH=written_BTKH):
            blocks.copy_in(chunk.loaded, (written_BTKH.at[tokens], chunk.written_1CH.at[0]))

    plgpu.barrier_wait(chunk.loaded)


def load_head(chunk: WrittenChunk, rows: Pair, weights: Pair, side, head) -> None:
    b, _, z = place()
    source = (b, pl.ds(z * CHUNK, CHUNK), head)
    plgpu.commit_smem()
    for number, (rows_BTNH, weights_BTNM) in enumerate(zip(rows, weights, strict=True)):

        @pl.when(side == number)
        def _(rows_BTNH=rows_BTNH, weights_BTNM=weights_BTNM):
            blocks.copy_in(
                chunk.full,
                (rows_BTNH.at[source], chunk.rows_1CH.at[0]),
                (weights_BTNM.at[source], chunk.weights_CM),
            )

    plgpu.barrier_wait(chunk.full)


def place():
    """Returns batch row, KV head and chunk of the program."""
    return tuple(lax.axis_index(axis) for axis in ("b", "k", "z"))


def decay(chunk: WrittenChunk, half, product):
    """Returns G_L."""
    return decays.decay(chunk.gates_XCM, decays.counts(half, *decays.indices()), product)


def factors(chunk: WrittenChunk, half):
    """Returns the weights in second halves, the shares in first ones."""
    weights_CM, share_CM = floats(chunk.weights_CM), floats(chunk.share_CM)
    return registers(jnp.where(decays.is_second(half), weights_CM, share_CM))
