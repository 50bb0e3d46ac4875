"""Applies rotary position embedding, half-split as in Qwen3."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hydrahead_jax.ops.wide import wide


def rope(
    x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], *, theta: float
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x_i, x_{i + H/2}) by position * theta^(-2i / H) (arXiv 2104.09864)."""
    H = x_BTNH.shape[-1]
    frequency = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    angle_BT1H = positions_BT[:, :, None, None].astype(jnp.float32) * frequency
    cos, sin = jnp.cos(angle_BT1H), jnp.sin(angle_BT1H)
    left, right = jnp.split(wide(x_BTNH), 2, axis=-1)
    rotated_BTNH = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated_BTNH.astype(x_BTNH.dtype)
