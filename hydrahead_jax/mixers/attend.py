"""Computes softmax attention of one call's tokens over a layer's keys, cached or not."""

import jax.numpy as jnp

from hydrahead_jax.cache.layered import KVCache
from hydrahead_jax.mixers.parallel import attention_on
from hydrahead_jax.mixers.types import Stream
from pallas_kernels import attention, attention_decode


def attend(
    q_BTNH, k_BTKH, v_BTKH, kv_head_of_query: tuple[int, ...], stream: Stream, cache: KVCache | None
):
    """Returns heads [B, T, N, H], and the cache with T more tokens."""
    keys = stream.key_segment_ids_BS
    if stream.layout is not None:
        heads = (q_BTNH, k_BTKH, v_BTKH, kv_head_of_query)
        return attention_on(stream.layout, *heads, stream.segment_ids_BT), None
    if cache is None:
        queries = None if keys is None else stream.segment_ids_BT
        out_BTNH = attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            kv_head_of_query=kv_head_of_query,
            segment_ids_BT=queries,
            kv_segment_ids_BS=keys,
        )
        return out_BTNH, None
    cache = cache.append(k_BTKH, v_BTKH, stream.start)
    if q_BTNH.shape[1] > 1:
        out_BTNH = attention(
            q_BTNH,
            cache.k_BSKH,
            cache.v_BSKH,
            kv_head_of_query=kv_head_of_query,
            segment_ids_BT=stream.segment_ids_BT,
            kv_segment_ids_BS=keys,
            q_start=stream.start,
        )
        return out_BTNH, cache
    out_BNH = attention_decode(
        q_BTNH[:, 0],
        cache.k_BSKH,
        cache.v_BSKH,
        jnp.broadcast_to(stream.start + 1, q_BTNH.shape[:1]),
        kv_head_of_query=kv_head_of_query,
        segment_ids_B=stream.segment_ids_BT[:, 0],
        kv_segment_ids_BS=keys,
    )
    return out_BNH[:, None], cache
