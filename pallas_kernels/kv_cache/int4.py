"""Stores vectors in 16 equal steps between the least and the largest channel."""

import dataclasses

import jax.numpy as jnp

from pallas_kernels.kv_cache.nibbles import pack, unpack
from pallas_kernels.kv_cache.side import Side, grouped

LARGEST_FLOAT16 = 65504.0
STEPS = 15


@dataclasses.dataclass(frozen=True)
class Int4(Side):
    """Stores x as zero + step code, codes from 0 to 15, with zero and step in float16.

    In a group the zero is its minimum and the step a 15th of its range, both rounded to float16
    first; codes are rounded half up. Zero and step are at most 65504 in magnitude. Groups with NaN
    or inf are stored as 0.

    Attributes:
      group: channels of a group; all of the head if None.
    """

    group: int | None = None

    def encode(self, x_XH):
        x_XGE = grouped(x_XH.astype(jnp.float32), self.group or x_XH.shape[-1])
        low_XG, high_XG = jnp.min(x_XGE, axis=-1), jnp.max(x_XGE, axis=-1)
        is_usable_XG = jnp.all(jnp.isfinite(x_XGE), axis=-1)
        step_XG = _float16(high_XG / STEPS - low_XG / STEPS, is_usable_XG)
        zero_XG = _float16(low_XG, is_usable_XG)
        zero_XG1, step_XG1 = (x.astype(jnp.float32)[..., None] for x in (zero_XG, step_XG))
        steps_XGE = (x_XGE - zero_XG1) / jnp.where(step_XG1 > 0, step_XG1, 1.0)
        codes_XGE = jnp.clip(jnp.floor(steps_XGE + 0.5), 0, STEPS)
        codes_XGE = jnp.where(is_usable_XG[..., None] & (step_XG1 > 0), codes_XGE, 0)
        return pack(codes_XGE.reshape(x_XH.shape)), step_XG, zero_XG

    def stored(self, parts, dtype=jnp.float32):
        codes_XY, step_XG, zero_XG = parts
        H = 2 * codes_XY.shape[-1]
        codes_XGE = grouped(unpack(codes_XY), H // step_XG.shape[-1]).astype(jnp.float32)
        zero_XG1, step_XG1 = (x.astype(jnp.float32)[..., None] for x in (zero_XG, step_XG))
        x_XGE = zero_XG1 + step_XG1 * codes_XGE
        return x_XGE.reshape(*codes_XY.shape[:-1], H).astype(dtype)


def _float16(x, is_usable):
    x = jnp.clip(x, -LARGEST_FLOAT16, LARGEST_FLOAT16)
    return jnp.where(is_usable, x, 0.0).astype(jnp.float16)
