"""Handles the pairs of tokens in one tile, by the distance d between them.

The weight of the write of token t - d when t reads is a recurrence without exponents,

    D_0[t] = share[t],    D_d[t] = keep[t] D_{d-1}[t - 1],

once `keep` is 0 at the first token of each tile. Tokens lie on lanes, slots on sublanes. The pairs
of all tiles stand in 8 rows: row (-d) % 8 of lane t holds that of tokens t - d and t.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.levels import TILE


def lanes(rows: int = TILE):
    return jax.lax.broadcasted_iota(jnp.int32, (rows, CHUNK), 1)


def keep_in_tile(forget_MC, starts_1C):
    """Returns the decays of single tokens, 0 at the first token of each tile and segment."""
    return forget_MC * jnp.where(lanes(1) % TILE == 0, 0.0, 1.0 - starts_1C)


def weights(keep_MC, share_MC) -> list:
    """Returns the weights [M, C] of each distance."""
    found = [share_MC]
    for _ in range(1, TILE):
        found.append(keep_MC * pltpu.roll(found[-1], 1, 1))
    return found


def earlier(x):
    """Moves each token's column to the token before."""
    bits = pltpu.bitcast(x, jnp.int32)
    return pltpu.bitcast(pltpu.roll(bits, CHUNK - 1, 1), x.dtype)


def diagonals(pairs_CC) -> list:
    """Returns for each distance d the row [1, C] of pairs [t - d, t], inside tiles."""
    lane = lanes()
    near_8C = pairs_CC[:TILE]
    for i in range(1, CHUNK // TILE):
        own = pairs_CC[i * TILE : (i + 1) * TILE]
        near_8C = jnp.where(lane // TILE == i, own, near_8C)
    near_8C = _rotate(near_8C, up=True)
    return [near_8C[-d % TILE][None] for d in range(TILE)]


def own_rows(near_8C):
    """Moves the pair of tokens i and t, in lane t, to row i % 8."""
    return _rotate(near_8C, up=False)


def _rotate(x_8C, *, up: bool):
    """Rotates the rows of lane t by t % 8."""
    lane = lanes()
    for bit in (1, 2, 4):
        rotated = pltpu.roll(x_8C, TILE - bit if up else bit, 0)
        x_8C = jnp.where(lane & bit != 0, rotated, x_8C)
    return x_8C


def repeat(row_1C, like_MC):
    """Repeats a row to the rows of one register, and this to all."""
    rows = 32 // like_MC.dtype.itemsize
    block = jnp.broadcast_to(row_1C, (rows, CHUNK)).astype(like_MC.dtype)
    return jnp.concatenate([block] * (len(like_MC) // rows), axis=0)


def sum_slots(x_MC):
    """Sums over the slots into [1, C]."""
    return jnp.sum(x_MC, axis=0, keepdims=True)


add = functools.partial(functools.reduce, lambda x, y: x + y)
