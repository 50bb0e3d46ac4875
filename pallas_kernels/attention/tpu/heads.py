"""Says in which order the kernels visit the heads."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """Lists the query heads at the places of the grid, group by group.

    Attributes:
      groups: how many groups there are; they may run on different cores.
      query_heads: the query head at each place.
      kv_heads: the KV head that it reads.
      slots: the place of that KV head among those that are read.
    """

    groups: int
    query_heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    slots: tuple[int, ...]

    @property
    def heads_a_group(self) -> int:
        return len(self.query_heads) // self.groups


def in_order(kv_head_of_query: tuple[int, ...]) -> Heads:
    """Makes each head a group of its own."""
    N = len(kv_head_of_query)
    return _heads(N, range(N), kv_head_of_query)


def by_kv_head(kv_head_of_query: tuple[int, ...]) -> Heads:
    """Puts heads of one KV head side by side.

    The heads are in as many groups of equal size as keep the heads of one KV head together.
    """
    N = len(kv_head_of_query)
    sizes = (size for size in range(1, N + 1) if N % size == 0)
    groups = next(filter(None, (_groups(kv_head_of_query, size) for size in sizes)))
    return _heads(len(groups), [n for group in groups for n in group], kv_head_of_query)


def _groups(kv_head_of_query, size: int) -> list[list[int]] | None:
    """Returns groups of `size` query heads; None if greedy placement leaves some places open."""
    readers = {kv: [] for kv in used(kv_head_of_query)}
    for query, kv in enumerate(kv_head_of_query):
        readers[kv].append(query)
    groups = [[] for _ in range(len(kv_head_of_query) // size)]
    for queries in sorted(readers.values(), key=len, reverse=True):
        group = next((x for x in groups if len(x) + len(queries) <= size), None)
        if group is None:
            return None
        group += queries
    return groups


def used(kv_head_of_query: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the KV heads that some query head reads."""
    return tuple(sorted(set(kv_head_of_query)))


def _heads(groups: int, order, kv_head_of_query) -> Heads:
    kv_heads = tuple(kv_head_of_query[n] for n in order)
    slots = tuple(used(kv_head_of_query).index(head) for head in kv_heads)
    return Heads(groups=groups, query_heads=tuple(order), kv_heads=kv_heads, slots=slots)
