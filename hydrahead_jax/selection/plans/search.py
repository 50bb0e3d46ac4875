"""Finds the best sets of heads for every number of KV heads, by exact dynamic programming."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hydrahead_jax.selection.scores.ranking import Head

_NONE = -(2**62)
_ROWS = 32


class _Option(NamedTuple):
    """Says what a layer may do: keep `heads` heads on `kv_heads` KV heads, worth `value` at best.

    `counted` is how much they use of the plan's number of heads, in units of the search.
    """

    kv_heads: int
    heads: int
    counted: int
    value: int


class PlanSearch:
    """Finds the sets of `heads` heads of the most value for each number of KV heads.

    Within a KV head the best query heads come first, so a table of (KV heads, heads) of a layer
    grows KV head by KV head, and the table of the model layer by layer. Values are integers, so the
    search is exact. It stores L tables of at most max_kv x heads numbers of 8 bytes.

    Attributes:
      best_X: most value of a set that reads at most X KV heads, X from 0 to max_kv; below 0
        where there is no such set.
    """

    def __init__(
        self,
        values: Sequence[Sequence[dict[int, int]]],
        counts: Sequence[int],
        heads: int | None,
        max_kv: int,
    ):
        """Fills the tables.

        Args:
          values: for each layer and each of its KV heads, the value of every query head that may be
            chosen: integers >= 0, in all below 2^61.
          counts: how many heads a layer may keep.
          heads: how many are chosen in all layers together; None leaves the number open.
          max_kv: KV heads that may be read.
        """
        self._values = values
        unit = 1 if heads is None else math.gcd(*counts) or 1
        self._goal = 0 if heads is None else heads // unit
        self._options = [
            list(_options(_layer_tables(layer)[-1], counts, None if heads is None else unit))
            for layer in values
        ]
        if heads is not None and heads % unit:
            self.best_X = np.full(max_kv + 1, _NONE, np.int64)
            return
        self._tables = [np.zeros((1, 1), np.int64)]
        for options in self._options:
            self._tables.append(_add_layer(self._tables[-1], options, max_kv, self._goal))
        last_XF = self._tables[-1]
        reached = last_XF.shape[1] > self._goal
        best_X = last_XF[:, self._goal] if reached else np.full(len(last_XF), _NONE)
        best_X = np.pad(best_X, (0, max_kv + 1 - len(best_X)), constant_values=_NONE)
        self.best_X = np.maximum.accumulate(best_X)

    def heads(self, kv_heads: int, rng: np.random.Generator) -> list[Head]:
        """Returns a set worth best_X[kv_heads]; `rng` draws among several of that value.

        Raises:
          ValueError: there is none.
        """
        target = int(self.best_X[kv_heads])
        if target < 0:
            raise ValueError(f"no set of heads reads at most {kv_heads} KV heads")
        kv = int(np.flatnonzero(self._tables[-1][:, self._goal] == target)[0])
        counted, chosen = self._goal, []
        for layer in reversed(range(len(self._values))):
            before = self._tables[layer]
            fitting = [
                o
                for o in self._options[layer]
                if _at(before, kv - o.kv_heads, counted - o.counted) == target - o.value
            ]
            option = fitting[rng.integers(len(fitting))]
            chosen += [(layer, head) for head in _traced(self._values[layer], option, rng)]
            kv, counted = kv - option.kv_heads, counted - option.counted
            target -= option.value
        return sorted(chosen)


def _layer_tables(groups: Sequence[dict[int, int]]) -> list[Int[np.ndarray, "k n"]]:
    """Returns the most value of exactly n heads on exactly k of the first g KV heads.

    There is one table for each g = 0, 1, ...
    """
    heads = sum(len(group) for group in groups)
    table = np.full((len(groups) + 1, heads + 1), _NONE, np.int64)
    table[0, 0] = 0
    tables = [table]
    for group in groups:
        table = table.copy()
        for count, value in enumerate(_prefix_values(group), start=1):
            kept = tables[-1][:-1, :-count] + value
            np.maximum(table[1:, count:], kept, out=table[1:, count:])
        tables.append(table)
    return tables


def _prefix_values(group: dict[int, int]) -> list[int]:
    """Returns the value of the best head, of the best two, and so on."""
    return np.cumsum(sorted(group.values(), reverse=True), dtype=np.int64).tolist()


def _options(table: np.ndarray, counts: Sequence[int], unit: int | None) -> Iterator[_Option]:
    """Yields the options worth more than all with as many heads on fewer KV heads."""
    best: dict[int, int] = {}
    for kv_heads, row in enumerate(table):
        found: dict[int, _Option] = {}
        for heads in counts:
            value = int(row[heads]) if heads < len(row) else _NONE
            counted = 0 if unit is None else heads // unit
            if value > max(-1, best.get(counted, -1)):
                found[counted] = _Option(kv_heads, heads, counted, value)
                best[counted] = value
        yield from found.values()


def _add_layer(
    before: np.ndarray, options: list[_Option], max_kv: int, goal: int
) -> Int[np.ndarray, "k n"]:
    """Returns the table of the layers so far, from that without the last layer.

    Row blocks fit the processor's cache, and columns that no set reaches are left out.
    """
    rows = len(before) + max((o.kv_heads for o in options), default=0)
    columns = before.shape[1] + max((o.counted for o in options), default=0)
    table = np.full((min(rows, max_kv + 1), min(columns, goal + 1)), _NONE, np.int64)
    for first in range(0, len(before), _ROWS):
        block = before[first : first + _ROWS]
        reached = np.flatnonzero((block >= 0).any(axis=0))
        if not len(reached):
            continue
        block = block[:, reached[0] : reached[-1] + 1]
        height, width = block.shape
        for option in options:
            row, column = first + option.kv_heads, reached[0] + option.counted
            to = table[row : row + height, column : column + width]
            np.maximum(to, block[: to.shape[0], : to.shape[1]] + option.value, out=to)
    return table


def _traced(
    groups: Sequence[dict[int, int]], option: _Option, rng: np.random.Generator
) -> Iterator[int]:
    """Returns the heads of a layer behind an option."""
    tables = _layer_tables(groups)
    kv, heads, target = option.kv_heads, option.heads, option.value
    for group, before in zip(reversed(groups), reversed(tables[:-1]), strict=True):
        prefix = [0, *_prefix_values(group)]
        fitting = [
            c
            for c, value in enumerate(prefix)
            if _at(before, kv - (c > 0), heads - c) == target - value
        ]
        count = fitting[rng.integers(len(fitting))]
        order = sorted(rng.permutation(list(group)).tolist(), key=group.get, reverse=True)
        yield from order[:count]
        kv, heads, target = kv - (count > 0), heads - count, target - prefix[count]


def _at(table: np.ndarray, row: int, column: int) -> int:
    inside = 0 <= row < table.shape[0] and 0 <= column < table.shape[1]
    return int(table[row, column]) if inside else _NONE
