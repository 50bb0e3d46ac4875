"""Draws what models recall over the window they are given after training. Needs matplotlib."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import NullLocator, PercentFormatter

from train.reports.figure import BLUE, GREEN, ORANGE, legend_above, make_axes, plain_axes, save

_SIZE = (960, 600)
_LOOKS = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"))


def save_window_curves(variants: dict, path: Path, *, title: str) -> None:
    """Writes a PNG of accuracy over the window: lines are means over seeds, bands their range.

    Args:
      variants: {variant: {seed: scores}}, of which those with "windows" are drawn, one line for
        each number of pairs.
    """
    axes = make_axes(*_SIZE)
    ticks = []
    for name, runs in variants.items():
        changed = [run["windows"] for run in runs.values()]
        if not changed[0]:
            continue
        ticks = [int(window) for window in changed[0]]
        for count, look in zip(next(iter(changed[0].values())), _LOOKS, strict=False):
            colour, style, marker = look
            y_SX = np.array([[one[w][count]["tokens"] for w in changed[0]] for one in changed])
            label = f"{name}, {count} pairs"
            shape = {"color": colour, "ls": style, "marker": marker, "ms": 4.5, "clip_on": False}
            axes.fill_between(ticks, y_SX.min(0), y_SX.max(0), color=colour, alpha=0.2, lw=0)
            axes.plot(ticks, y_SX.mean(0), label=label, **shape)
    axes.set(xlabel="window in tokens, changed after training", ylabel="answers right")
    axes.set_xscale("symlog", base=2, linthresh=4)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    plain_axes(axes)
    legend_above(axes)
    save(axes, path, title=title)
