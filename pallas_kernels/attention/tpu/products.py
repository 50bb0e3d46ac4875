"""Computes products with float32 sums; float32 factors are multiplied in full precision."""

import jax
import jax.numpy as jnp


def product(left, right):
    """Computes the product of `left` and `right`."""
    return _dot(left, right, ((1,), (0,)))


def product_transposed(left, right):
    """Computes the product of `left` and the transpose of `right`."""
    return _dot(left, right, ((1,), (1,)))


def _dot(left, right, contract):
    return jax.lax.dot_general(
        left,
        right,
        (contract, ((), ())),
        precision=jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
