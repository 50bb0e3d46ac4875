"""Runs the decode step of attention on Hopper GPUs: says what is accepted, and calls the kernel."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.decode import decode_reference
from pallas_kernels.attention.gpu.blocks import ROWS, HopperDecodeBlocks, choose_decode_blocks
from pallas_kernels.attention.gpu.op import check_arrays
from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.positive_scale import with_positive_scale
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.reference_gradient import with_gradient_of


def attention_decode_gpu(
    q_BNH,
    k_BSKH,
    v_BSKH,
    lengths_B,
    *,
    segments: Segments | None,
    problem: Problem,
    blocks: HopperDecodeBlocks | None = None,
):
    """Computes `api.attention_decode` for bfloat16 with head dimensions 64, 128 and 256.

    The cache is read again for every 64 query heads of a KV head.

    Raises:
      NotImplementedError: the kernel is not for this device, jax, dtype or head dimension.
    """
    check_machine(q_BNH, problem.interpret)
    check_arrays(q=q_BNH, k_cache=k_BSKH, v_cache=v_BSKH)
    if blocks is None:
        heads = problem.kv_head_of_query
        readers = max(map(heads.count, heads))
        programs = q_BNH.shape[0] * len(set(heads))
        blocks = choose_decode_blocks(problem.H, readers=readers, keys=problem.S, programs=programs)
    q_BNH, scale = with_positive_scale(q_BNH, problem.scale)
    problem = dataclasses.replace(problem, scale=scale, interpret=interpreter(problem.interpret))
    arrays = (q_BNH, k_BSKH, v_BSKH, lengths_B, *(segments or ()))
    return _decode(*arrays, problem=problem, blocks=blocks)


@with_gradient_of(decode_reference)
def _decode(q_BNH, k_BSKH, v_BSKH, lengths_B, *ids, problem: Problem, blocks: HopperDecodeBlocks):
    from pallas_kernels.attention.gpu.decode import decode
    from pallas_kernels.attention.gpu.masks import Places

    (B, _, H), S = q_BNH.shape, k_BSKH.shape[1]
    kv_heads_U, queries_UG, place_N = by_kv_head(problem.kv_head_of_query)
    q_BUGH = q_BNH[:, queries_UG]
    shares_BXE, segments = _shares(problem.visibility, lengths_B, ids, S, blocks)
    out_XBUGH, lse_XBUG = decode(
        *(q_BUGH, k_BSKH, v_BSKH, jnp.array(kv_heads_U, jnp.int32), shares_BXE),
        Places(lengths_B - 1, segments),
        problem=problem,
        cut=blocks,
    )
    out_BUGH, lse_BUG = merge(out_XBUGH, lse_XBUG)
    out_BNH = out_BUGH.reshape(B, -1, H)[:, place_N].astype(q_BNH.dtype)
    return out_BNH, lse_BUG.reshape(B, -1)[:, place_N]


def by_kv_head(heads: tuple[int, ...]):
    """Groups the query heads by the KV head that they read.

    Returns:
      The KV heads that are read; the query heads of each, padded with its first; and where each
      query head stands among these.
    """
    used = sorted(set(heads))
    readers = [[n for n, head in enumerate(heads) if head == kv] for kv in used]
    most = max(map(len, readers))
    queries_UG = np.array([group + group[:1] * (most - len(group)) for group in readers])
    place_N = [used.index(kv) * most + heads[:n].count(kv) for n, kv in enumerate(heads)]
    return used, queries_UG, np.array(place_N)


def _shares(visibility, lengths_B, ids, keys: int, cut: HopperDecodeBlocks):
    """Returns the blocks of each share [B, X, 2], and segments as the kernel reads them."""
    from pallas_kernels.attention.gpu.ranges import Cut, block_ranges

    segments, blocks = (Segments(*ids) if ids else None), Cut(keys, cut.block)
    ranges_B1X = block_ranges(visibility, lengths_B - 1, segments, Cut(1, 1), blocks)
    start_B1, end_B1 = ranges_B1X[:, :, 0], ranges_B1X[:, :, -1]
    share_X = jnp.arange(cut.shares + 1)
    bounds_BX = start_B1 + share_X * (end_B1 - start_B1) // cut.shares
    if segments is not None:
        queries_BR = jnp.broadcast_to(segments.queries_BT, (len(lengths_B), ROWS))
        keys_BS = blocks.padded(segments.keys_BS).astype(jnp.int32)
        segments = Segments(queries_BR.astype(jnp.int32), keys_BS)
    return jnp.stack([bounds_BX[:, :-1], bounds_BX[:, 1:]], axis=2), segments
