"""Computes gated slot attention by chunks in plain JAX, on any backend.

In a chunk that slots K and V enter, with the decay D[t, i, m] of the write of token i until query t
reads slot m, and s the shares of the written tokens:

    L = scale (from_entry Q K^T + sum_i (Q k_i^T) D_i s_i)          logits of the slots
    P = softmax(L)
    O = (P from_entry) V + sum_i (sum_m P D_i s_i) v_i
    K' = through K + sum_i to_exit_i s_i k_i^T,  V' likewise

Source: arXiv 2409.07146 (gated slot attention), section 3. Every decay is exp of a sum that is at
most 0 and was not made by subtracting two sums.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.gated_delta.chunks import cut, einsum, join, sums_between
from pallas_kernels.slot_attention.groups import run_groups
from pallas_kernels.slot_attention.problem import Problem
from pallas_kernels.slot_attention.state import SlotState
from pallas_kernels.slot_attention.writes import Writes, make_writes
from pallas_kernels.varying import vary_alike

CHUNK = 16


class _Chunk(NamedTuple):
    """Carries one chunk, or with a leading Z all of them; R query heads read each of U KV heads."""

    q_BUCRH: jax.Array
    k_BUCH: jax.Array
    v_BUCH: jax.Array
    log_decay_BUCM: jax.Array
    share_BUCM: jax.Array
    seen_B1C: jax.Array


def slot_attention_chunked(
    q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state: SlotState, segment_ids_BT, *, problem: Problem
):
    """Computes `api.slot_attention` by chunks; keeps the slots of each chunk for the backward."""
    arrays = vary_alike(q_BTNH, k_BTKH, v_BTKH, log_forget_BTKM, state, segment_ids_BT)
    q_BTNH, *tokens, state, segment_ids_BT = arrays
    writes, after = make_writes(*tokens, state, segment_ids_BT, sinks=problem.sinks)
    run = functools.partial(_group, scale=problem.scale)
    out_BTNH, lse_BTN, state = run_groups(run, q_BTNH, writes, after, problem.kv_head_of_query)
    return out_BTNH.astype(v_BTKH.dtype), lse_BTN, state


def _group(q_BTNH, writes: Writes, slots, *, scale: float):
    """Runs KV heads that have equally many readers; returns output, log-sum-exp and new slots."""
    B, T, N, H = q_BTNH.shape
    K = writes.k_BTKH.shape[2]
    q_BTURH = q_BTNH.reshape(B, T, K, N // K, H)
    gates = writes.log_decay_BTKM, writes.share_BTKM
    sequences = q_BTURH, *writes[:2], *gates, writes.seen_BT[..., None]
    chunks = _Chunk(*cut(sequences, chunk=CHUNK, dtype=slots[0].dtype))
    step = jax.checkpoint(functools.partial(_chunk, scale=scale))
    slots, (out, lse) = jax.lax.scan(step, slots, chunks)
    like = jax.ShapeDtypeStruct(q_BTURH.shape, slots[0].dtype)
    out_BTURH = join(out, like)
    lse_BTUR = join(lse, like.update(shape=like.shape[:-1]))
    return (out_BTURH.reshape(B, T, N, H), lse_BTUR.reshape(B, T, N)), slots


def _chunk(slots, chunk: _Chunk, *, scale: float):
    """Returns the slots after a chunk, and the output and log-sum-exp of its queries."""
    q_BUCRH, k_BUCH, v_BUCH, log_decay_BUCM, share_BUCM, seen_B1C = chunk
    k_BUMH, v_BUMH = slots
    writes_BUMCC = _weights(log_decay_BUCM, share_BUCM)
    from_entry_BUCM = jnp.exp(jnp.cumsum(log_decay_BUCM, axis=2))
    scores_BUCRD = einsum("BUCRH,BUDH->BUCRD", q_BUCRH, k_BUCH)
    entered_BUCRM = einsum("BUCRH,BUMH->BUCRM", q_BUCRH, k_BUMH) * from_entry_BUCM[:, :, :, None]
    within_BUCRM = einsum("BUCRD,BUMCD->BUCRM", scores_BUCRD, writes_BUMCC)
    seen_B1C11 = seen_B1C[..., None, None] > 0
    logits_BUCRM = jnp.where(seen_B1C11, scale * (entered_BUCRM + within_BUCRM), 0.0)
    lse_BUCR1 = jax.nn.logsumexp(logits_BUCRM, axis=-1, keepdims=True)
    p_BUCRM = jnp.where(seen_B1C11, jnp.exp(logits_BUCRM - lse_BUCR1), 0.0)
    shares_BUCRD = einsum("BUCRM,BUMCD->BUCRD", p_BUCRM, writes_BUMCC)
    out_BUCRH = einsum("BUCRM,BUMH->BUCRH", p_BUCRM * from_entry_BUCM[:, :, :, None], v_BUMH)
    out_BUCRH += einsum("BUCRD,BUDH->BUCRH", shares_BUCRD, v_BUCH)
    lse_BUCR = jnp.where(seen_B1C11, lse_BUCR1, -jnp.inf)[..., 0]
    through_BUM1 = from_entry_BUCM[:, :, -1, :, None]
    to_exit_BUMC = writes_BUMCC[..., -1, :]
    after = tuple(
        through_BUM1 * old_BUMH + einsum("BUMC,BUCH->BUMH", to_exit_BUMC, x_BUCH)
        for old_BUMH, x_BUCH in ((k_BUMH, k_BUCH), (v_BUMH, v_BUCH))
    )
    return after, (out_BUCRH, lse_BUCR)


def _weights(log_decay_BUCM, share_BUCM):
    """Returns [..., m, t, i]: how much of token i stands in slot m when query t reads."""
    log_decay_BUMC, share_BUMC = (jnp.swapaxes(x, 2, 3) for x in (log_decay_BUCM, share_BUCM))
    decay_BUMCC = jnp.exp(sums_between(log_decay_BUMC)) * share_BUMC[..., None, :]
    return jnp.tril(decay_BUMCC)
