"""Groups query heads by the KV head that they read."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


class Group(NamedTuple):
    """Groups KV heads that are read by equally many query heads.

    Attributes:
      kv: the U KV heads.
      queries: the R query heads of each, those of one KV head after those of the other.
    """

    kv: tuple[int, ...]
    queries: tuple[int, ...]


def head_groups(kv_head_of_query: tuple[int, ...]) -> tuple[Group, ...]:
    """Groups all KV heads that some query head reads; one group where the map is regular."""
    readers: dict[int, tuple[int, ...]] = {}
    for query, kv in enumerate(kv_head_of_query):
        readers[kv] = (*readers.get(kv, ()), query)
    groups = []
    for size in sorted({len(queries) for queries in readers.values()}):
        kv = tuple(sorted(kv for kv, queries in readers.items() if len(queries) == size))
        groups.append(Group(kv, sum((readers[head] for head in kv), ())))
    return tuple(groups)


def pick_heads(x, heads: tuple[int, ...]):
    """Returns heads of axis 2 in the order given; `x` itself where that changes nothing."""
    return x if heads == tuple(range(x.shape[2])) else jnp.take(x, np.array(heads), axis=2)


def place_heads(parts: list, heads: list[tuple[int, ...]], total: int):
    """Inverts `pick_heads`: puts each part at its heads of `total`, and zeros at the others."""
    joined = jnp.concatenate(parts, axis=2) if len(parts) > 1 else parts[0]
    order = sum(heads, ())
    if order == tuple(range(total)):
        return joined
    if len(order) < total:
        joined = jnp.pad(joined, [(0, int(axis == 2)) for axis in range(joined.ndim)])
    source = np.full(total, len(order))
    source[list(order)] = np.arange(len(order))
    return jnp.take(joined, source, axis=2)
