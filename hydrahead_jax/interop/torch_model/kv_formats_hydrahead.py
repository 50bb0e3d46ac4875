"""Encodes keys and values in few bits, to the codes of hydrahead_jax, and decodes them.

A format is a pair, for keys and for values. `encode` takes vectors along the last axis and returns
parts with the same leading axes X; C is half of H, G groups of channels.
"""

import dataclasses
import functools
import itertools
import math
from bisect import bisect_left

import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GAUSSIAN = (  # the positive half of the 16 levels with the least squared error for N(0, 1)
    0.1283950299,
    0.3880482995,
    0.6567591185,
    0.9423404565,
    1.2562311973,
    1.6180463860,
    2.0690172265,
    2.7325895710,
)
GROUP = 32  # channels with one power of two
LARGEST_FLOAT16 = 65504.0
MANTISSA_BITS = 23


@dataclasses.dataclass(frozen=True)
class Fp8:
    """Stores float8 E4M3 with scale 1; larger numbers become 448."""

    def encode(self, x_XH):
        return (x_XH.float().clamp(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8),)

    def decode(self, parts):
        return parts[0].view(torch.float8_e4m3fn).float()


@dataclasses.dataclass(frozen=True)
class Int4:
    """Stores 16 equal steps from the least to the largest channel, both rounded to float16."""

    def encode(self, x_XH):
        x_XH = x_XH.float()
        low_X1, high_X1 = x_XH.amin(-1, keepdim=True), x_XH.amax(-1, keepdim=True)
        is_usable_X1 = low_X1.isfinite() & high_X1.isfinite()
        step_X1 = _float16(high_X1 / 15 - low_X1 / 15, is_usable_X1)
        zero_X1 = _float16(low_X1, is_usable_X1)
        has_steps_X1 = step_X1 > 0
        steps_XH = (x_XH - zero_X1.float()) / torch.where(has_steps_X1, step_X1.float(), 1.0)
        codes_XH = torch.where(has_steps_X1, (steps_XH + 0.5).floor().clamp(0, 15), 0.0)
        return pack(codes_XH), step_X1, zero_X1

    def decode(self, parts):
        codes_XC, step_X1, zero_X1 = parts
        return zero_X1.float() + step_X1.float() * unpack(codes_XC)


@dataclasses.dataclass(frozen=True)
class TurboQuant4:
    """Stores a rotated direction in a codebook for Gaussians, and its norm (arXiv 2504.19874)."""

    def encode(self, x_XH):
        x_XH = x_XH.float()
        power_X1 = _power_of_two_below(x_XH.abs().amax(-1, keepdim=True))
        is_usable_X1 = (power_X1 > 0) & (power_X1 < math.inf)
        unit_XH = torch.where(is_usable_X1, x_XH, 1.0) / torch.where(is_usable_X1, power_X1, 1.0)
        norm_X1 = _norm(unit_XH)
        z_XH = rotate(unit_XH) * (x_XH.shape[-1] ** 0.5 / norm_X1)
        magnitude_XH = sum((z_XH.abs() > middle).to(torch.uint8) for middle in _middles(GAUSSIAN))
        codes_XH = magnitude_XH + 8 * (z_XH < 0).to(torch.uint8)
        levels_X1 = _norm(signed_levels(codes_XH, GAUSSIAN))
        factor_X1 = (power_X1 * (norm_X1 / levels_X1)).clamp(max=LARGEST_FLOAT16)
        factor_X1 = torch.where(is_usable_X1, factor_X1, 0.0).half()
        return pack(torch.where(is_usable_X1, codes_XH, 0)), factor_X1

    def decode(self, parts):
        codes_XC, factor_X1 = parts
        return rotate(signed_levels(unpack(codes_XC), GAUSSIAN) * factor_X1.float())


@dataclasses.dataclass(frozen=True)
class UltraQuant:
    """Stores E2M1 codes, and a power of two for each 32 channels (arXiv 2606.20474)."""

    c: float
    rotated: bool

    def encode(self, x_XH):
        if x_XH.shape[-1] % GROUP:
            raise ValueError(
                f"groups of {GROUP} channels do not divide a head dimension of {x_XH.shape[-1]}"
            )
        x_XGC = self.turn(x_XH).unflatten(-1, (-1, GROUP))
        scales_XG = scale_bytes(x_XGC.abs().amax(-1), self.c)
        is_zero_XG1 = (scales_XG == 0)[..., None]
        divisor_XG1 = powers_of_two(scales_XG)[..., None].masked_fill(is_zero_XG1, 1.0)
        y_XGC = x_XGC.masked_fill(is_zero_XG1, 0.0) / divisor_XG1
        above = sum((y_XGC > middle).to(torch.uint8) for middle in _middles(E2M1))
        below = sum((y_XGC <= -middle).to(torch.uint8) for middle in _middles(E2M1))
        return pack(torch.where(below > 0, below + 8, above).flatten(-2)), scales_XG

    def turn(self, x_XH):
        return rotate(x_XH) if self.rotated else x_XH.float()

    def decode(self, parts):
        codes_XC, scales_XG = parts
        x_XGC = signed_levels(unpack(codes_XC), E2M1).unflatten(-1, (-1, GROUP))
        return self.turn((x_XGC * powers_of_two(scales_XG)[..., None]).flatten(-2))


