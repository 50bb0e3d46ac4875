"""Makes the Stream that all layers read of tokens and cache, and the cache after them."""

import jax.numpy as jnp

from hydrahead_jax.cache.layered import CONV_TAPS, Cache
from hydrahead_jax.mixers.types import Stream
from hydrahead_jax.ops.masks import segment_positions
from hydrahead_jax.sharding import Layout


def make_stream(
    shape,
    segment_ids_BT,
    positions_BT,
    cache: Cache | None,
    training: bool,
    *,
    starts_BT=None,
    layout: Layout | None = None,
) -> Stream:
    """Returns the Stream of `shape` = (B, T) tokens; arguments as for `Decoder.__call__`."""
    B, T = shape
    key_segment_ids_BS = segment_ids_BT
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((B, T), jnp.int32)
    if cache is None:
        start = jnp.zeros((), jnp.int32)
        tail_BW = jnp.zeros((B, CONV_TAPS - 1), jnp.int32)
    else:
        start = cache.length
        tail_BW = cache.tail_segment_ids_BW
        key_segment_ids_BS = _written_segments(cache, segment_ids_BT)
    if positions_BT is None:
        positions_BT = _positions(segment_ids_BT, cache)
    return Stream(
        positions_BT,
        segment_ids_BT,
        key_segment_ids_BS,
        tail_BW,
        start,
        training,
        starts_BT=starts_BT,
        layout=layout,
    )


def extend_cache(cache: Cache, layers: list, stream: Stream) -> Cache:
    """Returns the cache after the tokens of `stream`."""
    segment_ids_BT = stream.segment_ids_BT
    tail_BW = jnp.concatenate([cache.tail_segment_ids_BW, segment_ids_BT], axis=1)
    last_BT = jnp.where(segment_ids_BT != 0, stream.positions_BT + 1, 0)
    return Cache(
        layers=layers,
        segment_ids_BS=_written_segments(cache, segment_ids_BT),
        tail_segment_ids_BW=tail_BW[:, 1 - CONV_TAPS :],
        positions_B=jnp.maximum(cache.positions_B, jnp.max(last_BT, axis=1)),
        length=cache.length + segment_ids_BT.shape[1],
    )


def _positions(segment_ids_BT, cache: Cache | None):
    if cache is None:
        return segment_positions(segment_ids_BT)
    real_BT = segment_ids_BT != 0
    counts_BT = cache.positions_B[:, None] + jnp.cumsum(real_BT, axis=1) - 1
    return jnp.where(real_BT, counts_BT, 0)


def _written_segments(cache: Cache, segment_ids_BT):
    slots_S = jnp.arange(cache.capacity)
    T = segment_ids_BT.shape[1]
    index_S = jnp.clip(slots_S - cache.length, 0, T - 1)
    is_new_S = (slots_S >= cache.length) & (slots_S < cache.length + T)
    return jnp.where(is_new_S, segment_ids_BT[:, index_S], cache.segment_ids_BS)
