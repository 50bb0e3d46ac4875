"""Puts forward and backward kernel together: lists of steps, parts of keys, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu import heads as grid_heads
from pallas_kernels.attention.tpu.backward import backward
from pallas_kernels.attention.tpu.blocks import Blocks, TpuBlocks
from pallas_kernels.attention.tpu.call import Call, scalars_of
from pallas_kernels.attention.tpu.forward import forward
from pallas_kernels.attention.tpu.steps import KINDS, Do, Steps, list_steps, shares
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.varying import vary_alike


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend(problem: Problem, blocks: TpuBlocks, q_BTD, k_BSD, v_BSD, ids, starts):
    """Returns output [B, T, N * H] and log-sum-exp [B, N, T]."""
    return _rule_forward(problem, blocks, q_BTD, k_BSD, v_BSD, ids, starts)[0]


def _rule_forward(problem: Problem, blocks: TpuBlocks, q_BTD, k_BSD, v_BSD, ids, starts):
    kernel = vmap_into_batch(functools.partial(_forward, problem, blocks))
    out_BTD, totals_BN2T = kernel(q_BTD, k_BSD, v_BSD, ids, starts)
    out_BTD = checkpoint_name(out_BTD, "attention_out")
    totals_BN2T = checkpoint_name(totals_BN2T, "attention_lse")
    top_BNT, total_BNT = totals_BN2T[:, :, 0], totals_BN2T[:, :, 1]
    lse_BNT = jnp.where(total_BNT > 0, problem.scale * top_BNT + jnp.log(total_BNT), -jnp.inf)
    return (out_BTD, lse_BNT), (q_BTD, k_BSD, v_BSD, ids, starts, out_BTD, totals_BN2T)


def _rule_backward(problem: Problem, blocks: TpuBlocks, saved, cotangents):
    q_BTD, k_BSD, v_BSD, ids, starts, out_BTD, totals_BN2T = saved
    dout_BTD, dlse_BNT = cotangents
    top_BNT, total_BNT = totals_BN2T[:, :, 0], totals_BN2T[:, :, 1]
    sees_BNT = total_BNT > 0
    log_BNT = jnp.log2(jnp.where(sees_BNT, total_BNT, 1.0))
    rows_BN3T = jnp.stack([top_BNT, log_BNT, jnp.where(sees_BNT, dlse_BNT, 0.0)], axis=2)
    arrays = (q_BTD, k_BSD, v_BSD, out_BTD, dout_BTD, rows_BN3T)
    return *gradients(problem, blocks, arrays, ids, starts), None, None


attend.defvjp(_rule_forward, _rule_backward)


def gradients(problem: Problem, blocks: TpuBlocks, arrays: tuple, ids, starts):
    """Returns dq, dk and dv; `arrays` are q, k, v and more as `backward.backward` takes them."""
    kernel = vmap_into_batch(functools.partial(_backward, problem, blocks))
    return kernel(*vary_alike(*arrays), ids, starts)


def _forward(problem: Problem, blocks: TpuBlocks, q_BTD, k_BSD, v_BSD, ids, starts):
    heads = grid_heads.in_order(problem.kv_head_of_query)
    steps, call = _call(problem, blocks.forward, heads, k_BSD, ids, starts)
    scalars = scalars_of(call, steps.words[:, 0], *_starts(problem, q_BTD, starts), 0)
    return tuple(forward(scalars, _length(steps), q_BTD, k_BSD, v_BSD, _rows(ids), call=call))


def _backward(problem: Problem, blocks: TpuBlocks, q, k, v, out, dout, rows_BN3T, ids, starts):
    heads = grid_heads.by_kv_head(problem.kv_head_of_query)
    parts = blocks.parts
    steps, call = _call(problem, blocks.backward, heads, k, ids, starts, parts=parts)
    arrays = (q, k, v, out, dout, rows_BN3T, _rows(ids))
    first = _starts(problem, q, starts)
    if parts == 1:
        scalars = scalars_of(call, steps.words[:, 0], *first, 0)
        dq, dk, dv = backward(scalars, _length(steps), *arrays, (), call=call)
    else:
        words_BPL = jnp.asarray(steps.words)

        def of_part(sums, part):
            words_BL = jax.lax.dynamic_index_in_dim(words_BPL, part, 1, keepdims=False)
            scalars = scalars_of(call, words_BL, *first, part)
            return tuple(backward(scalars, _length(steps, part), *arrays, sums, call=call)), None

        dkeys = (*k.shape[:2], (max(heads.slots) + 1) * call.H)
        sums = jnp.zeros(q.shape, jnp.float32), jnp.zeros(dkeys, k.dtype), jnp.zeros(dkeys, v.dtype)
        (dq, dk, dv), _ = jax.lax.scan(of_part, vary_alike(q, *sums)[1:], jnp.arange(parts))
        dq = dq.astype(q.dtype)
    unread = functools.partial(_with_unread, problem.kv_head_of_query, k.shape[2] // call.H)
    return dq, unread(dk), unread(dv)


def _call(problem: Problem, blocks: Blocks, heads, k_BSD, ids, starts, *, parts: int = 1):
    """Returns the lists of steps and what the kernel is specialised to."""
    q_start = starts[0] if starts else problem.q_start
    steps = list_steps(
        T=problem.T,
        S=problem.S,
        key_blocks=k_BSD.shape[1] // blocks.keys,
        blocks=blocks,
        visibility=problem.visibility,
        q_start=q_start,
        segments=Segments(*ids) if ids else None,
        parts=parts,
        every_query=parts == 1,
    )
    if isinstance(steps.words, np.ndarray):
        kinds = tuple(kind for kind in KINDS if shares(steps)[kind])
    else:
        kinds = (Do.FULL, Do.MASKED)
    call = Call(
        problem=problem,
        blocks=blocks,
        heads=heads,
        kinds=kinds,
        part_blocks=k_BSD.shape[1] // (blocks.keys * parts),
        steps=steps.words.shape[2],
        own_lists=steps.words.shape[0] > 1,
    )
    return steps, call


def _length(steps: Steps, part=0):
    """Returns how many steps to walk; a static number if the lists are static, as the grid then."""
    known = isinstance(steps.words, np.ndarray)
    return steps.words.shape[2] if known else steps.lengths[part]


def _starts(problem: Problem, q_BTD, starts):
    return starts or (jnp.full(q_BTD.shape[:1], problem.q_start, jnp.int32),)


def _rows(ids):
    """Returns segment ids as rows, [B, 1, T] and [B, 1, S]."""
    return tuple(x[:, None] for x in ids)


def _with_unread(kv_head_of_query, kv_heads: int, dkeys_BSD):
    """Adds zeros for the KV heads that no query head reads: [B, S, KV heads * H]."""
    read = grid_heads.used(kv_head_of_query)
    if len(read) == kv_heads:
        return dkeys_BSD
    of_read = dict(zip(read, jnp.split(dkeys_BSD, len(read), axis=2), strict=True))
    nothing = jnp.zeros_like(of_read[read[0]])
    return jnp.concatenate([of_read.get(head, nothing) for head in range(kv_heads)], axis=2)
