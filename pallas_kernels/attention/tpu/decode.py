"""Runs the decode step of softmax attention on TPU: one read of the visible part of the cache."""

import functools

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.decode import decode_reference
from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES
from pallas_kernels.attention.tpu.decode_blocks import Form, TpuDecodeBlocks, choose_decode_blocks
from pallas_kernels.attention.tpu.decode_kernel import DecodeCall, decode_kernel
from pallas_kernels.attention.tpu.heads import used
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.reference_gradient import with_gradient_of
from pallas_kernels.target import target
from pallas_kernels.tpu_devices import check_device, check_dtypes
from pallas_kernels.varying import array_type

DTYPES = (jnp.bfloat16, jnp.float32)
HEAD_DIMS = (64, 128, 256)


def attention_decode_tpu(
    q_BNH,
    k_BSKH,
    v_BSKH,
    lengths_B,
    *,
    segments: Segments | None,
    problem: Problem,
    blocks: TpuDecodeBlocks | None = None,
):
    """Computes `api.attention_decode` by the TPU kernel.

    Raises:
      NotImplementedError: the kernel is not for this device, dtype or head dimension.
    """
    check_device(q_BNH, problem.interpret)
    check_dtypes(q_BNH, k_BSKH, v_BSKH)
    if q_BNH.shape[-1] not in HEAD_DIMS:
        raise NotImplementedError(
            f"the head dimension is {q_BNH.shape[-1]}; {HEAD_DIMS} are accepted"
        )
    if blocks is None:
        device_kind = target(q_BNH).device_kind
        blocks = choose_decode_blocks(problem, q_BNH.shape[0], device_kind)
    arrays = (q_BNH, k_BSKH, v_BSKH, lengths_B, *(segments or ()))
    return _decode(*arrays, problem=problem, blocks=blocks)


@with_gradient_of(decode_reference)
def _decode(q_BNH, k_BSKH, v_BSKH, lengths_B, *ids, problem: Problem, blocks: TpuDecodeBlocks):
    B, H, call = q_BNH.shape[0], problem.H, DecodeCall(problem=problem, blocks=blocks)
    groups_GR = _groups(problem.kv_head_of_query, blocks.form)
    G, R = groups_GR.shape
    heads = np.array(problem.kv_head_of_query)[groups_GR]
    inputs = [
        q_BNH[:, groups_GR.ravel()].reshape(B, G, R, H),
        jnp.asarray(heads[0][:, None], jnp.int32),
        _in_form(k_BSKH, blocks.form),
        _in_form(v_BSKH, blocks.form),
    ]
    if ids:
        queries_B1, keys_BS = ids
        inputs += [queries_B1[:, None], jnp.repeat(keys_BS, call.rows_a_key, axis=1)[:, None]]
    kv_heads_G = jnp.asarray(heads[:, 0], jnp.int32)
    out_PBGRH, lse_PBGRX = _pallas_call(call, (B, G, R, H), lengths_B, kv_heads_G, *inputs)
    place_N = np.unique(groups_GR, return_index=True)[1]
    out_PBNH = out_PBGRH.reshape(-1, B, G * R, H)[:, :, place_N]
    lse_PBN = lse_PBGRX[..., 0].reshape(-1, B, G * R)[:, :, place_N]
    out_BNH, lse_BN = merge(out_PBNH, lse_PBN) if blocks.splits > 1 else (out_PBNH[0], lse_PBN[0])
    return out_BNH.astype(q_BNH.dtype), lse_BN


def _groups(kv_head_of_query: tuple[int, ...], form: Form) -> np.ndarray:
    """Returns the query heads [G, R] of the programs; rows with fewer than R repeat their first."""
    if form == "rows":
        return np.arange(len(kv_head_of_query))[None]
    readers = [
        [n for n, kv in enumerate(kv_head_of_query) if kv == head]
        for head in used(kv_head_of_query)
    ]
    R = max(map(len, readers))
    return np.array([queries + queries[:1] * (R - len(queries)) for queries in readers])


def _in_form(x_BSKH, form: Form):
    if form == "rows":
        return x_BSKH.reshape(x_BSKH.shape[0], -1, x_BSKH.shape[3])
    return jnp.transpose(x_BSKH, (0, 2, 1, 3) if form == "heads" else (0, 2, 3, 1))


def _pallas_call(call: DecodeCall, shape, lengths_B, kv_heads_G, *inputs):
    B, G, R, H = shape
    splits, X = call.blocks.splits, call.blocks.keys * call.rows_a_key

    def cache():
        at = lambda b, p, y, lengths: call.block(lengths, b, p, y)
        if call.blocks.form == "rows":
            index = lambda b, g, p, y, lengths, _: (b, at(b, p, y, lengths), 0)
            return pl.BlockSpec((1, X, H), index)
        if call.blocks.form == "heads":
            index = lambda b, g, p, y, lengths, kv: (b, kv[g], at(b, p, y, lengths), 0)
            return pl.BlockSpec((1, 1, X, H), index)
        index = lambda b, g, p, y, lengths, kv: (b, kv[g], 0, at(b, p, y, lengths))
        return pl.BlockSpec((1, 1, H, X), index)

    specs = [
        pl.BlockSpec((1, 1, R, H), lambda b, g, p, y, *_: (b, g, 0, 0)),
        pl.BlockSpec((R, 1), lambda *_: (0, 0)),
        cache(),
        cache(),
    ]
    if call.problem.segments:
        of_keys = lambda b, g, p, y, lengths, _: (b, 0, call.block(lengths, b, p, y))
        specs += [
            pl.BlockSpec((1, 1, 1), lambda b, *_: (b, 0, 0)),
            pl.BlockSpec((1, 1, X), of_keys),
        ]
    own = lambda *block: pl.BlockSpec((1, 1, 1, *block), lambda b, g, p, y, *_: (p, b, g, 0, 0))
    out = functools.partial(array_type, dtype=jnp.float32, like=(lengths_B, *inputs))
    grid_spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=2,
        grid=(B, G, splits, call.steps),
        in_specs=specs,
        out_specs=[own(R, H), own(R, LANES)],
        scratch_shapes=[pltpu.VMEM((R, size), jnp.float32) for size in (LANES, LANES, H)],
    )
    return pl.pallas_call(
        functools.partial(decode_kernel, call=call),
        grid_spec=grid_spec,
        out_shape=[out((splits, B, G, R, H)), out((splits, B, G, R, LANES))],
        name="attention_decode",
        interpret=call.problem.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
    )(lengths_B, kv_heads_G, *inputs)
