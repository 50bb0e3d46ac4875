"""Defines the public functions of softmax attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.arguments import checked
from pallas_kernels.attention.chunked import ChunkedBlocks, attention_chunked
from pallas_kernels.attention.cudnn import attention_cudnn
from pallas_kernels.attention.decode import attention_decode_chunked
from pallas_kernels.attention.gpu.blocks import HopperBlocks, HopperDecodeBlocks
from pallas_kernels.attention.gpu.decode_op import attention_decode_gpu
from pallas_kernels.attention.gpu.op import attention_gpu
from pallas_kernels.attention.reference import attention_decode_reference, attention_reference
from pallas_kernels.attention.splash import attention_splash
from pallas_kernels.attention.tpu.blocks import TpuBlocks
from pallas_kernels.attention.tpu.decode import attention_decode_tpu
from pallas_kernels.attention.tpu.decode_blocks import TpuDecodeBlocks
from pallas_kernels.attention.tpu.op import attention_tpu
from pallas_kernels.dispatch import Choice, Op

AttentionImplementation = Literal["tpu", "gpu", "chunked", "reference", "splash", "cudnn"]
DecodeImplementation = Literal["tpu", "gpu", "chunked", "reference"]

_attention = Op("attention")
_attention.register("tpu", attention_tpu, blocks=TpuBlocks)
_attention.register("gpu", attention_gpu, blocks=HopperBlocks)
_attention.register("chunked", attention_chunked, blocks=ChunkedBlocks)
_attention.register("reference", attention_reference)
_attention.register("splash", attention_splash, by_name_only=True)
_attention.register("cudnn", attention_cudnn, by_name_only=True)

_attention_decode = Op("attention_decode")
_attention_decode.register("tpu", attention_decode_tpu, blocks=TpuDecodeBlocks)
_attention_decode.register("gpu", attention_decode_gpu, blocks=HopperDecodeBlocks)
_attention_decode.register("chunked", attention_decode_chunked)
_attention_decode.register("reference", attention_decode_reference)


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    *,
    kv_head_of_query: tuple[int, ...] | None = None,
    causal: bool = True,
    window: int | None = None,
    segment_ids_BT: Int[Array, "B T"] | None = None,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    q_start: int | Int[Array, ""] = 0,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: Choice[AttentionImplementation] = None,
    blocks: TpuBlocks | HopperBlocks | ChunkedBlocks | None = None,
    interpret=False,
) -> Float[Array, "B T N H"] | tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Computes softmax(scale q k^T) v for each query head, over the KV head that it reads.

    Softmax and sums are float32. Differentiable in q, k and v, through both results. No KV head is
    repeated, and blocks of keys that no query of a block sees cost nothing.

    Args:
      q_BTNH: queries.
      k_BSKH: keys, in the dtype of q.
      v_BSKH: values, in the dtype of q.
      kv_head_of_query: for each query head the KV head that it reads, in any order and number, with
        KV heads that none reads; query head n reads n // (N / K) if None.
      causal: a query sees its own position and those before.
      window: of these the nearest `window`, its own included. A window is causal.
      segment_ids_BT: a query sees the keys of its own segment. 0 is padding: such a query sees
        nothing.
      kv_segment_ids_BS: segments of the keys; those of the queries if None and S is T.
      q_start: position of query 0 among the keys; it may lie before the first or after the last.
      scale: factor of the scores; 1 / sqrt(H) if None.
      return_lse: also return the log-sum-exp of the scaled scores, float32.
      implementation: "tpu" and "gpu" (Pallas kernels), "chunked" (plain JAX, memory linear in T),
        "reference" (every score at once, float32), or None for the best of these that accepts the
        arguments, logged once; and by name only "splash" and "cudnn", those of JAX itself. A
        sequence of names tries these in order.
      blocks: block sizes of one implementation, in place of its own choice: `tpu.blocks.TpuBlocks`,
        `gpu.blocks.HopperBlocks` or `chunked.ChunkedBlocks`. Every other one refuses them.
      interpret: runs the Pallas kernels of a named implementation in an interpreter, on any
        machine: True, or `pltpu.InterpretParams()` or `plgpu.InterpretGPUParams()`, which also
        find races. Inside `jax.shard_map` use True with `check_vma=False`.

    Returns:
      The output in the dtype of q, and with `return_lse` the log-sum-exp. A query that sees nothing
      has output 0 and log-sum-exp -inf.

    Raises:
      ValueError: shapes, heads, segments, window or blocks do not fit together, or
        `implementation` is unknown.
      NotImplementedError: the named implementation does not take these arguments or this machine.
    """
    problem, segments = checked(
        q_BTNH,
        k_BSKH,
        kv_head_of_query=kv_head_of_query,
        causal=causal,
        window=window,
        segment_ids_BT=segment_ids_BT,
        kv_segment_ids_BS=kv_segment_ids_BS,
        q_start=q_start,
        scale=scale,
        interpret=interpret,
    )
    out_BTNH, lse_BTN = _attention(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        q_start=q_start,
        segments=segments,
        problem=problem,
        implementation=implementation,
        blocks=blocks,
    )
    return (out_BTNH, lse_BTN) if return_lse else out_BTNH


def attention_decode(
    q_BNH: Float[Array, "B N H"],
    k_cache_BSKH: Float[Array, "B S K H"],
    v_cache_BSKH: Float[Array, "B S K H"],
    lengths_B: Int[Array, "B"],
    *,
    kv_head_of_query: tuple[int, ...] | None = None,
    window: int | None = None,
    segment_ids_B: Int[Array, "B"] | None = None,
    kv_segment_ids_BS: Int[Array, "B S"] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: Choice[DecodeImplementation] = None,
    blocks: TpuDecodeBlocks | HopperDecodeBlocks | None = None,
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
      segment_ids_B: segment of each query, with `kv_segment_ids_BS`; all keys count if None.
      kv_segment_ids_BS: segments of the cache.

    Other arguments, results and errors as `attention`; "tpu", "gpu", "chunked" and "reference" are
    the implementations, `tpu.decode_blocks.TpuDecodeBlocks` and `gpu.blocks.HopperDecodeBlocks` the
    block sizes.
    """
    problem, segments = decode_problem(
        q_BNH,
        k_cache_BSKH,
        kv_head_of_query=kv_head_of_query,
        window=window,
        segment_ids_B=segment_ids_B,
        kv_segment_ids_BS=kv_segment_ids_BS,
        scale=scale,
        interpret=interpret,
    )
    out_BNH, lse_BN = _attention_decode(
        q_BNH,
        k_cache_BSKH,
        v_cache_BSKH,
        lengths_B.astype(jnp.int32),
        segments=segments,
        problem=problem,
        implementation=implementation,
        blocks=blocks,
    )
    return (out_BNH, lse_BN) if return_lse else out_BNH


def decode_problem(q_BNH, cache, *, segment_ids_B, kv_segment_ids_BS, **settings):
    """Returns the problem and the segments of a decode step over a cache of shape [B, S, K, H].

    Raises:
      ValueError: as `attention_decode`.
    """
    if (segment_ids_B is None) != (kv_segment_ids_BS is None):
        raise ValueError("segment_ids_B and kv_segment_ids_BS come together or not at all")
    B, N, H = q_BNH.shape
    return checked(
        jax.ShapeDtypeStruct((B, 1, N, H), q_BNH.dtype),
        cache,
        causal=True,
        segment_ids_BT=None if segment_ids_B is None else segment_ids_B[:, None],
        kv_segment_ids_BS=kv_segment_ids_BS,
        q_start=None,
        **settings,
    )
