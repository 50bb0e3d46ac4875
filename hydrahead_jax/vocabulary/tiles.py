"""Cuts tokens into tiles of equal size."""

import math

import jax
import jax.numpy as jnp

TOKENS_AT_ONCE = 2048


def in_tiles(tree, leading: tuple[int, ...]):
    """Cuts leaves [*leading, ...] into [Z, X, ...], the last tile padded with zeros."""
    tokens = math.prod(leading)
    count = -(-tokens // TOKENS_AT_ONCE)
    width = -(-tokens // count)
    fill = count * width - tokens

    def cut(x):
        own = x.shape[len(leading) :]
        x = x.reshape(tokens, *own)
        if fill:
            x = jnp.pad(x, ((0, fill), *((0, 0) for _ in own)))
        return x.reshape(count, width, *own)

    return jax.tree.map(cut, tree)


def from_tiles(tree, leading: tuple[int, ...]):
    """Inverts `in_tiles`."""
    tokens = math.prod(leading)

    def join(x):
        own = x.shape[2:]
        return x.reshape(-1, *own)[:tokens].reshape(*leading, *own)

    return jax.tree.map(join, tree)
