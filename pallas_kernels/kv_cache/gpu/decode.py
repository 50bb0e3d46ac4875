"""Runs one query per row over keys and values in UltraQuant's codes.

The query heads of a KV head share a program, as columns of its products: keys times queries, and
values times weights. So the left operands are made of codes in registers, and few columns keep the
softmax small beside that. The keys of a batch row are divided among programs and, in each step,
among their warpgroups; XLA merges the results of all. One more warpgroup copies.
"""

import functools

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu import passes
from pallas_kernels.attention.gpu.blocks import COPY_REGISTERS, ROWS
from pallas_kernels.attention.gpu.feed import Feed, feed
from pallas_kernels.attention.gpu.forward import FAR
from pallas_kernels.attention.problem import Problem
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_columns, on_rows, registers, rounded, transposed
from pallas_kernels.kv_cache.gpu import threads
from pallas_kernels.kv_cache.gpu.blocks import HopperPackedBlocks
from pallas_kernels.kv_cache.gpu.fragments import SIXTEEN, TOKENS


def decode(
    q_BUINH,
    k_parts,
    v_parts,
    kv_heads_U,
    shares_BXE,
    seen_BE,
    ids,
    *,
    problem: Problem,
    cut: HopperPackedBlocks,
):
    """Returns float32 output [X, B, U, I, W, H, N] and log-sum-exp [X, B, U, I, W, N].

    They are those of share X of the keys, tile I of query heads and warpgroup W. The channels of
    queries come in the order of `fragments.in_order`, those of the output as `rows_of_channels`.

    Args:
      q_BUINH: for each KV head that is read, its query heads: I tiles of N.
      k_parts: codes [B, K, H / 2, S] and scales [B, K, H / 32, S] of the keys.
      v_parts: those of the values.
      kv_heads_U: which KV heads these are.
      shares_BXE: first block of each share, and the one after its last.
      seen_BE: first slot that a row sees, and the one after its last.
      ids: segments of queries [B] and slots [B, S], these in that order too; or None.
    """
    B, U, I, N, H = q_BUINH.shape
    X, W = shares_BXE.shape[1], cut.warpgroups
    parts = lambda: feed(
        threads.codes_buffer(cut.stages, W, H // 2, TOKENS),
        threads.scales_buffer(cut.stages, W, H // 32, TOKENS),
        readers=W,
        copies=2 * W,
    )
    return blocks.kernel(
        functools.partial(
            _body,
            factor=problem.scale * passes.LOG2E,
            cut=cut,
            interpret=bool(problem.interpret),
        ),
        *(q_BUINH, *k_parts, *v_parts, kv_heads_U, shares_BXE, seen_BE, ids),
        name="attention_decode_packed",
        grid=dict(b=B, u=U, i=I, x=X),
        outputs=[((X, B, U, I, W, H, N), jnp.float32), ((X, B, U, I, W, N), jnp.float32)],
        scratch=dict(
            q_NH=blocks.operand(N, H),
            weights_WNC=blocks.operand(W, N, TOKENS),
            lse_WN=blocks.vectors(W, N),
            across_WS=blocks.vectors(W, 32 * N),
            q_full=plgpu.Barrier(),
            k_feed=parts(),
            v_feed=parts(),
        ),
        warpgroups=W + 1,
        interpret=problem.interpret,
    )


def load_block(codes, scales, ring: Feed, j, *, row, head, first) -> None:
    """Brings block j of keys or of values: only this function knows the layout of the cache."""
    warpgroups = ring.buffers[0].shape[1]
    tokens = [pl.ds((j * warpgroups + w) * TOKENS, TOKENS) for w in range(warpgroups)]
    sources = ([x.at[row, head, :, part] for part in tokens] for x in (codes, scales))
    ring.fill(j, *sources, first=first)


def _body(
    q,
    k_codes,
    k_scales,
    v_codes,
    v_scales,
    kv_heads,
    shares,
    seen,
    ids,
    out,
    lse,
    *,
    q_NH,
    weights_WNC,
    lse_WN,
    across_WS,
    q_full,
    k_feed,
    v_feed,
    factor,
    cut,
    interpret,
):
    b, u, i, x, w = (lax.axis_index(axis) for axis in ("b", "u", "i", "x", "warpgroup"))
    start, end = (blocks.of_one_device(shares[b, x, edge]) for edge in (0, 1))
    W, N, H = weights_WNC.shape[0], *q_NH.shape

    @pl.when(w == W)
    def _copy():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")
        blocks.copy_in(q_full, (q.at[b, u, i], q_NH))
        head = kv_heads[u]

        @pl.loop(start, end)
        def _(j):
            load_block(k_codes, k_scales, k_feed, j, row=b, head=head, first=start)
            load_block(v_codes, v_scales, v_feed, j, row=b, head=head, first=start)

    @pl.when(w < W)
    def _compute():
        plgpu.set_max_registers(cut.compute_registers, action="increase")
        plgpu.barrier_wait(q_full)
        over_rows = functools.partial(
            threads.over_rows, scratch=across_WS.at[w], interpret=interpret
        )

        def own(parts):
            return tuple(part.at[w] for part in parts)

        def step(j, state):
            sum_HN, peak_N, total_RN = state
            k_CH = threads.keys(*own(k_feed.take(j)), interpret=interpret)
            k_feed.release(j, interpret=interpret)
            scores_CN = blocks.product((k_CH, transposed(q_NH)), interpret=interpret)
            scores_CN = _masked(scores_CN, (j * W + w) * TOKENS, seen, ids, b)
            new_peak_N = jnp.maximum(peak_N, over_rows("max", scores_CN) * factor)
            decay_N = jnp.exp2(peak_N - new_peak_N)
            shifted_CN = scores_CN * factor - on_columns(new_peak_N, scores_CN.shape)
            weights_CN = registers(jnp.exp2(registers(shifted_CN)))
            total_RN = registers(total_RN * on_columns(decay_N, total_RN.shape))
            total_RN = registers(total_RN + registers(weights_CN[:ROWS] + weights_CN[ROWS:]))
            transposed(weights_WNC.at[w])[...] = rounded(weights_CN)
            plgpu.commit_smem()
            v_HC = threads.values(*own(v_feed.take(j)), interpret=interpret)
            v_feed.release(j, interpret=interpret)
            sum_HN = blocks.product(
                (v_HC, transposed(weights_WNC.at[w])),
                start=registers(sum_HN * on_columns(decay_N, sum_HN.shape)),
                interpret=interpret,
            )
            return sum_HN, new_peak_N, total_RN

        first = passes.zeros(H, N), _row(N, FAR), passes.zeros(ROWS, N)
        sum_HN, peak_N, total_RN = lax.fori_loop(start, end, step, first)
        total_N = over_rows("add", total_RN)
        is_seen_N = total_N > 0
        total_N = jnp.where(is_seen_N, total_N, 1.0)
        lse_WN[w] = jnp.where(is_seen_N, peak_N / passes.LOG2E + jnp.log(total_N), -jnp.inf)
        out_HN = registers(sum_HN * on_columns(1 / total_N, sum_HN.shape))
        blocks.put(out.at[x, b, u, i, w], out_HN, interpret=interpret)
        blocks.copy_out((lse_WN.at[w], lse.at[x, b, u, i, w]))
        plgpu.wait_smem_to_gmem(0)


def _row(size: int, value: float):
    """Makes a float32 vector along the columns of an accumulator."""
    return plgpu.layout_cast(jnp.full((size,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(0))


def _masked(scores_CN, first, seen, ids, b):
    """Returns the scores of 128 tokens with -inf for those that the row does not see."""
    row_C = plgpu.broadcasted_iota(
        jnp.int32, scores_CN.shape[:1], 0, layout=plgpu.Layout.WGMMA.reduce(1)
    )
    half, place = (row_C >> 3) & 1, row_C & (SIXTEEN // 2 - 1)
    slot_C = (row_C & -SIXTEEN) + 2 * place + half
    seen_C = (slot_C >= seen[b, 0] - first) & (slot_C < seen[b, 1] - first)
    if ids is not None:
        query, slots = ids
        ids_C = plgpu.load(
            slots.at[b, pl.ds(first, TOKENS)],
            layout=plgpu.Layout.WGMMA.reduce(1),
            optimized=False,
        )
        seen_C &= (ids_C == query[b]) & (ids_C != 0)
    return registers(jnp.where(on_rows(seen_C, scores_CN.shape), scores_CN, -jnp.inf))
