"""Cuts batches of one size, so that a jitted function compiles once."""

from collections.abc import Iterator

import numpy as np


def padded_batches(
    arrays: tuple[np.ndarray, ...], size: int, *, fill: int | None = None
) -> Iterator[tuple[tuple[np.ndarray, ...], int]]:
    """Yields rows in batches of `size`, the last padded by repeating its last row.

    With fewer rows than `size` the batch is no larger than the rows, rounded up to a multiple of
    `fill` if that is given. Yields the arrays and the number of rows that are not padding.
    """
    total = len(arrays[0])
    size = min(size, -(-total // (fill or 1)) * (fill or 1))
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        yield tuple(array[rows] for array in arrays), min(size, total - start)
