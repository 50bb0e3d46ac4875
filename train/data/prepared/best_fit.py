"""Packs by best-fit decreasing over counts of equal lengths.

Pieces of one length are alike, and so are rows with the same room and content. So a million
pieces take as many steps as there are different lengths and rooms, not a million.
"""

from typing import NamedTuple

import numpy as np

_BITS = 10
_MASK = (1 << _BITS) - 1


class _Filling(NamedTuple):
    """Describes rows with equal content: the last pieces put in, and the filling before them."""

    size: int
    copies: int
    before: "_Filling | None"


def best_fit_rows(sizes: np.ndarray, row: int) -> np.ndarray:
    """Returns the row of each piece.

    Longest first, each piece goes to a row with the least room that is enough, or to a new one.

    Args:
      sizes: sizes of the pieces, from 1 to `row`.
      row: room of a row.

    Returns:
      int64, from 0 on.
    """
    by_size = np.argsort(sizes, kind="stable")
    different, starts = np.unique(sizes[by_size], return_index=True)
    taken = dict(zip(different.tolist(), starts.tolist(), strict=True))
    rows = np.empty(len(sizes), np.int64)
    counts = np.diff(starts, append=len(sizes))
    first = 0
    for filling, alike in _fillings(different[::-1].tolist(), counts[::-1].tolist(), row):
        numbers = np.arange(first, first + alike)
        first += alike
        while filling is not None:
            size, copies, filling = filling
            start = taken[size]
            taken[size] = start + alike * copies
            rows[by_size[start : taken[size]]] = np.repeat(numbers, copies)
    return rows


def _fillings(sizes: list[int], counts: list[int], row: int) -> list[tuple[_Filling, int]]:
    """Returns the different fillings of rows, and how many rows have each; sizes must descend."""
    groups: dict[int, list[tuple[_Filling | None, int]]] = {}
    rooms = _Rooms(row)
    for size, count in zip(sizes, counts, strict=True):
        while count:
            room = rooms.smallest(size)
            if room is None:
                room, filling, alike = row, None, -(-count // (row // size))
            else:
                filling, alike = groups[room].pop()
            copies = room // size
            full = min(count // copies, alike)
            rest = min(count - full * copies, copies - 1) if full < alike else 0
            left = alike - full - bool(rest)
            for rows, more in ((full, copies), (int(rest > 0), rest), (left, 0)):
                if rows:
                    after = _Filling(size, more, filling) if more else filling
                    groups.setdefault(room - size * more, []).append((after, rows))
                    rooms.add(room - size * more)
            if not groups.get(room):
                rooms.remove(room)
            count -= full * copies + rest
    return [group for alike in groups.values() for group in alike]


class _Rooms:
    """Holds a set of sizes from 0 to `most`; two look-ups find the smallest sufficient one."""

    def __init__(self, most: int):
        self._words = [0] * ((most >> _BITS) + 1)
        self._filled = 0

    def add(self, size: int) -> None:
        self._words[size >> _BITS] |= 1 << (size & _MASK)
        self._filled |= 1 << (size >> _BITS)

    def remove(self, size: int) -> None:
        self._words[size >> _BITS] &= ~(1 << (size & _MASK))
        if not self._words[size >> _BITS]:
            self._filled &= ~(1 << (size >> _BITS))

    def smallest(self, size: int) -> int | None:
        """Returns the smallest member that is `size` or more, None if there is none."""
        word = size >> _BITS
        here = self._words[word] >> (size & _MASK)
        if here:
            return size + _lowest(here)
        above = self._filled >> (word + 1)
        if not above:
            return None
        word += 1 + _lowest(above)
        return (word << _BITS) + _lowest(self._words[word])


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
