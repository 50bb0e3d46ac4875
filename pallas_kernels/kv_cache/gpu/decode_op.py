"""Runs the decode step over an encoded cache on Hopper GPUs: says what it accepts, and calls it."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from pallas_kernels.attention.gpu.decode_op import by_kv_head
from pallas_kernels.attention.gpu.op import check_arrays
from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.positive_scale import with_positive_scale
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.kv_cache.gpu.blocks import (
    HopperPackedBlocks,
    choose_packed_blocks,
    columns_of,
)
from pallas_kernels.kv_cache.gpu.fragments import SIXTEEN, channels_of_rows, in_order
from pallas_kernels.kv_cache.packed import PackedKV
from pallas_kernels.kv_cache.ultraquant import UltraQuant
from pallas_kernels.varying import vary_alike


def decode_gpu(
    q_BNH,
    cache: PackedKV,
    begin_B,
    end_B,
    *,
    segments: Segments | None,
    problem: Problem,
    blocks: HopperPackedBlocks | None = None,
):
    """Attends to encoded slots, as `stored_basis.in_stored_basis` says: bfloat16, UltraQuant.

    The cache is read again for every 32 query heads of a KV head, 16 at a head dimension of 256.

    Raises:
      NotImplementedError: the kernel is not for this device, jax, format, dtype or size.
    """
    check_machine(q_BNH, problem.interpret)
    check_arrays(q=q_BNH)
    _check_cache(cache)
    if blocks is None:
        heads = problem.kv_head_of_query
        readers = max(map(heads.count, heads))
        tiles = -(-readers // columns_of(readers, problem.H))
        programs = q_BNH.shape[0] * len(set(heads)) * tiles
        blocks = choose_packed_blocks(problem.H, readers, problem.S, programs)
    q_BNH, scale = with_positive_scale(q_BNH, problem.scale)
    problem = dataclasses.replace(problem, scale=scale, interpret=interpreter(problem.interpret))
    arrays = (q_BNH, begin_B, end_B, *cache.keys, *cache.values, *(segments or ()))
    run = vmap_into_batch(functools.partial(_decode, problem=problem, blocks=blocks))
    return run(*vary_alike(*arrays))


def _check_cache(cache: PackedKV) -> None:
    sides, slots = (cache.format.keys, cache.format.values), cache.shape[1]
    if not all(isinstance(side, UltraQuant) for side in sides):
        names = " and ".join(type(side).__name__ for side in sides)
        raise NotImplementedError(
            f"keys and values are stored as {names}; the kernel reads UltraQuant, "
            "plain JAX every format"
        )
    if slots % SIXTEEN:
        raise NotImplementedError(
            f"the cache has {slots} slots; multiples of {SIXTEEN} are accepted"
        )


def _decode(q_BNH, begin_B, end_B, *stored, problem: Problem, blocks: HopperPackedBlocks):
    from pallas_kernels.kv_cache.gpu.decode import decode

    B, _, H = q_BNH.shape
    kv_heads_U, queries_UG, place_N = _tiles(problem.kv_head_of_query, H)
    N = columns_of(queries_UG.shape[1], H)
    q_BUINH = in_order(q_BNH[:, queries_UG]).reshape(B, len(kv_heads_U), -1, N, H)
    out_XBUIWHN, lse_XBUIWN = decode(
        q_BUINH,
        stored[:2],
        stored[2:4],
        jnp.array(kv_heads_U, jnp.int32),
        _shares(begin_B, end_B, blocks),
        jnp.stack([begin_B, end_B], axis=1),
        _ids(stored[4:], blocks.block),
        problem=problem,
        cut=blocks,
    )
    shares = lambda x: jnp.moveaxis(x, 4, 1).reshape(-1, *x.shape[1:4], *x.shape[5:])
    out_SBUIHN, lse_SBUIN = shares(out_XBUIWHN), shares(lse_XBUIWN)
    out_BUINH, lse_BUIN = merge(jnp.swapaxes(out_SBUIHN, -1, -2), lse_SBUIN)
    out_BGH = channels_of_rows(out_BUINH.reshape(B, -1, H))
    return out_BGH[:, place_N], lse_BUIN.reshape(B, -1)[:, place_N]


def _tiles(heads: tuple[int, ...], head_dim: int):
    """Returns what `by_kv_head` does, with the query heads of a KV head in complete tiles."""
    kv_heads_U, queries_UG, place_N = by_kv_head(heads)
    G = queries_UG.shape[1]
    missing = -G % columns_of(G, head_dim)
    filled_UG = np.concatenate([queries_UG, np.repeat(queries_UG[:, :1], missing, axis=1)], axis=1)
    return kv_heads_U, filled_UG, place_N // G * (G + missing) + place_N % G


def _shares(begin_B, end_B, blocks: HopperPackedBlocks):
    """Returns the blocks of each share [B, X, 2]: the first one, and the one after the last."""
    start_B1 = (begin_B // blocks.block)[:, None]
    end_B1 = jnp.maximum(start_B1, -(-end_B // blocks.block)[:, None])
    share_X = jnp.arange(blocks.shares + 1)
    bounds_BX = start_B1 + share_X * (end_B1 - start_B1) // blocks.shares
    return jnp.stack([bounds_BX[:, :-1], bounds_BX[:, 1:]], axis=2).astype(jnp.int32)


def _ids(ids, block: int):
    """Returns segments as the kernel reads them, of complete blocks; None without."""
    if not ids:
        return None
    queries_B1, keys_BS = ids
    keys_BS = jnp.pad(keys_BS, ((0, 0), (0, -keys_BS.shape[1] % block)))
    return queries_B1[:, 0].astype(jnp.int32), in_order(keys_BS.astype(jnp.int32))
