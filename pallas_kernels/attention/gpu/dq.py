"""Computes the gradient of the queries.

    dQ = scale dS K      dS = P (dP - delta)      P = exp(scale Q K^T - lse)      dP = dO V^T

A program has 128 queries of one head: two warpgroups with 64 each, and one that copies keys and
values. The product with dS of one block runs beside the scores of the next.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu import passes
from pallas_kernels.attention.gpu.blocks import COMPUTE_REGISTERS, ROWS, TILE, WARPGROUPS, Ring
from pallas_kernels.attention.gpu.feed import feed
from pallas_kernels.attention.gpu.masks import Places, masked
from pallas_kernels.attention.gpu.passes import Saved
from pallas_kernels.attention.gpu.products import Product, in_flight, kept
from pallas_kernels.attention.problem import Problem
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_rows, registers, rounded, transposed


def query_gradient(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    dout_BTNH,
    saved: Saved,
    heads_N,
    ranges_BIX,
    places: Places,
    *,
    problem: Problem,
    keys: Ring,
):
    """Returns dq [B, T, N, H] in bf16; other arguments as for `forward.forward`."""
    B, _, N, H = q_BTNH.shape
    rows = blocks.operand(WARPGROUPS, ROWS, H)
    ring = lambda stages: feed(blocks.operand(stages, keys.block, H), readers=WARPGROUPS)
    (dq_BTNH,) = blocks.kernel(
        functools.partial(
            _body,
            visibility=problem.visibility,
            scale=problem.scale,
            keys=keys,
            interpret=bool(problem.interpret),
        ),
        *(q_BTNH, k_BSKH, v_BSKH, dout_BTNH, saved, heads_N, ranges_BIX, places),
        name="attention_dq",
        grid=dict(b=B, n=N, i=ranges_BIX.shape[1]),
        outputs=[(q_BTNH.shape, jnp.bfloat16)],
        scratch=dict(
            q_WRH=rows,
            dout_WRH=rows,
            lse_WR=blocks.vectors(WARPGROUPS, ROWS),
            delta_WR=blocks.vectors(WARPGROUPS, ROWS),
            full=plgpu.Barrier(num_arrivals=4, num_barriers=WARPGROUPS),
            k_feed=ring(keys.stages),
            v_feed=ring(keys.value_stages),
        ),
        warpgroups=WARPGROUPS + 1,
        interpret=problem.interpret,
    )
    return dq_BTNH


def _body(
    q,
    k,
    v,
    dout,
    saved,
    heads,
    ranges,
    places,
    dq,
    *,
    q_WRH,
    dout_WRH,
    lse_WR,
    delta_WR,
    full,
    k_feed,
    v_feed,
    visibility,
    scale,
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
        first = i * TILE + w * ROWS
        queries = pl.ds(first, ROWS)
        q_RH, dout_RH = q_WRH.at[w], dout_WRH.at[w]
        blocks.copy_in(
            full.at[w],
            (q.at[b, queries, n], q_RH),
            (dout.at[b, queries, n], dout_RH),
            (saved.lse_BNT.at[b, n, queries], lse_WR.at[w]),
            (saved.delta_BNT.at[b, n, queries], delta_WR.at[w]),
        )
        along = lambda x_WR, shape: on_rows(blocks.row_vector(x_WR.at[passes.anew(w)]), shape)
        plgpu.barrier_wait(full.at[w])

        def scores(j):
            if not keys.overlapped:
                k_feed.wait(j)
                v_feed.wait(j)
            k_CH, v_CH = (x.at(j)[0] for x in (k_feed, v_feed))
            mine = passes.anew(w)
            return (
                Product([(q_WRH.at[mine], transposed(k_CH))]),
                Product([(dout_WRH.at[mine], transposed(v_CH))]),
            )

        def await_next(feed, j, x):
            more = j + 1 < around[-1]
            return passes.ahead(x, more, lambda: feed.wait(j + 1)) if keys.overlapped else x

        def weigh(is_masked, j, scores_RC):
            if is_masked:
                scores_RC = masked(
                    *(scores_RC, visibility, places, b, first, j * keys.block), keys=k.shape[1]
                )
            weights_RC = passes.weights(scores_RC, along(lse_WR, scores_RC.shape), scale)
            return await_next(k_feed, j, weights_RC)

        def errors(j, dweights_RC, weights_RC):
            v_feed.release(j, interpret=interpret)
            errors_RC = weights_RC * (dweights_RC - along(delta_WR, weights_RC.shape))
            return await_next(v_feed, j, registers(errors_RC))

        def uses(is_masked, j):
            return functools.partial(weigh, is_masked, j), functools.partial(errors, j)

        def update(j, dq_RH, errors_RC):
            return Product([(errors_RC, k_feed.at(j)[0])], dq_RH)

        def begin():
            _, errors_RC = in_flight(*scores(start), uses=uses(True, start), interpret=interpret)
            return zero, rounded(errors_RC)

        def step(is_masked, j, state):
            _, errors_RC, dq_RH = in_flight(
                *(*scores(j), update(j - 1, *state)),
                uses=(*uses(is_masked, j), kept),
                interpret=interpret,
            )
            k_feed.release(j - 1, interpret=interpret)
            return dq_RH, rounded(errors_RC)

        def finish(j, state):
            (dq_RH,) = in_flight(update(j, *state), uses=[kept], interpret=interpret)
            k_feed.release(j, interpret=interpret)
            return dq_RH

        def lone_step(is_masked, j, dq_RH):
            _, errors_RC = in_flight(*scores(j), uses=uses(is_masked, j), interpret=interpret)
            return finish(j, (dq_RH, rounded(errors_RC)))

        def chained():
            k_feed.wait(start)
            v_feed.wait(start)
            return finish(around[-1] - 1, passes.through(around, start + 1, step, begin()))

        zero, around = passes.zeros(*q_RH.shape), passes.bounds(ranges, b, i)
        start = around[0]
        if keys.overlapped:
            dq_RH = lax.cond(start < around[-1], chained, lambda: zero)
        else:
            dq_RH = passes.through(around, start, lone_step, zero)
        mine = passes.anew(w)
        q_WRH[mine] = rounded(dq_RH * scale)
        tile = ranges.shape[1] - 1 - passes.anew(lax.axis_index("i"))
        queries = pl.ds(tile * TILE + mine * ROWS, ROWS)
        blocks.copy_out((q_WRH.at[mine], dq.at[b, queries, n]))
        plgpu.wait_smem_to_gmem(0)
