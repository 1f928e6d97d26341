"""How lines look, alike in every figure, and are named: colour, marker and dashes of a method, words at their ends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from broadopt.analysis.figures.output import rendering

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which every common kind of colour vision tells apart; lines and markers do so in grey.
COLOURS = {"sgd": "#000000", "swa": "#0072B2", "fge": "#009E73", "sam": "#D55E00", "asam": "#CC79A7"}
MARKERS = {"sgd": "o", "swa": "s", "fge": "^", "sam": "D", "asam": "v"}
LINES = {"sgd": "-", "swa": "-", "fge": "--", "sam": "-.", "asam": ":"}
OTHERS = ("#56B4E9", "#E69F00", "#999999")
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
"""Of lines of the same method."""

LABEL_SIZE = 5.5
"""Points."""

RIGHT_EDGE = 0.93
"""Share of the axes' width from which on an end lies at its right edge."""

MOST_LABELS = 7
"""Lines that are named at their ends."""


def look(method: str, number: int = 0) -> dict[str, Any]:
    """Colour, marker and line of a method, the same in every figure: keyword arguments of matplotlib's `plot`. A
    composition (`sam+swa`) has those of its collector; `number` chooses among those for methods that are not known.
    """
    known = [part for part in reversed(method.split("+")) if part in COLOURS]
    if not known:
        return {"color": OTHERS[number % len(OTHERS)], "marker": "X", "linestyle": (0, (3, 1, 1, 1, 1, 1))}
    return {"color": COLOURS[known[0]], "marker": MARKERS[known[0]], "linestyle": LINES[known[0]]}


def styles(methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The look of each line, by its name, from its method; lines of the same method, and of methods that have one
    colour (`swa` and `sam+swa`), differ in their dashes.
    """
    found = {name: look(method, number) for number, (name, method) in enumerate(methods.items())}
    drawn = [(method, style["color"]) for method, style in zip(methods.values(), found.values(), strict=True)]
    for number, style in enumerate(found.values()):
        alike = [one[0] == drawn[number][0] or one[1] == drawn[number][1] for one in drawn]
        if sum(alike) > 1:
            style["linestyle"] = DASHES[sum(alike[:number]) % len(DASHES)]
    return found


@dataclass(frozen=True)
class End:
    """Where a line ends, in the data's units, what it is called there, and the line itself."""

    x: float
    y: float
    text: str
    artist: Any
    """A line, or a container of one with its error bars."""
    colour: str


def name_lines(axes: "Axes", ends: Sequence[End]) -> None:
    """Name the lines of `axes`, the uppermost of its figure, whose limits have to be final. Raises InputError."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    with rendering():
        figure.draw_without_rendering()  # the layout decides where on the page the ends lie
    at = [axes.transAxes.inverted().transform(axes.transData.transform((end.x, end.y))) for end in ends]
    if len(ends) > MOST_LABELS or min(float(x) for x, _ in at) < RIGHT_EDGE:
        texts = [end.text.replace("\n", " ") for end in ends]
        columns = 1 if max(map(len, texts)) > 24 else 2 if max(map(len, texts)) > 9 else 5
        place_legend(figure, [end.artist for end in ends], texts, ncols=columns, fontsize=LABEL_SIZE)
        return
    height = axes.get_window_extent().height * 72 / figure.dpi
    lines = [1 + end.text.count("\n") for end in ends]
    places = spread([float(y) for _, y in at], [1.25 * LABEL_SIZE * count / height for count in lines])
    for end, (_, y), place in zip(ends, at, places, strict=True):
        axes.annotate(
            end.text,
            (1.0, float(y)),
            (1.04, place),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=LABEL_SIZE,
            color=end.colour,
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 0},
        )


def place_legend(figure: "Figure", artists: Sequence[Any], names: Sequence[str], **options: Any) -> None:
    """A legend above the axes, its names as they are: they may hold $."""
    for text in figure.legend(artists, names, loc="outside upper left", **options).get_texts():
        text.set_parse_math(False)


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
