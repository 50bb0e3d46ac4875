"""Draws loss curves of several runs, as one PNG."""

import json
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_STYLES = ("-", "--", "-.", ":")
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def save_loss_curves(path: Path, metrics: dict[str, Path], stages: tuple[str, ...]) -> None:
    """Draws the loss of each stage, one panel a stage, one line a run.

    Args:
      path: path of the PNG.
      metrics: run name -> its metrics.jsonl.
      stages: names of the stages, in order.
    """
    figure = Figure(figsize=(4.2 * len(stages), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(stages), squeeze=False)[0]
    for panel, stage in zip(panels, stages, strict=True):
        for index, (name, file) in enumerate(metrics.items()):
            records = [json.loads(line) for line in file.read_text().splitlines()]
            points = [(r["step"], r["loss"]) for r in records if r["stage"] == stage]
            panel.plot(
                *np.array(points, float).T,  # a loss that is not finite is None, and becomes nan
                label=name,
                color=_COLOURS[index % len(_COLOURS)],
                linestyle=_STYLES[index % len(_STYLES)],
            )
        panel.set(title=stage, xlabel="step")
        panel.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.9")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)
