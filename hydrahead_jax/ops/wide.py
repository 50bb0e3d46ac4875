"""Sets the precision in which sums, angles and gates are computed."""

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, or unchanged where it is float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
