"""Runs the recurrence of the slots over chunks, in either direction.

    S_z+1 = through_z S_z + sum over the readers of rows_z^T weights_z

Forwards the rows are keys or values and the weights their shares at the end of the chunk; backwards
queries or output gradients, and gradients of logits or weights, decayed from the chunk's start. A
program has one KV head, keys or values, 64 rows of S [H, M], and a segment of the chunks. With more
than one segment a first launch computes what each adds to empty slots, a scan over these totals the
slots that enter each.
"""

import functools
from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.blocks import ROWS
from pallas_kernels.attention.gpu.feed import Feed, feed
from pallas_kernels.attention.gpu.passes import Readers, readers_between
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import on_columns, registers, rounded, transposed
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, Pair
from pallas_kernels.slot_attention.gpu.segments import count_segments, entering

STAGES = 4


class Swept(NamedTuple):
    """Carries what the recurrence passed through.

    Attributes:
      states_BKZXHM: S before each chunk in the order of the sweep, of keys and of values, bf16.
      last_BKXHM: S after the last chunk, float32.
    """

    states_BKZXHM: jax.Array
    last_BKXHM: jax.Array


def sweep(
    rows: Pair,
    weights: Pair,
    through_BKZM,
    first_BKXHM,
    readers: Readers,
    *,
    backwards: bool = False,
    interpret,
) -> Swept:
    """Runs the recurrence.

    Args:
      rows: two arrays [B, T, N, H].
      weights: two arrays [B, T, N, M].
      first_BKXHM: S before the first chunk of the sweep.
      readers: heads N that are summed for each of K.
    """
    B, K, Z, _ = through_BKZM.shape
    segments = count_segments(B * K * 2 * first_BKXHM.shape[3] // ROWS, Z)
    run = functools.partial(
        _launch, rows, weights, through_BKZM, readers, backwards=backwards, interpret=interpret
    )
    first_BKSXHM = first_BKXHM[:, :, None]
    if segments > 1:
        none_BKSXHM = jnp.zeros((B, K, segments, *first_BKXHM.shape[2:]), jnp.float32)
        (totals_BKSXHM,) = run(none_BKSXHM, keep_states=False)
        first_BKSXHM = entering(first_BKSXHM, totals_BKSXHM, through_BKZM, backwards)
    states_BKZXHM, last_BKSXHM = run(first_BKSXHM, keep_states=True)
    return Swept(states_BKZXHM, last_BKSXHM[:, :, -1])


def _launch(
    rows,
    weights,
    through_BKZM,
    readers,
    first_BKSXHM,
    *,
    backwards: bool,
    keep_states: bool,
    interpret,
):
    B, K, Z, M = through_BKZM.shape
    S, H = first_BKSXHM.shape[2], first_BKSXHM.shape[4]
    states = [((B, K, Z, 2, H, M), jnp.bfloat16)] * keep_states
    return blocks.kernel(
        functools.partial(
            _body, backwards=backwards, keep_states=keep_states, interpret=bool(interpret)
        ),
        *(rows, weights, through_BKZM, readers, first_BKSXHM),
        name=f"slot_attention_{'states' if keep_states else 'totals'}",
        grid=dict(b=B, k=K, s=S, part=2 * H // ROWS),
        outputs=[*states, (first_BKSXHM.shape, jnp.float32)],
        scratch=dict(
            tokens_feed=feed(
                blocks.operand(STAGES, CHUNK, ROWS), blocks.operand(STAGES, CHUNK, M), readers=1
            ),
            through_feed=feed(blocks.vectors(STAGES, M), readers=1),
            state_HM=blocks.operand(ROWS, M),
        ),
        warpgroups=2,
        interpret=interpret,
    )


def _body(
    rows,
    weights,
    through,
    readers,
    first,
    *outputs,
    tokens_feed: Feed,
    through_feed: Feed,
    state_HM,
    backwards,
    keep_states,
    interpret,
):
    *states, last = outputs
    b, kv_head, segment, part = (lax.axis_index(axis) for axis in ("b", "k", "s", "part"))
    Z, S = through.shape[2], first.shape[2]
    per_segment = -(-Z // S)
    begin = segment * per_segment
    turns = jnp.minimum(per_segment, Z - begin)
    chunk_of = lambda turn: Z - 1 - begin - turn if backwards else begin + turn
    halves = first.shape[4] // ROWS
    side, half = lax.div(part, jnp.int32(halves)), lax.rem(part, jnp.int32(halves))
    columns = pl.ds(half * ROWS, ROWS)
    first_reader, last_reader = readers_between(readers, kv_head)
    reads = last_reader - first_reader

    @pl.when(lax.axis_index("warpgroup") == 1)
    def _copy():
        @pl.loop(0, turns)
        def _(turn):
            chunk = chunk_of(turn)
            tokens = pl.ds(chunk * CHUNK, CHUNK)
            through_feed.fill(turn, through.at[b, kv_head, chunk])

            @pl.loop(0, reads)
            def _(x):
                head = readers.order_N[first_reader + x]
                for number, (rows_BTNH, weights_BTNM) in enumerate(zip(rows, weights, strict=True)):

                    @pl.when(side == number)
                    def _(rows_BTNH=rows_BTNH, weights_BTNM=weights_BTNM):
                        tokens_feed.fill(
                            turn * reads + x,
                            rows_BTNH.at[b, tokens, head, columns],
                            weights_BTNM.at[b, tokens, head],
                        )

    @pl.when(lax.axis_index("warpgroup") == 0)
    def _sweep():
        place = (b, kv_head, segment, side, columns)

        def step(turn, state):
            if keep_states:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                state_HM[...] = rounded(state)
                target = states[0].at[b, kv_head, chunk_of(turn), side, columns]
                blocks.copy_out((state_HM, target))
            (through_M,) = through_feed.take(turn)
            state = registers(state * on_columns(blocks.column_vector(through_M), state.shape))
            through_feed.release(turn, interpret=interpret)

            def add(x, state):
                rows_CH, weights_CM = tokens_feed.take(turn * reads + x)
                state = blocks.product(
                    (transposed(rows_CH), weights_CM), start=state, interpret=interpret
                )
                tokens_feed.release(turn * reads + x, interpret=interpret)
                return state

            return lax.fori_loop(0, reads, add, state)

        state = blocks.of_one_device(registers(blocks.matrix(first.at[place])))
        state = lax.fori_loop(0, turns, step, registers(state))
        blocks.put(last.at[place], state, interpret=interpret)
        plgpu.wait_smem_to_gmem(0)
