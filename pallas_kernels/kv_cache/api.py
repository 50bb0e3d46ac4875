"""Defines the decode step of softmax attention over a cache, as given or encoded."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import api
from pallas_kernels.attention.api import DecodeImplementation
from pallas_kernels.attention.gpu.blocks import HopperDecodeBlocks
from pallas_kernels.attention.tpu.decode_blocks import TpuDecodeBlocks
from pallas_kernels.dispatch import Choice
from pallas_kernels.kv_cache.gpu.blocks import HopperPackedBlocks
from pallas_kernels.kv_cache.op import attention_decode_packed
from pallas_kernels.kv_cache.packed import PackedKV
from pallas_kernels.kv_cache.tpu.blocks import TpuPackedBlocks


def attention_decode(
    q_BNH: Float[Array, "B N H"],
    k_cache_BSKH: Float[Array, "B S K H"] | None = None,
    v_cache_BSKH: Float[Array, "B S K H"] | None = None,
    lengths_B: Int[Array, "B"] | None = None,
    *,
    cache: PackedKV | None = None,
    kv_head_of_query: tuple[int, ...] | None = None,
    window: int | None = None,
    segment_ids_B: Int[Array, "B"] | None = None,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: Choice[DecodeImplementation] = None,
    blocks: TpuDecodeBlocks
    | HopperDecodeBlocks
    | TpuPackedBlocks
    | HopperPackedBlocks
    | None = None,
    interpret=False,
) -> Float[Array, "B N H"] | tuple[Float[Array, "B N H"], Float[Array, "B N"]]:
    """Runs `attention` for one query per row over a cache: the decode step.

    Each byte of the cache below a row's length and inside its window is read once, for all query
    heads of its KV head. KV heads that no query head reads should not be in the cache: they are
    read too where it lies in memory position by position.

    Args:
      q_BNH: queries; each stands at the last position of its row.
      k_cache_BSKH: keys, of which row b has `lengths_B[b]`, the query's own included.
      v_cache_BSKH: values of the same rows.
      lengths_B: from 0 to S.
      cache: keys and values in a format of few bits, in place of the two arrays. Kernels read them
        as they are stored. Sinks count from a row's first token; what is before it is not seen.
      segment_ids_B: segment of each query, with `kv_segment_ids_BS`; all keys count if None.
      kv_segment_ids_BS: segments of the cache.

    Other arguments, results and errors as `attention`; "tpu", "gpu", "chunked" and "reference" are
    the implementations, `tpu.decode_blocks.TpuDecodeBlocks` and `gpu.blocks.HopperDecodeBlocks` the
    block sizes; those with `cache` are `kv_cache.tpu.blocks.TpuPackedBlocks` and
    `kv_cache.gpu.blocks.HopperPackedBlocks`.
    """
    if lengths_B is None or {k_cache_BSKH is None, v_cache_BSKH is None} != {cache is not None}:
        raise ValueError("attention_decode needs lengths_B, and either both caches or `cache`")
    settings = {
        "kv_head_of_query": kv_head_of_query,
        "window": window,
        "segment_ids_B": segment_ids_B,
        "kv_segment_ids_BS": kv_segment_ids_BS,
        "scale": scale,
        "interpret": interpret,
    }
    choice = {"implementation": implementation, "blocks": blocks}
    if cache is not None and not cache.format.is_raw:
        _check_shape(q_BNH, cache)
        problem, segments = api.decode_problem(q_BNH, cache, **settings)
        found = attention_decode_packed(
            q_BNH,
            cache,
            lengths_B.astype(jnp.int32),
            segments=segments,
            problem=problem,
            **choice,
        )
        return found if return_lse else found[0]
    stored = (k_cache_BSKH, v_cache_BSKH) if cache is None else (*cache.keys, *cache.values)
    return api.attention_decode(
        q_BNH, *stored, lengths_B, **settings, **choice, return_lse=return_lse
    )


def _check_shape(q_BNH, cache: PackedKV) -> None:
    (B, _, H), (rows, _, _, channels) = q_BNH.shape, cache.shape
    if (B, H) != (rows, channels):
        raise ValueError(
            f"q has {B} rows of heads of {H}, and the cache {rows} rows of heads of {channels}"
        )
