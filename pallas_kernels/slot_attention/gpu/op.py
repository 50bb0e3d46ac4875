"""Runs gated slot attention on Hopper: says what is accepted, and puts the kernels together."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.merge import merge
from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.slot_attention.gpu.chunks import SLOTS, filled_up
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.writes import Writes, make_writes
from pallas_kernels.varying import vary_alike

HEAD_DIMS = (64, 128)
MOST_SLOTS = 128


def slot_attention_gpu(
    q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state: SlotState, segment_ids_BT, *, problem: Problem
):
    """Computes `api.slot_attention` for bfloat16, up to 128 slots and head dimensions 64 and 128.

    Slots are filled up to 64; more than 64 are attended to in two parts, merged by their
    log-sum-exps. Only the arguments are saved for the backward, and the parts.

    Raises:
      NotImplementedError: the kernels are not for this device, jax, dtype, head dimension or number
        of slots.
    """
    check_machine(q_BTNH, problem.interpret)
    for name, x in dict(q=q_BTNH, k=k_BTKH, v=v_BTKH).items():
        if x.dtype != jnp.bfloat16:
            raise NotImplementedError(f"{name} is {x.dtype}; bfloat16 is accepted")
    T, H, M = q_BTNH.shape[1], q_BTNH.shape[3], log_forget_BTKM.shape[3]
    if H not in HEAD_DIMS:
        raise NotImplementedError(f"the head dimension is {H}; {HEAD_DIMS} are accepted")
    if M > MOST_SLOTS:
        raise NotImplementedError(f"there are {M} slots; up to {MOST_SLOTS} are accepted")
    arrays = vary_alike(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state, segment_ids_BT)
    q_BTNH, *tokens, state, segment_ids_BT = arrays
    writes, after = make_writes(*tokens, state, segment_ids_BT, sinks=problem.sinks)
    q_BTNH = filled_up(q_BTNH)
    parts = [
        _part(q_BTNH, writes, state, slice(first, first + SLOTS), problem)
        for first in range(0, M, SLOTS)
    ]
    out, lse, k_slots, v_slots = zip(*parts, strict=True)
    out_BTNH, lse_BTN = merge(*map(jnp.stack, (out, lse))) if M > SLOTS else (out[0], lse[0])
    k_slots, v_slots = (jnp.concatenate(x, axis=2) for x in (k_slots, v_slots))
    state = after._replace(k_slots_BKMH=k_slots, v_slots_BKMH=v_slots)
    return out_BTNH[:, :T], lse_BTN[:, :T], state


def _part(q_BTNH, writes: Writes, state: SlotState, part: slice, problem: Problem):
    """Attends to some of the slots; returns output, log-sum-exp and the new slots."""
    log_decay_BTKM, share_BTKM = writes.log_decay_BTKM[..., part], writes.share_BTKM[..., part]
    M = share_BTKM.shape[-1]
    slots_BKXMH = jnp.stack(state[:2], axis=2)[:, :, :, part]
    slots_BKXMH = jnp.pad(slots_BKXMH, [(0, 0)] * 3 + [(0, SLOTS - M), (0, 0)])
    rule = (problem.kv_head_of_query, problem.scale, M, interpreter(problem.interpret))
    out_BTNH, lse_BNT, slots_BKXHM = _rule(
        rule,
        *(q_BTNH, filled_up(writes.k_BTKH), filled_up(writes.v_BTKH)),
        *(filled_up(x, slots=True) for x in (log_decay_BTKM, share_BTKM)),
        filled_up(writes.seen_BT.astype(jnp.float32)),
        jnp.swapaxes(slots_BKXMH, 3, 4),
    )
    slots_BKXMH = jnp.swapaxes(slots_BKXHM, 3, 4)[:, :, :, :M]
    return out_BTNH, jnp.swapaxes(lse_BNT, 1, 2), *jnp.moveaxis(slots_BKXMH, 2, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(rule, *arrays):
    from pallas_kernels.slot_attention.gpu import passes

    return vmap_into_batch(functools.partial(passes.forward, rule))(*arrays)


def _forward(rule, *arrays):
    return _rule(rule, *arrays), arrays


def _backward(rule, arrays, cotangents):
    from pallas_kernels.slot_attention.gpu import passes

    return vmap_into_batch(functools.partial(passes.backward, rule))(*arrays, *cotangents)


_rule.defvjp(_forward, _backward)
