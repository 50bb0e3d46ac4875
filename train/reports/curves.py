"""Draws curves of a selection: knock-out, stability, quality of plans. Needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from hydrahead_jax.selection.checks.knockout import RANDOM_ORDER, REVERSE_ORDER, SCORE_ORDER, Curves
from hydrahead_jax.selection.plans.quality import Quality
from train.reports.figure import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    legend_above,
    make_axes,
    plain_axes,
    save,
)

CURVE_SIZE = (960, 600)
_MEASURES = {
    "spearman_critical": ("rank correlation, critical heads", BLUE, "-", "o"),
    "spearman_all": ("rank correlation, all heads", ORANGE, "--", "s"),
    "jaccard": ("overlap of the best heads (Jaccard)", GREEN, "-.", "^"),
}
_DODGE = 1.03


def save_knock_out_curves(
    counts: Sequence[int], curves: Curves, path: Path, *, budget: int | None = None
) -> None:
    """Writes a PNG of the accuracy over heads removed, one line for each order.

    The random orders are one line, of their mean, and a band, of their range. A dotted line marks
    `budget` heads.
    """
    at_random_SC = np.array([y for name, y in curves.items() if name.startswith(RANDOM_ORDER)])
    axes = make_axes(*CURVE_SIZE)
    line = lambda y_C, colour, style, marker, name: axes.plot(
        counts, y_C, color=colour, ls=style, marker=marker, ms=4.5, label=name, clip_on=False
    )
    low_C, high_C = at_random_SC.min(axis=0), at_random_SC.max(axis=0)
    axes.fill_between(counts, low_C, high_C, color=ORANGE, alpha=0.2, lw=0)
    line(curves[SCORE_ORDER], BLUE, "-", "o", "highest scores first")
    line(curves[REVERSE_ORDER], GREEN, "-.", "^", "lowest scores first")
    name = f"random order, mean and range of {len(at_random_SC)}"
    line(at_random_SC.mean(axis=0), ORANGE, "--", "s", name)
    if budget is not None:
        axes.axvline(budget, color=GREY, ls=":", lw=1.2, label=f"the plan keeps {budget}")
    axes.set(xlabel="heads removed, square-root scale", ylabel="documents answered")
    axes.set(ylim=(0, 1.0), xlim=(0, counts[-1]))
    axes.set_xscale("function", functions=(_square_root, np.square))
    axes.set_xticks(_apart(counts), minor=False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    plain_axes(axes)
    legend_above(axes)
    save(axes, path, title="Knock-out")


def save_stability_curves(stability: dict, path: Path) -> None:
    """Writes a PNG of what `stability.stability` returned, over the number of pairs.

    Lines compare a part of the pairs with all of them; a lone mark compares one half with the
    other. Bars are the range.
    """
    axes = make_axes(*CURVE_SIZE)
    for place, (key, (name, colour, style, marker)) in enumerate(_MEASURES.items()):
        shape = {"color": colour, "marker": marker, "ms": 5, "capsize": 3}
        part = {"ls": style, "label": name, "dodge": _DODGE ** (place - 2), **shape}
        half = {"ls": "", "mfc": "white", "dodge": _DODGE ** (place + 1), **shape}
        _error_bars(axes, stability["over_pairs"], "pairs", key, **part)
        _error_bars(axes, stability["split_half"], "pairs", key, **half)
    if stability["split_half"]:
        hollow = {"color": GREY, "marker": "o", "mfc": "white", "ls": ""}
        axes.plot([], [], label="hollow: one half against the other", **hollow)
    pairs = [row["pairs"] for row in stability["over_pairs"]]
    axes.set(xlabel="pairs a sub-probe", ylabel="agreement")
    _finish(axes, pairs)
    save(axes, path, title="Stability")


def save_length_curve(stability: dict, path: Path) -> None:
    """Writes a PNG: agreement of the scores at other document lengths with the selection's."""
    axes = make_axes(*CURVE_SIZE)
    for key, (name, colour, style, marker) in _MEASURES.items():
        shape = {"color": colour, "marker": marker, "ms": 5, "ls": style}
        _error_bars(axes, stability["over_length"], "length", key, label=name, **shape)
    axes.set(xlabel="tokens of a document", ylabel="agreement with the selection's scores")
    _finish(axes, [row["length"] for row in stability["over_length"]])
    save(axes, path, title="Probe length")


def save_quality_curve(quality: Quality, path: Path) -> None:
    """Writes a PNG of the share of the score mass that plans keep, over KV bytes per token."""
    axes = make_axes(*CURVE_SIZE)
    points = lambda costs: (
        [cost.kv_bytes_per_token / 1024 for cost in costs],
        [cost.score_mass for cost in costs],
    )
    by_score = {"color": ORANGE, "ls": "--", "lw": 1.5}
    axes.plot(*points(quality.naive), label="best heads first", **by_score)
    aware_X = quality.aware.kv_heads_X * quality.kv_head_bytes / 1024
    axes.plot(aware_X, quality.aware.score_mass_X, color=BLUE, label="best use of each KV head")
    for row in quality.budgets:
        axes.plot(*points([row.naive, row.aware]), color=GREY, ls=":", lw=1)
    marks = {"ls": "", "mec": "black", "ms": 6, "clip_on": False, "zorder": 4}
    naive, aware = zip(*((row.naive, row.aware) for row in quality.budgets), strict=True)
    axes.plot(*points(naive), marker="s", mfc="white", label="a ratio's best heads", **marks)
    axes.plot(*points(aware), marker="o", mfc="white", label="the same ratio, 2 % slack", **marks)
    axes.plot(
        *points([quality.chosen]),
        label="the plan",
        **{**marks, "marker": "*", "ms": 13, "mfc": GREEN},
    )
    for ratio, naive, _ in quality.budgets:
        at = (naive.kv_bytes_per_token / 1024, naive.score_mass)
        axes.annotate(ratio, at, xytext=(7, -12), textcoords="offset points", fontsize="small")
    axes.set(xlabel="KV cache, KiB a token", ylabel="score mass kept", ylim=(0, 1.03))
    axes.set_xlim(left=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    plain_axes(axes)
    legend_above(axes, columns=3)
    save(axes, path, title="Quality per byte")


def _error_bars(axes, rows: list[dict], x: str, key: str, dodge: float = 1.0, **style) -> None:
    rows = [row for row in rows if row[key] is not None]
    if not rows:
        return
    mean, low, high = (np.array([row[key][k] for row in rows]) for k in ("mean", "low", "high"))
    error = np.stack([mean - low, high - mean]).clip(0.0)
    axes.errorbar([dodge * row[x] for row in rows], mean, error, clip_on=False, **style)


def _finish(axes, ticks: list[int]) -> None:
    if ticks:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(MaxNLocator(6))
    low = min(0.0, axes.get_ylim()[0])
    axes.set_ylim(low, 1.0)
    plain_axes(axes)
    legend_above(axes)


def _square_root(x):
    return np.sqrt(np.maximum(x, 0.0))


def _apart(counts: Sequence[int]) -> list[int]:
    """Returns the ticks that leave room for their labels."""
    ticks = [counts[0]]
    for count in counts[1:]:
        if np.sqrt(count) - np.sqrt(ticks[-1]) >= 0.05 * np.sqrt(counts[-1]):
            ticks.append(count)
    return ticks
