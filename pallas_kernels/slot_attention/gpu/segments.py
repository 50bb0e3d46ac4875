"""Cuts the chunks of a sequence into segments, over which programs sweep in parallel."""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention.gpu.blocks import MULTIPROCESSORS

SHORTEST = 8  # chunks of a segment: shorter ones cost more than they spread


def count_segments(programs: int, chunks: int) -> int:
    """Returns how many segments keep all multiprocessors busy, given the programs for each."""
    wanted = max(1, min(-(-2 * MULTIPROCESSORS // programs), chunks // SHORTEST))
    per_segment = -(-chunks // wanted)
    return -(-chunks // per_segment)


def entering(first_BKSXHM, totals_BKSXHM, through_BKZM, backwards: bool):
    """Returns S before each segment.

    Args:
      first_BKSXHM: S before the first of them.
      totals_BKSXHM: what each segment makes of empty slots.
      through_BKZM: decay over each chunk.
      backwards: whether the first segment is at the end of the sequence.
    """
    B, K, Z, M = through_BKZM.shape
    S = totals_BKSXHM.shape[2]
    if backwards:
        through_BKZM = through_BKZM[:, :, ::-1]
    fill = [(0, 0), (0, 0), (0, -(-Z // S) * S - Z), (0, 0)]
    through_BKZM = jnp.pad(through_BKZM, fill, constant_values=1.0)
    through_BKSM = jnp.prod(through_BKZM.reshape(B, K, S, -1, M), axis=3)
    decay_BKSXHM = through_BKSM[:, :, :, None, None]

    def join(early, late):
        (early_decay, early_total), (late_decay, late_total) = early, late
        return early_decay * late_decay, late_decay * early_total + late_total

    decay, total = lax.associative_scan(join, (decay_BKSXHM, totals_BKSXHM), axis=2)
    after_BKSXHM = decay[:, :, :-1] * first_BKSXHM + total[:, :, :-1]
    return jnp.concatenate([first_BKSXHM, after_BKSXHM], axis=2)
