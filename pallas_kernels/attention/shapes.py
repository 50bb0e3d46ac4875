"""Names the problem shapes of softmax attention that tests, report and benchmarks share."""

import dataclasses
from collections.abc import Sequence

from pallas_kernels.attention.problem import Problem
from pallas_kernels.attention.visibility import Visibility


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Says the sizes of causal bf16 attention of one sequence to itself.

    Attributes:
      kv_head_of_query: as in `attention`.
      kv_heads: K, with those that no query head reads.
    """

    tokens: int
    kv_head_of_query: tuple[int, ...]
    kv_heads: int
    head_size: int = 128
    window: int | None = None

    @property
    def heads(self) -> int:
        return len(self.kv_head_of_query)

    @property
    def read_heads(self) -> int:
        return len(set(self.kv_head_of_query))

    @property
    def units(self) -> int:
        return self.tokens * self.heads

    @property
    def visibility(self) -> Visibility:
        return Visibility(causal=True, window=self.window)

    @property
    def problem(self) -> Problem:
        return Problem(
            T=self.tokens,
            S=self.tokens,
            H=self.head_size,
            K=self.kv_heads,
            dtype="bfloat16",
            visibility=self.visibility,
            segments=False,
            q_start=0,
            kv_head_of_query=self.kv_head_of_query,
            scale=self.head_size**-0.5,
        )

    def __str__(self) -> str:
        heads = f"N{self.heads}" + (f" K{self.kv_heads}" if self.kv_heads != self.heads else "")
        if not self.problem.is_regular:
            heads += " (" + ",".join(map(str, self.kv_head_of_query)) + ")"
        return f"T{self.tokens} {heads} H{self.head_size}" + (
            f" W{self.window}" if self.window else ""
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeShape:
    """Says the sizes of one decode step over full caches.

    Attributes:
      rows: number B of rows, each with a full cache.
      sequence: tokens of a row's cache and its heads.
    """

    sequence: Shape
    rows: int = 8

    @property
    def tokens(self) -> int:
        return self.sequence.tokens

    @property
    def units(self) -> int:
        return self.rows * self.sequence.heads

    @property
    def seen(self) -> int:
        return min(self.tokens, self.sequence.window or self.tokens)

    def __str__(self) -> str:
        return f"B{self.rows} {self.sequence}"


def regular_shape(tokens: int, heads: int, kv_heads: int, **others) -> Shape:
    """Makes a shape whose query head n reads KV head n // (heads / kv_heads)."""
    group = max(1, heads // kv_heads)
    heads_map = tuple(n // group for n in range(heads))
    return Shape(tokens=tokens, kv_head_of_query=heads_map, kv_heads=kv_heads, **others)


def four_of_sixteen(tokens: int, **others) -> Shape:
    """Makes a shape of 4 of 16 query heads, of which two each read one of 8 KV heads."""
    return Shape(tokens=tokens, kv_head_of_query=(0, 0, 2, 5), kv_heads=8, **others)


TOKENS = (8192, 32768)
HEADS = (16,)
SHORT = regular_shape(TOKENS[0], 16, 16)
SMALL = Shape(tokens=256, kv_head_of_query=(0, 0, 2), kv_heads=4, head_size=16)
"""Runs on a CPU in a moment; its heads are irregular."""


def shapes(
    tokens: Sequence[int] = TOKENS,
    heads: Sequence[int] = HEADS,
    groups: Sequence[int] = (1,),
    window: Sequence[int | None] = (None,),
    head_size: int = 128,
) -> list[Shape]:
    """Returns every combination of regular heads; by default the production shapes.

    Args:
      groups: query heads per KV head.
    """
    return [
        regular_shape(length, count, count // group, window=width, head_size=head_size)
        for width in window
        for group in groups
        for length in tokens
        for count in heads
    ]


def irregular_shapes(
    tokens: Sequence[int] = TOKENS, window: Sequence[int | None] = (None,), head_size: int = 128
) -> list[Shape]:
    """Returns every combination of `four_of_sixteen`."""
    return [
        four_of_sixteen(length, window=width, head_size=head_size)
        for width in window
        for length in tokens
    ]
