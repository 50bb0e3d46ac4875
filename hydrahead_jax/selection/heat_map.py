"""Pictures of head scores; the only file of the package that needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hydrahead_jax.head_plan import HeadPlan

DPI = 150
KNOCK_OUT_SIZE = (840, 540)
_MARGIN = (2.1, 1.5)


def heat_map_size(layers: int, query_heads: int) -> tuple[int, int]:
    """Width and height of the heat map in pixels: near-square cells, no more than a screen."""
    cell = min(0.36, 9.0 / max(layers, query_heads))
    width = max(4.6, _MARGIN[0] + cell * query_heads)
    height = max(2.6, _MARGIN[1] + cell * layers)
    return round(width * DPI), round(height * DPI)


def save_heat_map(
    score_LN: Float[np.ndarray, "L N"],
    path: Path,
    *,
    plan: HeadPlan | None = None,
    title: str = "Head scores",
    label: str = "score, square-root scale",
) -> None:
    """Writes a PNG: layers upwards, heads to the right, darker for a higher score.

    Scores are >= 0. Colour grows with the square root, because most heads score about 0. One hue
    from light to dark reads the same without colour; heads that stay softmax in `plan` carry a
    ring that shows on light and on dark.
    """
    layers, heads = score_LN.shape
    figure = _figure(*heat_map_size(layers, heads))
    axes = figure.add_subplot()
    top = max(float(score_LN.max()), 1e-6)
    image = axes.imshow(
        score_LN,
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0.0, vmax=top),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    _grid(axes, layers, heads)
    axes.set(xlabel="query head", ylabel="layer")
    axes.set_title(title, loc="left", fontsize="medium")
    if plan is not None and plan.count:
        _mark(axes, plan)
    ticks = top * np.array([0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1])
    figure.colorbar(
        image, ax=axes, label=label, ticks=ticks, format="%.2g", fraction=0.05, pad=0.02, aspect=40
    )
    _save(figure, path)


def save_knock_out_curve(
    counts: Sequence[int],
    by_score_C: Float[np.ndarray, " C"],
    at_random_SC: Float[np.ndarray, "S C"],
    path: Path,
    *,
    title: str = "Knock-out",
) -> None:
    """Writes a PNG: accuracy over heads removed, in score order and in S random orders (their
    mean, and the range as a band)."""
    figure = _figure(*KNOCK_OUT_SIZE)
    axes = figure.add_subplot()
    axes.fill_between(
        counts,
        at_random_SC.min(axis=0),
        at_random_SC.max(axis=0),
        color="#e69f00",
        alpha=0.25,
        lw=0,
    )
    axes.plot(counts, by_score_C, color="#0b559f", marker="o", ms=4, label="score order", zorder=3)
    axes.plot(
        counts,
        at_random_SC.mean(axis=0),
        color="#b87700",
        ls="--",
        marker="s",
        ms=4,
        label=f"random order, mean and range of {len(at_random_SC)}",
    )
    axes.set(xlabel="heads removed", ylabel="documents answered", ylim=(-0.03, 1.03))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0.2)
    figure.suptitle(title)
    _save(figure, path)


def _figure(width: int, height: int) -> Figure:
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def _grid(axes, layers: int, heads: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(min(heads, 16), integer=True, steps=[1, 2, 4, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(min(layers, 16), integer=True, steps=[1, 2, 4, 5, 10]))
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set(xlim=(-0.5, heads - 0.5), ylim=(-0.5, layers - 0.5))


def _mark(axes, plan: HeadPlan) -> None:
    chosen = [(head, layer) for layer, heads in enumerate(plan.fa_heads) for head in heads]
    size = 45 if len(plan.fa_heads) <= 16 else 18
    axes.scatter(
        *zip(*chosen, strict=True),
        s=size,
        c="white",
        edgecolors="black",
        lw=1.1,
        label="stays softmax",
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)
