"""Says the mean and the range of several runs."""

from collections.abc import Sequence

import numpy as np


def spread(values: Sequence[float | None], form: str) -> str:
    """Returns the mean and the range, such as "43 (0 to 98)"; the mean alone if all are equal."""
    if None in values:
        return "not finite"
    low, high = form.format(min(values)), form.format(max(values))
    mean = form.format(np.mean(values))
    return mean if low == high else f"{mean} ({low} to {high})"
