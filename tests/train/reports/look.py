"""Reads what a picture shows from its axes."""

import base64
import re
import struct
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def png_size(path: Path) -> tuple[int, int]:
    """Returns width and height of a PNG in pixels."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def names(axes: Axes) -> tuple[str, str]:
    """Returns the labels of both axes."""
    return axes.get_xlabel(), axes.get_ylabel()


def ticks(axis) -> dict[float, str]:
    """Returns the labels of an axis' major ticks, by place, as far as the picture shows them."""
    low, high = axis.get_view_interval()
    labels = [(tick.get_loc(), tick.label1.get_text()) for tick in axis.get_major_ticks()]
    return {place: text for place, text in labels if low <= place <= high}


def legend(owner: Axes | Figure) -> list[str]:
    return [text.get_text() for text in owner.get_legend().get_texts()]


def lines(axes: Axes) -> dict[str, list[list[float]]]:
    """Returns x and y of every line that the legend names."""
    named = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {line.get_label(): np.array(line.get_data(), float).tolist() for line in named}


def figures_of(page: str) -> list[tuple[str, bytes]]:
    """Returns caption and file of every figure of a page, from its top to its end."""
    form = r'<figure><img alt="(.*?)" src="data:image/png;base64,(.*?)"><figcaption>(.*?)</figcap'
    found = re.findall(form, page)
    assert len(found) == page.count("<img") and all(alt == text for alt, _, text in found)
    return [(text, base64.b64decode(data)) for text, data, _ in found]
