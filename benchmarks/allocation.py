"""Compares the cost and the score mass of plans by score alone and of KV-aware plans.

Command: `python -m benchmarks.allocation`. Scores are drawn for the shape of Qwen3-1.7B: 28 layers
of 16 query heads over 8 KV heads. Heads that share a KV head are drawn independently, though in
trained models they often matter together.
"""

import argparse
import logging
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hydrahead_jax.config import ModelConfig, qwen3
from hydrahead_jax.json_file import dumps
from hydrahead_jax.selection import HeadScores, allocate, budget, plan_cost, trade_off
from hydrahead_jax.selection.probes.retrieval import SubProbe
from hydrahead_jax.selection.scores.pair_effects import PairEffects
from hydrahead_jax.selection.scores.scores import head_scores
from pallas_kernels.report.provenance import provenance
from pallas_kernels.report.tables import markdown

RATIOS = ("3:1", "7:1")
BY_SCORE, NO_LOSS, WITHIN, OPEN = "by score", "no loss", "within 2 %", "75 % of the bytes"
SLACKS = {NO_LOSS: 0.0, WITHIN: 0.02}
BYTES = 0.75
SAVINGS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
RESULT = Path(__file__).parent / "results" / "allocation.json"


class Distribution(NamedTuple):
    """Describes a distribution; `effects` draws one effect for each sub-probe and head."""

    words: str
    effects: Callable[[np.random.Generator, tuple[int, int]], np.ndarray]


