"""Computes by XLA which blocks a tile goes through, and which of them need a mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.visibility import Segments, Visibility

RANGE = 4
_LEAST, _MOST = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max


class Cut(NamedTuple):
    """Cuts a sequence into equal blocks; the last one may reach beyond the end."""

    length: int
    block: int

    @property
    def blocks(self) -> int:
        return -(-self.length // self.block)

    def padded(self, x_BT):
        """Pads to complete blocks with zeros."""
        missing = self.blocks * self.block - self.length
        return jnp.pad(x_BT, ((0, 0), (0, missing)))

    def bounds(self):
        """Returns the first and last position of each block."""
        first = self.block * jnp.arange(self.blocks, dtype=jnp.int32)
        return first, jnp.minimum(first + self.block, self.length) - 1


def block_ranges(
    visibility: Visibility,
    q_start_B,
    segments: Segments | None,
    queries: Cut,
    keys: Cut,
    *,
    of_keys: bool = False,
) -> jax.Array:
    """Returns a, b, c, d as [B, I, 4] int32 for each block of queries, or each of keys.

    Only blocks a to d of the other sequence have a visible pair with it, and in b to c every pair
    is visible. a <= b <= c <= d.
    """
    some_BIJ, every_BIJ = _pairs(visibility, q_start_B, segments, queries, keys)
    if of_keys:
        some_BIJ, every_BIJ = (jnp.swapaxes(x, 1, 2) for x in (some_BIJ, every_BIJ))
    J = some_BIJ.shape[2]
    j = jnp.arange(J, dtype=jnp.int32)
    end_BI = jnp.max(jnp.where(some_BIJ, j + 1, 0), axis=2)
    start_BI = jnp.minimum(jnp.min(jnp.where(some_BIJ, j, J), axis=2), end_BI)
    first_BI = jnp.min(jnp.where(every_BIJ, j, J), axis=2)
    unfit_BIJ = ~every_BIJ & (j >= first_BI[..., None])
    last_BI = jnp.min(jnp.where(unfit_BIJ, j, J), axis=2)
    any_BI = first_BI < J
    first_BI = jnp.where(any_BI, first_BI, start_BI)
    last_BI = jnp.where(any_BI, last_BI, start_BI)
    return jnp.stack([start_BI, first_BI, last_BI, end_BI], axis=2)


def _pairs(visibility, q_start_B, segments, queries: Cut, keys: Cut):
    """Says whether any and whether every pair of a query block and a key block is visible."""
    (row_I, last_row_I), (column_J, last_column_J) = queries.bounds(), keys.bounds()
    rows_BI1 = q_start_B[:, None, None] + row_I[:, None]
    last_rows_BI1 = q_start_B[:, None, None] + last_row_I[:, None]
    every_BIJ = (last_column_J - column_J == keys.block - 1) & (rows_BI1 == rows_BI1)
    some_BIJ = jnp.full_like(every_BIJ, True)
    if visibility.causal:
        some_BIJ &= column_J <= last_rows_BI1
        every_BIJ &= last_column_J <= rows_BI1
    if visibility.window is not None:
        some_BIJ &= last_column_J > rows_BI1 - visibility.window
        every_BIJ &= column_J > last_rows_BI1 - visibility.window
    if segments is not None:
        low_BI, high_BI, only_BI = _segments_of(segments.queries_BT, queries)
        low_BJ, high_BJ, only_BJ = _segments_of(segments.keys_BS, keys)
        some_BIJ &= low_BI[:, :, None] <= high_BJ[:, None]
        some_BIJ &= high_BI[:, :, None] >= low_BJ[:, None]
        every_BIJ &= (only_BI[:, :, None] == only_BJ[:, None]) & (only_BI != 0)[:, :, None]
    return some_BIJ, every_BIJ & some_BIJ


def _segments_of(ids_BT, cut: Cut):
    """Returns the least and the greatest segment in each block, without padding.

    The third result is the only segment of the block, or 0 if it has more.
    """
    ids_BIC = cut.padded(ids_BT).reshape(ids_BT.shape[0], cut.blocks, cut.block)
    low_BI = jnp.min(jnp.where(ids_BIC != 0, ids_BIC, _MOST), axis=2)
    high_BI = jnp.max(jnp.where(ids_BIC != 0, ids_BIC, _LEAST), axis=2)
    is_one_BI = jnp.all(ids_BIC == ids_BIC[:, :, :1], axis=2)
    return low_BI, high_BI, jnp.where(is_one_BI, ids_BIC[:, :, 0], 0)
