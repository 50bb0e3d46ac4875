"""Checks plans: every token once, no row too full, as full as best-fit decreasing makes them."""

import bisect

import numpy as np
import pytest

from train.data.prepared import folder
from train.data.prepared.best_fit import best_fit_rows
from train.data.prepared.packing import make_plan, shuffled

LENGTHS = {
    "like text": lambda rng: np.clip(rng.lognormal(4, 1.2, 700), 1, 3000),
    "all alike": lambda rng: np.full(100, 30),
    "as long as a row": lambda rng: np.full(20, 64),
    "short": lambda rng: rng.integers(1, 4, 500),
    "one": lambda rng: [1],
    "one long": lambda rng: [1000],
}


def lengths_of(name: str) -> np.ndarray:
    return np.asarray(LENGTHS[name](np.random.default_rng(0))).astype(np.uint32)


def definition(sizes: np.ndarray, row: int) -> list[int]:
    """Returns the room left in the rows of best-fit decreasing, by its definition; ascending."""
    rooms: list[int] = []
    for size in sorted(sizes.tolist(), reverse=True):
        at = bisect.bisect_left(rooms, size)
        bisect.insort(rooms, (rooms.pop(at) if at < len(rooms) else row) - size)
    return rooms


@pytest.mark.parametrize("row", [64, 100, 2048, 5000])
@pytest.mark.parametrize("name", LENGTHS)
def test_rows_are_those_of_best_fit_decreasing(name, row):
    sizes = np.minimum(lengths_of(name).astype(int), row)
    rows = best_fit_rows(sizes, row)
    filled = np.bincount(rows, weights=sizes).astype(int)
    assert sorted(row - filled) == definition(sizes, row)


@pytest.mark.parametrize("record_tokens", [8192, 37])
@pytest.mark.parametrize("packing", ["best_fit", "split"])
@pytest.mark.parametrize("name", LENGTHS)
def test_plan_holds_every_token_once(name, packing, record_tokens, monkeypatch):
    monkeypatch.setattr(folder, "RECORD_TOKENS", record_tokens)
    lengths, row = lengths_of(name), 64
    plan = make_plan(lengths, row, packing)
    records = -(-lengths.astype(int) // record_tokens)
    first = np.cumsum(records) - records
    seen = np.zeros((len(lengths), lengths.max()), int)
    for record, start, length in plan.pieces.tolist():
        document = int(np.searchsorted(first, record, side="right")) - 1
        start += (record - first[document]) * record_tokens
        seen[document, start : start + length] += 1
    assert (seen == (np.arange(lengths.max()) < lengths[:, None])).all()
    assert plan.first[0] == 0 and plan.first[-1] == len(plan.pieces)


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_of_best_fit(name):
    lengths, row = lengths_of(name), 64
    plan = make_plan(lengths, row, "best_fit")
    filled = np.add.reduceat(plan.pieces["length"], plan.first[:-1])
    assert (np.diff(plan.first) > 0).all() and filled.max() <= row
    wanted = [size for n in lengths.tolist() for size in [row] * (n // row) + [n % row] if size]
    assert sorted(plan.pieces["length"].tolist()) == sorted(wanted), "only long documents are cut"


@pytest.mark.parametrize("name", LENGTHS)
def test_rows_of_split(name):
    lengths, row = lengths_of(name), 64
    plan = make_plan(lengths, row, "split")
    filled = np.add.reduceat(plan.pieces["length"], plan.first[:-1])
    assert (filled[:-1] == row).all() and 0 < filled[-1] <= row
    assert len(plan.pieces) <= len(lengths) + plan.rows


def test_the_fixed_order_stays_fixed():
    """In another process and with other versions a run's rows are the same."""
    assert sorted(shuffled(1000).tolist()) == list(range(1000))
    assert shuffled(8).tolist() == [3, 5, 7, 4, 1, 2, 6, 0]
    plan = make_plan(np.array([5, 3, 9, 2, 1, 4]), 6, "best_fit")
    assert plan.pieces.tolist() == [
        (2, 0, 6),
        (1, 0, 3),
        (2, 6, 3),
        (3, 0, 2),
        (5, 0, 4),
        (4, 0, 1),
        (0, 0, 5),
    ]
