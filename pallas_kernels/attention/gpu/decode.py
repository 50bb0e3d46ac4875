"""Runs one query per row over a cache.

Up to 64 query heads of a KV head share a program, as rows of one product; the keys of a batch row
are divided among several programs, whose results XLA merges. One warpgroup copies the cache,
another computes.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu import passes
from pallas_kernels.attention.gpu.blocks import ROWS, HopperDecodeBlocks
from pallas_kernels.attention.gpu.feed import Feed, feed
from pallas_kernels.attention.gpu.forward import FAR, new_weights
from pallas_kernels.attention.gpu.masks import Places, masked
from pallas_kernels.attention.problem import Problem
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_rows, registers, rounded, transposed

COMPUTE, COPY, WARPGROUPS = 0, 1, 2
PART = 128  # columns of the output that leave at once


def decode(
    q_BUGH,
    k_BSKH,
    v_BSKH,
    kv_heads_U,
    shares_BXE,
    places: Places,
    *,
    problem: Problem,
    cut: HopperDecodeBlocks,
):
    """Returns float32 output [X, B, U, G, H] and log-sum-exp [X, B, U, G] of each share of keys.

    Args:
      q_BUGH: for each KV head that is read, its G query heads, padded with any of them.
      kv_heads_U: which KV heads these are.
      shares_BXE: first block of each share, and the one after its last.
      places: the query's own, `ROWS` times.
      problem: of positive scale.
    """
    B, U, G, H = q_BUGH.shape
    X, tiles = shares_BXE.shape[1], -(-G // ROWS)
    ring = lambda: feed(blocks.operand(cut.stages, cut.block, H), readers=1)
    out_XBUGH, lse_XBUR = blocks.kernel(
        functools.partial(
            _body,
            visibility=problem.visibility,
            factor=problem.scale * passes.LOG2E,
            block=cut.block,
            interpret=bool(problem.interpret),
        ),
        *(q_BUGH, k_BSKH, v_BSKH, kv_heads_U, shares_BXE, places),
        name="attention_decode",
        grid=dict(b=B, u=U, g=tiles, x=X),
        outputs=[((X, B, U, G, H), jnp.float32), ((X, B, U, tiles * ROWS), jnp.float32)],
        scratch=dict(
            q_RH=blocks.operand(ROWS, H),
            out_RP=blocks.vectors(ROWS, min(H, PART)),
            lse_R=blocks.vectors(ROWS),
            q_full=plgpu.Barrier(),
            k_feed=ring(),
            v_feed=ring(),
        ),
        warpgroups=WARPGROUPS,
        interpret=problem.interpret,
    )
    return out_XBUGH, lse_XBUR[..., :G]


def load_block(k, v, k_feed: Feed, v_feed: Feed, j, *, row, head, first) -> None:
    """Brings block j of keys and values: only this function knows the layout of the cache."""
    block = k_feed.buffers[0].shape[1]
    tokens = pl.ds(j * block, block)
    k_feed.fill(j, k.at[row, tokens, head], first=first)
    v_feed.fill(j, v.at[row, tokens, head], first=first)


def _body(
    q,
    k,
    v,
    kv_heads,
    shares,
    places,
    out,
    lse,
    *,
    q_RH,
    out_RP,
    lse_R,
    q_full,
    k_feed,
    v_feed,
    visibility,
    factor,
    block,
    interpret,
):
    b, u, g, x, w = (lax.axis_index(axis) for axis in ("b", "u", "g", "x", "warpgroup"))
    start, end = (blocks.of_one_device(shares[b, x, edge]) for edge in (0, 1))

    @pl.when(w == COPY)
    def _copy():
        head = kv_heads[u]

        @pl.loop(start, end)
        def _(j):
            load_block(k, v, k_feed, v_feed, j, row=b, head=head, first=start)

    @pl.when(w == COMPUTE)
    def _compute():
        rows = pl.ds(g * ROWS, ROWS)
        blocks.copy_in(q_full, (q.at[b, u, rows], q_RH))
        plgpu.barrier_wait(q_full)

        def step(j, state):
            sum_RH, peak_R, total_R = state
            (k_CH,) = k_feed.take(j)
            scores_RC = blocks.product((q_RH, transposed(k_CH)), interpret=interpret)
            k_feed.release(j, interpret=interpret)
            scores_RC = masked(
                *(scores_RC, visibility, places, b, 0, j * block), keys=k.shape[1], one_query=True
            )
            weights_RC, peak_R, total_R, decay_R = new_weights(scores_RC, peak_R, total_R, factor)
            (v_CH,) = v_feed.take(j)
            sum_RH = blocks.product(
                (rounded(weights_RC), v_CH),
                start=registers(sum_RH * on_rows(decay_R, sum_RH.shape)),
                interpret=interpret,
            )
            v_feed.release(j, interpret=interpret)
            return sum_RH, peak_R, total_R

        first = passes.zeros(*q_RH.shape), passes.row(ROWS, FAR), passes.row(ROWS, 0.0)
        sum_RH, peak_R, total_R = lax.fori_loop(start, end, step, first)
        share_RH, found_R = passes.normalized(sum_RH, peak_R, total_R)
        lse_R[...] = found_R
        blocks.copy_out((lse_R, lse.at[x, b, u, rows]))
        width = out_RP.shape[1]
        for column in range(0, share_RH.shape[1], width):
            part_RP = registers(share_RH[:, column : column + width])
            blocks.put(out_RP, part_RP, interpret=interpret)
            blocks.copy_out((out_RP, out.at[x, b, u, rows, pl.ds(column, width)]))
            plgpu.wait_smem_to_gmem(0)
