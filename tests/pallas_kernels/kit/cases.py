"""Makes what the cases of all ops share: their dtypes, and how documents lie in a row."""

import dataclasses
from typing import Literal

import numpy as np
import pytest

Segments = Literal["one", "packed", "left padding", "middle padding", "right padding", "mixed"]
PADDED = ("packed", "left padding", "middle padding", "right padding", "mixed")


def in_dtype(case, dtype: str):
    return dataclasses.replace(case, dtype=dtype)


def both(cases) -> tuple:
    """Returns the cases in float32, and the same in bfloat16."""
    cases = tuple(cases)
    return tuple(in_dtype(case, dtype) for dtype in ("float32", "bfloat16") for case in cases)


def some_heavy(cases, is_heavy) -> list:
    """Returns the cases for `parametrize`; those that `is_heavy` picks run in `make test-heavy`."""
    return [
        pytest.param(case, marks=pytest.mark.heavy) if is_heavy(case) else case for case in cases
    ]


def segment_ids(kind: Segments, batch: int, length: int) -> np.ndarray:
    """Returns ids [B, T]. Borders fall inside chunks; rows differ; id 0 is padding."""
    rows = []
    for row in range(batch):
        ids = np.ones(length, int)
        cut, late = length // 3 + row, 2 * length // 3 + 3 * row
        if kind in ("packed", "mixed"):
            ids[cut:] = 2
            ids[late:] = 3
        if kind == "left padding":
            ids[:cut] = 0
        if kind == "middle padding":
            ids[cut:late] = 0
        if kind == "right padding":
            ids[late:] = 0
        if kind == "mixed":
            ids[: 2 + row] = 0
            ids[cut - 2 : cut + 1] = 0
            ids[late + 4 : late + 6] = 0
            ids[length - 5 :] = 0
        rows.append(ids)
    return np.stack(rows)
