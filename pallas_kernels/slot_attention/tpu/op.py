"""Implements gated slot attention on TPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.slot_attention.groups import run_groups
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.tpu.backward import backward
from pallas_kernels.slot_attention.tpu.blocks import (
    CHUNK,
    LANES,
    MAX_WEIGHT,
    TpuBlocks,
    choose_blocks,
    weight,
)
from pallas_kernels.slot_attention.tpu.forward import forward
from pallas_kernels.slot_attention.tpu.layout import Layout
from pallas_kernels.slot_attention.writes import Writes, make_writes
from pallas_kernels.target import target
from pallas_kernels.tpu_devices import check_device, check_dtypes
from pallas_kernels.varying import vary_alike

MAX_HEAD_DIM = 256
MAX_SLOTS = 128
PACKED_ROWS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Says what the kernels are specialised to."""

    problem: Problem
    forward: Layout
    backward: Layout


def slot_attention_tpu(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    log_forget_BTKM,
    state: SlotState,
    segment_ids_BT,
    *,
    problem: Problem,
    blocks: TpuBlocks | None = None,
):
    """Computes `api.slot_attention` by the TPU kernels.

    Head dimensions up to 256 are padded with zeros to complete lanes, slots to a multiple of 16.

    Saved for the backward are the slots that enter each chunk of 128 tokens, M * H / 64 numbers in
    the dtype of v per token and KV head. `jax.checkpoint` policies know them as
    "slot_attention_slots".

    Raises:
      NotImplementedError: the kernels are not for this device, dtype, head dimension or number of
        slots.
    """
    _check(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, problem.interpret)
    arrays = vary_alike(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state, segment_ids_BT)
    q_BTNH, *tokens, state, segment_ids_BT = arrays
    writes, after = make_writes(*tokens, state, segment_ids_BT, sinks=problem.sinks)
    run = functools.partial(_group, problem=problem, blocks=blocks)
    return run_groups(run, q_BTNH, writes, after, problem.kv_head_of_query)


def _group(q_BTNH, writes: Writes, slots, *, problem: Problem, blocks: TpuBlocks | None):
    """Runs KV heads that have equally many readers; returns output, log-sum-exp and new slots."""
    B, T, N, H = q_BTNH.shape
    _, _, K, M = writes.log_forget_BTKM.shape
    if N == 0:
        q_BTNH = jnp.zeros_like(writes.k_BTKH)
    readers = max(1, N // K)
    of_chunk = weight(readers, H, q_BTNH.dtype.itemsize)
    if of_chunk > MAX_WEIGHT:
        most = MAX_WEIGHT * readers // of_chunk
        raise NotImplementedError(
            f"{readers} query heads read one KV head; at most {most} of these are accepted"
        )
    at_forward, at_backward = choose_blocks(
        K, readers, T, B, target(q_BTNH).device_kind, blocks, weight=of_chunk
    )
    heads = (2, at_forward.kv_heads)
    tokens = lambda x: _fill(x, (1, CHUNK), heads, (x.ndim - 1, LANES))
    q = tokens(q_BTNH.reshape(B, T, K, readers, H))
    k, v = map(tokens, writes[:2])
    forget = _fill(writes.log_forget_BTKM, (1, CHUNK), heads, (3, PACKED_ROWS))
    forget_BKMT = jnp.transpose(forget, (0, 2, 3, 1))
    marks = jnp.stack([writes.seen_BT, writes.starts_BT], axis=1)
    marks_B2T = _fill(marks.astype(jnp.float32), (2, CHUNK))
    full = jnp.concatenate(
        [_fill(x, (1, heads[1]), (2, PACKED_ROWS), (3, LANES)) for x in slots], -1
    )
    shape = dict(
        length=k.shape[1],
        kv_heads=k.shape[2],
        H=k.shape[3],
        slots=full.shape[2],
        used_slots=M,
    )
    call = Call(
        problem=problem,
        forward=Layout(blocks=at_forward, reverse=False, **shape),
        backward=Layout(blocks=at_backward, reverse=True, **shape),
    )
    flat = (x.reshape(B, x.shape[1], -1) for x in (q, k, v))
    out, lse, full = _rule(call, *vary_alike(*flat, forget_BKMT, marks_B2T, full))
    out_BTNH = out.reshape(q.shape)[:, :T, :K, :, :H].reshape(B, T, -1, H)[:, :, :N]
    lse = lse.reshape(B, -1, readers, lse.shape[-1])[:, :K, :, :T]
    lse_BTN = jnp.moveaxis(lse, 3, 1).reshape(B, T, -1)[:, :, :N]
    lse_BTN = jnp.where(writes.seen_BT[..., None], lse_BTN, -jnp.inf)
    k_slots, v_slots = jnp.split(full[:, :K, :M], 2, axis=-1)
    return (out_BTNH, lse_BTN), (k_slots[..., :H], v_slots[..., :H])


def _check(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, interpret) -> None:
    check_device(q_BTNH, interpret)
    check_dtypes(q_BTNH, k_BTKH, v_BTKH)
    if (H := q_BTNH.shape[-1]) > MAX_HEAD_DIM:
        raise NotImplementedError(f"the head dimension is {H}; at most {MAX_HEAD_DIM} is accepted")
    if (M := log_forget_BTKM.shape[-1]) > MAX_SLOTS:
        raise NotImplementedError(f"{M} slots a head; at most {MAX_SLOTS} are accepted")


def _fill(x, *multiples: tuple[int, int]):
    """Pads the end of axes with zeros, to a multiple: (axis, multiple). Zeros write nothing."""
    widths = [(0, 0)] * x.ndim
    for axis, multiple in multiples:
        widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths) if any(width for _, width in widths) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(call: Call, *arrays):
    return _forward_kernel(call, save=False)(*arrays)


def _rule_forward(call: Call, *arrays):
    *results, entries = _forward_kernel(call, save=True)(*arrays)
    entries = checkpoint_name(entries, "slot_attention_slots")
    return tuple(results), (*arrays[:-1], results[1], entries)


def _rule_backward(call: Call, saved, cotangents):
    *arrays, lse, entries = saved
    dout_BTD, dlse, dslots_BKMX = cotangents
    kernel = functools.partial(backward, layout=call.backward, problem=call.problem)
    gradients = vmap_into_batch(kernel)(*arrays, dout_BTD, lse, dlse, entries, dslots_BKMX)
    *dtokens, dslots_BKMX = gradients
    return *dtokens, jnp.zeros_like(arrays[-1]), dslots_BKMX


_rule.defvjp(_rule_forward, _rule_backward)


def _forward_kernel(call: Call, *, save: bool):
    kernel = functools.partial(forward, layout=call.forward, problem=call.problem, save=save)
    return vmap_into_batch(kernel)
