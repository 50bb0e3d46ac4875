"""Normalises in float32, or in float64 for float64."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hydrahead_jax.ops.wide import wide


def rms_norm(
    x_D: Float[Array, "*B D"], weight_D: Float[Array, " D"], *, eps: float
) -> Float[Array, "*B D"]:
    """Computes x / rms(x) * weight, in the dtype of x."""
    wide_D = wide(x_D)
    inverse_rms_1 = jax.lax.rsqrt(jnp.mean(wide_D**2, axis=-1, keepdims=True) + eps)
    return (wide_D * inverse_rms_1).astype(x_D.dtype) * weight_D.astype(x_D.dtype)


def rms_norm_of_heads(
    x_NH: Float[Array, "*B N H"], weight_NH: Float[Array, "N H"], *, eps: float
) -> Float[Array, "*B N H"]:
    """Computes `rms_norm` of all heads together, as of one vector."""
    wide_NH = wide(x_NH)
    inverse_rms_11 = jax.lax.rsqrt(jnp.mean(wide_NH**2, axis=(-2, -1), keepdims=True) + eps)
    return (wide_NH * inverse_rms_11).astype(x_NH.dtype) * weight_NH.astype(x_NH.dtype)


def l2_norm(x_H: Float[Array, "*B H"], *, eps: float = 1e-6) -> Float[Array, "*B H"]:
    """Computes x / |x|, in the dtype of x; a zero vector stays zero."""
    wide_H = wide(x_H)
    inverse_1 = jax.lax.rsqrt(jnp.sum(wide_H**2, axis=-1, keepdims=True) + eps)
    return (wide_H * inverse_1).astype(x_H.dtype)
