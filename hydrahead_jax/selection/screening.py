"""Says what attribution rules out, how reliable it is, and what it missed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hydrahead_jax.selection.scores.ranking import Head
from hydrahead_jax.selection.scores.statistics import THRESHOLD, rank_correlation

MARGIN = 0.1
_TOP = 0.1


def ruled_in(estimates_XLN: np.ndarray, heads: Sequence[Head]) -> list[Head]:
    """Returns heads whose estimated effect is somewhere at least a tenth of the threshold."""
    largest_LN = np.abs(estimates_XLN).max(axis=0)
    return [head for head in heads if largest_LN[head] >= MARGIN * THRESHOLD]


def sample(heads: Sequence[Head], count: int, seed: int) -> list[Head]:
    """Draws at most `count` heads by the seed."""
    drawn = np.random.default_rng(seed).permutation(len(heads))[:count]
    return [heads[i] for i in sorted(drawn)]


def missed_mass(effects_PLN: np.ndarray, drawn: Sequence[Head], out_of: int) -> dict[str, Any]:
    """Estimates what the ruled-out heads carry, from the sample of them that was patched.

    Args:
      effects_PLN: clamped mean effects on each sub-probe.
      drawn: the sample.
      out_of: heads that were ruled out.

    Returns:
      The numbers of heads, the estimated sum of their effects averaged over sub-probes, and the
      largest effect in the sample.
    """
    drawn_XP = np.array([effects_PLN[:, *head] for head in drawn])
    return {
        "ruled_out": out_of,
        "sampled": len(drawn),
        "estimated_mass": float(drawn_XP.mean() * out_of) if len(drawn) else 0.0,
        "largest_in_sample": float(drawn_XP.max()) if len(drawn) else 0.0,
    }


def agreement(exact: np.ndarray, estimate: np.ndarray) -> dict[str, Any]:
    """Says how well an estimate orders the same heads.

    It computes Spearman's rank correlation, and the share of the top tenth that is found. Heads
    where `exact` is nan are not compared; the numbers are None where fewer than three are, or all
    are equal.
    """
    measured = ~np.isnan(exact)
    exact, estimate = exact[measured], estimate[measured]
    top = max(1, round(_TOP * len(exact)))
    spearman = rank_correlation(exact, estimate)
    if spearman is None:
        return {"heads": len(exact), "spearman": None, "top": top, "overlap": None}
    best = lambda x: set(np.argsort(-x, kind="stable")[:top].tolist())
    return {
        "heads": len(exact),
        "spearman": spearman,
        "top": top,
        "overlap": len(best(exact) & best(estimate)) / top,
    }
