"""Substitutes on the diagonal blocks of a triangular system, one thread per column."""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental.mosaic.gpu import utils
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith, memref, vector

from pallas_kernels.gated_delta.gpu.blocks import CHUNK

ROW = 72  # floats between rows in shared memory: 64 would put a column into one bank
BLOCK = 32  # the diagonal blocks that are inverted here


def invert_diagonal_blocks(lower) -> None:
    """Inverts diagonal blocks in place.

    `lower` [64, 72] holds a strictly lower triangular L in its first 64 columns. Afterwards its two
    32 x 32 diagonal blocks hold those of (I + L)^-1. All by float32 multiply-adds of one warpgroup:
    warp w solves the 16-row block w, lanes 0-15 for the columns of the identity, lanes 16-31 for
    those of the block L[w, w - 1] that the merge to 32 needs.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),), return_type=None)
    def run(_, l):
        code = _Code()
        utils.warpgroup_barrier()
        _solve_sixteens(code, l)
        _merge_to_thirty_twos(code, l)
        utils.warpgroup_barrier()

    run(lower)


def inverse_of_diagonal_blocks(lower_CC):
    """Computes what `invert_diagonal_blocks` does, zero elsewhere, for the interpreter."""
    unit = jnp.eye(CHUNK, dtype=jnp.float32)
    block = lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), 0) // BLOCK
    lower_CC = jnp.where(block == block.T, lower_CC, 0.0)

    def row(i, inverse):
        new = unit[i] - lower_CC[i] @ inverse
        return lax.dynamic_update_index_in_dim(inverse, new, i, axis=0)

    return lax.fori_loop(1, CHUNK, row, unit)


class _Code:
    """Builds scalar code for one thread of a warpgroup."""

    def __init__(self):
        self.i32 = ir.IntegerType.get_signless(32)
        self.f32 = ir.F32Type.get()
        self.index = ir.IndexType.get()
        self.four = ir.VectorType.get((4,), self.f32)
        self.thread = self.mask(utils.thread_idx(), 127)
        self.lane = self.mask(self.thread, 31)
        self.warp = self.shift(self.thread, 5)

    def integer(self, value: int):
        return arith.constant(self.i32, ir.IntegerAttr.get(self.i32, value))

    def real(self, value: float):
        return arith.constant(self.f32, ir.FloatAttr.get(self.f32, value))

    def add(self, x, y):
        return arith.addi(x, self.integer(y) if isinstance(y, int) else y)

    def times(self, x, y: int):
        return arith.muli(x, self.integer(y))

    def mask(self, x, bits: int):
        return arith.andi(x, self.integer(bits))

    def shift(self, x, bits: int):
        return arith.shrui(x, self.integer(bits))

    def equal(self, x, y: int):
        return arith.cmpi(arith.CmpIPredicate.eq, x, self.integer(y))

    def _at(self, row, column):
        return [arith.index_cast(self.index, i) for i in (row, column)]

    def load(self, ref, row, column):
        return memref.load(ref, self._at(row, column))

    def load_four(self, ref, row, column):
        four = vector.load(self.four, ref, self._at(row, column))
        return [vector.extract(four, dynamic_position=[], static_position=[i]) for i in range(4)]

    def store(self, value, ref, row, column):
        memref.store(value, ref, self._at(row, column))

    def minus_product(self, total, x, y):
        """Computes total - x * y in one instruction."""
        fused = arith.FastMathFlags.contract
        return arith.subf(total, arith.mulf(x, y, fastmath=fused), fastmath=fused)


def _solve_sixteens(code: _Code, l) -> None:
    column = code.mask(code.lane, 15)
    half = code.shift(code.lane, 4)
    is_unit = code.equal(half, 0)
    block = code.times(code.warp, 16)
    previous = code.times(code.mask(code.warp, 2), 16)
    solution = []
    for i in range(16):
        row = code.add(block, i)
        unit = arith.select(code.equal(column, i), code.real(1.0), code.real(0.0))
        neighbour = code.load(l, row, code.add(previous, column))
        total = arith.select(is_unit, unit, neighbour)
        for j in range(0, i, 4):
            factors = code.load_four(l, row, code.add(block, j))
            for factor, x in zip(factors, solution[j:i], strict=False):
                total = code.minus_product(total, factor, x)
        solution.append(total)
    utils.warpgroup_barrier()
    target = code.add(arith.xori(block, code.times(half, 16)), column)
    is_even = code.equal(code.mask(code.warp, 1), 0)
    for i in range(16):
        unwanted = arith.select(is_even, code.real(0.0), solution[i])
        code.store(arith.select(is_unit, solution[i], unwanted), l, code.add(block, i), target)
    utils.warpgroup_barrier()


def _merge_to_thirty_twos(code: _Code, l) -> None:
    """Computes X[1, 0] = -(X[1, 1] L[1, 0]) X[0, 0] in either half.

    Each thread has a row and four columns.
    """
    first = code.times(code.shift(code.thread, 6), BLOCK)
    row = code.add(code.add(first, 16), code.mask(code.shift(code.thread, 2), 15))
    columns = code.add(first, code.times(code.mask(code.thread, 3), 4))
    solved = [x for j in range(0, 16, 4) for x in code.load_four(l, row, code.add(first, j))]
    totals = [code.real(0.0)] * 4
    for i, factor in enumerate(solved):
        across = code.load_four(l, code.add(first, i), columns)
        totals = [
            code.minus_product(total, factor, x) for total, x in zip(totals, across, strict=True)
        ]
    utils.warpgroup_barrier()
    for i, total in enumerate(totals):
        code.store(total, l, row, code.add(columns, i))
