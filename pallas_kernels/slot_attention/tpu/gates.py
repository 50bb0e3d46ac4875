"""Computes the gradients of the gates in one chunk of one KV head, as part of `backward`.

From dD, the gradient of the weights, follow those of shares and of the sums of log decays, span by
span of `levels`; one product with the transposed matrix of sums turns these into gradients of log
decays. Inside tiles, token t's log decay has part in every pair that it lies between.
"""

from typing import NamedTuple

import jax.numpy as jnp

from pallas_kernels.slot_attention.tpu import tile
from pallas_kernels.slot_attention.tpu.blocks import CHUNK
from pallas_kernels.slot_attention.tpu.levels import ENTRY, EXIT
from pallas_kernels.slot_attention.tpu.pairs import STEPS, Weights


class Reads(NamedTuple):
    """Carries what the queries of a chunk read, and the gradients of its outputs, as lists.

    Attributes:
      pairs: scores [C, C] with the tokens of the chunk.
      parted: for each level the pairs that it parts, see `Weights.parted`.
      entered: scores [M, C] with the slots that enter, before their decay.
      levels: for each level what it adds to the logits, before the last decay.
    """

    pairs: list
    parted: list
    entered: list
    levels: list


def gate_gradients(weights: Weights, reads: Reads, outer: list, decayed: list, left_MC, kept_M1):
    """Makes the gradients of log forgetting; yields after each product.

    Args:
      outer: gradients [M, C] of the logits, and probabilities.
      decayed: these times the decays, see `Weights.decayed`.
      left_MC: products of written tokens with the gradients of the slots that leave.
      kept_M1: products of the slots that enter with the same.

    Returns:
      All [M, C] but for the sums of log decays, and the gradients of these, side by side.
    """
    products, low = weights.products, weights.low
    decays, low_decays = weights.decays, weights.low_decays
    dshare_MC = decays[EXIT] * left_MC
    near, spans = _near_gradients(weights, outer, reads.pairs), []
    for level, steps in enumerate(STEPS):
        to_write_MC = products(decayed[level], reads.parted[level], transpose_right=True)
        yield
        for _ in steps:
            near_gradients = next(near)
        yield
        of_share_MC = low_decays[level] * low(to_write_MC)
        dshare_MC += of_share_MC.astype(jnp.float32)
        read_MC = low_decays[level] * _sum_of_products(outer, reads.levels[level])
        spans += products.round(read_MC + low(weights.share_MC) * of_share_MC)
    entry_MC = decays[ENTRY] * _sum_of_products(outer, reads.entered).astype(jnp.float32)
    last = tile.lanes(1) == CHUNK - 1
    spans += products.round(entry_MC + jnp.where(last, weights.through_M1 * kept_M1, 0.0))
    spans += products.round(decays[EXIT] * weights.share_MC * left_MC)
    ddecay_MC, near_share_MC = (x.astype(jnp.float32) for x in near_gradients)
    dshare_MC += near_share_MC
    return ddecay_MC - weights.forget_MC * dshare_MC, jnp.concatenate(spans, 1)


def _near_gradients(weights: Weights, outer: list, pairs: list):
    """Makes the gradients of log decays and shares by way of the pairs inside tiles.

    Yields after each distance what it has; the last is complete.
    """
    rows = [tile.diagonals(x) for x in pairs]
    keep_MC = weights.low(weights.keep_MC)
    ddecay_MC, carried_MC = 0.0, 0.0
    for d in reversed(range(tile.TILE)):
        of_distance = [tile.repeat(of[d], x) for x, of in zip(outer, rows, strict=True)]
        carried_MC = _sum_of_products(outer, of_distance) + carried_MC
        yield ddecay_MC, carried_MC
        ddecay_MC = ddecay_MC + carried_MC * weights.low_near[d]
        carried_MC = tile.earlier(keep_MC * carried_MC)


def _sum_of_products(xs: list, ys: list):
    return tile.add([x * y for x, y in zip(xs, ys, strict=True)])
