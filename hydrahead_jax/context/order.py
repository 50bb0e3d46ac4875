"""Orders the tokens of a row over the ranks of a mesh axis."""

from typing import Literal

import jax.numpy as jnp

Order = Literal["contiguous", "zigzag"]


def to_order(x_BT, ranks: int, order: Order, axis: int = 1):
    """Permutes an array in natural order so that rank r holds its r-th part.

    The permutation is along `axis`, which is then cut into `ranks` equal parts.

    Raises:
      ValueError: the axis does not divide into `ranks` parts (2 * `ranks` in zigzag order).
    """
    check_length(x_BT.shape[axis], ranks, order)
    if order == "contiguous":
        return x_BT
    low, high = jnp.split(_cut(x_BT, (2, ranks), axis), 2, axis=axis)
    pairs = jnp.concatenate([low, jnp.flip(high, axis + 1)], axis=axis)
    return jnp.swapaxes(pairs, axis, axis + 1).reshape(x_BT.shape)


def from_order(x_BT, ranks: int, order: Order, axis: int = 1):
    """Inverts `to_order`."""
    check_length(x_BT.shape[axis], ranks, order)
    if order == "contiguous":
        return x_BT
    pairs = jnp.swapaxes(_cut(x_BT, (ranks, 2), axis), axis, axis + 1)
    low, high = jnp.split(pairs, 2, axis=axis)
    return jnp.concatenate([low, jnp.flip(high, axis + 1)], axis=axis).reshape(x_BT.shape)


def check_length(length: int, ranks: int, order: Order) -> None:
    """Refuses rows that do not divide into equal chunks."""
    chunks = ranks if order == "contiguous" else 2 * ranks
    if length % chunks:
        raise ValueError(
            f"{length} tokens do not divide into the {chunks} chunks of {ranks} ranks in {order} "
            f"order; take a multiple of {chunks}, such as {length + -length % chunks}"
        )


def _cut(x, sizes: tuple[int, int], axis: int):
    """Cuts [..., T, ...] into [..., *sizes, chunk, ...]."""
    return x.reshape(*x.shape[:axis], *sizes, -1, *x.shape[axis + 1 :])
