"""Says which tokens of one rank see which of another, by the order in which they lie."""

import jax
import jax.numpy as jnp

from hydrahead_jax.context.order import Order
from hydrahead_jax.context.ranks import vary_over


def over_visible(compute, fills, queries, keys, *, axis: str, order: Order, distance):
    """Runs `compute` on those queries and keys of which every query may see every key.

    Args:
      compute: from pytrees of arrays [B, T, ...] of queries and of keys to tuples of such arrays,
        one of queries and one of keys.
      fills: for each result of queries its value where a query sees nothing. Results of keys are 0
        where no query sees a key.
      queries: those of this rank.
      keys: those of the rank `distance` before this one in the ring, at least 1 and traced.
      axis: the mesh axis of the ranks.

    Returns:
      The results of `compute`, for all queries and all keys.
    """
    is_before = distance <= jax.lax.axis_index(axis)

    def low_keys(queries, keys):
        of_queries, of_keys = compute(queries, _half(keys, 0))
        return of_queries, tuple(_join(x, jnp.zeros_like(x)) for x in of_keys)

    def high_queries(queries, keys):
        of_queries, of_keys = compute(_half(queries, 1), keys)
        filled = zip(of_queries, fills, strict=True)
        return tuple(_join(jnp.full_like(x, fill), x) for x, fill in filled), of_keys

    def nothing(queries, keys):
        of_queries, of_keys = jax.eval_shape(compute, queries, keys)
        filled = zip(of_queries, fills, strict=True)
        empty = (
            tuple(jnp.full(x.shape, fill, x.dtype) for x, fill in filled),
            tuple(jnp.zeros(x.shape, x.dtype) for x in of_keys),
        )
        return vary_over(axis, queries, keys, *empty)[2:]

    if order == "contiguous":
        return jax.lax.cond(is_before, compute, nothing, queries, keys)
    return jax.lax.cond(is_before, low_keys, high_queries, queries, keys)


def _half(tree, index: int):
    return jax.tree.map(lambda x_BT: jnp.split(x_BT, 2, axis=1)[index], tree)


def _join(low_BT, high_BT):
    return jnp.concatenate([low_BT, high_BT], axis=1)
