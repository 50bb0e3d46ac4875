"""Computes products with the decays between the tokens of a chunk, by halves of blocks.

For tokens i < t there is exactly one size L = 1, 2, 4, .., 32 with t in the second and i in the
first half, L tokens long, of the same block. With G_L the exp of the sums of log decays from the
middle of a block to each of its tokens,

    decay(t, i) = G_L(t) G_L(i)

so the products with all decays [t, i, m] are six products of matrices. All exponents are at most 0,
and no sum is subtracted from another.
"""

from typing import NamedTuple

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.attention.gpu.passes import anew
from pallas_kernels.hopper import blocks
from pallas_kernels.hopper.blocks import floats, on_rows, registers, rounded, transposed
from pallas_kernels.slot_attention.gpu.chunks import CHUNK, SLOTS, Gates

HALVES = 6
TILE = (CHUNK, CHUNK)  # also tokens by slots


class Decays(NamedTuple):
    """Holds a chunk's decays in shared memory.

    Attributes:
      halves_LCM: for each L G_L, in the first halves times the share of the token, bf16.
      entry_1CM: decay of the slots that enter the chunk, float32.
      share_CM: share of each token, bf16.
    """

    halves_LCM: jax.Ref
    entry_1CM: jax.Ref
    share_CM: jax.Ref


def buffers() -> Decays:
    return Decays(
        blocks.operand(HALVES, CHUNK, SLOTS),
        blocks.vectors(1, CHUNK, SLOTS),
        blocks.operand(CHUNK, SLOTS),
    )


def gate_copies(gates: Gates, tokens, gates_XCM, share_CM) -> tuple:
    """Returns the copies, for `blocks.copy_in`, of the gates of a chunk's tokens in one KV head."""
    return (
        (gates.high_BTKM.at[tokens], gates_XCM.at[0]),
        (gates.low_BTKM.at[tokens], gates_XCM.at[1]),
        (gates.share_BTKM.at[tokens], share_CM),
    )


def indices():
    """Returns row and column numbers of a tile, anew at each call.

    Otherwise the optimiser would keep what follows from them in registers throughout loops.
    """
    zero = anew(jnp.int32(0))
    iota = lambda axis: plgpu.broadcasted_iota(jnp.int32, TILE, axis, layout=plgpu.Layout.WGMMA)
    return iota(0) + zero, iota(1) + zero


def half_of(number):
    """Returns L, given its number among the sizes."""
    return lax.shift_left(jnp.int32(1), number)


def is_second(half):
    """Says which rows lie in second halves."""
    return (indices()[0] & half) != 0


def crosses(half, t_CC, i_CC):
    """Says which pairs have t in the second and i in the first half of a block.

    Here as below each side of a comparison depends on the row or the column alone, because that
    takes fewer registers.
    """
    is_second_CC = (t_CC & half) != 0
    return jnp.where(is_second_CC, t_CC & -half, -1) == (i_CC & -half) + half


def crosses_either_way(half, t_CC, i_CC):
    return (t_CC & -half) ^ half == i_CC & -half


def counts(half, t_CC, j_CC):
    """Says which tokens j count for G_L of token t."""
    is_second_CC, start_CC = (t_CC & half) != 0, t_CC & -half
    first_CC = jnp.where(is_second_CC, start_CC, t_CC + 1)
    last_CC = jnp.where(is_second_CC, t_CC, start_CC + half - 1)
    return (first_CC <= j_CC) & (j_CC <= last_CC)


def ones(where_CC):
    return rounded(jnp.where(where_CC, 1.0, 0.0))


def decay(gates_XCM, counts_CC, product):
    """Returns exp of the sums of log decays, given in two bf16 parts, over the tokens that count.

    Args:
      counts_CC: for each row which tokens count.
    """
    counted_CC = ones(counts_CC)
    high, low = anew(jnp.int32(0)), anew(jnp.int32(1))
    sums_CM = product((counted_CC, gates_XCM.at[low]), (counted_CC, gates_XCM.at[high]))
    return registers(jnp.exp(sums_CM))


def make(decays: Decays, gates_XCM, part, parts: int, product) -> None:
    """Writes `decays` but for the share; each of several warpgroups one part of it."""
    t_CC, j_CC = indices()

    @pl.loop(part, HALVES, step=parts)
    def _half(number):
        half = half_of(number)
        decay_CM = decay(gates_XCM, counts(half, t_CC, j_CC), product)
        share_CM = jnp.where(is_second(half), 1.0, floats(decays.share_CM))
        decays.halves_LCM[number] = rounded(decay_CM * share_CM)

    @pl.when(part == 0)
    def _entry():
        decays.entry_1CM[0] = decay(gates_XCM, t_CC >= j_CC, product)


def read(rows_CH, keys_CH, state_HM, decays: Decays, scores_CC_ref, product):
    """Returns for each row its products with the slots, and what of them the entering slots make.

        sum over i <= t of (row_t . key_i) decay(t, i) share_i + entry_t (row_t . state)

    Args:
      state_HM: the slots that enter the chunk.
      scores_CC_ref: a buffer for the products of rows and keys.
    """
    t_CC, i_CC = indices()
    scores_CC = product((rows_CH, transposed(keys_CH)))
    own_C = jnp.sum(registers(jnp.where(t_CC == i_CC, scores_CC, 0.0)), axis=1)
    entered_CM = product((rows_CH, state_HM))
    entered_CM = registers(entered_CM * entry(decays))
    total_CM = registers(entered_CM + on_rows(own_C, TILE) * floats(decays.share_CM))
    scores_CC_ref[...] = rounded(scores_CC)

    def add(number, total_CM):
        decay_CM = decays.halves_LCM.at[number]
        crosses_CC = crosses(half_of(number), t_CC, i_CC)
        crossing_CC = masked(crosses_CC, registers(blocks.matrix(scores_CC_ref)))
        return registers(total_CM + product((crossing_CC, decay_CM)) * floats(decay_CM))

    return lax.fori_loop(0, HALVES, add, total_CM), entered_CM


def mix(weights_CM, state_HM, values_CH, decays: Decays, product):
    """Returns sums of the slots' vectors with weights [t, m], float32: the transpose of `read`."""
    t_CC, i_CC = indices()
    own_C = jnp.sum(registers(weights_CM * floats(decays.share_CM)), axis=1)
    shares_CC = registers(jnp.where(t_CC == i_CC, on_rows(own_C, TILE), 0.0))

    def add(number, shares_CC):
        decay_CM = decays.halves_LCM.at[number]
        decayed_CM = rounded(weights_CM * floats(decay_CM))
        crossing_CC = product((decayed_CM, transposed(decay_CM)))
        return registers(jnp.where(crosses(half_of(number), t_CC, i_CC), crossing_CC, shares_CC))

    shares_CC = lax.fori_loop(0, HALVES, add, shares_CC)
    entered_CM = rounded(weights_CM * entry(decays))
    return product((entered_CM, transposed(state_HM)), (rounded(shares_CC), values_CH))


def entry(decays: Decays):
    return registers(blocks.matrix(fresh(decays.entry_1CM)))


def fresh(buffer_1):
    """Returns a buffer that has a first axis of 1; its address is computed anew at each call."""
    return buffer_1.at[anew(jnp.int32(0))]


def masked(is_kept, x):
    return registers(jnp.where(is_kept, x, jnp.zeros((), x.dtype)))
