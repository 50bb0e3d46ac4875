"""Draws maps of all heads, layers upwards and heads to the right. Needs matplotlib."""

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from hydrahead_jax.head_plan import HeadPlan
from train.reports.figure import DPI, make_axes, save

_MARGIN = (2.1, 1.5)
_PLAN_MARGIN = (1.0, 1.7)
_SMALL = 16
_DROPPED, _KEPT, _SOFTMAX = "white", "#9ecae1", "#0b559f"


def heat_map_size(layers: int, query_heads: int) -> tuple[int, int]:
    """Returns the map's width and height in pixels: near-square cells, no larger than a screen."""
    return _size(layers, query_heads, _MARGIN)


def plan_map_size(layers: int, query_heads: int) -> tuple[int, int]:
    """Returns the width and height of a plan's map in pixels, as `heat_map_size`."""
    return _size(layers, query_heads, _PLAN_MARGIN)


def save_heat_map(
    score_LN: Float[np.ndarray, "L N"],
    path: Path,
    *,
    plan: HeadPlan | None = None,
    softmax_LN: Bool[np.ndarray, "L N"] | None = None,
    title: str = "Head scores",
    label: str = "score, square-root scale",
) -> None:
    """Writes a PNG: layers upwards, heads to the right, darker for a higher score.

    Scores are >= 0; nan is a head that was not measured, drawn hatched as are the heads where
    `softmax_LN` is False. Colour grows with the square root, because most heads score about 0. One
    hue from light to dark reads the same without colour; heads that stay softmax in `plan` carry a
    ring that shows on light and on dark.
    """
    layers, heads = score_LN.shape
    missing_LN = np.isnan(score_LN) if softmax_LN is None else np.isnan(score_LN) | ~softmax_LN
    axes = make_axes(*heat_map_size(layers, heads))
    top = max(float(np.max(score_LN, initial=0.0, where=~missing_LN)), 1e-6)
    image = axes.imshow(
        np.ma.masked_array(score_LN, missing_LN),
        cmap="Blues",
        norm=PowerNorm(0.5, vmin=0.0, vmax=top),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    _grid(axes, layers, heads)
    axes.set_title(title, loc="left", fontsize="medium")
    if missing_LN.any():
        _hatch(axes, missing_LN)
    if plan is not None and plan.count:
        _mark(axes, plan)
    axes.figure.colorbar(
        image,
        ax=axes,
        label=label,
        ticks=_ticks(top),
        format="%.2g",
        fraction=0.05,
        pad=0.02,
        aspect=40,
    )
    save(axes, path)


def save_plan_map(
    plan: HeadPlan,
    path: Path,
    *,
    softmax_LN: Bool[np.ndarray, "L N"] | None = None,
    title: str = "Heads that stay softmax",
) -> None:
    """Writes a PNG that shows which heads of a plan stay softmax.

    Dark heads stay softmax. Light ones become delta-rule heads whose KV head is cached all the
    same, because a softmax head reads it; white ones free their KV head. Heads where `softmax_LN`
    is False are delta-rule heads already, and hatched.
    """
    layers, heads = len(plan.fa_heads), plan.query_heads
    group = heads // plan.kv_heads
    state_LN = np.zeros((layers, heads))
    for layer, chosen in enumerate(plan.fa_heads):
        for kv_head in {head // group for head in chosen}:
            state_LN[layer, kv_head * group : (kv_head + 1) * group] = 1
        state_LN[layer, list(chosen)] = 2
    axes = make_axes(*plan_map_size(layers, heads))
    colours = ListedColormap([_DROPPED, _KEPT, _SOFTMAX])
    axes.imshow(
        state_LN, cmap=colours, vmin=0, vmax=2, origin="lower", aspect="auto", interpolation="none"
    )
    _grid(axes, layers, heads)
    if softmax_LN is not None and not softmax_LN.all():
        _hatch(axes, ~softmax_LN)
    axes.set_title(title, loc="left", fontsize="medium", pad=24)
    names = {"softmax": _SOFTMAX, "KV head kept": _KEPT, "KV head freed": _DROPPED}
    axes.legend(
        handles=[Patch(fc=colour, ec="0.5", label=name) for name, colour in names.items()],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        borderaxespad=0.1,
        fontsize="small",
        columnspacing=1.0,
        handlelength=1.0,
    )
    save(axes, path)


def _size(layers: int, query_heads: int, margin: tuple[float, float]) -> tuple[int, int]:
    cell = min(0.36, 9.0 / max(layers, query_heads))
    width = max(4.6, margin[0] + cell * query_heads)
    height = max(2.6, margin[1] + cell * layers)
    return round(width * DPI), round(height * DPI)


def _grid(axes, layers: int, heads: int) -> None:
    whole = {"integer": True, "steps": [1, 2, 4, 5, 10], "min_n_ticks": 1}
    axes.xaxis.set_major_locator(MaxNLocator(min(heads, 16), **whole))
    axes.yaxis.set_major_locator(MaxNLocator(min(layers, 16), **whole))
    axes.set_xticks(np.arange(heads + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(layers + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.85", lw=0.6)
    axes.tick_params(which="minor", length=0)
    axes.set(xlim=(-0.5, heads - 0.5), ylim=(-0.5, layers - 0.5))
    axes.set(xlabel="query head", ylabel="layer")


def _ticks(top: float) -> list[float]:
    """Returns round numbers up to `top`, far enough apart on a square-root scale."""
    ticks, room = [0.0], 0.09 * np.sqrt(top)
    for number in np.multiply.outer(10.0 ** np.arange(-6, 2), [1, 2, 4, 6, 8]).ravel():
        if number <= top * 1.001 and np.sqrt(number) - np.sqrt(ticks[-1]) > room:
            ticks.append(float(number))
    return ticks


def _hatch(axes, at_LN: np.ndarray) -> None:
    for layer, head in np.argwhere(at_LN):
        corner = (head - 0.5, layer - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fc="0.93", ec="0.6", hatch="////", lw=0))


def _mark(axes, plan: HeadPlan) -> None:
    chosen = [(head, layer) for layer, heads in enumerate(plan.fa_heads) for head in heads]
    size = 45 if len(plan.fa_heads) <= _SMALL else 18
    axes.scatter(
        *zip(*chosen, strict=True),
        s=size,
        c="white",
        edgecolors="black",
        lw=1.1,
        label="stays softmax",
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderaxespad=0)
