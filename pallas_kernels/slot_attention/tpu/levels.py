"""Splits a chunk so that the decay between any two tokens is a product of decays, each at most 1.

A pair of tokens i < t either stands in one tile of 8 tokens, see `tile`, or is parted by the middle
of exactly one block of 16, 32, 64 or 128 tokens: i in its left half, t in its right half, and

    decay(i -> t) = decay(i -> middle) decay(middle -> t)

A level is the blocks of one size; one array holds the first factor on left halves and the second
on right ones. Two more such arrays: the decay from the chunk's entry to each token, and from each
to its exit. All are exps of sums of log decays; no sum is subtracted from another.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.slot_attention.tpu.blocks import CHUNK

TILE = 8
"""Tokens of a tile, as many as a register has rows."""

HALVES = (64, 32, 16, 8)
"""Tokens in half a block, of each level."""

ENTRY, EXIT = len(HALVES), len(HALVES) + 1
SPANS = len(HALVES) + 2


class Constants(NamedTuple):
    """Carries the matrices of zeros and ones that every program reads.

    Attributes:
      sums: [copies * C, SPANS * C], makes the sums of log decays; stacked twice for bfloat16, where
        log decays come in two parts.
      parted: bits that are set, by level, at the pairs [i, t] that its middles part; int32 as the
        dtype's rows are packed, [levels, C * itemsize / 4, C].
      near: [8, TILE * M], sums slots for each distance in a tile.
    """

    sums: jax.Array
    parted: jax.Array
    near: jax.Array


def constants(dtype, slots: int) -> Constants:
    packing = 4 // jnp.dtype(dtype).itemsize
    parted = np.stack([_parted(half)[::packing] for half in HALVES])
    row = -np.repeat(np.arange(TILE), slots) % TILE
    return Constants(
        sums=jnp.asarray(np.tile(_sums(), (packing, 1)), dtype),
        parted=jnp.asarray(-parted.astype(np.int32)),
        near=jnp.asarray(np.arange(TILE)[:, None] == row, dtype),
    )


def _sums() -> np.ndarray:
    own, token = np.arange(CHUNK)[:, None], np.arange(CHUNK)[None, :]
    spans = []
    for half in HALVES:
        middle = token // (2 * half) * 2 * half + half
        to_middle = (token < own) & (own < middle)
        from_middle = (middle <= own) & (own <= token)
        spans.append(np.where(token < middle, to_middle, from_middle))
    spans += [own <= token, own > token]
    return np.concatenate(spans, axis=1)


def _parted(half: int) -> np.ndarray:
    own, token = np.arange(CHUNK)[:, None] // half, np.arange(CHUNK)[None, :] // half
    return (own % 2 == 0) & (token == own + 1)
