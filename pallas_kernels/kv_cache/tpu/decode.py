"""Runs the decode step over UltraQuant's codes on TPU: no code is multiplied by its scale.

The grid is (batch row b, share p of the positions, step y); a program has all query heads. Rows of
a product are query heads, M in a tile of KV heads and N in all, and its columns X positions, so
that scales are rows beside the scores:

- Scores. The left factor has G times M rows: queries with zeros outside group g of 32 channels and
  outside their own KV head. So a product is a group's part of the score of codes alone, which its
  scale then multiplies. Their sum is the score.
- Values. Weights are multiplied by the scales of each group, G times M rows again, and then by the
  codes of all channels. Of the result, each group's own channels are the output.

A code is a sign, two bits of exponent and one of mantissa. Those bits, at their places in a float8
E5M2 number, are that number times 2^14; bit operations on 32-bit words make four at once, and the
matrix unit takes them as they are. The number 0.5 is subnormal then, as E5M2 has them.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.tpu.products import product, product_transposed
from pallas_kernels.kv_cache.side import CHANNELS_A_GROUP
from pallas_kernels.kv_cache.tpu.blocks import Tile, TpuPackedBlocks
from pallas_kernels.kv_cache.ultraquant import MANTISSA_BITS

SIGNS = -0x7F7F7F80  # bit 7 of each byte
MAGNITUDES = 0x0E0E0E0E
EXPONENT = 0x7F800000
CODES_UNIT = 2.0**14
GROUPS_A_WORD = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedCall:
    """Says what the kernel is specialised to.

    Attributes:
      problem: its keys are the cache.
      apart: whether codes and scales come KV head by KV head, only those that are read.
      groups_first: whether scales come as [B, G, K, S].
    """

    problem: Problem
    blocks: TpuPackedBlocks
    tiles: tuple[Tile, ...]
    apart: bool
    groups_first: bool

    @property
    def groups(self) -> int:
        return self.problem.H // CHANNELS_A_GROUP

    @property
    def steps(self) -> int:
        """Returns the most blocks that one program may need."""
        keys, window = self.blocks.keys, self.problem.visibility.window
        most = -(-self.problem.S // keys)
        if window is not None:
            most = min(most, (window + keys - 2) // keys + 1)
        return -(-most // self.blocks.splits)

    def span(self, begins, ends, b, p):
        """Returns the first block of share p of row b, and one more than the last."""
        keys = self.blocks.keys
        first, stop = begins[b] // keys, pl.cdiv(ends[b], keys)
        share = pl.cdiv(jnp.maximum(stop - first, 0), self.blocks.splits)
        begin = first + p * share
        return begin, jnp.minimum(begin + share, stop)

    def block(self, begins, ends, b, p, y):
        """Returns the block that step y reads; steps after the last block read the last again."""
        begin, stop = self.span(begins, ends, b, p)
        last = -(-self.problem.S // self.blocks.keys) - 1
        return jnp.clip(jnp.clip(begin + y, 0, jnp.maximum(stop - 1, 0)), 0, last)


def load_codes(codes):
    """Returns codes [H / 2, X] as E5M2 numbers [H, X] times 2^-14, even channels first."""
    words = pltpu.bitcast(codes, jnp.int32)
    even = ((words << 4) & SIGNS) | ((words << 1) & MAGNITUDES)
    odd = (words & SIGNS) | ((words >> 3) & MAGNITUDES)
    return jnp.concatenate([pltpu.bitcast(x, jnp.float8_e5m2) for x in (even, odd)], axis=0)


def load_words(scales):
    """Returns the scales [G, X] as words [G / 4, X]; the low byte is that of the first group."""
    if scales.shape[0] % GROUPS_A_WORD == 0:
        return pltpu.bitcast(scales, jnp.int32)
    return _joined([scales[g : g + 1] for g in range(scales.shape[0])])


def _joined(scales):
    """Returns words of bytes of equal shape, the first one lowest."""
    return sum(x.astype(jnp.int32) << (8 * g) for g, x in enumerate(scales))


def decode_kernel(begins, ends, q_ref, owners_ref, *refs, call: PackedCall):
    """Runs one step.

    `refs` are codes and scales of keys and of values, segments of query and keys if passed, two
    results, and scratches: maxima, totals, words of keys and of values, and for each tile the left
    factor of the scores and the sums.
    """
    tiles, heads = call.tiles, len(call.tiles[-1].kv_heads) + call.tiles[-1].kv_heads[0]
    count = heads if call.apart else 1
    stored, refs = [refs[i * count : (i + 1) * count] for i in range(4)], refs[4 * count :]
    ids, refs = (refs[:2], refs[2:]) if call.problem.segments else ((), refs)
    out_ref, lse_ref, peak_ref, total_ref, k_words, v_words, *of_tiles = refs
    lefts, sums = of_tiles[: len(tiles)], of_tiles[len(tiles) :]
    b, p, y = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    begin, stop = call.span(begins, ends, b, p)

    def load(part, head):
        return stored[part][head][0, 0] if call.apart else stored[part][0][0, head]

    def load_scales(part):
        if not call.groups_first:
            return lambda head: load_words(load(part, head))
        scales_ref = stored[part][0]
        words_KX = _joined([scales_ref[0, g] for g in range(call.groups)])
        return lambda head: words_KX[head : head + 1]

    @pl.when(y == 0)
    def start():
        peak_ref[...] = jnp.full(peak_ref.shape, -jnp.inf, jnp.float32)
        total_ref[...] = jnp.zeros(total_ref.shape, jnp.float32)
        for tile, left, sum_ref in zip(tiles, lefts, sums, strict=True):
            sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
            q_MH, owner_M1 = q_ref[0, tile.rows], owners_ref[tile.rows]
            for block, own_MH in _own_blocks(tile, owner_M1, call):
                left[block] = jnp.where(own_MH, q_MH, jnp.zeros((), q_MH.dtype))

    @pl.when(begin + y < stop)
    def step():
        first_key = (begin + y) * call.blocks.keys
        key_1X = first_key + jax.lax.broadcasted_iota(jnp.int32, (1, call.blocks.keys), 1)
        written_1X = key_1X < ends[b]
        seen_1X = written_1X & (key_1X >= begins[b])
        if ids:
            query_11, keys_1X = (ref[0] for ref in ids)
            seen_1X &= (keys_1X == query_11) & (query_11 != 0)
        weights, key_words, value_words = [], load_scales(1), load_scales(3)
        for tile, left in zip(tiles, lefts, strict=True):
            k = jnp.concatenate([load_codes(load(0, head)) for head in tile.kv_heads], axis=0)
            s_YX, words_WMX = product(left[...], k), _words(k_words, tile, key_words)
            s_MX = sum(_rows(s_YX, g, call) * _powers(words_WMX, g) for g in range(call.groups))
            s_MX = (call.problem.scale * CODES_UNIT * math.log2(math.e)) * s_MX
            s_MX = jnp.where(seen_1X, s_MX, -jnp.inf)
            weights.append(_softmax(s_MX, peak_ref, total_ref, tile.rows))
        for tile, sum_ref, (p_MX, decay_M1) in zip(tiles, sums, weights, strict=True):
            v = jnp.concatenate([load_codes(load(2, head)) for head in tile.kv_heads], axis=0)
            words_WMX = _words(v_words, tile, value_words)
            words_WMX = [jnp.where(written_1X, words, 0) for words in words_WMX]
            p_YX = [p_MX * _powers(words_WMX, g) for g in range(call.groups)]
            p_YX = jnp.concatenate(p_YX, axis=0).astype(q_ref.dtype)
            decay_Y1 = jnp.concatenate([decay_M1] * call.groups, axis=0)
            sum_ref[...] = sum_ref[...] * decay_Y1 + product_transposed(p_YX, v)

    @pl.when(y == pl.num_programs(2) - 1)
    def finish():
        for tile, sum_ref in zip(tiles, sums, strict=True):
            owner_M1, total_M1 = owners_ref[tile.rows], total_ref[tile.rows, :1]
            saw_M1 = total_M1 > 0
            peak_M1 = jnp.where(saw_M1, peak_ref[tile.rows, :1], 0.0)
            lse_M1 = (peak_M1 + jnp.log2(jnp.where(saw_M1, total_M1, 1.0))) * math.log(2)
            lse_M1 = jnp.where(saw_M1, lse_M1, -jnp.inf)
            lse_ref[0, 0, tile.rows] = jnp.broadcast_to(
                lse_M1, (len(tile.queries), lse_ref.shape[-1])
            )
            out_MH = sum(
                jnp.where(own_MH, sum_ref[block], 0.0)
                for block, own_MH in _own_blocks(tile, owner_M1, call)
            )
            out_ref[0, 0, tile.rows] = out_MH * (CODES_UNIT / jnp.where(saw_M1, total_M1, 1.0))


def _own_blocks(tile: Tile, owner_M1, call: PackedCall):
    """Yields blocks of [G M, KV heads H], and the places in each that are of its row."""
    M, H, half = len(tile.queries), call.problem.H, CHANNELS_A_GROUP // 2
    group_MH = jax.lax.broadcasted_iota(jnp.int32, (M, H), 1) % (H // 2) // half
    for place in range(len(tile.kv_heads)):
        for g in range(call.groups):
            block = slice(g * M, (g + 1) * M), slice(place * H, (place + 1) * H)
            yield block, (owner_M1 == place) & (group_MH == g)


def _rows(x_YX, group: int, call: PackedCall):
    """Returns the rows of one group."""
    M = x_YX.shape[0] // call.groups
    return x_YX[group * M : (group + 1) * M]


def _softmax(s_MX, peak_ref, total_ref, rows: slice):
    """Goes on with the softmax of some rows; returns weights and the factor of earlier sums."""
    old_M1 = peak_ref[rows, :1]
    new_M1 = jnp.maximum(old_M1, jnp.max(s_MX, axis=1, keepdims=True))
    finite_M1 = jnp.where(new_M1 == -jnp.inf, 0.0, new_M1)
    p_MX, decay_M1 = jnp.exp2(s_MX - finite_M1), jnp.exp2(old_M1 - finite_M1)
    total_M1 = total_ref[rows, :1] * decay_M1 + jnp.sum(p_MX, axis=1, keepdims=True)
    for ref, x_M1 in ((peak_ref, new_M1), (total_ref, total_M1)):
        ref[rows] = jnp.broadcast_to(x_M1, (len(s_MX), ref.shape[1]))
    return p_MX, decay_M1


def _words(scratch_ref, tile: Tile, load) -> list:
    """Returns for each row the words of its KV head: a list of [M, X]."""
    words = [load(head) for head in tile.kv_heads]
    for row, owner in enumerate(tile.owners, start=tile.first):
        scratch_ref[:, row : row + 1] = words[owner][:, None]
    return [scratch_ref[i, tile.rows] for i in range(scratch_ref.shape[0])]


def _powers(words_WMX: list, group: int):
    """Returns 2^(byte - 127) of a group's bytes, and 0 for the byte 0."""
    words_MX, shift = words_WMX[group // GROUPS_A_WORD], 8 * (group % GROUPS_A_WORD)
    shift = MANTISSA_BITS - shift
    shifted_MX = words_MX << shift if shift >= 0 else words_MX >> -shift
    return pltpu.bitcast(shifted_MX & EXPONENT, jnp.float32)
