"""Says which part of a block of scores is visible, in a kernel."""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.ranges import Cut
from pallas_kernels.attention.visibility import Segments, Visibility
from pallas_kernels.hopper import blocks

EVERYTHING = 1 << 30  # a bound for no bound: its sum with a row has the layout of the row


class Places(NamedTuple):
    """Says where queries and keys stand: arrays outside of a kernel, references to them inside.

    Attributes:
      q_start_B: int32 position of query 0 among the keys.
      segments: int32 segments, padded to complete tiles and blocks; or None.
    """

    q_start_B: jax.Array
    segments: Segments | None


def places_of(q_start_B, segments: Segments | None, queries: Cut, keys: Cut) -> Places:
    if segments is not None:
        segments = Segments(queries.padded(segments.queries_BT), keys.padded(segments.keys_BS))
        segments = jax.tree.map(lambda ids: ids.astype(jnp.int32), segments)
    return Places(q_start_B, segments)


def masked(
    scores,
    visibility: Visibility,
    places: Places,
    b,
    query,
    key,
    *,
    keys: int,
    keys_on_rows: bool = False,
    one_query: bool = False,
):
    """Returns `scores` with -inf for pairs that do not see each other.

    Args:
      scores: queries by keys, or with `keys_on_rows` keys by queries.
      query, key: the first ones among all of the batch row.
      keys: their number in the batch row. Those beyond it are not seen, unless they are on rows,
        where their results are dropped.
    """
    query_axis, key_axis = (1, 0) if keys_on_rows else (0, 1)
    ahead = places.q_start_B[b] + query - key  # of the first query to the first key
    row = jnp.int32(0)
    if not one_query:
        row = plgpu.broadcasted_iota(
            jnp.int32, scores.shape[:1], 0, layout=plgpu.Layout.WGMMA.reduce(1)
        )
    column = plgpu.broadcasted_iota(jnp.int32, scores.shape, 1, layout=plgpu.Layout.WGMMA)
    least, most = _visible_columns(visibility, row, ahead, keys - key, keys_on_rows)
    across = lambda x: blocks.on_rows(x, scores.shape) if x.ndim else x
    seen = None
    if most is not None:
        seen = column <= across(most)
    if least is not None:
        late = column >= across(least)
        seen = late if seen is None else seen & late
    if places.segments is not None:
        ids = lambda ref, first, axis: _along(ref.at[b], first, axis, scores.shape)
        query_ids = ids(places.segments.queries_BT, query, query_axis)
        key_ids = ids(places.segments.keys_BS, key, key_axis)
        same = (query_ids == key_ids) & (query_ids != 0)
        seen = same if seen is None else seen & same
    return scores if seen is None else blocks.registers(jnp.where(seen, scores, -jnp.inf))


def _visible_columns(visibility: Visibility, row, ahead, keys_left, keys_on_rows: bool):
    """Returns the least and the greatest column that each row sees; None for no bound."""
    reach = ahead if visibility.causal else jnp.int32(EVERYTHING)
    if keys_on_rows:
        most = None if visibility.window is None else row - ahead + (visibility.window - 1)
        return row - reach, most
    most = jnp.minimum(row + reach, jnp.zeros_like(row) + (keys_left - 1))
    least = None if visibility.window is None else row + ahead - (visibility.window - 1)
    return least, most


def _along(ids_T, first, axis: int, shape):
    """Loads `shape[axis]` ids from the first on, as a matrix that varies along that axis."""
    ids = plgpu.load(
        ids_T.at[pl.ds(first, shape[axis])],
        layout=plgpu.Layout.WGMMA.reduce(1 - axis),
        optimized=False,
    )
    return blocks.registers(lax.broadcast_in_dim(ids, shape, [axis]))