def _like_the_papers(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    head_LN = np.exp(1.5 * rng.normal(size=shape)) * 0.001
    probe_PLN = np.exp(0.5 * rng.normal(size=(7, *shape)) - 0.125)
    return np.clip(head_LN * probe_PLN, 0.0, 1.0)


def _scores_of(score_LN: np.ndarray) -> np.ndarray:
    """Returns effects whose scores are those given, from 0, which one head gets, to 1.

    The effects are above the threshold everywhere.
    """
    score_LN.flat[np.argmin(score_LN)] = 0.0
    return (0.01 + 0.99 * score_LN / score_LN.max())[None]


def _opposed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    strong_LN = np.tile([1.0, 0.0], (shape[0], shape[1] // 2))
    return _scores_of(strong_LN * rng.uniform(0.5, 1.0, shape) + rng.uniform(0.0, 0.1, shape))


DISTRIBUTIONS = {
    "like the paper's": Distribution(
        "effect of a head 0.001 exp(1.5 g), times exp(0.5 g - 0.125) in each of 7 sub-probes, "
        "g normal, at most 1",
        _like_the_papers,
    ),
    "long tail": Distribution(
        "score exp(1.5 g), g normal: the same without threshold and kappa",
        lambda rng, shape: _scores_of(np.exp(1.5 * rng.normal(size=shape))),
    ),
    "uniform": Distribution(
        "score uniform in [0, 1]", lambda rng, shape: _scores_of(rng.uniform(0.0, 1.0, shape))
    ),
    "nearly equal": Distribution(
        "score uniform in [0.9, 1], but for one head of 0",
        lambda rng, shape: _scores_of(rng.uniform(0.9, 1.0, shape)),
    ),
    "opposed": Distribution(
        "of the two heads of a KV head one scores uniform in [0.5, 1], both get uniform in "
        "[0, 0.1] on top",
        _opposed,
    ),
}


def drawn_scores(name: str, config: ModelConfig, seed: int) -> HeadScores:
    """Draws scores of one distribution."""
    rng = np.random.default_rng([seed, *name.encode()])
    effects_PLN = DISTRIBUTIONS[name].effects(rng, (config.layers, config.query_heads))
    one = np.ones(1)
    return head_scores(
        [SubProbe(name=f"probe {p}") for p in range(len(effects_PLN))],
        [PairEffects(x_LN[None], None, None, one, 0 * one, 0) for x_LN in effects_PLN],
        np.ones(effects_PLN.shape[1:], bool),
    )


def measure(name: str, ratio: str, seed: int, config: ModelConfig) -> dict[str, Any]:
    """Measures one draw: the costs of plans, and the trade-off with as many heads.

    The plans are the one by score alone, KV-aware ones with as many heads, and one with as many
    heads as the bytes allow.
    """
    scores, fa_heads = drawn_scores(name, config, seed), budget(config, ratio)
    plans = {BY_SCORE: allocate(scores, config, fa_heads=fa_heads, seed=seed)}
    began = time.process_time()
    for plan, slack in SLACKS.items():
        plans[plan] = allocate(scores, config, fa_heads=fa_heads, kv_slack=slack, seed=seed)
    seconds = (time.process_time() - began) / len(SLACKS)
    kv_bytes = int(BYTES * plans[BY_SCORE].kv_bytes_per_token(config))
    plans[OPEN] = allocate(scores, config, kv_bytes=kv_bytes, seed=seed)
    costs = {plan: plan_cost(scores, config, found)._asdict() for plan, found in plans.items()}
    curve = trade_off(scores, config, fa_heads=fa_heads)
    return {
        "distribution": name,
        "ratio": ratio,
        "seed": seed,
        "critical": int(scores.critical_LN.sum()),
        "convertible": int(scores.convertible_LN.sum()),
        "gini": float(scores.gini_L.mean()),
        "gini_range": [float(scores.gini_L.min()), float(scores.gini_L.max())],
        "cpu_seconds": round(seconds, 3),
        "plans": costs,
        "kept": _kept(curve, costs[BY_SCORE]),
    }


def _kept(curve, naive: dict[str, float]) -> dict[str, float | None]:
    """Returns the score mass that remains when a share of the KV heads is saved.

    It is relative to the score mass of the plan by score alone.
    """
    kept = {}
    for saving in SAVINGS:
        within = curve.kv_heads_X <= (1 - saving) * naive["kv_heads"]
        best = curve.score_mass_X[within].max() if within.any() else None
        kept[str(saving)] = None if best is None else float(best / naive["score_mass"])
    return kept


def cost_table(draws: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table: a line per distribution and ratio, means and ranges over draws."""
    names = ("scores", "ratio", "score mass, by score alone", "KV heads", "KV KiB a token")
    names += ("at no loss: fewer bytes", "within 2 %: KV heads", "KV KiB a token", "fewer bytes")
    names += ("less score mass", "heads open, 75 % of the bytes: heads", "less score mass")
    lines = []
    for (name, ratio), group in _groups(draws).items():
        column = lambda plan, key, group=group: np.array([d["plans"][plan][key] for d in group])
        saved = lambda plan, key, column=column: _spread(
            1 - column(plan, key) / column(BY_SCORE, key)
        )
        size = lambda plan, column=column: [
            f"{column(plan, 'kv_heads').mean():.0f}",
            f"{column(plan, 'kv_bytes_per_token').mean() / 1024:.0f}",
        ]
        cells = [name, ratio, f"{column(BY_SCORE, 'score_mass').mean():.1%}", *size(BY_SCORE)]
        cells += [saved(NO_LOSS, "kv_bytes_per_token"), *size(WITHIN)]
        cells += [saved(WITHIN, "kv_bytes_per_token"), saved(WITHIN, "score_mass")]
        cells += [f"{column(OPEN, 'fa_heads').mean():.0f}", saved(OPEN, "score_mass")]
        lines.append(cells)
    return markdown(names, lines)


def curve_table(draws: Sequence[dict[str, Any]]) -> str:
    """Makes a Markdown table of the most score mass that as many heads keep.

    It is relative to the plan by score alone; "-" where a draw has no plan of so few KV heads.
    """
    names = ("scores", "ratio", *(f"{saving:.0%} fewer bytes" for saving in SAVINGS))
    lines = []
    for (name, ratio), group in _groups(draws).items():
        cells = []
        for saving in SAVINGS:
            kept = [draw["kept"][str(saving)] for draw in group]
            cells.append("-" if None in kept else f"{np.mean(kept):.1%}")
        lines.append([name, ratio, *cells])
    return markdown(names, lines)


def _groups(draws: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for draw in draws:
        groups.setdefault((draw["distribution"], draw["ratio"]), []).append(draw)
    return groups


def _spread(shares: np.ndarray) -> str:
    low, mean, high = (f"{100 * x:.1f}" for x in (shares.min(), shares.mean(), shares.max()))
    return f"{mean} % ({low} to {high})"


def cpu_seconds_of_the_largest() -> float:
    """Times a KV-aware plan for Qwen3-32B: 1024 heads of 64 layers of 64 heads over 8 KV heads."""
    config = qwen3("32b")
    scores = drawn_scores("like the paper's", config, 0)
    began = time.process_time()
    allocate(scores, config, fa_heads=budget(config, "3:1"), kv_slack=0.02)
    return round(time.process_time() - began, 2)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.allocation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="draws of each distribution")
    parser.add_argument("--out", type=Path, default=RESULT, help="JSON file")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # hides warnings on layers without a softmax head
    config = qwen3("1.7b")
    draws = [
        measure(name, ratio, seed, config)
        for name in DISTRIBUTIONS
        for ratio in RATIOS
        for seed in range(options.seeds)
    ]
    record = {
        "made": provenance(),
        "machine": platform.processor() or platform.machine(),
        "distributions": {name: found.words for name, found in DISTRIBUTIONS.items()},
        "cpu_seconds_qwen3_32b": cpu_seconds_of_the_largest(),
        "draws": draws,
    }
    options.out.write_text(dumps(record, indent=1) + "\n")
    paper = [draw for draw in draws if draw["distribution"] == "like the paper's"]
    mean = lambda key: float(np.mean([draw[key] for draw in paper]))
    ranges = np.mean([draw["gini_range"] for draw in paper], axis=0)
    print(cost_table(draws), curve_table(draws), sep="\n\n")
    print(
        f"\nlike the paper's: {mean('critical'):.0f} of {config.layers * config.query_heads} heads "
        f"critical, {mean('convertible'):.0f} convertible, Gini {mean('gini'):.2f} "
        f"({' to '.join(f'{x:.2f}' for x in ranges)}); "
        f"{np.mean([draw['cpu_seconds'] for draw in draws]):.2f} CPU seconds a KV-aware plan, "
        f"{record['cpu_seconds_qwen3_32b']} s for Qwen3-32B\n{record['made']}\n{options.out}"
    )


if __name__ == "__main__":
    main()
