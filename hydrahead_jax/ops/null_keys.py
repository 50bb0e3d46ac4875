"""Adds keys of logit 0 and value 0 to an attention that was computed without them."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def with_null_keys(
    out_BNH: Float[Array, "*B H"], lse_BN: Float[Array, "*B"], *, count: int
) -> tuple[Float[Array, "*B H"], Float[Array, "*B"]]:
    """Returns output and log-sum-exp of a softmax with `count` null keys in its denominator too.

    `lse_BN` is the log-sum-exp without them; where it is -inf, nothing changes.
    """
    seen_BN = lse_BN > -jnp.inf
    finite_BN = jnp.where(seen_BN, lse_BN, 0.0)
    share_BN = jax.nn.sigmoid(finite_BN - math.log(count))
    lse_BN = jnp.where(seen_BN, jnp.logaddexp(finite_BN, math.log(count)), -jnp.inf)
    return (out_BNH * share_BN[..., None]).astype(out_BNH.dtype), lse_BN
