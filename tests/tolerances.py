"""Defines how far two results may be apart. To loosen a bound needs a reason in the commit.

Ratios are rms(actual - expected) / rms(expected); the expected value is computed in float64.
"""

from typing import NamedTuple

import numpy as np

OP = 1e-5
MODULE = 1e-4


class KernelTolerance(NamedTuple):
    """Holds the largest errors that a kernel may have.

    Attributes:
      forward: ratio of the output and of the final state.
      gradient: ratio of the gradients of q, k, v and the initial state.
      gate_gradient: ratio of the gradients of log_decay and beta.
      gate_cosine: least cosine between the actual and the expected gate gradients.
    """

    forward: float
    gradient: float
    gate_gradient: float
    gate_cosine: float


KERNEL = {
    "float32": KernelTolerance(1e-5, 1e-4, 1e-4, 0.999),
    "bfloat16": KernelTolerance(0.005, 0.008, 0.02, 0.999),
}


def rms(x) -> float:
    x = np.asarray(x, np.float64)
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def error_ratio(actual, expected) -> float:
    """Returns rms(actual - expected) / rms(expected).

    Where all of `expected` is zero it returns rms(actual).
    """
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    return rms(actual - expected) / (rms(expected) or 1.0)


def cosine(actual, expected) -> float:
    actual, expected = (np.asarray(x, np.float64).ravel() for x in (actual, expected))
    norms = np.linalg.norm(actual) * np.linalg.norm(expected)
    return float(actual @ expected / norms) if norms else 1.0


def assert_close(actual, expected, tolerance: float) -> None:
    """Checks that no difference exceeds `tolerance` times the largest of `expected` and 1."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    assert actual.shape == expected.shape
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    difference = float(np.max(np.abs(actual - expected), initial=0.0))
    assert difference <= tolerance * scale, f"{difference} apart at scale {scale}"
