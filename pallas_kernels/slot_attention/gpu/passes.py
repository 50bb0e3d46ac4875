"""Puts the kernels together: forward and backward for sequences of complete chunks."""

import jax.numpy as jnp

from pallas_kernels.attention.gpu.passes import readers_of
from pallas_kernels.slot_attention.gpu.chunks import Pair, chunk_gates
from pallas_kernels.slot_attention.gpu.errors import errors
from pallas_kernels.slot_attention.gpu.gate_gradients import gate_gradients
from pallas_kernels.slot_attention.gpu.outputs import outputs
from pallas_kernels.slot_attention.gpu.sweep import sweep
from pallas_kernels.slot_attention.gpu.written_gradients import written_gradients


def _entering_states(k, v, gates, slots_BKXHM, interpret):
    """Returns the slots that enter each chunk, and the last ones."""
    K, exits = k.shape[2], Pair(gates.exit_BTKM, gates.exit_BTKM)
    own = readers_of(tuple(range(K)), K)
    return sweep(Pair(k, v), exits, gates.through_BKZM, slots_BKXHM, own, interpret=interpret)


def forward(rule, q, k, v, log_decay, share, seen, slots_BKXHM):
    heads, scale, slots, interpret = rule
    gates = chunk_gates(log_decay, share)
    states_BKZXHM, last_BKXHM = _entering_states(k, v, gates, slots_BKXHM, interpret)
    out_BTNH, lse_BNT = outputs(
        *(q, k, v, gates, states_BKZXHM, seen, readers_of(heads, k.shape[2])),
        scale=scale,
        slots=slots,
        interpret=interpret,
    )
    return out_BTNH, lse_BNT, last_BKXHM


def backward(rule, q, k, v, log_decay, share, seen, slots_BKXHM, dout_BTNH, dlse_BNT, dlast_BKXHM):
    heads, scale, slots, interpret = rule
    gates, readers = chunk_gates(log_decay, share), readers_of(heads, k.shape[2])
    rows, written = Pair(q, dout_BTNH), Pair(k, v)
    states_BKZXHM, _ = _entering_states(k, v, gates, slots_BKXHM, interpret)
    dlse_BNT = jnp.where(seen[:, None] > 0, dlse_BNT, 0.0)
    found = errors(
        *(rows, written, gates, states_BKZXHM, seen, dlse_BNT, readers),
        scale=scale,
        slots=slots,
        interpret=interpret,
    )
    dstates_BKZXHM, dslots_BKXHM = sweep(
        *(rows, found.entered, gates.through_BKZM, dlast_BKXHM, readers),
        backwards=True,
        interpret=interpret,
    )
    of_writes = (found.weights, gates, dstates_BKZXHM, readers)
    dk, dv = written_gradients(rows, *of_writes, interpret=interpret)
    of_gates = gate_gradients(rows, written, *of_writes, interpret=interpret)
    through_BKZM = gates.through_BKZM * jnp.einsum(
        "BKZXHM,BKZXHM->BKZM", states_BKZXHM, dstates_BKZXHM, preferred_element_type=jnp.float32
    )
    dlog_decay_BKZCM = (
        of_gates.dlog_decay_BKZCM
        + jnp.cumsum(found.dentry_BKZCM[:, :, :, ::-1], axis=3)[:, :, :, ::-1]
        + through_BKZM[:, :, :, None]
    )
    dgates = (
        jnp.moveaxis(x, 1, 3).reshape(share.shape)
        for x in (dlog_decay_BKZCM, of_gates.dshare_BKZCM)
    )
    return found.dq_BTNH, dk, dv, *dgates, jnp.zeros_like(seen), dslots_BKXHM
