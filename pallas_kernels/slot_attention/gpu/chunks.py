"""Prepares what the Hopper kernels read, in complete chunks of 64 tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 64
SLOTS = 64  # fewer are filled up


class Pair(NamedTuple):
    """Holds an array for the keys' side and one for the values' side."""

    k: jax.Array
    v: jax.Array


class Gates(NamedTuple):
    """Carries what a chunk's tokens do to the slots; sums of log decays end at chunk borders.

    Attributes:
      high_BTKM: log decays in bf16.
      low_BTKM: what that leaves of them, in bf16.
      share_BTKM: share of the written token in each slot, in bf16.
      exit_BTKM: that share times the decay after the token up to the end of its chunk, in bf16.
      through_BKZM: decay over each chunk, float32.
    """

    high_BTKM: jax.Array
    low_BTKM: jax.Array
    share_BTKM: jax.Array
    exit_BTKM: jax.Array
    through_BKZM: jax.Array


def chunk_gates(log_decay_BTKM, share_BTKM) -> Gates:
    high_BTKM = jax.lax.reduce_precision(log_decay_BTKM, exponent_bits=8, mantissa_bits=7)
    log_decay_BZCKM = by_chunk(log_decay_BTKM)
    # exp(sums after a token): no difference of two sums, which would lose what a large one covers.
    from_here_BZCKM = jnp.cumsum(log_decay_BZCKM[:, :, ::-1], axis=2)[:, :, ::-1]
    after_BZCKM = jnp.pad(from_here_BZCKM[:, :, 1:], [(0, 0), (0, 0), (0, 1), (0, 0), (0, 0)])
    exit_BTKM = share_BTKM * jnp.exp(after_BZCKM).reshape(share_BTKM.shape)
    low = lambda x: x.astype(jnp.bfloat16)
    return Gates(
        high_BTKM=low(high_BTKM),
        low_BTKM=low(log_decay_BTKM - high_BTKM),
        share_BTKM=low(share_BTKM),
        exit_BTKM=low(exit_BTKM),
        through_BKZM=jnp.exp(jnp.swapaxes(from_here_BZCKM[:, :, 0], 1, 2)),
    )


def by_chunk(x_BTKM):
    B, T = x_BTKM.shape[:2]
    return x_BTKM.reshape(B, T // CHUNK, CHUNK, *x_BTKM.shape[2:])


def filled_up(x, *, slots: bool = False):
    """Pads axis 1 to complete chunks and, with `slots`, the last axis to `SLOTS`, with zeros.

    Tokens of zeros change nothing: the slots keep everything and nothing is written.
    """
    widths = [(0, 0), (0, -x.shape[1] % CHUNK)] + [(0, 0)] * (x.ndim - 2)
    if slots:
        widths[-1] = (0, SLOTS - x.shape[-1])
    return jnp.pad(x, widths)
