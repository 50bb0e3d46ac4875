"""Runs softmax attention on TPU: says what is accepted, and brings it into the kernels' form."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.attention.positive_scale import with_positive_scale
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.blocks import LANES, TpuBlocks, choose_blocks
from pallas_kernels.attention.tpu.rule import attend
from pallas_kernels.attention.tpu.steps import MAX_BLOCKS
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.target import target
from pallas_kernels.tpu_devices import check_device, check_dtypes
from pallas_kernels.varying import vary_alike

MAX_HEAD_DIM = 256


def attention_tpu(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
    blocks: TpuBlocks | None = None,
):
    """Computes `api.attention` by the TPU kernels.

    Head dimensions up to 256 are padded with zeros to complete lanes, 128 or 256. The backward
    reads the arguments, the output and, as a maximum and a sum, the log-sum-exp; `jax.checkpoint`
    policies know the last two as "attention_out" and "attention_lse".

    Raises:
      NotImplementedError: the kernels are not for this device, dtype or head dimension.
    """
    prepared = prepare(
        q_BTNH, k_BSKH, v_BSKH, q_start=q_start, segments=segments, problem=problem, blocks=blocks
    )
    out_BTD, lse_BNT = attend(*prepared)
    return heads_apart(out_BTD, q_BTNH), jnp.swapaxes(lse_BNT[:, :, : problem.T], 1, 2)


class Prepared(NamedTuple):
    """Brings the arguments into the kernels' form: heads side by side, lengths and lanes padded."""

    problem: Problem
    blocks: TpuBlocks
    q_BTD: jax.Array
    k_BSD: jax.Array
    v_BSD: jax.Array
    ids: tuple
    starts: tuple


def prepare(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
    blocks: TpuBlocks | None = None,
) -> Prepared:
    _check(q_BTNH, k_BSKH, v_BSKH, problem)
    q_BTNH, scale = with_positive_scale(q_BTNH, problem.scale)
    problem = dataclasses.replace(problem, scale=scale)
    blocks = blocks or choose_blocks(problem, target(q_BTNH).device_kind)
    queries, keys = blocks.padded_queries(problem.T), blocks.padded_keys(problem.S)
    arrays = side_by_side(q_BTNH, queries), side_by_side(k_BSKH, keys), side_by_side(v_BSKH, keys)
    ids = starts = ()
    if segments is not None:
        ids = fill(segments.queries_BT, 1, queries), fill(segments.keys_BS, 1, keys)
    if problem.q_start is None:
        starts = (jnp.broadcast_to(q_start, q_BTNH.shape[:1]).astype(jnp.int32),)
    return Prepared(problem, blocks, *vary_alike(*arrays, ids, starts))


def side_by_side(x_BTNH, length: int):
    """Puts heads side by side: [B, length, N * complete lanes]."""
    x_BTNH = fill(fill(x_BTNH, 3, x_BTNH.shape[3] + -x_BTNH.shape[3] % LANES), 1, length)
    return x_BTNH.reshape(*x_BTNH.shape[:2], -1)


def heads_apart(x_BTD, like_BTNH):
    """Inverts `side_by_side`, in the shape of `like`."""
    _, T, N, H = like_BTNH.shape
    return x_BTD.reshape(*x_BTD.shape[:2], N, -1)[:, :T, :, :H]


def _check(q_BTNH, k_BSKH, v_BSKH, problem: Problem) -> None:
    check_device(q_BTNH, problem.interpret)
    check_dtypes(q_BTNH, k_BSKH, v_BSKH)
    if problem.H > MAX_HEAD_DIM:
        raise NotImplementedError(
            f"the head dimension is {problem.H}; at most {MAX_HEAD_DIM} is accepted"
        )
    longest = max(problem.T, problem.S)
    if longest > MAX_BLOCKS * LANES:
        raise NotImplementedError(
            f"{longest} tokens; at most {MAX_BLOCKS * LANES} are accepted at once"
        )


def fill(x, axis: int, size: int):
    """Pads the end of an axis with zeros, up to a size."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths) if widths[axis][1] else x
