"""Brings scores of any scale to kernels that take their maximum before they scale them."""

import jax.numpy as jnp


def with_positive_scale(q, scale: float):
    """Returns queries and a positive scale that give the same scores: kernels take no other."""
    if scale == 0:
        return jnp.zeros_like(q), 1.0
    return (q, scale) if scale > 0 else (-q, -scale)