FORMATS = {
    "bf16": None,
    "fp8": (Fp8(), Fp8()),
    "ultraquant": (UltraQuant(0.156, True), UltraQuant(0.156, False)),
    "ultraquant-tuned": (UltraQuant(0.20, True), UltraQuant(0.20, False)),
    "turboquant4": (TurboQuant4(), TurboQuant4()),
    "int4": (Int4(), Int4()),
}


def rotate(x_XH):
    """Multiplies by the Hadamard matrix over sqrt(H), which is its own inverse.

    The sums have one order, so that every machine gives the same bits.
    """
    *lead, H = x_XH.shape
    stages = H.bit_length() - 1
    if 2**stages != H:
        raise ValueError(f"a rotated format needs a head dimension that is a power of 2, not {H}")
    x = x_XH.float() * 2.0 ** -math.ceil(stages / 2)
    for stage in range(stages):
        left, right = x.reshape(*lead, -1, 2, 2**stage).unbind(-2)
        x = torch.stack((left + right, left - right), dim=-2)
    return x.reshape(*lead, H) * (2.0**0.5 if stages % 2 else 1.0)


def pack(codes_XH):
    """Returns bytes of two codes, the even channel in the low half."""
    if codes_XH.shape[-1] % 2:
        raise ValueError(f"4-bit formats need an even head dimension, not {codes_XH.shape[-1]}")
    codes_XH = codes_XH.to(torch.uint8)
    return codes_XH[..., 0::2] | (codes_XH[..., 1::2] << 4)


def unpack(bytes_XC):
    return torch.stack((bytes_XC & 15, bytes_XC >> 4), dim=-1).flatten(-2)


def signed_levels(codes_XH, levels):
    """Returns the numbers of codes whose bit 3 is the sign."""
    table = torch.tensor([*levels, *(-level for level in levels)], device=codes_XH.device)
    return table[codes_XH.long()]


def powers_of_two(scales):
    """Returns 2^(byte - 127), and 0 for the byte 0."""
    return (scales.int() << MANTISSA_BITS).view(torch.float32)


def scale_bytes(largest, c: float):
    """Returns round(log2(c largest)) + 127, and 0 where that is no scale of a float32 number."""
    bits = largest.contiguous().view(torch.int32)
    exponent, mantissa = bits >> MANTISSA_BITS, bits & (2**MANTISSA_BITS - 1)
    down, up_from = _rounding(c)
    byte = exponent + down + (mantissa >= up_from).int()
    is_usable = (exponent > 0) & (exponent < 255)
    return torch.where(is_usable, byte.clamp(0, 254), 0).to(torch.uint8)


@functools.cache
def _rounding(c: float) -> tuple[int, int]:
    """Returns the lower value of round(log2(c m)) for 1 <= m < 2, and the first m of the upper one.

    Of m these are the 23 bits of its mantissa.
    """
    down = math.ceil(math.log2(c) - 0.5)
    rounded = lambda bits: round(math.log2(c * (1 + bits / 2**MANTISSA_BITS)))
    return down, bisect_left(range(2**MANTISSA_BITS), down + 1, key=rounded)


def _power_of_two_below(x):
    """Returns the largest power of two that is not above x, 0 for denormals; inf for NaN too."""
    return (x.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)


def _middles(levels):
    return [(low + high) / 2 for low, high in itertools.pairwise(levels)]


def _float16(x, is_usable):
    return torch.where(is_usable, x.clamp(-LARGEST_FLOAT16, LARGEST_FLOAT16), 0.0).half()


def _norm(x_XH):
    """Returns the norm [X, 1], summed in halves."""
    sum_XC = x_XH * x_XH
    while (H := sum_XC.shape[-1]) > 1:
        half = H // 2
        halves = sum_XC[..., :half] + sum_XC[..., half : 2 * half]
        sum_XC = torch.cat((halves, sum_XC[..., 2 * half :]), dim=-1)
    return sum_XC.sqrt()
