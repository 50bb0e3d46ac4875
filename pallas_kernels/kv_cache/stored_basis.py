"""Splits the decode step over a packed cache: encoded slots for a kernel, raw tokens here."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.attention.merge import merge
from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Segments
from pallas_kernels.kv_cache.decode import attend, decode_reference
from pallas_kernels.kv_cache.packed import PackedKV


def in_stored_basis(kernel):
    """Makes an implementation of a function that attends to encoded slots alone.

    `kernel(q_BNH, cache, begin_B, end_B, segments=, problem=, ...)` gets queries in their dtype, in
    the basis of the stored keys. Row b sees the slots from `begin_B[b]` to before `end_B[b]`, which
    length, window, sinks and recent tokens have decided, but only those of its segment. It returns
    the output in the basis of the stored values and the log-sum-exp, float32, 0 and -inf where
    nothing is seen. The gradient is that of the reference.
    """

    def forward(q_BNH, cache: PackedKV, lengths_B, segments: Segments | None, *, problem, **blocks):
        raw, window = cache.raw, problem.visibility.window
        begin_B = jnp.zeros_like(lengths_B) if raw is None else raw.begin_B
        end_B = lengths_B if raw is None else raw.end_B(lengths_B)
        if window is not None:
            begin_B = jnp.maximum(begin_B, lengths_B - window)
        turned_BNH = cache.format.keys.rotate(q_BNH).astype(q_BNH.dtype)
        settings = dict(segments=segments, problem=problem)
        out_BNH, lse_BN = kernel(turned_BNH, cache, begin_B, end_B, **settings, **blocks)
        out_BNH = cache.format.values.rotate(out_BNH)
        if raw is not None:
            others = _attend_raw(q_BNH, cache, lengths_B, **settings)
            pairs = zip((out_BNH, lse_BN), others, strict=True)
            out_BNH, lse_BN = merge(*map(jnp.stack, pairs))
        return out_BNH.astype(q_BNH.dtype), lse_BN

    @functools.wraps(kernel)
    def run(q_BNH, cache, lengths_B, *, segments: Segments | None, problem: Problem, **blocks):
        call = functools.partial(forward, problem=problem, **blocks)
        reference = functools.partial(decode_reference, problem=problem)
        rule = jax.custom_vjp(call)
        backward = lambda arrays, cotangents: jax.vjp(reference, *arrays)[1](cotangents)
        rule.defvjp(lambda *arrays: (call(*arrays), arrays), backward)
        return rule(q_BNH, cache, lengths_B, segments)

    return run


def _attend_raw(q_BNH, cache: PackedKV, lengths_B, *, segments, problem: Problem):
    """Attends to the tokens that are stored as they were given."""
    slots_BX = cache.raw.slots_BX()
    seen_BX = (slots_BX >= 0) & problem.visibility(lengths_B[:, None] - 1, slots_BX)
    if segments is not None:
        queries_B1, keys_BS = segments
        keys_BX = jnp.take_along_axis(keys_BS, jnp.maximum(slots_BX, 0), axis=1)
        seen_BX &= (queries_B1 == keys_BX) & (queries_B1 != 0)
    heads_first = lambda x_BXKH: jnp.swapaxes(x_BXKH, 1, 2).astype(q_BNH.dtype)
    k_BKXH, v_BKXH = heads_first(cache.raw.k_BXKH), heads_first(cache.raw.v_BXKH)
    return attend(q_BNH, k_BKXH, v_BKXH, seen_BX, problem)
