"""Makes left operands of matrix products from codes and scales, in registers.

Codes lie in shared memory as [H / 2, 128]: a byte holds two channels of a token. One instruction
(ldmatrix) hands matrices of 8 x 16 bytes to the lanes of a warp, as they are or transposed. Either
way a word of 8 codes becomes 4 registers of two bf16 numbers by masks and shifts, and no number
moves to another lane. In return, tokens and channels stand in another order within each 16 of them:
the even ones, then the odd ones. XLA brings queries into it, and outputs out of it.

What a thread does is written on words of 32 bits with Python's operators: in a kernel they are
values of the compiler, in a test numpy arrays that hold all 128 threads.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_cache.ultraquant import UltraQuant

TOKENS = 128  # of a block of codes
SIXTEEN = 16

_BOTH = 0x00010001  # a factor that copies the lower half of a word to the upper one
_VALUE = 0x81C081C0  # in either half: sign, two bits of exponent, one of mantissa
_SIGNS, _MAGNITUDES = 0x88008800, 0x01DC01DC  # of two codes, the second one 4 bits too low
_EXPONENTS = 0x7F807F80
_LARGE = 0x7E807E80  # 2^126 twice: a code's bits as bf16 are its value over 2^126, also below 1


@runtime_checkable
class Machine(Protocol):
    """Runs or builds the code of one thread of a warpgroup.

    Attributes:
      thread: its number among 128, a word.
    """

    thread: object

    def matrices(self, address, *, transposed: bool) -> list:
        """Loads 4 matrices of 8 rows of 16 bytes; lane i has the address of row i % 8 of i / 8."""

    def load(self, address, bits: int):
        """Loads a word, or 16 bits into the lower half of one."""

    def times(self, x, y):
        """Multiplies two pairs of bf16 numbers."""


class Sources(NamedTuple):
    """Holds shared addresses, as words, of a block's codes (swizzled by 128 bytes) and scales."""

    codes: object
    scales: object


def keys(machine: Machine, at: Sources, H: int) -> np.ndarray:
    """Returns the registers of 128 keys x H channels: [tile of 64, 8 columns, half of 16 rows]."""
    lane, warp = _lane_and_warp(machine)
    out = np.empty((2, H // 8, 2), object)
    for m in range(2):
        chunk = (warp + 4 * m) ^ (lane & 7)
        codes = at.codes + (lane << 7) + (chunk << 4)
        scales = at.scales + (warp << 4) + ((lane >> 2) << 1) + 64 * m
        for four in range(H // 64):
            words = machine.matrices(codes + 4096 * four, transposed=True)
            for r, word in enumerate(words, 4 * four):
                if r % 2 == 0:
                    pair = machine.load(scales + TOKENS * (r // 2), 16)
                    factors = [_twice(pair & 0xFF), _twice(pair >> 8)]
                for x, value in enumerate(_values(machine, word)):
                    out[m, 2 * r + x % 2, x // 2] = machine.times(value, factors[x // 2])
    return out


def values(machine: Machine, at: Sources, H: int) -> np.ndarray:
    """Returns the registers of H channels x 128 values: [tile of 64, 8 columns, half of 16 rows].

    Their rows are those of `rows_of_channels`: a warp has neighbouring channels.
    """
    lane, warp = _lane_and_warp(machine)
    tiles = H // 64
    out = np.empty((tiles, 2 * TOKENS // SIXTEEN, 2), object)
    factors = {}
    for m in range(tiles):
        group = warp * (tiles // 2) + m // 2 if tiles > 1 else warp >> 1
        row = at.codes + ((lane & 7) << 7) + (warp << 10) * tiles + 1024 * m
        for four in range(2):
            chunk = ((lane >> 3) + 4 * four) ^ (lane & 7)
            words = machine.matrices(row + (chunk << 4), transposed=False)
            for s, word in enumerate(words, 4 * four):
                if m % 2 == 0:
                    scales = at.scales + (group << 7) + ((lane & 3) << 2) + SIXTEEN * s
                    four_scales = machine.load(scales, 32)
                    factors[s] = [
                        (four_scales << 7) & _EXPONENTS,
                        (four_scales >> 1) & _EXPONENTS,
                    ]
                for x, value in enumerate(_values(machine, word)):
                    out[m, 2 * s + x // 2, x % 2] = machine.times(value, factors[s][x // 2])
    return out


def _lane_and_warp(machine: Machine):
    return machine.thread & 31, (machine.thread >> 5) & 3


def _twice(scale):
    """Makes a pair of equal bf16 powers of two of a scale's byte."""
    return (scale << 7) * _BOTH


def _values(machine: Machine, word):
    """Returns the pairs (code i, code i + 4), i from 0 to 3, of the 8 codes of a word, as bf16."""
    low = ((word << 8) & _SIGNS) | ((word << 2) & _MAGNITUDES)
    high = (word & _SIGNS) | ((word >> 6) & _MAGNITUDES)
    pairs = ((low << 4) & _VALUE, low & _VALUE, (high << 4) & _VALUE, high & _VALUE)
    return [machine.times(pair, _LARGE) for pair in pairs]


def in_order(x, axis: int = -1):
    """Brings tokens or channels into the order in which the operands have them."""
    x = jnp.moveaxis(x, axis, -1)
    halves = x.reshape(*x.shape[:-1], -1, SIXTEEN // 2, 2)
    return jnp.moveaxis(jnp.swapaxes(halves, -1, -2).reshape(x.shape), -1, axis)


def rows_of_channels(x_HC):
    """Brings channels into the order that they have as rows of `values`."""
    H, C = x_HC.shape
    tiles = x_HC.reshape(4, H // 64, SIXTEEN // 2, 2, C)  # of warps
    return jnp.transpose(tiles, (1, 0, 3, 2, 4)).reshape(H, C)


def channels_of_rows(x_XH):
    """Inverts `rows_of_channels`, on the last axis."""
    *lead, H = x_XH.shape
    tiles = x_XH.reshape(*lead, H // 64, 4, 2, SIXTEEN // 2)
    order = (*range(len(lead)), *(len(lead) + x for x in (1, 0, 3, 2)))
    return jnp.transpose(tiles, order).reshape(x_XH.shape)


def plain_keys(codes_CT, scales_GT):
    """Computes what `keys` does as a matrix, for the interpreter."""
    return in_order(in_order(_stored(codes_CT, scales_GT)), axis=0)


def plain_values(codes_CT, scales_GT):
    """Computes what `values` does as a matrix, for the interpreter."""
    return in_order(rows_of_channels(_stored(codes_CT, scales_GT).T))


def _stored(codes_CT, scales_GT):
    return UltraQuant().stored((codes_CT.T, scales_GT.T), jnp.bfloat16)
