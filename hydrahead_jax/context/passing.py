"""Passes recurrent states from rank to rank, by composing what each chunk does to them.

The maps of all chunks before a rank's own are composed by a prefix scan over the ranks (Hillis and
Steele, doi 10.1145/7902.7903).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from hydrahead_jax.context.ranks import along, of_rank


def pass_states(maps: list, state, axis: str, *, identity, apply: Callable, name: str):
    """Returns the states that enter a rank's chunks, and the final one.

    Args:
      maps: what each of the rank's chunks does to a state, a tree of arrays; one or two chunks.
      state: before the row's first token, the same on all ranks of `axis`.
      identity: the map that changes nothing.
      apply: (map, state) -> state, and (map, earlier map) -> map, which composes the two.
      name: what policies of `jax.checkpoint` call the maps that ranks receive.
    """
    last = jax.lax.axis_size(axis) - 1
    entering = []
    for own, way, end in zip(maps, (1, -1), (last, 0), strict=False):
        before = _all_before(own, axis, way, identity, apply, name)
        entering.append(apply(before, state))
        state = of_rank(apply(own, entering[-1]), axis, end)
    return entering, state


def _all_before(own, axis: str, way: int, identity, apply: Callable, name: str):
    """Composes the maps of all ranks before; those are below (`way` 1) or above (-1)."""
    R, rank = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    place = rank if way == 1 else R - 1 - rank
    receive = lambda tree, steps: checkpoint_name(along(tree, axis, steps), name)
    choose = lambda where, x, y: jax.tree.map(lambda a, b: jnp.where(where, a, b), x, y)
    before = choose(place == 0, identity, receive(own, way))
    for distance in (1 << n for n in range((R - 1).bit_length())):
        longer = apply(before, receive(before, way * distance))
        before = choose(place >= distance, longer, before)
    return before
