"""Computes output and log-sum-exp.

A program has 128 queries of one head: two warpgroups with 64 each, and one that copies keys and
values. The scores of a block of keys are computed beside the output of the block before, so that
the tensor cores work while the exponentials are taken.
"""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu import passes
from pallas_kernels.attention.gpu.blocks import COMPUTE_REGISTERS, ROWS, TILE, WARPGROUPS, Ring
from pallas_kernels.attention.gpu.feed import feed
from pallas_kernels.attention.gpu.masks import Places, masked
from pallas_kernels.attention.gpu.products import Product, in_flight, kept
from pallas_kernels.attention.problem import Problem
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_rows, registers, rounded, transposed

FAR = -1e30  # below every score; finite, so that no difference of peaks is NaN


class State(NamedTuple):
    """Carries the softmax of a warpgroup's rows, in units of powers of 2.

    Attributes:
      out_RH: sum of weights times values, without those of the last block.
      weights_RC: weights of the last block, bf16.
      peak_R: greatest score.
      total_R: sum of weights.
    """

    out_RH: jax.Array
    weights_RC: jax.Array
    peak_R: jax.Array
    total_R: jax.Array


def forward(
    q_BTNH, k_BSKH, v_BSKH, heads_N, ranges_BIX, places: Places, *, problem: Problem, keys: Ring
):
    """Returns bf16 output [B, T, N, H] and float32 log-sum-exp [B, N, T], its T in complete tiles.

    Args:
      heads_N: the KV head that each query head reads.
      ranges_BIX: from `ranges.block_ranges`, for each tile of queries.
      problem: of positive scale.
    """
    B, _, N, H = q_BTNH.shape
    I = ranges_BIX.shape[1]
    ring = lambda stages: feed(blocks.operand(stages, keys.block, H), readers=WARPGROUPS)
    return blocks.kernel(
        functools.partial(
            _body,
            visibility=problem.visibility,
            factor=problem.scale * passes.LOG2E,
            keys=keys,
            interpret=bool(problem.interpret),
        ),
        *(q_BTNH, k_BSKH, v_BSKH, heads_N, ranges_BIX, places),
        name="attention_forward",
        grid=dict(b=B, n=N, i=I),
        outputs=[(q_BTNH.shape, jnp.bfloat16), ((B, N, I * TILE), jnp.float32)],
        scratch=dict(
            q_WRH=blocks.operand(WARPGROUPS, ROWS, H),
            lse_WR=blocks.vectors(WARPGROUPS, ROWS),
            q_full=plgpu.Barrier(num_barriers=WARPGROUPS),
            k_feed=ring(keys.stages),
            v_feed=ring(keys.value_stages),
        ),
        warpgroups=WARPGROUPS + 1,
        interpret=problem.interpret,
    )


def _body(
    q,
    k,
    v,
    heads,
    ranges,
    places,
    out,
    lse,
    *,
    q_WRH,
    lse_WR,
    q_full,
    k_feed,
    v_feed,
    visibility,
    factor,
    keys,
    interpret,
):
    b, n, i, w = (lax.axis_index(axis) for axis in ("b", "n", "i", "warpgroup"))
    i = ranges.shape[1] - 1 - i

    @pl.when(w == WARPGROUPS)
    def _copy():
        feeds = (k_feed, v_feed)
        passes.bring_keys(k, v, feeds, heads, ranges, (b, n, i), block=keys.block)

    @pl.when(w < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        around = passes.bounds(ranges, b, i)
        start, *_, end = around
        first = i * TILE + w * ROWS
        queries = pl.ds(first, ROWS)
        blocks.copy_in(q_full.at[w], (q.at[b, queries, n], q_WRH.at[w]))
        plgpu.barrier_wait(q_full.at[w])

        def weigh(is_masked, j, peak_R, total_R, scores_RC):
            k_feed.release(j, interpret=interpret)
            if is_masked:
                scores_RC = masked(
                    *(scores_RC, visibility, places, b, first, j * keys.block), keys=k.shape[1]
                )
            weighed = lax.optimization_barrier(new_weights(scores_RC, peak_R, total_R, factor))
            v_feed.wait(j)
            return weighed

        def begin():
            (k_CH,) = k_feed.take(start)
            scores_RC = blocks.product((q_WRH.at[w], transposed(k_CH)), interpret=interpret)
            weights_RC, peak_R, total_R, _ = weigh(
                True, start, passes.row(ROWS, FAR), passes.row(ROWS, 0.0), scores_RC
            )
            out_RH = passes.zeros(ROWS, q_WRH.shape[2])
            return State(out_RH, rounded(weights_RC), peak_R, total_R)

        def step(is_masked, j, state):
            (k_CH,), (v_CH,) = k_feed.take(j), v_feed.at(j - 1)
            (weights_RC, peak_R, total_R, decay_R), out_RH = in_flight(
                Product([(q_WRH.at[passes.anew(w)], transposed(k_CH))]),
                Product([(state.weights_RC, v_CH)], state.out_RH),
                uses=(functools.partial(weigh, is_masked, j, state.peak_R, state.total_R), kept),
                interpret=interpret,
            )
            v_feed.release(j - 1, interpret=interpret)
            out_RH = registers(out_RH * on_rows(decay_R, out_RH.shape))
            return State(out_RH, rounded(weights_RC), peak_R, total_R)

        def attend():
            state = passes.through(around, start + 1, step, begin())
            (v_CH,) = v_feed.at(end - 1)
            out_RH = blocks.product(
                (state.weights_RC, v_CH), start=state.out_RH, interpret=interpret
            )
            v_feed.release(end - 1, interpret=interpret)
            out_RH, found_R = passes.normalized(out_RH, state.peak_R, state.total_R)
            q_WRH[w] = rounded(out_RH)
            lse_WR[w] = found_R

        def see_nothing():
            q_WRH[w] = passes.zeros(*q_WRH.shape[1:], dtype=jnp.bfloat16)
            lse_WR[w] = passes.row(ROWS, -jnp.inf)

        lax.cond(start < end, attend, see_nothing)
        blocks.copy_out((q_WRH.at[w], out.at[b, queries, n]), (lse_WR.at[w], lse.at[b, n, queries]))
        plgpu.wait_smem_to_gmem(0)


def new_weights(scores_RC, peak_R, total_R, factor):
    """Returns weights, the new peak and total, and the factor for the weights so far."""
    new_peak_R = jnp.maximum(peak_R, jnp.max(scores_RC, axis=1) * factor)
    decay_R = jnp.exp2(peak_R - new_peak_R)
    shifted_RC = scores_RC * factor - on_rows(new_peak_R, scores_RC.shape)
    weights_RC = registers(jnp.exp2(registers(shifted_RC)))
    total_R = total_R * decay_R + jnp.sum(weights_RC, axis=1)
    return weights_RC, new_peak_R, total_R, decay_R
