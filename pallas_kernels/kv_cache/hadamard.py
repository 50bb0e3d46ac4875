"""Rotates vectors by the normalised Walsh-Hadamard matrix, which spreads outlier channels."""

import math

import jax.numpy as jnp


def hadamard(x_XH):
    """Multiplies the last axis by the Sylvester Hadamard matrix over sqrt(H), in float32.

    The matrix is symmetric and its own inverse. The sums have one order on every machine and for
    any leading axes X, so the same vector always gives the same bits. Factors of two come first:
    no sum overflows unless the result nearly does.

    Raises:
      ValueError: H is not a power of two.
    """
    *lead, H = x_XH.shape
    stages = H.bit_length() - 1
    if H < 1 or 2**stages != H:
        raise ValueError(f"a rotated format needs a head dimension that is a power of 2, not {H}")
    x_HX = jnp.moveaxis(x_XH.astype(jnp.float32) * 2.0 ** -math.ceil(stages / 2), -1, 0)
    for stage in range(stages):
        pairs = x_HX.reshape(-1, 2, 2**stage, *lead)
        left, right = pairs[:, 0], pairs[:, 1]
        x_HX = jnp.stack((left + right, left - right), axis=1).reshape(H, *lead)
    return jnp.moveaxis(x_HX, 0, -1) * (2.0**0.5 if stages % 2 else 1.0)
