"""Stores vectors in 16 levels that fit a Gaussian, with one norm a vector (TurboQuant)."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from pallas_kernels.kv_cache.nibbles import SIGN, pack, signed_levels, unpack
from pallas_kernels.kv_cache.side import Side, largest_magnitude

LEVELS = (
    0.1283950299,
    0.3880482995,
    0.6567591185,
    0.9423404565,
    1.2562311973,
    1.6180463860,
    2.0690172265,
    2.7325895710,
)
"""The positive half of the 16 levels with the least squared error for N(0, 1) (Lloyd, Max)."""
MIDPOINTS = tuple((low + high) / 2 for low, high in itertools.pairwise(LEVELS))
LARGEST_FLOAT16 = 65504.0


@dataclasses.dataclass(frozen=True)
class TurboQuant4(Side):
    """Stores directions in a codebook, and norms (arXiv 2504.19874 without QJL): H/2 + 2 bytes.

    With the vector scaled to the norm sqrt(H) a channel takes the nearest level of a codebook for
    N(0, 1), a number halfway between two levels the one nearer to 0. The factor of the levels is
    stored as float16, at most 65504. Vectors of zeros, and those with NaN or inf, are stored as 0.

    Attributes:
      rotated: False is for comparison; channels that stand out then cost all others their levels.
      norm_corrected: the factor gives the decoded vector the norm of the original one. False: the
        factor is the norm over sqrt(H), as in the paper.
    """

    rotated: bool = True
    norm_corrected: bool = True

    def encode(self, x_XH):
        x_XH = x_XH.astype(jnp.float32)
        power_X1 = _power_of_two_below(largest_magnitude(x_XH))[..., None]
        is_usable_X1 = power_X1 > 0
        unit_XH = jnp.where(is_usable_X1, x_XH, 1.0) / jnp.where(is_usable_X1, power_X1, 1.0)
        norm_X1 = _norm(unit_XH)
        z_XH = self.rotate(unit_XH) * (x_XH.shape[-1] ** 0.5 / norm_X1)
        magnitude_XH = sum((jnp.abs(z_XH) > middle).astype(jnp.uint8) for middle in MIDPOINTS)
        codes_XH = magnitude_XH + jnp.where(z_XH < 0, SIGN, 0).astype(jnp.uint8)
        levels_X1 = x_XH.shape[-1] ** 0.5
        if self.norm_corrected:
            levels_X1 = _norm(signed_levels(codes_XH, LEVELS, jnp.float32))
        factor_X1 = jnp.minimum(power_X1 * (norm_X1 / levels_X1), LARGEST_FLOAT16)
        factor_X1 = jnp.where(is_usable_X1, factor_X1, 0.0).astype(jnp.float16)
        return pack(jnp.where(is_usable_X1, codes_XH, 0)), factor_X1

    def stored(self, parts, dtype=jnp.float32):
        codes_XY, factor_X1 = parts
        x_XH = signed_levels(unpack(codes_XY), LEVELS, jnp.float32)
        return (x_XH * factor_X1.astype(jnp.float32)).astype(dtype)


def _power_of_two_below(x):
    """Returns the largest power of two that is not above x, and 0 for denormals."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7F800000
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _norm(x_XH):
    """Returns the norm [X, 1], summed in an order that the leading axes do not change."""
    sum_XE = x_XH * x_XH
    while (E := sum_XE.shape[-1]) > 1:
        if E % 2:
            sum_XE = jnp.pad(sum_XE, [(0, 0)] * (sum_XE.ndim - 1) + [(0, 1)])
        half = sum_XE.shape[-1] // 2
        sum_XE = sum_XE[..., :half] + sum_XE[..., half:]
    return jnp.sqrt(sum_XE)
