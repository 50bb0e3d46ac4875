"""Names the problem shapes of the gated delta rule that tests, report and benchmarks share."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Says the sizes of one bf16 sequence: `tokens`, value `heads`, `key_heads`, one head size."""

    tokens: int
    heads: int
    key_heads: int
    head_size: int = 128

    @property
    def units(self) -> int:
        return self.tokens * self.heads

    def __str__(self) -> str:
        grouped = f" K{self.key_heads}" if self.key_heads != self.heads else ""
        return f"T{self.tokens} N{self.heads}{grouped} H{self.head_size}"


TOKENS = (8192, 32768)
HEADS = (16, 32)
SHORT = Shape(tokens=TOKENS[0], heads=16, key_heads=16)
LONG = Shape(tokens=TOKENS[-1], heads=32, key_heads=16)
SMALL = Shape(tokens=64, heads=2, key_heads=1, head_size=16)
"""Runs on a CPU in a moment."""


def shapes(
    tokens: Sequence[int] = TOKENS,
    heads: Sequence[int] = HEADS,
    groups: Sequence[int] = (1,),
    head_size: int = 128,
) -> list[Shape]:
    """Returns every combination; by default the production shapes.

    Args:
      groups: value heads per key head.
    """
    return [
        Shape(tokens=length, heads=count, key_heads=count // group, head_size=head_size)
        for group in groups
        for length in tokens
        for count in heads
    ]
