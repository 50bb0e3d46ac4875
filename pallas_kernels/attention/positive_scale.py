"""Scores of any scale by kernels that take their maximum before they scale them."""

import jax.numpy as jnp


def with_positive_scale(q, scale: float):
    """Other queries and scale with the same scores: the kernels take no other."""
    if scale == 0:
        return jnp.zeros_like(q), 1.0
    return (q, scale) if scale > 0 else (-q, -scale)
