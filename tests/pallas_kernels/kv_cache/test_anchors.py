"""Compares the formats' errors on Gaussian vectors with numbers that others have measured."""

import functools
import math

import jax
import numpy as np
import pytest

from pallas_kernels.kv_cache.fp8 import Fp8
from pallas_kernels.kv_cache.int4 import Int4
from pallas_kernels.kv_cache.turboquant import LEVELS, MIDPOINTS, TurboQuant4
from pallas_kernels.kv_cache.ultraquant import UltraQuant


@functools.cache
def _compiled(side):
    return jax.jit(lambda x_XH: side.decode(side.encode(x_XH)))


def relative_error(side, x_XH) -> np.ndarray:
    """Returns the squared error of each vector over its squared norm."""
    x_XH = x_XH.astype(np.float32)
    error_XH = np.asarray(_compiled(side)(x_XH)) - x_XH
    return np.sum(error_XH**2, axis=-1) / np.sum(x_XH**2, axis=-1)


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (UltraQuant(c=0.156), 0.0168),
        (UltraQuant(c=0.20, rotated=False), 0.01256),
        (UltraQuant(c=2**-2.5, rotated=False), 0.0133),
        (TurboQuant4(), 0.0092),
        (Int4(), 0.00994),
        (Int4(group=32), 0.00612),
        (Fp8(), 0.0007),
    ],
    ids=str,
)
def test_relative_error_on_gaussian_vectors(side, expected):
    """The mean over scales of the data within a factor of 2; each counts alike."""
    rng = np.random.default_rng(0)
    scales = 2.0 ** (np.arange(16) / 16)
    errors = [relative_error(side, scale * rng.normal(size=(128, 128))).mean() for scale in scales]
    assert np.mean(errors) == pytest.approx(expected, rel=0.03)


def test_rotation_spreads_outliers():
    """Four channels of each vector are 12 to 30 times as large."""
    rng = np.random.default_rng(0)
    x_XBH = rng.normal(size=(8, 128, 128))
    x_XBH[..., [3, 40, 77, 101]] *= rng.uniform(12, 30, size=(8, 128, 4))
    found = [
        np.mean([relative_error(TurboQuant4(rotated, norm_corrected), x_BH) for x_BH in x_XBH])
        for rotated, norm_corrected in ((False, False), (False, True), (True, True))
    ]
    assert found == pytest.approx([0.337, 0.217, 0.0083], rel=0.03)


def test_levels_are_the_means_of_their_cells():
    """Lloyd's condition for a codebook of least squared error, on N(0, 1)."""
    density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    tail = lambda x: math.erfc(x / math.sqrt(2)) / 2
    for level, low, high in zip(LEVELS, (0, *MIDPOINTS), (*MIDPOINTS, 40), strict=True):
        mean = (density(low) - density(high)) / (tail(low) - tail(high))
        assert level == pytest.approx(mean, abs=1e-8)
