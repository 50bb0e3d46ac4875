"""Puts what `fragments` says of a thread into a Mosaic GPU kernel."""

from typing import NamedTuple

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import arith

from pallas_kernels.hopper.blocks import registers
from pallas_kernels.kv_cache.gpu import fragments

SWIZZLED = (plgpu.TilingTransform((8, fragments.TOKENS)), plgpu.SwizzleTransform(128))


def codes_buffer(*shape: int):
    """Returns a buffer of codes; the last axes are H / 2 and `fragments.TOKENS`."""
    return plgpu.SMEM(shape, jnp.uint8, transforms=SWIZZLED)


def scales_buffer(*shape: int):
    return plgpu.SMEM(shape, jnp.uint8)


def keys(codes_CT, scales_GT, *, interpret: bool):
    """Loads a block of keys as a left operand: tokens x channels, both `in_order`."""
    if interpret:
        return fragments.plain_keys(codes_CT[...], scales_GT[...])
    channels = 2 * codes_CT.shape[0]
    return _operand(fragments.keys, (fragments.TOKENS, channels), codes_CT, scales_GT, channels)


def values(codes_CT, scales_GT, *, interpret: bool):
    """Loads a block of values as a left operand: channels as `rows_of_channels` x tokens."""
    if interpret:
        return fragments.plain_values(codes_CT[...], scales_GT[...])
    channels = 2 * codes_CT.shape[0]
    return _operand(fragments.values, (channels, fragments.TOKENS), codes_CT, scales_GT, channels)


def _operand(program, shape, codes, scales, channels: int):
    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(SWIZZLED), plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.bfloat16, layout=plgpu.Layout.WGMMA),
    )
    def run(_, codes, scales):
        bf16_pair = ir.VectorType.get((2,), ir.BF16Type.get())
        at = fragments.Sources(_address(codes), _address(scales))
        words = program(_Thread(), at, channels)
        pairs = words.copy()
        for index, word in enumerate(words.flat):
            pairs.flat[index] = utils.bitcast(word.value, bf16_pair)
        pairs = pairs.reshape(mgpu.WGMMA_LAYOUT.registers_shape(shape))
        return mgpu.FragmentedArray(_registers=pairs, _layout=mgpu.WGMMA_LAYOUT, _is_signed=None)

    return registers(run(codes, scales))


def over_rows(op: str, x_RN, scratch, *, interpret: bool):
    """Returns the "max" or "add" of each column, over all warps of a warpgroup.

    Args:
      scratch: `32 * N` floats of this warpgroup's own.
    """
    if interpret:
        return {"max": jnp.max, "add": jnp.sum}[op](x_RN, axis=0)
    columns = plgpu.Layout.WGMMA.reduce(0)

    @plgpu.inline_mgpu(
        arg_types=(plgpu.Layout.WGMMA, plgpu.RefType()),
        return_type=plgpu.ShapeDtypeStruct(x_RN.shape[1:], jnp.float32, layout=columns),
    )
    def run(_, x, scratch):
        return x.reduce(op, 0, scratch)

    return plgpu.layout_cast(run(x_RN, scratch), columns)


class _Word(NamedTuple):
    """Builds integer code with Python's operators."""

    value: ir.Value

    def _with(self, build, other) -> "_Word":
        other = other.value if isinstance(other, _Word) else utils.c(_signed(other), _i32())
        return _Word(build(self.value, other))

    def __add__(self, other):
        return self._with(arith.addi, other)

    def __mul__(self, other):
        return self._with(arith.muli, other)

    def __and__(self, other):
        return self._with(arith.andi, other)

    def __or__(self, other):
        return self._with(arith.ori, other)

    def __xor__(self, other):
        return self._with(arith.xori, other)

    def __lshift__(self, other):
        return self._with(arith.shli, other)

    def __rshift__(self, other):
        return self._with(arith.shrui, other)


class _Thread:
    """Implements `fragments.Machine`."""

    def __init__(self):
        self.thread = _Word(utils.thread_idx()) & 127

    def matrices(self, address, *, transposed: bool) -> list:
        form = ".trans" if transposed else ""
        ptx = f"ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
        words = utils.inline_ptx(
            ptx, address.value, result_types=[_i32()] * 4, has_side_effects=True, convergent=True
        )
        return list(map(_Word, words))

    def load(self, address, bits: int):
        ptx = f"ld.shared.u{bits} $0, [$1];"
        return _Word(
            utils.inline_ptx(ptx, address.value, result_types=_i32(), has_side_effects=True)
        )

    def times(self, x, y):
        y = y.value if isinstance(y, _Word) else utils.c(_signed(y), _i32())
        return _Word(utils.inline_ptx("mul.rn.bf16x2 $0, $1, $2;", x.value, y, result_types=_i32()))


def _i32():
    return ir.IntegerType.get_signless(32)


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def _address(ref) -> _Word:
    return _Word(utils.inline_ptx("mov.b32 $0, $1;", utils.memref_ptr(ref), result_types=_i32()))
