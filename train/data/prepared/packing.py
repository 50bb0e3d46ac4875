"""Plans which stretch of which document goes into which row, from lengths alone."""

from typing import Literal, NamedTuple

import numpy as np

from train.data.prepared.best_fit import best_fit_rows
from train.data.prepared.folder import document_pieces

Packing = Literal["best_fit", "split"]


class Plan(NamedTuple):
    """Assigns every token of every document to a row, once.

    Attributes:
      pieces: PIECE, row after row.
      first: int64, the first piece of each row, and at the end how many pieces there are.
    """

    pieces: np.ndarray
    first: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.first) - 1


def make_plan(lengths: np.ndarray, row: int, packing: Packing) -> Plan:
    """Plans rows of at most `row` tokens from documents of those lengths.

    Documents are taken in a fixed shuffled order. "best_fit" cuts only documents that are longer
    than a row, each into full rows and a rest. It puts the rests and the short documents, longest
    first, where the least room is left, and leaves padding. "split" joins all documents and cuts
    the result at every `row` tokens; only the last row has padding.
    """
    lengths = np.asarray(lengths, np.int64)
    order = shuffled(len(lengths))
    return (_best_fit if packing == "best_fit" else _split)(lengths, order, row)


def shuffled(count: int) -> np.ndarray:
    """Returns a fixed permutation.

    It uses no library's generator, because another version could change that.
    """
    x = np.arange(count, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


def _split(lengths: np.ndarray, order: np.ndarray, row: int) -> Plan:
    ends = np.cumsum(lengths[order])
    begins = ends - lengths[order]
    counts = (ends - 1) // row - begins // row + 1
    rows = np.repeat(begins // row, counts) + _numbered(counts)
    starts = np.maximum(np.repeat(begins, counts), rows * row)
    sizes = np.minimum(np.repeat(ends, counts), (rows + 1) * row) - starts
    offsets = starts - np.repeat(begins, counts)
    pieces = document_pieces(lengths, np.repeat(order, counts), offsets, sizes)
    return Plan(pieces, _first_of_rows(rows))


def _best_fit(lengths: np.ndarray, order: np.ndarray, row: int) -> Plan:
    counts = -(-lengths[order] // row)
    documents = np.repeat(order, counts)
    offsets = _numbered(counts) * row
    sizes = np.minimum(lengths[documents] - offsets, row)
    rows = best_fit_rows(sizes, row)
    by_row = np.argsort(rows, kind="stable")
    pieces = document_pieces(lengths, documents[by_row], offsets[by_row], sizes[by_row])
    return Plan(pieces, _first_of_rows(rows[by_row]))


def _numbered(counts: np.ndarray) -> np.ndarray:
    """Returns 0 to counts[0] - 1, then 0 to counts[1] - 1, and so on."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _first_of_rows(rows: np.ndarray) -> np.ndarray:
    """Returns `Plan.first` from the row of each piece, in ascending order."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows))])
