"""Defines sizes, products and tools that the gated delta rule's kernels for Hopper share."""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import column_vector as column_vector
from pallas_kernels.hopper.blocks import copy_in as copy_in
from pallas_kernels.hopper.blocks import copy_out as copy_out
from pallas_kernels.hopper.blocks import floats as floats
from pallas_kernels.hopper.blocks import kernel as kernel
from pallas_kernels.hopper.blocks import matrix as matrix
from pallas_kernels.hopper.blocks import meet as meet
from pallas_kernels.hopper.blocks import of_one_device as of_one_device
from pallas_kernels.hopper.blocks import operand as operand
from pallas_kernels.hopper.blocks import product as product
from pallas_kernels.hopper.blocks import put as put
from pallas_kernels.hopper.blocks import registers as registers
from pallas_kernels.hopper.blocks import rounded as rounded
from pallas_kernels.hopper.blocks import row_vector as row_vector
from pallas_kernels.hopper.blocks import transposed as transposed
from pallas_kernels.hopper.blocks import vectors as vectors

CHUNK = 64
HEAD = 128
HALF = 64


def on_rows(x, shape=(CHUNK, CHUNK)):
    return blocks.on_rows(x, shape)


def on_columns(x, shape=(CHUNK, CHUNK)):
    return blocks.on_columns(x, shape)


def parts(x):
    """Returns two bf16 arrays whose sum is `x` to 17 bits.

    The first is rounded on its bits: conversions back and forth are slower, and a compiler may
    remove them, and with them the second.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000)
    bits = registers(bits & jnp.uint32(0xFFFF0000))
    high = registers(lax.bitcast_convert_type(bits, jnp.float32))
    return rounded(high), rounded(x - high)


def indices():
    """Returns row and column numbers of a chunk by chunk matrix."""
    iota = lambda axis: plgpu.broadcasted_iota(
        jnp.int32, (CHUNK, CHUNK), axis, layout=plgpu.Layout.WGMMA
    )
    return iota(0), iota(1)


def overlapped(first, second, use, *, starts=(None, None), interpret):
    """Returns (use(the product `first`), the product `second`).

    `use` runs while the tensor cores compute the second.

    Args:
      first, second: terms, as of `product`.
      starts: what each product starts from; both None or both arrays.
    """
    if interpret:
        first, second = (
            product(*terms, start=start, interpret=True)
            for terms, start in zip((first, second), starts, strict=True)
        )
        return use(first), second

    def both(accumulators):
        for terms, accumulator in zip((first, second), accumulators, strict=True):
            for left, right in terms:
                plgpu.wgmma(accumulator, left, right)
        waited = plgpu.wgmma_accumulator_load(accumulators[0], wait_n=len(second))
        return use(registers(waited))

    if starts[0] is not None:
        _, result = pl.run_state(both)(tuple(plgpu.ACC.init(start) for start in starts))
        return None, registers(result)

    def from_zero(*accumulators):
        used = both(accumulators)
        return used, accumulators[1][...]

    sizes = [(terms[0][0].shape[0], terms[0][1].shape[1]) for terms in (first, second)]
    used, result = pl.run_scoped(from_zero, *(plgpu.ACC(size, jnp.float32) for size in sizes))
    return used, registers(result)


def precise(left, right):
    """Returns the terms of a product of two-part operands, accurate to about 16 bits."""
    (left_high, left_low), (right_high, right_low) = left, right
    return (left_low, right_high), (left_high, right_low), (left_high, right_high)
