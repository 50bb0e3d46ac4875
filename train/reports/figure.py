"""Provides what all pictures share: size, colours for the colour-blind, and saving."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 150
BLUE, ORANGE, GREEN, GREY = "#0b559f", "#b87700", "#00664d", "0.35"


def make_axes(width: int, height: int) -> Axes:
    """Makes the axes of a new figure of that many pixels."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def save(axes: Axes, path: Path, title: str | None = None) -> None:
    """Writes a PNG that holds nothing but the picture, so that equal pictures are equal files."""
    if title is not None:
        axes.figure.suptitle(title)
    axes.figure.savefig(path, dpi=DPI, metadata={"Software": None})


def plain_axes(axes) -> None:
    """Draws a light grid, and no frame to the right and above."""
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_above(axes, columns: int = 2) -> None:
    """Puts the legend between title and picture, where it hides nothing."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        fontsize="small",
    )
