"""Runs gated slot attention on Hopper: says what is accepted, and puts the kernels together."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.batching import vmap_into_batch
from pallas_kernels.hopper.machine import check_machine, interpreter
from pallas_kernels.slot_attention.gpu.chunks import SLOTS, filled_up
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.writes import make_writes
from pallas_kernels.varying import vary_alike

HEAD_DIMS = (64, 128)


def slot_attention_gpu(
    q_BTNH,
    k_BTKH,
    v_BTKH,
    log_forget_BTKM,
    state: SlotState,
    segment_ids_BT,
    *,
    problem: Problem,
):
    """Computes `api.slot_attention` for bfloat16, up to 64 slots and head dimensions 64 and 128.

    Fewer slots cost as much as 64. Only the arguments are saved for the backward.

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
    if M > SLOTS:
        raise NotImplementedError(f"there are {M} slots; up to {SLOTS} are accepted")
    arrays = vary_alike(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state, segment_ids_BT)
    q_BTNH, *tokens, state, segment_ids_BT = arrays
    writes, after = make_writes(*tokens, state, segment_ids_BT, sinks=problem.sinks)
    sequences = [
        *map(filled_up, (q_BTNH, *writes[:2])),
        *(filled_up(x, slots=True) for x in writes[2:4]),
        filled_up(writes.seen_BT.astype(jnp.float32)),
    ]
    fill = [(0, 0)] * 4 + [(0, SLOTS - M)]
    slots_BKXHM = jnp.pad(jnp.swapaxes(jnp.stack(state[:2], axis=2), 3, 4), fill)
    rule = (problem.kv_head_of_query, problem.scale, M, interpreter(problem.interpret))
    out_BTNH, lse_BNT, slots_BKXHM = _rule(rule, *sequences, slots_BKXHM)
    k_slots, v_slots = jnp.moveaxis(jnp.swapaxes(slots_BKXHM, 3, 4)[:, :, :, :M], 2, 0)
    state = after._replace(k_slots_BKMH=k_slots, v_slots_BKMH=v_slots)
    return out_BTNH[:, :T], jnp.swapaxes(lse_BNT, 1, 2)[:, :T], state


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
