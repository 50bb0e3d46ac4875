"""Matrix products of the TPU kernels: float32 sums, and full float32 factors where they come so."""

import jax
import jax.numpy as jnp


def product(left, right):
    """left @ right."""
    return _dot(left, right, ((1,), (0,)))


def product_transposed(left, right):
    """left @ right^T."""
    return _dot(left, right, ((1,), (1,)))


def _dot(left, right, contract):
    return jax.lax.dot_general(
        left,
        right,
        (contract, ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
