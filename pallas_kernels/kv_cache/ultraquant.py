"""Stores vectors in E2M1 codes with a power of two for each group of 32 channels (UltraQuant)."""

import dataclasses
import functools
import itertools
import math
from bisect import bisect_left

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.kv_cache.nibbles import pack, signed_levels, unpack
from pallas_kernels.kv_cache.side import CHANNELS_A_GROUP, Side, grouped, largest_magnitude

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
MIDPOINTS = tuple((low + high) / 2 for low, high in itertools.pairwise(LEVELS))
MANTISSA_BITS = 23
LARGEST_BYTE = 254


@dataclasses.dataclass(frozen=True)
class UltraQuant(Side):
    """Stores vectors as UltraQuant does (arXiv 2606.20474), 4.25 bits a channel.

    A group of 32 channels has the scale 2^e, e = round(log2(c max|x|)) with ties to even, as the
    byte e + 127. A channel has the code of the E2M1 level nearest to x / 2^e; a number halfway
    between two levels takes the lower one, in order of sign. Vectors of zeros, scales below 2^-126
    and groups with NaN or inf get the byte 0, and all their channels are 0; where vectors are
    rotated, one NaN or inf is in every group. Channels below 2^127 decode to finite numbers.

    Attributes:
      c: 0.156 in the release; 0.20 has the least error on Gaussian vectors.
      rotated: the release rotates keys and not values.
    """

    c: float = 0.156
    rotated: bool = True

    def __post_init__(self):
        if not 0 < self.c <= 0.5:
            raise ValueError(f"c={self.c}; choose one above 0 and at most 0.5")

    def encode(self, x_XH):
        x_XGE = grouped(self.rotate(x_XH), CHANNELS_A_GROUP)
        scales_XG = scale_bytes(largest_magnitude(x_XGE), self.c)
        is_zero_XG1 = (scales_XG == 0)[..., None]
        divisor_XG1 = jnp.where(is_zero_XG1, 1.0, powers_of_two(scales_XG)[..., None])
        codes_XGE = e2m1_codes(jnp.where(is_zero_XG1, 0.0, x_XGE) / divisor_XG1)
        return pack(codes_XGE.reshape(x_XH.shape)), scales_XG

    def stored(self, parts, dtype=jnp.float32):
        """Returns the vectors; none is rounded in float32 or bfloat16 unless it is denormal."""
        codes_XY, scales_XG = parts
        x_XGE = grouped(signed_levels(unpack(codes_XY), LEVELS, dtype), CHANNELS_A_GROUP)
        x_XGE = x_XGE * powers_of_two(scales_XG).astype(dtype)[..., None]
        return x_XGE.reshape(*codes_XY.shape[:-1], -1)


def e2m1_codes(x):
    """Returns the code of the nearest level; the sign is bit 3, and 0 has none."""
    above = sum((x > middle).astype(jnp.uint8) for middle in MIDPOINTS)
    below = sum((x <= -middle).astype(jnp.uint8) for middle in MIDPOINTS)
    return jnp.where(below > 0, below + 8, above)


def powers_of_two(scales):
    """Returns 2^(byte - 127), float32, and 0 for the byte 0."""
    bits = scales.astype(jnp.int32) << MANTISSA_BITS
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def scale_bytes(largest, c: float):
    """Returns the bytes of the scales of groups with these largest magnitudes, finite and float32.

    Exact: the bits of the mantissa say whether the logarithm is rounded up.
    """
    bits = jax.lax.bitcast_convert_type(largest, jnp.int32)
    exponent, mantissa = bits >> MANTISSA_BITS, bits & (2**MANTISSA_BITS - 1)
    down, up_from = _rounding(c)
    byte = (
        exponent
        + down
        + (mantissa >= (up_from[0] if len(up_from) == 1 else jnp.asarray(up_from)[exponent]))
    )
    return jnp.where(exponent > 0, jnp.clip(byte, 0, LARGEST_BYTE), 0).astype(jnp.uint8)


@functools.cache
def _rounding(c: float) -> tuple[int, np.ndarray]:
    """Says where round(log2(c m 2^k)) changes for 1 <= m < 2.

    Returns the lower of its two values less k, and the first 23 bits of m for which it is the upper
    one: one number, or, if ties make them differ, one for each biased exponent k + 127.
    """
    down = math.ceil(math.log2(c) - 0.5)
    mantissas = range(2**MANTISSA_BITS)

    def up_from(k: int) -> int:
        value = lambda bits: math.ldexp(c * (1 + bits / 2**MANTISSA_BITS), k)
        return bisect_left(mantissas, k + down + 1, key=lambda bits: round(math.log2(value(bits))))

    found = np.array([up_from(byte - 127) for byte in range(256)], np.int32)
    return down, found if len(set(found.tolist())) > 1 else found[:1]
