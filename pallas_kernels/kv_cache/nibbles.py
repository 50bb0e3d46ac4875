"""Packs two 4-bit codes into a byte, the even channel into the low nibble, and reads them.

X stands for any leading axes in this room, Y for bytes of H/2 pairs of channels, G for groups of E
channels.
"""

import jax.numpy as jnp

SIGN = 8
"""Bit of a code of a symmetric codebook that says the sign; the others number the magnitude."""


def pack(codes_XH):
    """Returns the bytes [X, H/2] of codes from 0 to 15.

    Raises:
      ValueError: H is odd.
    """
    if codes_XH.shape[-1] % 2:
        raise ValueError(f"4-bit formats need an even head dimension, not {codes_XH.shape[-1]}")
    codes_XH = codes_XH.astype(jnp.uint8)
    return codes_XH[..., 0::2] | (codes_XH[..., 1::2] << 4)


def unpack(bytes_XY):
    """Inverts `pack`: returns the codes [X, H] of Y bytes."""
    pairs = jnp.stack((bytes_XY & 15, bytes_XY >> 4), axis=-1)
    return pairs.reshape(*bytes_XY.shape[:-1], -1)


def signed_levels(codes_XH, levels: tuple[float, ...], dtype):
    """Returns the values of codes whose magnitude is one of 8 levels, by comparisons alone."""
    magnitude_XH = codes_XH & (SIGN - 1)
    value_XH = jnp.full(codes_XH.shape, levels[0], dtype)
    for number, level in enumerate(levels[1:], start=1):
        value_XH = jnp.where(magnitude_XH >= number, jnp.asarray(level, dtype), value_XH)
    return jnp.where(codes_XH >= SIGN, -value_XH, value_XH)
