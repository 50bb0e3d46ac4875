"""The precision in which sums, angles and gates are computed."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32, or as it is where it is float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
