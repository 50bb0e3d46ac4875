"""Cuts sequences into blocks for `chunked`, and says which blocks see which.

Z counts blocks, C is the length of one, U and R are as in `head_groups.Group`. X is R * C: the
queries of one KV head, head after head, on one axis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.head_groups import Group, pick_heads
from pallas_kernels.attention.visibility import Segments, Visibility


class Places(NamedTuple):
    """Says where the queries and keys of each block stand.

    Attributes:
      queries: length of a block of queries.
      keys: length of a block of keys.
      S: number of keys; those of the last block beyond it are padding.
      start: position of query 0.
      query_ids_ZBC: segments of the queries, or None.
      key_ids_ZBC: segments of the keys, or None.
      first_Z: for each block of queries, the first block of keys that it may see; None if there is
        one block of keys only.
      stop_Z: one more than the last block of keys that it may see.
    """

    visibility: Visibility
    queries: int
    keys: int
    S: int
    start: jax.Array
    query_ids_ZBC: jax.Array | None
    key_ids_ZBC: jax.Array | None
    first_Z: jax.Array | None = None
    stop_Z: jax.Array | None = None

    def hide(self, s_BUXC, z, y):
        """Writes -inf where queries of block z do not see keys of block y."""
        B, U, _, C = s_BUXC.shape
        rows_X1 = self.start + z * self.queries + jnp.arange(self.queries)[:, None]
        columns_C = y * self.keys + jnp.arange(C)
        seen_BXC = (self.visibility(rows_X1, columns_C) & (columns_C < self.S))[None]
        if self.query_ids_ZBC is not None:
            ids_BX1 = self.query_ids_ZBC[z][:, :, None]
            same_BXC = (ids_BX1 == self.key_ids_ZBC[y][:, None]) & (ids_BX1 != 0)
            seen_BXC = seen_BXC & same_BXC
        s_BURXC = s_BUXC.reshape(B, U, -1, self.queries, C)
        return jnp.where(seen_BXC[:, None, None], s_BURXC, -jnp.inf).reshape(s_BUXC.shape)

    def over_keys(self, z, body, carry):
        """Runs `body(y, carry)` over the blocks y of keys that block z of queries may see."""
        if self.first_Z is None:
            return body(0, carry)
        return jax.lax.fori_loop(self.first_Z[z], self.stop_Z[z], body, carry)


def make_places(
    visibility: Visibility, T: int, S: int, start, segments: Segments | None, *, block: int
) -> Places:
    ids = (None, None)
    queries, keys = min(block, T), min(block, S)
    if segments is not None:
        ids = (_cut(segments.queries_BT, queries), _cut(segments.keys_BS, keys))
    places = Places(visibility, queries, keys, S, start, *ids)
    if S <= keys:
        return places
    live_ZY = _live(places, T)
    Y = live_ZY.shape[1]
    first_Z = jnp.argmax(live_ZY, axis=1)
    stop_Z = jnp.where(jnp.any(live_ZY, axis=1), Y - jnp.argmax(live_ZY[:, ::-1], axis=1), 0)
    return places._replace(first_Z=first_Z, stop_Z=stop_Z)


def _live(places: Places, T: int):
    """Says whether a block of queries may see one of keys, by the first and last of each."""
    first_Z1 = places.start + jnp.arange(0, T, places.queries)[:, None]
    last_Z1 = jnp.minimum(first_Z1 + places.queries, places.start + T) - 1
    first_Y = jnp.arange(0, places.S, places.keys)
    last_Y = first_Y + places.keys - 1
    live_ZY = jnp.full((len(first_Z1), len(first_Y)), True)
    if places.visibility.causal:
        live_ZY &= first_Y <= last_Z1
    if places.visibility.window is not None:
        live_ZY &= last_Y > first_Z1 - places.visibility.window
    if places.query_ids_ZBC is not None:
        low_ZB, high_ZB = _range(places.query_ids_ZBC)
        low_YB, high_YB = _range(places.key_ids_ZBC)
        overlap_ZYB = (low_ZB[:, None] <= high_YB) & (low_YB <= high_ZB[:, None])
        live_ZY &= jnp.any(overlap_ZYB, axis=-1)
    return live_ZY


def _range(ids_ZBC):
    """Returns the least and the greatest id of a block; an empty range where all is padding."""
    limits = jnp.iinfo(ids_ZBC.dtype)
    low_ZB = jnp.min(jnp.where(ids_ZBC == 0, limits.max, ids_ZBC), axis=-1)
    high_ZB = jnp.max(jnp.where(ids_ZBC == 0, limits.min, ids_ZBC), axis=-1)
    return low_ZB, high_ZB


def cut_queries(x, group: Group, places: Places):
    """Cuts [B, T, N, ...] into [Z, B, U, X, ...]."""
    x_ZBCN = _cut(pick_heads(x, group.queries), places.queries)
    Z, B, C, _, *rest = x_ZBCN.shape
    x_ZBCUR = x_ZBCN.reshape(Z, B, C, len(group.kv), -1, *rest)
    return jnp.moveaxis(x_ZBCUR, 2, 4).reshape(Z, B, len(group.kv), -1, *rest)


def join_queries(x_ZBUX, group: Group, T: int):
    """Inverts `cut_queries`: [Z, B, U, X, ...] -> [B, T, U * R, ...]."""
    Z, B, U, X, *rest = x_ZBUX.shape
    R = len(group.queries) // U
    x_ZBURC = x_ZBUX.reshape(Z, B, U, R, X // R, *rest)
    x_BZCUR = jnp.moveaxis(x_ZBURC, (0, 4), (1, 2))
    return x_BZCUR.reshape(B, -1, U * R, *rest)[:, :T]


def cut_keys(arrays, group: Group, places: Places):
    """Cuts each [B, S, K, H] into [Z, B, U, C, H]."""
    return (jnp.moveaxis(_cut(pick_heads(x, group.kv), places.keys), 2, 3) for x in arrays)


def join_keys(x_ZBUCH, S: int):
    """Inverts `cut_keys` for one array: [Z, B, U, C, H] -> [B, S, U, H]."""
    Z, B, U, C, H = x_ZBUCH.shape
    return jnp.moveaxis(x_ZBUCH, (0, 3), (1, 2)).reshape(B, Z * C, U, H)[:, :S]


def _cut(x_BT, block: int):
    """Cuts [B, T, ...] into [Z, B, C, ...], padded with zeros."""
    B, T = x_BT.shape[:2]
    x_BT = jnp.pad(x_BT, [(0, 0), (0, -T % block)] + [(0, 0)] * (x_BT.ndim - 2))
    return jnp.moveaxis(x_BT.reshape(B, -1, block, *x_BT.shape[2:]), 1, 0)
