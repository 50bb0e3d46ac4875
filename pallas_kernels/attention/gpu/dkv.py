"""Computes the gradients of keys and values.

    dV = sum P^T dO      dK = scale sum dS^T Q

with P and dS as in `dq`, here computed as P^T and dS^T, so that they are left operands in
registers. A program has some keys of one KV head and goes through all query heads that read it: the
sum is complete and always in the same order. One warpgroup copies. Each of the other two has 64
keys, or with large heads the same 64 keys and half of the head dimension.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu import passes
from pallas_kernels.attention.gpu.blocks import (
    COMPUTE_REGISTERS,
    COPY_REGISTERS,
    ROWS,
    TILE,
    WARPGROUPS,
    Ring,
)
from pallas_kernels.attention.gpu.feed import feed
from pallas_kernels.attention.gpu.masks import Places, masked
from pallas_kernels.attention.gpu.passes import Readers, Saved
from pallas_kernels.attention.gpu.products import Product, in_flight, kept
from pallas_kernels.attention.problem import Problem
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_columns, registers, rounded, transposed


def key_value_gradients(
    q_BTNH,
    k_BSKH,
    v_BSKH,
    dout_BTNH,
    saved: Saved,
    readers: Readers,
    ranges_BIX,
    places: Places,
    *,
    problem: Problem,
    tile: int,
    queries: Ring,
):
    """Returns dk and dv [B, S, K, H] in bf16.

    Args:
      ranges_BIX: blocks of queries for each tile of keys.
      tile: keys of a program, 64 or 128.
    """
    B, _, K, H = k_BSKH.shape
    parts = TILE // tile
    rows = blocks.operand(WARPGROUPS, ROWS, H // parts)
    ring = lambda stages: feed(
        blocks.operand(stages, parts, queries.block, H // parts),
        blocks.vectors(stages, queries.block),
        readers=WARPGROUPS,
        copies=parts + 1,
    )
    return blocks.kernel(
        functools.partial(
            _body,
            visibility=problem.visibility,
            scale=problem.scale,
            tile=tile,
            queries=queries,
            interpret=bool(problem.interpret),
        ),
        *(q_BTNH, k_BSKH, v_BSKH, dout_BTNH, saved, readers, ranges_BIX, places),
        name="attention_dkv",
        grid=dict(b=B, k=K, i=ranges_BIX.shape[1]),
        outputs=[(k_BSKH.shape, jnp.bfloat16)] * 2,
        scratch=dict(
            k_WRH=rows,
            v_WRH=rows,
            full=plgpu.Barrier(num_arrivals=2 * WARPGROUPS),
            done=plgpu.Barrier(num_arrivals=WARPGROUPS),
            q_feed=ring(queries.stages),
            dout_feed=ring(queries.value_stages),
        ),
        warpgroups=WARPGROUPS + 1,
        interpret=problem.interpret,
    )


def _body(
    q,
    k,
    v,
    dout,
    saved,
    readers,
    ranges,
    places,
    dk,
    dv,
    *,
    k_WRH,
    v_WRH,
    full,
    done,
    q_feed,
    dout_feed,
    visibility,
    scale,
    tile,
    queries,
    interpret,
):
    b, kv_head, i, w = (lax.axis_index(axis) for axis in ("b", "k", "i", "warpgroup"))
    parts, width = TILE // tile, k_WRH.shape[2]

    @pl.when(w == WARPGROUPS)
    def _copy():
        columns = [pl.ds(part * width, width) for part in range(parts)]
        feeds = (q_feed, dout_feed)
        _bring_queries(
            q, dout, saved, feeds, readers, ranges, (b, kv_head, i), queries.block, columns
        )

    @pl.when(w < WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        first, last = passes.readers_between(readers, kv_head)
        first_key, part = (i * tile + w * ROWS, 0) if parts == 1 else (i * tile, w)
        own = (b, pl.ds(first_key, ROWS), kv_head, pl.ds(part * width, width))
        blocks.copy_in(full, (k.at[own], k_WRH.at[w]), (v.at[own], v_WRH.at[w]))
        plgpu.barrier_wait(full)

        def across(rows_WRH, other_PCH):
            place = lambda x: passes.anew(w if parts == 1 else jnp.int32(x))
            return Product(
                [(rows_WRH.at[place(x)], transposed(other_PCH.at[x])) for x in range(parts)]
            )

        def step(is_masked, j, state):
            dk_RH, dv_RH, turn = state
            (q_PCH, lse_C), (dout_PCH, delta_C) = q_feed.at(turn), dout_feed.take(turn)
            column = lambda ref: on_columns(blocks.column_vector(ref), (ROWS, queries.block))

            def weigh(scores_RC):
                if is_masked:
                    scores_RC = masked(
                        *(scores_RC, visibility, places, b, j * queries.block, first_key),
                        keys=k.shape[1],
                        keys_on_rows=True,
                    )
                weights_RC = passes.weights(scores_RC, column(lse_C), scale)
                more = turn + 1 < turns
                return passes.ahead(weights_RC, more, lambda: q_feed.wait(turn + 1))

            def errors(dweights_RC, weights_RC):
                return registers(weights_RC * (dweights_RC - column(delta_C)))

            weights_RC, errors_RC = in_flight(
                across(k_WRH, q_PCH),
                across(v_WRH, dout_PCH),
                uses=(weigh, errors),
                interpret=interpret,
            )
            dv_RH, dk_RH = in_flight(
                Product([(rounded(weights_RC), dout_PCH.at[part])], dv_RH),
                Product([(rounded(errors_RC), q_PCH.at[part])], dk_RH),
                uses=(kept, kept),
                interpret=interpret,
            )
            q_feed.release(turn, interpret=interpret)
            dout_feed.release(turn, interpret=interpret)
            return dk_RH, dv_RH, turn + 1

        def head(x, state):
            around = passes.bounds(ranges, b, i)  # loaded again, to save registers
            return passes.through(around, around[0], step, state)

        zero = passes.zeros(ROWS, width)
        start, *_, end = passes.bounds(ranges, b, i)
        turns = (last - first) * (end - start)
        pl.when(turns > 0)(lambda: q_feed.wait(jnp.int32(0)))
        dk_RH, dv_RH, _ = lax.fori_loop(first, last, head, (zero, zero, jnp.int32(0)))
        if parts > 1:  # each warpgroup overwrites what the other one reads
            plgpu.barrier_arrive(done)
            plgpu.barrier_wait(done)
        k_WRH[w], v_WRH[w] = rounded(dk_RH * scale), rounded(dv_RH)
        blocks.copy_out((k_WRH.at[w], dk.at[own]), (v_WRH.at[w], dv.at[own]))
        plgpu.wait_smem_to_gmem(0)


def _bring_queries(q, dout, saved: Saved, feeds, readers, ranges, at, block: int, columns) -> None:
    """Copies queries and cotangents of all heads that read the KV head, in its own warpgroup."""
    plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
    q_feed, dout_feed = feeds
    b, kv_head, i = at
    start, *_, end = passes.bounds(ranges, b, i)
    first, last = passes.readers_between(readers, kv_head)

    @pl.loop(first, last)
    def _(x):
        head = readers.order_N[x]

        @pl.loop(start, end)
        def _(j):
            turn = (x - first) * (end - start) + j - start
            tokens = pl.ds(j * block, block)
            of = lambda matrix: [matrix.at[b, tokens, head, column] for column in columns]
            q_feed.fill(turn, of(q), saved.lse_BNT.at[b, head, tokens])
            dout_feed.fill(turn, of(dout), saved.delta_BNT.at[b, head, tokens])
