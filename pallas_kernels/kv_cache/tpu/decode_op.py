"""Runs the decode step over an encoded cache on TPU: says what it accepts, and calls it."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES
from pallas_kernels.attention.tpu.decode import HEAD_DIMS
from pallas_kernels.attention.tpu.heads import used
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.kv_cache.packed import PackedKV
from pallas_kernels.kv_cache.side import CHANNELS_A_GROUP
from pallas_kernels.kv_cache.tpu.blocks import TpuPackedBlocks, choose_packed_blocks, tiles_of
from pallas_kernels.kv_cache.tpu.decode import GROUPS_A_WORD, PackedCall, decode_kernel
from pallas_kernels.kv_cache.ultraquant import UltraQuant
from pallas_kernels.target import target
from pallas_kernels.tpu_devices import check_device
from pallas_kernels.varying import array_type, vary_alike

KERNEL = "attention_decode_packed"
VMEM_BYTES = 48 << 20


def decode_tpu(
    q_BNH,
    cache: PackedKV,
    begin_B,
    end_B,
    *,
    segments: Segments | None,
    problem: Problem,
    blocks: TpuPackedBlocks | None = None,
):
    """Attends to encoded slots, as `stored_basis.in_stored_basis` says: bfloat16, UltraQuant.

    Raises:
      NotImplementedError: the kernel is not for this device, format, dtype or head dimension.
    """
    check_device(q_BNH, problem.interpret)
    _check(q_BNH, cache)
    if blocks is None:
        blocks = choose_packed_blocks(problem, q_BNH.shape[0], target(q_BNH).device_kind)
    arrays = (q_BNH, begin_B, end_B, *cache.keys, *cache.values, *(segments or ()))
    run = vmap_into_batch(functools.partial(_decode, problem=problem, blocks=blocks))
    return run(*vary_alike(*arrays))


def _check(q_BNH, cache: PackedKV) -> None:
    sides = (cache.format.keys, cache.format.values)
    if not all(isinstance(side, UltraQuant) for side in sides):
        names = " and ".join(type(side).__name__ for side in sides)
        raise NotImplementedError(
            f"keys and values are stored as {names}; the kernel reads UltraQuant, "
            "plain JAX every format"
        )
    if q_BNH.dtype != jnp.bfloat16:
        raise NotImplementedError(f"q is {q_BNH.dtype}; bfloat16 is accepted")
    if q_BNH.shape[-1] not in HEAD_DIMS:
        raise NotImplementedError(
            f"the head dimension is {q_BNH.shape[-1]}; {HEAD_DIMS} are accepted"
        )


def packed_call(problem: Problem, blocks: TpuPackedBlocks) -> PackedCall:
    """Returns what the kernel is specialised to.

    Of fewer than 4 groups XLA stores the scales of all KV heads side by side, if 4 heads fill a
    word.
    """
    apart = len(used(problem.kv_head_of_query)) < problem.K
    few = problem.H // CHANNELS_A_GROUP < GROUPS_A_WORD and problem.K % GROUPS_A_WORD == 0
    return PackedCall(
        problem=problem,
        blocks=blocks,
        tiles=tiles_of(problem.kv_head_of_query),
        apart=apart,
        groups_first=few and not apart,
    )


def _decode(q_BNH, begin_B, end_B, *stored, problem: Problem, blocks: TpuPackedBlocks):
    B, N, H = q_BNH.shape
    call, read = packed_call(problem, blocks), used(problem.kv_head_of_query)
    order_M = np.array(sum((tile.queries for tile in call.tiles), ()))
    owners_M = np.array(sum((tile.owners for tile in call.tiles), ()))
    q_BMH = jnp.swapaxes(q_BNH[:, order_M].reshape(B, -1, H // 2, 2), 2, 3).reshape(B, -1, H)
    ids = ()
    if problem.segments:
        queries_B1, keys_BS = stored[4:]
        ids = queries_B1[:, None].astype(jnp.int32), keys_BS[:, None].astype(jnp.int32)
    owners_M1 = jnp.asarray(owners_M[:, None], jnp.int32)
    inputs = (q_BMH, owners_M1, stored[:4], ids)
    out_PBMH, lse_PBMX = _pallas_call(call, read, begin_B, end_B, *inputs)
    place_N = np.unique(order_M, return_index=True)[1]
    out_PBNH, lse_PBN = out_PBMH[:, :, place_N], lse_PBMX[:, :, place_N, 0]
    out_PBNH = jnp.swapaxes(out_PBNH.reshape(-1, B, N, 2, H // 2), 3, 4).reshape(-1, B, N, H)
    return merge(out_PBNH, lse_PBN) if blocks.splits > 1 else (out_PBNH[0], lse_PBN[0])


def _pallas_call(call: PackedCall, read, begin_B, end_B, q_BMH, owners_M1, stored, ids):
    (B, M, H), X, G = q_BMH.shape, call.blocks.keys, call.groups
    at = lambda b, p, y, begins, ends: call.block(begins, ends, b, p, y)
    inputs, specs = (
        [q_BMH, owners_M1],
        [
            pl.BlockSpec((1, M, H), lambda b, *_: (b, 0, 0)),
            pl.BlockSpec((M, 1), lambda *_: (0, 0)),
        ],
    )
    for part, x_BKCS in enumerate(stored):
        if call.groups_first and part in (1, 3):
            index = lambda *grid: (grid[0], 0, 0, at(*grid))
            specs.append(pl.BlockSpec((1, G, len(read), X), index))
            inputs.append(jnp.swapaxes(x_BKCS, 1, 2))
            continue
        heads = [(1, head) for head in read] if call.apart else [(len(read), 0)]
        for count, head in heads:
            index = lambda *grid, head=head: (grid[0], head, 0, at(*grid))
            specs.append(pl.BlockSpec((1, count, x_BKCS.shape[2], X), index))
            inputs.append(x_BKCS)
    if ids:
        specs += [
            pl.BlockSpec((1, 1, 1), lambda b, *_: (b, 0, 0)),
            pl.BlockSpec((1, 1, X), lambda *grid: (grid[0], 0, at(*grid))),
        ]
    inputs += ids
    factors = [(G * len(tile.queries), len(tile.kv_heads) * H) for tile in call.tiles]
    words = (-(-G // GROUPS_A_WORD), M, X)
    own = lambda size: pl.BlockSpec((1, 1, M, size), lambda b, p, *_: (p, b, 0, 0))
    out = functools.partial(array_type, dtype=jnp.float32, like=(begin_B, *inputs))
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(B, call.blocks.splits, call.steps),
        in_specs=specs,
        out_specs=[own(H), own(LANES)],
        scratch_shapes=[
            *(pltpu.VMEM((M, LANES), jnp.float32),) * 2,
            *(pltpu.VMEM(words, jnp.int32),) * 2,
            *(pltpu.VMEM(shape, jnp.bfloat16) for shape in factors),
            *(pltpu.VMEM(shape, jnp.float32) for shape in factors),
        ],
    )
    return pl.pallas_call(
        functools.partial(decode_kernel, call=call),
        grid_spec=grid_spec,
        out_shape=[out((call.blocks.splits, B, M, size)) for size in (H, LANES)],
        name=KERNEL,
        interpret=call.problem.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_BYTES,
        ),
    )(begin_B, end_B, *inputs)
