"""Passes arrays between the ranks of a mesh axis."""

import jax
import jax.numpy as jnp

from hydrahead_jax.context.order import Order
from pallas_kernels.varying import vary_alike


def vary_over(axis: str, *trees) -> tuple:
    """Marks the trees of arrays as varying over `axis` and over all that any of them does."""
    return vary_alike(*trees, jax.lax.axis_index(axis))[:-1]


def around(tree, axis: str):
    """Shifts a tree by one around the ring: each rank receives its left neighbour's.

    Rank 0 receives the last rank's.
    """
    R = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(r, (r + 1) % R) for r in range(R)])


def along(tree, axis: str, steps: int):
    """Receives the tree of the rank `steps` to the left; zeros where there is none.

    Negative steps count to the right.
    """
    R = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(r, r + steps) for r in range(R) if 0 <= r + steps < R])


def of_rank(tree, axis: str, rank: int):
    """Gives one rank's tree to all ranks; it is no longer marked as varying over `axis`."""
    mine = jax.lax.axis_index(axis) == rank
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(mine, x, 0), axis), tree)


def chunks_of(x_BT, order: Order):
    """Returns the chunks that a rank holds, [X, B, ...]: one, or low and high."""
    X = 1 if order == "contiguous" else 2
    if x_BT.shape[1] % X:
        raise ValueError(
            f"{x_BT.shape[1]} tokens a rank; zigzag order has two chunks of equal length a rank"
        )
    x_BXC = x_BT.reshape(x_BT.shape[0], X, -1, *x_BT.shape[2:])
    return jnp.moveaxis(x_BXC, 1, 0)


def whole(x_XBC):
    """Inverts `chunks_of`."""
    x_BXC = jnp.moveaxis(x_XBC, 0, 1)
    return x_BXC.reshape(x_BXC.shape[0], -1, *x_BXC.shape[3:])
