"""Accumulates gradients over the parts of a batch, one after the other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hydrahead_jax.sharding import Layout


def in_parts(batch, parts: int, layout: Layout | None):
    """Reshapes a pytree of [B, ...] to [parts, B / parts, ...].

    Every part has rows of each device, so that no row has to move.
    """

    def cut(x):
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        return x if layout is None else layout.constrain(x, "XBT")

    return jax.tree.map(cut, batch)


def sum_over(function: Callable, parts):
    """Applies `function` to each slice of the leading axis of `parts` and adds up the results."""
    if jax.tree.leaves(parts)[0].shape[0] == 1:
        return function(jax.tree.map(lambda x: x[0], parts))

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, parts)[0]
