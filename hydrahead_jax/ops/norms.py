"""Normalisations over the last axis, computed in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rms_norm(
    x_D: Float[Array, "*B D"], weight_D: Float[Array, " D"], *, eps: float
) -> Float[Array, "*B D"]:
    """x / rms(x) * weight, in the dtype of x."""
    x32_D = x_D.astype(jnp.float32)
    inverse_rms_1 = jax.lax.rsqrt(jnp.mean(x32_D**2, axis=-1, keepdims=True) + eps)
    return (x32_D * inverse_rms_1).astype(x_D.dtype) * weight_D.astype(x_D.dtype)


def l2_norm(x_H: Float[Array, "*B H"], *, eps: float = 1e-6) -> Float[Array, "*B H"]:
    """x / |x|, in the dtype of x; a zero vector stays zero."""
    x32_H = x_H.astype(jnp.float32)
    inverse_1 = jax.lax.rsqrt(jnp.sum(x32_H**2, axis=-1, keepdims=True) + eps)
    return (x32_H * inverse_1).astype(x_H.dtype)
