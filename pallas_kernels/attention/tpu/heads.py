"""In which order the kernels visit the heads."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """Query heads at the places of the grid, group by group.

    Attributes:
      groups: which may run on different cores.
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
    """Each head a group of its own."""
    N = len(kv_head_of_query)
    return _heads(N, range(N), kv_head_of_query)


def by_kv_head(kv_head_of_query: tuple[int, ...]) -> Heads:
    """Heads of one KV head side by side: a group each if they are equally many, else one group."""
    N = len(kv_head_of_query)
    order = sorted(range(N), key=lambda n: kv_head_of_query[n])
    counts = {kv_head_of_query.count(head) for head in kv_head_of_query}
    groups = N // counts.pop() if len(counts) == 1 else 1
    return _heads(groups, order, kv_head_of_query)


def used(kv_head_of_query: tuple[int, ...]) -> tuple[int, ...]:
    """KV heads that some query head reads."""
    return tuple(sorted(set(kv_head_of_query)))


def _heads(groups: int, order, kv_head_of_query) -> Heads:
    kv_heads = tuple(kv_head_of_query[n] for n in order)
    slots = tuple(used(kv_head_of_query).index(head) for head in kv_heads)
    return Heads(groups=groups, query_heads=tuple(order), kv_heads=kv_heads, slots=slots)
