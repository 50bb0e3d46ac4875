"""Adds keys of logit 0 and value 0 to an attention that was computed without them."""

import math

import jax
from jaxtyping import Array, Float


def with_null_keys(
    out_BNH: Float[Array, "*B H"], lse_BN: Float[Array, "*B"], *, count: int
) -> Float[Array, "*B H"]:
    """Returns the output of a softmax that has `count` null keys in its denominator as well.

    `lse_BN` is the log-sum-exp without them; where it is -inf, the output stays 0.
    """
    share_BN = jax.nn.sigmoid(lse_BN - math.log(count))
    return (out_BNH * share_BN[..., None]).astype(out_BNH.dtype)
