"""Names the problem shapes of slot attention that tests, report and benchmarks share."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Says the sizes of one bf16 sequence: `tokens`, query `heads`, `kv_heads`, `slots`, head size.

    Attributes:
      shift: positions that a token waits before it is written.
    """

    tokens: int
    heads: int
    kv_heads: int
    slots: int = 64
    shift: int = 32
    head_size: int = 128

    @property
    def units(self) -> int:
        return self.tokens * self.heads

    @property
    def kv_head_of_query(self) -> tuple[int, ...]:
        return tuple(head * self.kv_heads // self.heads for head in range(self.heads))

    def __str__(self) -> str:
        grouped = f" K{self.kv_heads}" if self.kv_heads != self.heads else ""
        return f"T{self.tokens} N{self.heads}{grouped} H{self.head_size} M{self.slots}"


TOKENS = (8192, 32768)
HEADS = (16,)
GROUPS = (1, 2)
SHORT = Shape(tokens=TOKENS[0], heads=16, kv_heads=8)
SMALL = Shape(tokens=64, heads=2, kv_heads=1, slots=16, shift=8, head_size=16)
"""Runs on a CPU in a moment."""


def shapes(
    tokens: Sequence[int] = TOKENS,
    heads: Sequence[int] = HEADS,
    groups: Sequence[int] = GROUPS,
    head_size: int = 128,
) -> list[Shape]:
    """Returns every combination; by default the production shapes.

    Args:
      groups: query heads per KV head.
    """
    return [
        Shape(tokens=length, heads=count, kv_heads=count // group, head_size=head_size)
        for group in groups
        for length in tokens
        for count in heads
    ]
