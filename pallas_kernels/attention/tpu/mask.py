"""Says what each query of a block sees, in a kernel: keys on sublanes, queries on lanes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.attention.tpu.blocks import LANES
from pallas_kernels.attention.visibility import Visibility


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Computes the general mask of one step.

    Attributes:
      visibility: which keys a query sees, by position.
      row: position of the block's first query among the keys.
      column: position of its first key.
      key_count: keys that are not padding.
      query_ids: reference to the segments of the queries [1, 1, queries], or None.
      key_ids: reference to the segments of the keys [1, 1, keys], or None.
    """

    visibility: Visibility
    row: Any
    column: Any
    key_count: int
    query_ids: Any = None
    key_ids: Any = None

    def key_columns(self):
        """Returns key segments on sublanes, the same in every lane: [keys, 128], or None."""
        if self.key_ids is None:
            return None
        ids_1S = self.key_ids[0]
        return jnp.broadcast_to(ids_1S, (LANES, ids_1S.shape[1])).T

    def __call__(self, keys: slice, queries: slice, key_columns) -> jax.Array:
        """Says whether each key is seen by each query, [keys, queries]."""
        shape = keys.stop - keys.start, queries.stop - queries.start
        column = self.column + keys.start + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        row = self.row + queries.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        seen = self.visibility(row, column) & (column < self.key_count)
        if key_columns is not None:
            query_1T = self.query_ids[0, :, queries]
            key_ST = jnp.concatenate([key_columns[keys]] * (shape[1] // LANES), axis=1)
            seen &= (key_ST == query_1T) & (query_1T != 0)
        return seen


def below_diagonal(keys: slice, queries: slice) -> jax.Array:
    """Returns the mask of a block on the diagonal, [keys, queries]."""
    shape = keys.stop - keys.start, queries.stop - queries.start
    column = keys.start + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return column <= queries.start + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
