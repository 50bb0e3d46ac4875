"""Computes the numbers that head scores are made of."""

import numpy as np

THRESHOLD = 0.01
MIN_RANKED = 3
RESOLUTION = 1e-5  # smaller differences of effects and scores are rounding


def consistency(raw_PLN: np.ndarray) -> np.ndarray:
    """Returns kappa: the fraction of sub-probes in which |effect| is at least 0.01."""
    return (np.abs(raw_PLN) >= THRESHOLD).mean(axis=0)


def min_max(x_LN: np.ndarray, among_LN: np.ndarray) -> np.ndarray:
    """Brings the smallest value among some heads to 0 and the largest to 1.

    Values that differ by less than 1e-5 all become 0, and so do all other heads.
    """
    values = x_LN[among_LN]
    if not values.size or np.ptp(values) < RESOLUTION:
        return np.zeros(x_LN.shape)
    return np.where(among_LN, (x_LN - values.min()) / np.ptp(values), 0.0)


def gini(x: np.ndarray) -> float:
    """Returns the Gini coefficient of numbers >= 0.

    It is 0 for equal shares, 1 - 1/n where one has all, and 0 for all zeros.
    """
    n, total = len(x), x.sum()
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float(ranks @ np.sort(x) / (n * total)) if total > 0 else 0.0


def rank_correlation(a_X: np.ndarray, b_X: np.ndarray) -> float | None:
    """Returns Spearman's rank correlation.

    It is None where there are fewer than 3 numbers, or all of one side are equal.
    """
    if len(a_X) < MIN_RANKED or np.ptp(a_X) == 0 or np.ptp(b_X) == 0:
        return None
    from scipy.stats import spearmanr  # takes a second to import

    return float(spearmanr(a_X, b_X).statistic)
