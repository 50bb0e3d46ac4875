"""Stores vectors as they are given."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.kv_cache.side import Side


@dataclasses.dataclass(frozen=True)
class Raw(Side):
    """Stores vectors in the dtype in which they are given; NaN and inf stay what they are."""

    def encode(self, x_XH):
        return (x_XH,)

    def stored(self, parts, dtype=jnp.float32):
        return parts[0].astype(dtype)
