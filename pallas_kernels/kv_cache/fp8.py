"""Stores vectors as E4M3 numbers."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.kv_cache.side import Side

LARGEST = 448.0


@dataclasses.dataclass(frozen=True)
class Fp8(Side):
    """Stores vectors in float8 E4M3 with scale 1, to the nearest, ties to even.

    What is larger than 448, and inf, becomes 448 of the same sign; NaN stays NaN.
    """

    def encode(self, x_XH):
        x_XH = jnp.clip(x_XH.astype(jnp.float32), -LARGEST, LARGEST)
        return (x_XH.astype(jnp.float8_e4m3fn),)

    def stored(self, parts, dtype=jnp.float32):
        return parts[0].astype(dtype)
