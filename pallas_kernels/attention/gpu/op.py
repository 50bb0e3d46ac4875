"""Runs attention on Hopper GPUs: says what is accepted, and puts the kernels together."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.gpu.blocks import HEAD_DIMS, TILE, HopperBlocks, choose_blocks
from pallas_kernels.attention.positive_scale import with_positive_scale
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.varying import vary_alike


def attention_gpu(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
    blocks: HopperBlocks | None = None,
):
    """Computes `api.attention` for bfloat16 with head dimensions 64, 128 and 256.

    The backward reads the arguments, the output and the log-sum-exp, the last two under the names
    "attention_out" and "attention_lse". Gradients are the same in every run.

    Raises:
      NotImplementedError: the kernels are not for this device, jax, dtype or head dimension.
    """
    q_BTNH, problem = _prepared(q_BTNH, k_BSKH, v_BSKH, problem)
    arrays = vary_alike(q_BTNH, k_BSKH, v_BSKH, _starts(q_BTNH, q_start), segments)
    return _attention(problem, blocks or choose_blocks(problem.H), *arrays)


def attention_gradients_gpu(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    out_BTNH,
    lse_BTN,
    dout_BTNH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
):
    """Computes `gradients.attention_gradients`; refuses what `attention_gpu` does."""
    q_BTNH, problem = _prepared(q_BTNH, k_BSKH, v_BSKH, problem)
    inputs = (q_BTNH, k_BSKH, v_BSKH, _starts(q_BTNH, q_start), segments)
    *inputs, out_BTNH, lse_BTN, dout_BTNH = vary_alike(*inputs, out_BTNH, lse_BTN, dout_BTNH)
    cotangents = dout_BTNH, jnp.zeros_like(lse_BTN)
    saved = (*inputs, out_BTNH, lse_BTN)
    return _backward(problem, choose_blocks(problem.H), saved, cotangents)[:3]


def _prepared(q_BTNH, k_BSKH, v_BSKH, problem: Problem):
    """Returns the queries, and the problem with a positive scale and the kernels' interpreter."""
    check_machine(q_BTNH, problem.interpret)
    check_arrays(q=q_BTNH, k=k_BSKH, v=v_BSKH)
    q_BTNH, scale = with_positive_scale(q_BTNH, problem.scale)
    interpret = interpreter(problem.interpret)
    return q_BTNH, dataclasses.replace(problem, scale=scale, interpret=interpret)


def _starts(q_BTNH, q_start):
    return jnp.broadcast_to(jnp.asarray(q_start, jnp.int32), q_BTNH.shape[:1])


def check_arrays(**arrays) -> None:
    """Refuses dtypes and head dimensions of q, k and v, by name, that the kernels do not take."""
    for name, x in arrays.items():
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {x.dtype}; bfloat16 is accepted")
        if x.shape[-1] not in HEAD_DIMS:
            raise NotImplementedError(
                f"the head dimension of {name} is {x.shape[-1]}; {HEAD_DIMS} are accepted"
            )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(problem: Problem, blocks: HopperBlocks, *arguments):
    outputs = functools.partial(_outputs, problem, blocks)
    out_BTNH, lse_BNT = vmap_into_batch(outputs)(*arguments)
    return out_BTNH, jnp.swapaxes(lse_BNT, 1, 2)


def _forward(problem, blocks, *arguments):
    out_BTNH, lse_BTN = _attention(problem, blocks, *arguments)
    out_BTNH = checkpoint_name(out_BTNH, "attention_out")
    lse_BTN = checkpoint_name(lse_BTN, "attention_lse")
    return (out_BTNH, lse_BTN), (*arguments, out_BTNH, lse_BTN)


def _backward(problem, blocks, residuals, cotangents):
    (q_BTNH, *others), (dout_BTNH, dlse_BTN) = residuals, cotangents
    *others, out_BTNH, lse_BTN = others
    delta_BTN = jnp.sum(out_BTNH.astype(jnp.float32) * dout_BTNH, axis=3) - dlse_BTN
    gradients = vmap_into_batch(functools.partial(_gradients, problem, blocks))
    dq, dk, dv = gradients(q_BTNH, *others, dout_BTNH, lse_BTN, delta_BTN)
    return dq, dk, dv, None, None


_attention.defvjp(_forward, _backward)


def _outputs(problem: Problem, blocks: HopperBlocks, q_BTNH, k_BSKH, v_BSKH, q_start_B, segments):
    from pallas_kernels.attention.gpu.forward import forward
    from pallas_kernels.attention.gpu.masks import places_of
    from pallas_kernels.attention.gpu.ranges import Cut, block_ranges

    T, ring = problem.T, blocks.forward
    queries, keys = Cut(T, TILE), Cut(problem.S, ring.block)
    out_BTNH, lse_BNT = forward(
        *(q_BTNH, k_BSKH, v_BSKH, jnp.array(problem.kv_head_of_query, jnp.int32)),
        block_ranges(problem.visibility, q_start_B, segments, queries, keys),
        places_of(q_start_B, segments, queries, keys),
        problem=problem,
        keys=ring,
    )
    return out_BTNH, lse_BNT[:, :, :T]


def _gradients(
    problem: Problem,
    cuts: HopperBlocks,
    q_BTNH,
    k_BSKH,
    v_BSKH,
    q_start_B,
    segments,
    dout_BTNH,
    lse_BTN,
    delta_BTN,
):
    from pallas_kernels.attention.gpu.dkv import key_value_gradients
    from pallas_kernels.attention.gpu.dq import query_gradient
    from pallas_kernels.attention.gpu.masks import places_of
    from pallas_kernels.attention.gpu.passes import readers_of, saved_of
    from pallas_kernels.attention.gpu.ranges import Cut, block_ranges

    T, S, K = problem.T, problem.S, problem.K
    arrays = (q_BTNH, k_BSKH, v_BSKH, dout_BTNH, saved_of(lse_BTN, delta_BTN, TILE))
    ranges = functools.partial(block_ranges, problem.visibility, q_start_B, segments)
    queries, keys = Cut(T, TILE), Cut(S, cuts.dq.block)
    dq_BTNH = query_gradient(
        *(*arrays, jnp.array(problem.kv_head_of_query, jnp.int32), ranges(queries, keys)),
        places_of(q_start_B, segments, queries, keys),
        keys=cuts.dq,
        problem=problem,
    )
    queries, keys = Cut(T, cuts.dkv.block), Cut(S, cuts.tile_dkv)
    dk_BSKH, dv_BSKH = key_value_gradients(
        *(*arrays, readers_of(problem.kv_head_of_query, K), ranges(queries, keys, of_keys=True)),
        places_of(q_start_B, segments, queries, keys),
        tile=cuts.tile_dkv,
        queries=cuts.dkv,
        problem=problem,
    )
    return dq_BTNH, dk_BSKH, dv_BSKH
