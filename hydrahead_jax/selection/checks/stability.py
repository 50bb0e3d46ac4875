"""Checks whether other pairs, or other lengths, would have named the same heads."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from hydrahead_jax.errors import UserError
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.scores import HeadScores, head_scores
from hydrahead_jax.selection.scores.statistics import MIN_RANKED, rank_correlation


@dataclasses.dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """Says how often and at what lengths heads are scored again.

    Attributes:
      pairs: how many pairs a sub-probe is scored with; more than are usable are left out.
      draws: how many draws of that many pairs, and of halves.
      lengths: document lengths, in tokens, at which the heads are scored once more.
      seed: seed of the draws.
    """

    pairs: tuple[int, ...] = (1, 2, 3, 6, 12, 24)
    draws: int = 5
    lengths: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self):
        if min((self.draws, *self.pairs, *self.lengths)) < 1 or self.seed < 0:
            raise UserError(
                f"stability needs at least one draw, pair and token, and a seed of at least 0; it "
                f"has {self}"
            )


class Agreement(NamedTuple):
    """Says how alike two fused scores of the same heads are; None where nothing can be compared.

    Attributes:
      spearman_critical: rank correlation over the heads that are critical with all pairs.
      spearman_all: rank correlation over all softmax heads.
      jaccard: Jaccard index of the best heads by either score, as many as are critical with all
        pairs.
    """

    spearman_critical: float | None
    spearman_all: float | None
    jaccard: float | None


def agreement(
    one: HeadScores, other: HeadScores, critical_LN: Bool[np.ndarray, "L N"], seed: int = 0
) -> Agreement:
    """Compares the fused scores.

    Ties among the best heads are broken by a random draw.
    """
    softmax_LN, count = one.softmax_LN, int(critical_LN.sum())
    best, others_best = (
        _best(scores.score_LN[softmax_LN], count, [seed, i])
        for i, scores in enumerate((one, other))
    )
    return Agreement(
        spearman_critical=rank_correlation(one.score_LN[critical_LN], other.score_LN[critical_LN]),
        spearman_all=rank_correlation(one.score_LN[softmax_LN], other.score_LN[softmax_LN]),
        jaccard=len(best & others_best) / len(best | others_best) if count else None,
    )


def stability(
    probes: Sequence[SubProbe],
    effects: Sequence[PairEffects],
    softmax_LN: Bool[np.ndarray, "L N"],
    settings: StabilitySettings = StabilitySettings(),
    at_lengths: dict[int, HeadScores] | None = None,
) -> dict[str, Any]:
    """Measures how much the fused score depends on which pairs, how many, and how long.

    Args:
      probes: sub-probes of a selection.
      effects: effects on each sub-probe.
      softmax_LN: heads that are scored.
      settings: see `StabilitySettings`.
      at_lengths: scores of the same heads from documents of other lengths.

    Returns:
      The results as JSON: "usable_pairs" of the sub-probe that has fewest, "critical_heads" with
      all pairs, "draws", "reasons" why numbers are None, and three lists of rows. Each row has the
      numbers of `Agreement` as {"mean", "low", "high"} over the draws. "over_pairs": a draw of
      "pairs" from each sub-probe against all pairs. "split_half": a random half, of "pairs",
      against the other. "over_length": documents of "length" against those of the selection.
    """
    rng = np.random.default_rng(settings.seed)
    everything = head_scores(probes, effects, softmax_LN)
    critical_LN = everything.critical_LN
    usable = min(len(e.clean_B) for e in effects)

    def drawn(*sizes: int) -> list[HeadScores]:
        """Returns scores from so many pairs of each sub-probe, no pair in two of them."""
        orders = [rng.permutation(len(e.clean_B)) for e in effects]
        return [
            head_scores(
                probes,
                [_take(e, o[end - size : end]) for e, o in zip(effects, orders, strict=True)],
                softmax_LN,
            )
            for size, end in zip(sizes, np.cumsum(sizes), strict=True)
        ]

    draws, half = range(settings.draws), usable // 2
    compare = lambda one, other, draw=0: agreement(one, other, critical_LN, draw)
    with_all = lambda count: [compare(*drawn(count), everything, draw) for draw in draws]
    halves = [compare(*drawn(half, half), draw) for draw in draws if half]
    return {
        "usable_pairs": usable,
        "critical_heads": int(critical_LN.sum()),
        "draws": settings.draws,
        "reasons": _reasons(everything, critical_LN),
        "over_pairs": [
            {"pairs": count, **_spread(with_all(count))}
            for count in sorted({count for count in settings.pairs if count <= usable})
        ],
        "split_half": [{"pairs": half, **_spread(halves)}] if half else [],
        "over_length": [
            {"length": length, **_spread([compare(scores, everything)])}
            for length, scores in sorted((at_lengths or {}).items())
        ],
    }


def _take(effects: PairEffects, rows: np.ndarray) -> PairEffects:
    arrays = {name: value[rows] for name, value in effects._asdict().items() if np.ndim(value)}
    return effects._replace(**arrays)


def _best(score_X: np.ndarray, count: int, seed: list[int]) -> set[int]:
    drawn_X = np.random.default_rng(seed).random(len(score_X))
    return set(np.lexsort((drawn_X, -score_X))[:count].tolist())


def _spread(agreements: list[Agreement]) -> dict[str, dict[str, float] | None]:
    columns = zip(Agreement._fields, zip(*agreements, strict=True), strict=True)
    return {name: _mean_and_range(values) for name, values in columns}


def _mean_and_range(values: tuple[float | None, ...]) -> dict[str, float] | None:
    found = [value for value in values if value is not None]
    if not found:
        return None
    return {"mean": float(np.mean(found)), "low": min(found), "high": max(found)}


def _reasons(scores: HeadScores, critical_LN: np.ndarray) -> list[str]:
    count, heads = int(critical_LN.sum()), int(scores.softmax_LN.sum())
    reasons = []
    if count < MIN_RANKED:
        reasons.append(
            f"{count} of {heads} heads are critical with all pairs: a rank correlation over them "
            f"needs {MIN_RANKED}"
        )
    if np.ptp(scores.score_LN[scores.softmax_LN]) == 0:
        reasons.append("all heads have the same score: there is no order to compare")
    return reasons
