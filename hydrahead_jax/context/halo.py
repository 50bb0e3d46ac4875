"""Runs the short convolution over rows that lie on several ranks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hydrahead_jax.context.order import Order
from hydrahead_jax.context.ranks import along, chunks_of, vary_over, whole
from hydrahead_jax.ops.short_conv import short_conv


def context_short_conv(
    x_BTNH: Float[Array, "B T N H"],
    weight_WNH: Float[Array, "W N H"],
    tail_BWNH: Float[Array, "B Wm1 N H"],
    segment_ids_BT: Int[Array, "B T"],
    tail_segment_ids_BW: Int[Array, "B Wm1"],
    *,
    axis: str,
    order: Order,
) -> Float[Array, "B T N H"]:
    """Runs `ops.short_conv` over complete rows, inside `jax.shard_map`; differentiable.

    Every chunk gets the W - 1 inputs and segment ids before it from the rank that holds them.

    Args:
      x_BTNH: this rank's tokens, as are the segment ids.
      tail_BWNH: inputs before the row's first token, the same on all ranks of `axis`.
      tail_segment_ids_BW: their segment ids, also the same on all ranks.
      axis: the mesh axis that the tokens lie over.
      order: the order in which the tokens lie over it.

    Raises:
      ValueError: a rank's chunk is shorter than the W - 1 inputs that the next one needs.
    """
    taps = tail_BWNH.shape[1]
    tokens = (chunks_of(x_BTNH, order), chunks_of(segment_ids_BT, order))
    length = tokens[0].shape[2]
    if length < taps:
        raise ValueError(
            f"chunks of {length} tokens; a convolution of {taps + 1} taps over several ranks needs "
            f"at least {taps}"
        )
    ends = jax.tree.map(lambda x_XBC: x_XBC[:, :, length - taps :], tokens)
    first = (tail_BWNH.astype(x_BTNH.dtype), tail_segment_ids_BW)
    ends, first = vary_over(axis, ends, first)
    tails = before(first, ends, axis)
    conv = jax.vmap(lambda x, ids, tail, tail_ids: short_conv(x, weight_WNH, tail, ids, tail_ids))
    return whole(conv(*tokens, *tails))


def before(first, ends, axis: str):
    """Returns what stands before each of a rank's chunks, from the ends of all chunks.

    Args:
      first: arrays [B, W, ...] before the row's first token, the same on all ranks of `axis`.
      ends: the last W tokens of the rank's chunks, [X, B, W, ...].
    """
    return jax.tree.map(lambda first_BW, ends_XBW: _before(first_BW, ends_XBW, axis), first, ends)


def _before(first_BW, ends_XBW, axis: str):
    rank, last = jax.lax.axis_index(axis), jax.lax.axis_size(axis) - 1
    low, *high = ends_XBW
    tails = [jnp.where(rank == 0, first_BW, along(low, axis, 1))]
    if high:
        tails.append(jnp.where(rank == last, low, along(high[0], axis, -1)))
    return jnp.stack(tails)
