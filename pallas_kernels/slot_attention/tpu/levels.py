"""Splits a chunk so that the decay between any two tokens is a product of decays, each at most 1.

A pair of tokens i < t either stands in one tile of 8 tokens, see `tile`, or is parted by the middle
of exactly one block of 16, 32, 64 or 128 tokens: i in its left half, t in its right half, and

    decay(i -> t) = decay(i -> middle) decay(middle -> t)

A level is the blocks of one size; one array holds the first factor on left halves and the second
on right ones. Two more such arrays: the decay from the chunk's entry to each token, and from each
to its exit. All are exps of sums of log decays; no sum is subtracted from another.
"""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.slot_attention.tpu.blocks import CHUNK

TILE = 8
HALVES = (64, 32, 16, 8)
"""Tokens in half a block, of each level."""

ENTRY, EXIT = len(HALVES), len(HALVES) + 1
SPANS = len(HALVES) + 2


def sum_matrix(dtype) -> np.ndarray:
    """Returns the 0/1 matrix [copies * C, SPANS * C] that makes the sums of log decays.

    It is stacked twice for bfloat16, where log decays come in two parts.
    """
    copies = 2 if jnp.dtype(dtype) == jnp.bfloat16 else 1
    own, token = np.arange(CHUNK)[:, None], np.arange(CHUNK)[None, :]
    spans = []
    for half in HALVES:
        middle = token // (2 * half) * 2 * half + half
        to_middle = (token < own) & (own < middle)
        from_middle = (middle <= own) & (own <= token)
        spans.append(np.where(token < middle, to_middle, from_middle))
    spans += [own <= token, own > token]
    return np.tile(np.concatenate(spans, axis=1), (copies, 1)).astype(dtype)
