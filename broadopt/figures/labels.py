"""What lines are called: words beside their ends where these lie at the right edge, else a legend above the axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SIZE = 5.5
"""Points."""

EDGE = 0.93
"""Share of the axes' width from which on an end lies at its right edge."""

MOST = 7
"""Lines that are named at their ends."""


@dataclass(frozen=True)
class End:
    """Where a line ends, in the data's units, what it is called there, and the line itself."""

    x: float
    y: float
    text: str
    artist: Artist
    colour: str


def name_lines(axes: Axes, ends: Sequence[End]) -> None:
    """Name the lines of `axes`, the uppermost of its figure, whose limits have to be final."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()  # the layout decides where on the page the ends lie
    at = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y))) for end in ends]
    if len(ends) > MOST or min(float(x) for x, _ in at) < EDGE:
        texts = [end.text.replace("\n", " ") for end in ends]
        columns = 1 if max(map(len, texts)) > 24 else 2 if max(map(len, texts)) > 9 else 5
        figure.legend([end.artist for end in ends], texts, loc="outside upper left", ncols=columns, fontsize=SIZE)
        return
    height = axes.get_window_extent().height * 72 / figure.dpi
    lines = [1 + end.text.count("\n") for end in ends]
    places = spread([float(y) for _, y in at], [1.25 * SIZE * count / height for count in lines])
    for end, (_, y), place in zip(ends, at, places, strict=True):
        axes.annotate(
            end.text,
            (1.0, float(y)),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=SIZE,
            color=end.colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0},
        )


def spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Places as near as possible to those `wanted`, in their order, each half of its own and its neighbour's size from
    the next: by least squares (pool adjacent violators).
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    offsets = np.concatenate([[0.0], np.cumsum([(sizes[a] + sizes[b]) / 2 for a, b in pairwise(order)])])
    # Without the room that those below take, each place only has to be no lower than the one before.
    blocks: list[list[float]] = []
    for index, offset in zip(order, offsets, strict=False):
        blocks.append([wanted[index] - offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    free = [float(np.mean(block)) for block in blocks for _ in block]
    found = dict(zip(order, (place + float(offset) for place, offset in zip(free, offsets, strict=False)), strict=True))
    return [found[index] for index in range(len(wanted))]
