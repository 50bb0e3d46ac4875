"""Computes what the pairs of tokens in one chunk contribute, level by level and tile by tile.

With the weight D[m, i, t] of token i's write in slot m when query t reads:

    to_slots    X[i, t] -> sum_i D[m, i, t] X[i, t]         logits, and gradients of probabilities
    to_pairs    Y[m, t] -> sum_m D[m, i, t] Y[m, t]         shares of the values, and of the keys
    to_writes   sum_t (Y[m, t] X[i, t]) dD[m, i, t]         gradients of shares and decays

Tokens lie on lanes, slots on sublanes; what query heads do not share comes as a list.
"""

import math

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.gated_delta.gates import reset_log_decay
from pallas_kernels.gated_delta.tpu.products import Products, transpose
from pallas_kernels.slot_attention.tpu import tile
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.levels import (
    ENTRY,
    EXIT,
    HALVES,
    SPANS,
    TILE,
    Constants,
)
from pallas_kernels.slot_attention.tpu.read import cut

LOG2_E = math.log2(math.e)

STEPS = (range(0, 2), range(2, 4), range(4, 6), range(6, 8))
"""Distances in a tile that are handled between the products of each level."""


class Weights:
    """Holds the decays and write weights of one chunk of one KV head.

    Its coroutines yield after each product, see `interleave.interleave`.

    Attributes:
      decays: the array [M, C] of each span, see `levels`.
      forget_MC: share that the slots keep beside each written token.
      share_MC: shares of the written tokens.
      writes: for each level, and at EXIT for the chunk's exit, the factors of the writes.
      near: weights of each distance in a tile, see `tile`.
      low_decays: `decays` in the precision of `low`.
      low_near: `near` in the precision of `low`.
    """

    def __init__(self, sums, log_forget_MC, starts_1C, constants: Constants, products: Products):
        self.products, self.constants = products, constants
        self.forget_MC = jnp.exp2(log_forget_MC * LOG2_E)
        self.share_MC = jnp.tanh(-0.5 * log_forget_MC) * (1.0 + self.forget_MC)
        self.decays = [jnp.exp2(x) for x in cut(sums, SPANS)]
        levels = [*range(len(HALVES)), EXIT]
        self.writes = {i: products.round(self.decays[i] * self.share_MC) for i in levels}
        self.keep_MC = tile.keep_in_tile(self.forget_MC, starts_1C)
        self.near = tile.weights(self.keep_MC, self.share_MC)
        self.low_decays, self.low_near = (
            [self.low(x) for x in xs] for xs in (self.decays, self.near)
        )

    def low(self, x):
        """Returns `x` in the precision that products of vectors before a matrix product have.

        Units of matrices 256 wide come with vector units for bfloat16.
        """
        return self.products.round(x)[0] if self.products.packed else x

    @property
    def through_M1(self):
        return self.decays[ENTRY][:, CHUNK - 1 :]

    def parted(self, pairs: list) -> list:
        """Returns for each level the pairs that its middles part, all lists side by side."""
        rounded = self.products.round(jnp.concatenate(pairs, axis=1))[0]
        bits = pltpu.bitcast(rounded, jnp.int32)
        return [
            (pltpu.bitcast(self._parted(bits, level, len(pairs)), rounded.dtype),)
            for level in range(len(HALVES))
        ]

    def _parted(self, bits, level: int, lists: int):
        """Keeps the bits of a level's pairs; blocks of rows that have none are not touched."""
        rows = HALVES[level] * bits.shape[0] // CHUNK
        mask = self.constants.parted[level]
        side_by_side = lambda x: jnp.concatenate([x] * lists, axis=1)
        if rows % TILE:
            return bits & side_by_side(mask)
        blocks = []
        for start in range(0, bits.shape[0], 2 * rows):
            left = slice(start, start + rows)
            kept = bits[left] & side_by_side(mask[left])
            blocks += [kept, jnp.zeros_like(kept)]
        return jnp.concatenate(blocks, axis=0)

    def to_slots(self, pairs: list, parted: list):
        """Returns the sums [M, C] of each list, and their parts by level before the last decay.

        These come in the precision of `low`.
        """
        rows = [tile.diagonals(x) for x in pairs]
        totals, levels = [0.0] * len(pairs), []
        for level, factor in enumerate(parted):
            arrived = self.products(self.writes[level], factor)
            yield
            for d in STEPS[level]:
                own = [self.near[d] * of[d] for of in rows]
                totals = [x + y for x, y in zip(totals, own, strict=True)]
            yield
            parts = cut(arrived, len(pairs))
            levels.append([self.low(x) for x in parts])
            own = [self.decays[level] * part for part in parts]
            totals = [x + y for x, y in zip(totals, own, strict=True)]
        return totals, levels

    def decayed(self, slots: list) -> list:
        """Returns for each level, and the entry, the factor of `slots` times the decay.

        The lists stand side by side.
        """
        slots = [self.low(x) for x in slots]
        side_by_side = lambda d: jnp.concatenate([d * x for x in slots], axis=1)
        return [self.products.round(side_by_side(d)) for d in self.low_decays[: ENTRY + 1]]

    def to_pairs(self, slots: list, decayed: list):
        """Returns the sums [C, C] of each list."""
        slots = [self.low(y) for y in slots]
        by_distance, levels = [[] for _ in slots], []
        for level, half in enumerate(HALVES):
            left = tuple(_left_rows(x, half) for x in transpose(self.writes[level]))
            levels.append(cut(self.products(left, decayed[level]), len(slots)))
            yield
            for d in STEPS[level]:
                for found, y in zip(by_distance, slots, strict=True):
                    found.append(self.products.round(self.low_near[d] * y)[0])
            yield
        right = jnp.concatenate([jnp.concatenate(x, axis=0) for x in by_distance], axis=1)
        near = cut(self.products((self.constants.near[...],), (right,)), len(slots))
        yield
        by_list = zip(*levels, strict=True)
        return [_assemble(x, tile.own_rows(y)) for x, y in zip(by_list, near, strict=True)]


def chunk_sums(log_forget_KMC, starts_1C, constants: Constants, products: Products):
    """Returns for KV heads the sums of log2 decays over all spans, side by side, [K * M, ...]."""
    resets_1C = starts_1C * reset_log_decay(jnp.float32)
    log_decay = log_forget_KMC.reshape(-1, CHUNK) + resets_1C
    parts = jnp.concatenate(products.split(log_decay * LOG2_E), axis=1)
    return products((parts,), (constants.sums[...],))


def _left_rows(x_C, half: int):
    return jnp.concatenate([x_C[i : i + half] for i in range(0, CHUNK, 2 * half)], axis=0)


def _assemble(levels, near_8C):
    """Puts the pairs of left halves by level, and those of tiles, into [C, C]."""
    lane, blocks = tile.lanes(), []
    for own in range(CHUNK // TILE):
        block = jnp.where(lane // TILE == own, near_8C, 0.0)
        for half, left in zip(HALVES, levels, strict=True):
            number, row = divmod(own * TILE, half)
            if number % 2 == 0:
                start = number // 2 * half + row
                mine = left[start : start + TILE]
                block = jnp.where(lane // half == number + 1, mine, block)
        blocks.append(block)
    return jnp.concatenate(blocks, axis=0)
