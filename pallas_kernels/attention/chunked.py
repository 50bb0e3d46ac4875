"""Computes softmax attention by blocks in plain JAX, on any backend, with memory linear in length.

Queries and keys are cut into blocks. Each block of queries passes over the blocks of keys that it
may see with an online softmax (arXiv 2307.08691, section 3.1): the running peak m, the sum l of
exp(s - m), and that of exp(s - m) V. The backward passes over the same blocks again, with
P = exp(s - m) / l from what the forward saved.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels.attention.chunked_blocks import (
    Places,
    cut_keys,
    cut_queries,
    join_keys,
    join_queries,
    make_places,
)
from pallas_kernels.attention.head_groups import head_groups, place_heads
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.varying import vary_alike

BLOCKS = (512, 256, 128)
BLOCK_SCORES = 1 << 20


def choose_block(rows: int) -> int:
    """Returns the length of a block of queries or keys.

    It is the largest length at which the scores of all rows and heads fit a cache.
    """
    return next((C for C in BLOCKS if rows * C * C <= BLOCK_SCORES), BLOCKS[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChunkedBlocks:
    """Says how the plain JAX form cuts its work.

    Attributes:
      length: queries, and keys, of a block.
    """

    length: int

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length={self.length}; a block has at least one query")


def attention_chunked(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    *,
    q_start,
    segments: Segments | None,
    problem: Problem,
    blocks: ChunkedBlocks | None = None,
):
    """Computes `api.attention` by blocks, with sums in float32, or in float64 for float64 queries.

    The backward reads the arguments, the output ("attention_out" for the policies of
    `jax.checkpoint`), and peak and sum of each softmax ("attention_lse").
    """
    length = blocks.length if blocks else choose_block(q_BTNH.shape[0] * q_BTNH.shape[2])
    start = jnp.asarray(q_start, jnp.int32)
    return _attention(problem, length, *vary_alike(q_BTNH, k_BSKH, v_BSKH, start, segments))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(problem: Problem, length: int, q_BTNH, k_BSKH, v_BSKH, start, segments):
    return _forward(problem, length, q_BTNH, k_BSKH, v_BSKH, start, segments)[0]


def _forward(problem: Problem, length: int, q_BTNH, k_BSKH, v_BSKH, start, segments):
    N, T = q_BTNH.shape[2], q_BTNH.shape[1]
    places = _places(problem, length, start, segments)
    groups = head_groups(problem.kv_head_of_query)
    parts = []
    for group in groups:
        blocks = cut_queries(q_BTNH, group, places), *cut_keys((k_BSKH, v_BSKH), group, places)
        found = _group_forward(*blocks, places, problem.scale)
        parts.append([join_queries(x, group, T) for x in found])
    queries = [group.queries for group in groups]
    out, peak, total = (place_heads(list(x), queries, N) for x in zip(*parts, strict=True))
    out_BTNH = checkpoint_name(out.astype(q_BTNH.dtype), "attention_out")
    peak_BTN, total_BTN = checkpoint_name((peak, total), "attention_lse")
    lse_BTN = peak_BTN + jnp.log(total_BTN)
    saved = (q_BTNH, k_BSKH, v_BSKH, start, segments, out_BTNH, peak_BTN, total_BTN)
    return (out_BTNH, lse_BTN), saved


def backward(problem: Problem, length: int, saved, cotangents):
    """Computes the gradients from the arguments, the output, and peak and sum of each softmax."""
    q_BTNH, k_BSKH, v_BSKH, start, segments, out_BTNH, peak_BTN, total_BTN = saved
    dout_BTNH, dlse_BTN = cotangents
    K, S = k_BSKH.shape[2], k_BSKH.shape[1]
    places = _places(problem, length, start, segments)
    groups = head_groups(problem.kv_head_of_query)
    delta_BTN = jnp.einsum(
        "BTNH,BTNH->BTN", out_BTNH, dout_BTNH, preferred_element_type=dlse_BTN.dtype
    )
    shift_BTN = jnp.where(total_BTN > 0, delta_BTN - dlse_BTN, 0.0)
    inverse_BTN = jnp.where(total_BTN > 0, 1 / total_BTN, 0.0)
    rows = (q_BTNH, dout_BTNH, _finite(peak_BTN), inverse_BTN, shift_BTN)
    parts = []
    for group in groups:
        blocks = (cut_queries(x, group, places) for x in rows)
        dq, *dkv = _group_backward(
            *blocks, *cut_keys((k_BSKH, v_BSKH), group, places), places, problem.scale
        )
        parts.append((join_queries(dq, group, q_BTNH.shape[1]), *(join_keys(x, S) for x in dkv)))
    dq, dk, dv = zip(*parts, strict=True)
    kv = [group.kv for group in groups]
    dq_BTNH = place_heads(list(dq), [group.queries for group in groups], q_BTNH.shape[2])
    dk_BSKH, dv_BSKH = (place_heads(list(x), kv, K).astype(k_BSKH.dtype) for x in (dk, dv))
    return dq_BTNH.astype(q_BTNH.dtype), dk_BSKH, dv_BSKH, None, None


_attention.defvjp(_forward, backward)


def _places(problem: Problem, length: int, start, segments) -> Places:
    return make_places(problem.visibility, problem.T, problem.S, start, segments, block=length)


def _group_forward(q_ZBUXH, k_ZBUCH, v_ZBUCH, places: Places, scale: float):
    """Returns output, peak and sum; peak -inf and sum 0 for queries that see nothing."""

    def query_block(_, inputs):
        z, q_BUXH = inputs

        def key_block(y, carry):
            peak_BUX, total_BUX, sum_BUXH = carry
            s_BUXC = _scores(q_BUXH, k_ZBUCH[y], places, z, y, scale)
            new_BUX = jnp.maximum(peak_BUX, jnp.max(s_BUXC, axis=-1))
            p_BUXC = jnp.exp(s_BUXC - _finite(new_BUX)[..., None])
            decay_BUX = jnp.exp(peak_BUX - _finite(new_BUX))
            total_BUX = total_BUX * decay_BUX + jnp.sum(p_BUXC, axis=-1)
            seen_BUXH = _product("BUXC,BUCH->BUXH", p_BUXC.astype(v_ZBUCH.dtype), v_ZBUCH[y])
            return new_BUX, total_BUX, sum_BUXH * decay_BUX[..., None] + seen_BUXH

        zero_BUXH, zero_BUX = _zeros(q_BUXH, q_BUXH.shape), _zeros(q_BUXH, q_BUXH.shape[:-1])
        carry = (zero_BUX - jnp.inf, zero_BUX, zero_BUXH)
        peak_BUX, total_BUX, sum_BUXH = places.over_keys(z, key_block, carry)
        total_BUX1 = total_BUX[..., None]
        out_BUXH = sum_BUXH / jnp.where(total_BUX1 > 0, total_BUX1, 1.0)
        return None, (out_BUXH, peak_BUX, total_BUX)

    return jax.lax.scan(query_block, None, (jnp.arange(len(q_ZBUXH)), q_ZBUXH))[1]


def _group_backward(
    q_ZBUXH, dout_ZBUXH, peak_ZBUX, inverse_ZBUX, shift_ZBUX, k_ZBUCH, v_ZBUCH, places, scale
):
    """Returns the gradients of q, k and v; `inverse` is 1 / l, `shift` is subtracted from dP."""

    def query_block(dkv, inputs):
        z, q_BUXH, dout_BUXH, peak_BUX, inverse_BUX, shift_BUX = inputs

        def key_block(y, carry):
            dq_BUXH, dk_ZBUCH, dv_ZBUCH = carry
            s_BUXC = _scores(q_BUXH, k_ZBUCH[y], places, z, y, scale)
            p_BUXC = jnp.exp(s_BUXC - peak_BUX[..., None]) * inverse_BUX[..., None]
            dp_BUXC = _product("BUXH,BUCH->BUXC", dout_BUXH, v_ZBUCH[y])
            ds_BUXC = p_BUXC * (dp_BUXC - shift_BUX[..., None])
            p_BUXC, ds_BUXC = (x.astype(q_BUXH.dtype) for x in (p_BUXC, ds_BUXC))
            dq_BUXH += _product("BUXC,BUCH->BUXH", ds_BUXC, k_ZBUCH[y])
            dk_ZBUCH = dk_ZBUCH.at[y].add(_product("BUXC,BUXH->BUCH", ds_BUXC, q_BUXH))
            dv_ZBUCH = dv_ZBUCH.at[y].add(_product("BUXC,BUXH->BUCH", p_BUXC, dout_BUXH))
            return dq_BUXH, dk_ZBUCH, dv_ZBUCH

        carry = (_zeros(q_BUXH, q_BUXH.shape), *dkv)
        dq_BUXH, *dkv = places.over_keys(z, key_block, carry)
        return tuple(dkv), scale * dq_BUXH

    inputs = (jnp.arange(len(q_ZBUXH)), q_ZBUXH, dout_ZBUXH, peak_ZBUX, inverse_ZBUX, shift_ZBUX)
    zeros = _zeros(k_ZBUCH, k_ZBUCH.shape)
    (dk_ZBUCH, dv_ZBUCH), dq_ZBUXH = jax.lax.scan(query_block, (zeros, zeros), inputs)
    return dq_ZBUXH, scale * dk_ZBUCH, dv_ZBUCH


def _scores(q_BUXH, k_BUCH, places: Places, z, y, scale: float):
    """Returns the scaled scores, -inf where a query does not see a key."""
    s_BUXC = scale * _product("BUXH,BUCH->BUXC", q_BUXH, k_BUCH)
    return places.hide(s_BUXC, z, y)


def _product(dims: str, a, b):
    return jnp.einsum(dims, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _finite(peak):
    return jnp.where(peak == -jnp.inf, 0.0, peak)


def _zeros(like, shape):
    zeros = jnp.zeros(shape, jnp.promote_types(like.dtype, jnp.float32))
    return vary_alike(zeros, like)[0]
