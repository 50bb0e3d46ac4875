"""Computes softmax attention of one call's tokens over a layer's keys, cached or not."""

import jax.numpy as jnp

from hydrahead_jax.cache.layered import KVCache, LayerKV
from hydrahead_jax.mixers.parallel import attention_on
from hydrahead_jax.mixers.types import AttentionInputs, Stream
from hydrahead_jax.ops.null_keys import with_null_keys
from pallas_kernels import PackedKV, attention, attention_decode


def attend(inputs: AttentionInputs, stream: Stream, cache: LayerKV | None):
    """Returns heads [B, T, N, H], and the cache with T more tokens.

    A packed cache shows several tokens what it restores of those before, and these as given; a
    single token, the decode step, reads what is stored, its own key and value included.
    """
    q_BTNH, k_BTKH, v_BTKH = inputs.q_BTNH, inputs.k_BTKH, inputs.v_BTKH
    kv_head_of_query, null_keys = inputs.kv_head_of_query, inputs.null_keys
    keys = stream.key_segment_ids_BS
    settings = {"kv_head_of_query": kv_head_of_query, "return_lse": null_keys > 0}
    finish = lambda found: with_null_keys(*found, count=null_keys)[0] if null_keys else found
    if stream.layout is not None:
        heads = (q_BTNH, k_BTKH, v_BTKH, kv_head_of_query)
        out_BTNH = attention_on(stream.layout, *heads, stream.segment_ids_BT, null_keys=null_keys)
        return out_BTNH, None
    if cache is None:
        queries = None if keys is None else stream.segment_ids_BT
        found = attention(
            q_BTNH, k_BTKH, v_BTKH, **settings, segment_ids_BT=queries, kv_segment_ids_BS=keys
        )
        return finish(found), None
    earlier, cache = cache, _append(cache, k_BTKH, v_BTKH, stream)
    if q_BTNH.shape[1] > 1:
        seen = cache
        if isinstance(cache, PackedKV):
            restored = KVCache(*earlier.decoded(k_BTKH.dtype))
            seen = restored.append(k_BTKH, v_BTKH, stream.start)
        found = attention(
            q_BTNH,
            seen.k_BSKH,
            seen.v_BSKH,
            **settings,
            segment_ids_BT=stream.segment_ids_BT,
            kv_segment_ids_BS=keys,
            q_start=stream.start,
        )
        return finish(found), cache
    q_BNH, lengths_B = q_BTNH[:, 0], jnp.broadcast_to(stream.start + 1, q_BTNH.shape[:1])
    settings |= {"segment_ids_B": stream.segment_ids_BT[:, 0], "kv_segment_ids_BS": keys}
    if isinstance(cache, PackedKV):
        found = attention_decode(q_BNH, lengths_B=lengths_B, cache=cache, **settings)
    else:
        found = attention_decode(q_BNH, cache.k_BSKH, cache.v_BSKH, lengths_B, **settings)
    return finish(found)[:, None], cache


def _append(cache: LayerKV, k_BTKH, v_BTKH, stream: Stream) -> LayerKV:
    if isinstance(cache, KVCache):
        return cache.append(k_BTKH, v_BTKH, stream.start)
    return cache.append(k_BTKH, v_BTKH, stream.start, stream.segment_ids_BT != 0)
