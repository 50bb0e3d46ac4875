"""Computes what the pairs of tokens in one chunk contribute, level by level and tile by tile.

With the weight D[m, i, t] of token i's write in slot m when query t reads:

    to_slots    X[i, t] -> sum_i D[m, i, t] X[i, t]         logits, and gradients of probabilities
    to_pairs    Y[m, t] -> sum_m D[m, i, t] Y[m, t]         shares of the values, and of the keys
    to_writes   sum_t (Y[m, t] X[i, t]) dD[m, i, t]         gradients of shares and decays

Tokens lie on lanes, slots on sublanes; what query heads do not share comes as a list.
"""

import math

import jax.numpy as jnp

from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.slot_attention.tpu import tile
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.levels import ENTRY, EXIT, HALVES, SPANS, TILE


class Weights:
    """Holds the decays and write weights of one chunk of one KV head.

    Attributes:
      decays: the array [M, C] of each span, see `levels`.
      share_MC: shares of the written tokens.
      writes: for each level, and at EXIT for the chunk's exit, the factors of the writes.
      near: weights of each distance in a tile, see `tile`.
    """

    def __init__(self, log_decay_MC, share_MC, sums, products: Products):
        log2_decay_MC = log_decay_MC * math.log2(math.e)
        parts = jnp.concatenate(products.split(log2_decay_MC), axis=1)
        spans = jnp.exp2(products((parts,), (sums,)))
        self.products, self.share_MC = products, share_MC
        self.decays = [spans[:, i * CHUNK : (i + 1) * CHUNK] for i in range(SPANS)]
        levels = [*range(len(HALVES)), EXIT]
        self.writes = {i: products.round(self.decays[i] * share_MC) for i in levels}
        self.keep_MC = tile.keep_in_tile(jnp.exp2(log2_decay_MC))
        self.near = tile.weights(self.keep_MC, share_MC)

    @property
    def through_M1(self):
        return self.decays[ENTRY][:, CHUNK - 1 :]

    def parted(self, pairs: list) -> list:
        """Returns for each level the pairs that its middles part, all lists side by side."""
        masks = [_parted(half) for half in HALVES]
        side_by_side = lambda mask: jnp.concatenate([jnp.where(mask, x, 0.0) for x in pairs], 1)
        return [self.products.round(side_by_side(mask)) for mask in masks]

    def to_slots(self, pairs: list, parted: list) -> tuple[list, list]:
        """Returns the sums [M, C] of each list, and their parts by level before the last decay."""
        totals = [self._near_to_slots(x) for x in pairs]
        levels = []
        for level, factor in enumerate(parted):
            arrived = self.products(self.writes[level], factor)
            levels.append([arrived[:, i * CHUNK : (i + 1) * CHUNK] for i in range(len(pairs))])
            totals = [
                total + self.decays[level] * part
                for total, part in zip(totals, levels[-1], strict=True)
            ]
        return totals, levels

    def _near_to_slots(self, pairs_CC):
        rows = tile.diagonals(pairs_CC)
        return tile.add([w * row for w, row in zip(self.near, rows, strict=True)])

    def decayed(self, slots: list) -> list:
        """Returns for each level the factor of `slots` times the decay, side by side."""
        side_by_side = lambda d: jnp.concatenate([d * x for x in slots], axis=1)
        return [self.products.round(side_by_side(d)) for d in self.decays[: len(HALVES)]]

    def to_pairs(self, slots: list, decayed: list) -> list:
        """Returns the sums [C, C] of each list."""
        levels = []
        for level, factor in enumerate(decayed):
            left = tuple(_left_rows(x, HALVES[level]) for x in transpose(self.writes[level]))
            levels.append(self.products(left, factor))
        return [
            _assemble([x[:, i * CHUNK : (i + 1) * CHUNK] for x in levels], self._near_to_pairs(y))
            for i, y in enumerate(slots)
        ]

    def _near_to_pairs(self, slots_MC):
        return tile.place_diagonals([tile.sum_slots(w * slots_MC) for w in self.near])


def _parted(half: int):
    """Says which pairs [i, t] the middle of a block parts."""
    own, token = tile.rows(), tile.lanes(CHUNK)
    same = own // (2 * half) == token // (2 * half)
    return same & (own // half % 2 == 0) & (token // half % 2 == 1)


def _left_rows(x_C, half: int):
    return jnp.concatenate([x_C[i : i + half] for i in range(0, CHUNK, 2 * half)], axis=0)


def _assemble(levels: list, near_8C):
    """Puts the pairs of left halves by level, and those of tiles, into [C, C]."""
    lane, blocks = tile.lanes(), []
    for own in range(CHUNK // TILE):
        block = jnp.where(lane // TILE == own, near_8C, 0.0)
        for half, left in zip(HALVES, levels, strict=True):
            number, row = divmod(own * TILE, half)
            if number % 2 == 0:
                start = number // 2 * half + row
                block = jnp.where(lane // half == number + 1, left[start : start + TILE], block)
        blocks.append(block)
    return jnp.concatenate(blocks, axis=0)
