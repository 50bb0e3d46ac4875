"""Handles the pairs of tokens in one tile of 8, by the distance d between them.

The weight of the write of token t - d when t reads is a recurrence without exponents,

    D_0[t] = share[t],    D_d[t] = keep[t] D_{d-1}[t - 1],

once `keep` is 0 at the first token of each tile. Tokens lie on lanes, slots on sublanes.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.levels import TILE


def lanes(rows: int = TILE):
    return jax.lax.broadcasted_iota(jnp.int32, (rows, CHUNK), 1)


def rows():
    return jax.lax.broadcasted_iota(jnp.int32, (CHUNK, CHUNK), 0)


def keep_in_tile(keep_MC):
    """Returns the decays of single tokens, 0 at the first token of each tile."""
    return jnp.where(lanes(keep_MC.shape[0]) % TILE == 0, 0.0, keep_MC)


def weights(keep_MC, share_MC) -> list:
    """Returns the weights [M, C] of each distance."""
    found = [share_MC]
    for _ in range(1, TILE):
        found.append(keep_MC * later(found[-1]))
    return found


def later(x):
    """Moves each token's column to the next token."""
    return pltpu.roll(x, 1, 1)


def earlier(x):
    """Moves each token's column to the token before."""
    return pltpu.roll(x, CHUNK - 1, 1)


def diagonals(pairs_CC) -> list:
    """Returns for each distance d the row [1, C] of entries [t - d, t], inside tiles."""
    lane = lanes()
    tile_8C = pairs_CC[:TILE]
    for i in range(1, CHUNK // TILE):
        tile_8C = jnp.where(lane // TILE == i, pairs_CC[i * TILE : (i + 1) * TILE], tile_8C)
    return [row for row in _turned(tile_8C, up=True)]


def place_diagonals(rows: list):
    """Inverts `diagonals`: [8, C] with the entry of the i-th token of t's tile in row i of lane t.

    Entries of tokens after t are those of the rows at distances that reach out of the tile.
    """
    ordered = [rows[-d % TILE] for d in range(TILE)]
    return _rotated(jnp.concatenate(ordered, axis=0), up=False)


def _turned(tile_8C, *, up: bool) -> list:
    turned_8C = _rotated(tile_8C, up=up)
    return [turned_8C[-d % TILE][None] for d in range(TILE)]


def _rotated(x_8C, *, up: bool):
    """Rotates the rows of lane t by t % 8."""
    lane = lanes()
    for bit in (1, 2, 4):
        rotated = pltpu.roll(x_8C, TILE - bit if up else bit, 0)
        x_8C = jnp.where(lane & bit != 0, rotated, x_8C)
    return x_8C


def sum_slots(x_MC):
    """Sums over the slots into [1, C]."""
    return jnp.sum(x_MC, axis=0, keepdims=True)


add = functools.partial(functools.reduce, lambda x, y: x + y)
