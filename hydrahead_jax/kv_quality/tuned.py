"""Tunes UltraQuant's c for the keys and the values of each layer."""

from collections.abc import Sequence

import numpy as np

from hydrahead_jax.cache.by_layer import IS_ROTATED, SIDES
from pallas_kernels.kv_cache.ultraquant import UltraQuant


def sides(side: str, c_grid: Sequence[float]) -> tuple[UltraQuant, ...]:
    """Returns UltraQuant's format of keys, or of values, with each c."""
    return tuple(UltraQuant(c=c, rotated=IS_ROTATED[side]) for c in c_grid)


def tune(layers: Sequence[dict], c_grid: Sequence[float]) -> list[dict]:
    """Returns for each layer and side the relative squared error of each c, and the best c.

    Args:
      layers: sums of `measure_vectors`.
      c_grid: what they were made with.
    """
    return [
        {"layer": layer["layer"], **{side: _tuned(layer["heads"], side, c_grid) for side in SIDES}}
        for layer in layers
    ]


def _tuned(heads: Sequence[dict], side: str, c_grid: Sequence[float]) -> dict:
    power = sum(sum(head["channels"][side]) for head in heads)
    error_X = np.sum([head["c_grid"][side] for head in heads], axis=0) / (power or 1.0)
    best = int(np.argmin(error_X))
    return {
        "c": c_grid[best],
        "relative_mse": float(error_X[best]),
        "by_c": {str(c): float(error) for c, error in zip(c_grid, error_X, strict=True)},
    }


def gain(tuned: Sequence[dict], c: float) -> dict[str, float] | None:
    """Returns the share of the squared error at one c for all layers that tuning removes.

    It is the mean over layers, for keys and for values; None if c was not tried.
    """
    if any(str(c) not in layer[side]["by_c"] for layer in tuned for side in SIDES):
        return None
    saved = lambda of: 1 - of["relative_mse"] / of["by_c"][str(c)] if of["by_c"][str(c)] else 0.0
    return {side: float(np.mean([saved(layer[side]) for layer in tuned])) for side in SIDES}


def best_c(tuned: Sequence[dict]) -> dict[int, dict[str, float]]:
    """Returns the best c of the keys and the values of each layer."""
    return {layer["layer"]: {side: layer[side]["c"] for side in SIDES} for layer in tuned}
