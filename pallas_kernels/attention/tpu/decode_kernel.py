"""Runs the decode step on TPU: an online softmax over the blocks of one row's keys.

The grid is (batch row b, group g of query heads, share p of the positions, step y); R are the query
heads of a group and X the cache rows of a step, which are positions, or positions by KV heads.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.decode_blocks import TpuDecodeBlocks
from pallas_kernels.attention.tpu.products import product, product_transposed
from pallas_kernels.attention.visibility import Visibility


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeCall:
    """Says what the kernel is specialised to.

    Attributes:
      problem: its keys are the cache.
    """

    problem: Problem
    blocks: TpuDecodeBlocks

    @property
    def window(self) -> int | None:
        return self.problem.visibility.window

    @property
    def rows_a_key(self) -> int:
        return self.problem.K if self.blocks.form == "rows" else 1

    @property
    def steps(self) -> int:
        """Returns the most blocks that one program may need."""
        keys = self.blocks.keys
        most = -(-self.problem.S // keys)
        if self.window is not None:
            most = min(most, (self.window + keys - 2) // keys + 1)
        return -(-most // self.blocks.splits)

    def span(self, lengths, b, p):
        """Returns the first block of share p of row b, and one more than the last."""
        keys, length = self.blocks.keys, lengths[b]
        first = 0 if self.window is None else jnp.maximum(length - self.window, 0) // keys
        stop = pl.cdiv(length, keys)
        share = pl.cdiv(stop - first, self.blocks.splits)
        begin = first + p * share
        return begin, jnp.minimum(begin + share, stop)

    def block(self, lengths, b, p, y):
        """Returns the block that step y reads; steps after the last block read the last again."""
        begin, stop = self.span(lengths, b, p)
        return jnp.clip(begin + y, 0, jnp.maximum(stop - 1, 0))


def load_block(ref, call: DecodeCall, first_key):
    """Loads a block of the cache [X, H], or [H, X] in columns; zeros beyond its end."""
    block = ref[...].reshape(ref.shape[-2:])
    if call.problem.S % call.blocks.keys == 0:
        return block
    row = jax.lax.broadcasted_iota(jnp.int32, block.shape, int(call.blocks.form == "columns"))
    inside = row < (call.problem.S - first_key) * call.rows_a_key
    return jnp.where(inside, block, jnp.zeros((), block.dtype))


def decode_kernel(lengths, kv_heads, q_ref, heads_ref, k_ref, v_ref, *refs, call: DecodeCall):
    """Runs one step.

    `refs` are the segments of query and keys, if passed, two results, three scratches.
    """
    *ids, out_ref, lse_ref, peak_ref, total_ref, sum_ref = refs
    b, p, y = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    begin, stop = call.span(lengths, b, p)
    of_keys, of_values = product_transposed, product
    if call.blocks.form == "columns":
        of_keys, of_values = of_values, of_keys

    @pl.when(y == 0)
    def start():
        peak_ref[...] = jnp.full(peak_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)

    @pl.when(begin + y < stop)
    def step():
        first_key = (begin + y) * call.blocks.keys
        k, v = (load_block(ref, call, first_key) for ref in (k_ref, v_ref))
        s_RX = call.problem.scale * of_keys(q_ref[0, 0], k)
        seen_RX = _seen(s_RX.shape, first_key, lengths[b], heads_ref, ids, call)
        s_RX = jnp.where(seen_RX, s_RX, -jnp.inf)
        old_R1 = peak_ref[:, :1]
        new_R1 = jnp.maximum(old_R1, jnp.max(s_RX, axis=1, keepdims=True))
        finite_R1 = jnp.where(new_R1 == -jnp.inf, 0.0, new_R1)
        p_RX = jnp.exp(s_RX - finite_R1)
        decay_R1 = jnp.exp(old_R1 - finite_R1)
        total_R1 = total_ref[:, :1] * decay_R1 + jnp.sum(p_RX, axis=1, keepdims=True)
        sum_ref[...] = sum_ref[...] * decay_R1 + of_values(p_RX.astype(v.dtype), v)
        peak_ref[...] = jnp.broadcast_to(new_R1, peak_ref.shape)
        total_ref[...] = jnp.broadcast_to(total_R1, total_ref.shape)

    @pl.when(y == pl.num_programs(3) - 1)
    def finish():
        total = total_ref[...]
        saw = total > 0
        peak = jnp.where(saw, peak_ref[...], 0.0)
        lse_ref[0, 0, 0] = jnp.where(saw, peak + jnp.log(jnp.where(saw, total, 1.0)), -jnp.inf)
        out_ref[0, 0, 0] = sum_ref[...] / jnp.where(saw, total, 1.0)[:, :1]


def _seen(shape, first_key, length, heads_ref, ids, call: DecodeCall):
    """Says which rows of the block each query head sees."""
    row_RX = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    key_RX = first_key + row_RX // call.rows_a_key
    seen_RX = Visibility(causal=True, window=call.window)(length - 1, key_RX)
    if call.blocks.form == "rows":
        seen_RX &= row_RX % call.problem.K == heads_ref[...]
    if ids:
        query_11, keys_1X = (ref[0] for ref in ids)
        seen_RX &= (keys_1X == query_11) & (query_11 != 0)
    return seen_RX
