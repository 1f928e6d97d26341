"""Test error and train loss on the plane through three weight vectors."""

import argparse
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broadopt.analysis.figures.looks import look
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request, number_above, whole_number
from broadopt.analysis.figures.surfaces.setting import Setting, measure_marks
from broadopt.analysis.landscape.geometry import Plane, distance, evenly
from broadopt.analysis.landscape.grid import measure
from broadopt.analysis.landscape.networks import (
    Mark,
    collection_start,
    mark_at,
    mark_of,
    mark_of_snapshot,
    member_moments,
)
from broadopt.analysis.landscape.store import Point, Store
from broadopt.errors import InputError

LEVELS = 7


def plane_options(parser: argparse.ArgumentParser) -> None:
    """The options of `plane` alone."""
    add = parser.add_argument
    add("--grid", type=whole_number(2, 501), default=21, metavar="N", help="points along each axis (default: 21)")
    add("--margin", type=number_above(0, inclusive=True), default=0.3, metavar="F",
        help="how far the grid reaches beyond the points, as a share of their extent (default: 0.3)")  # fmt: skip
    add("--start", type=number_above(0, inclusive=True), metavar="EPOCHS",
        help="of two runs: the third point, the second's snapshot next to this epoch (default: where its collector "
        "starts, else its initial weights)")  # fmt: skip
    add("--at", type=number_above(0, inclusive=True), nargs=3, metavar="EPOCHS",
        help="of one run: its snapshots next to these epochs (default: the last three collected)")  # fmt: skip


def plane(request: Request) -> Drawing:
    """Two panels of contours over the plane, with its three points marked. Raises InputError."""
    _check_options(request)
    setting, corners = Setting.of(request), _corners(request)
    through = Plane.through(*(mark.vector for mark in corners[:3]))
    places = [through.coordinates(mark.vector) for mark in corners]
    columns, lines = (evenly(*ends, request.options.grid) for ends in square(places, request.options.margin))
    points: list[Point] = [{"kind": "grid", "x": x, "y": y} for y in lines for x in columns]
    key = setting.key({"columns": columns, "lines": lines}, [tensor for mark in corners for tensor in mark.tensors])
    store = Store(request.output, key=key, columns=("kind", "x", "y"))
    device = setting.images.device
    on_device = Plane(*(part.to(device) for part in (through.origin, through.u, through.v)))
    rows = measure_marks(setting, corners, [{"x": x, "y": y} for x, y in places], store)
    rows += measure(
        setting.landscape, points, lambda point: on_device.at(float(point["x"]), float(point["y"])), store, what="plane"
    )
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn(table, corners, setting.panels),
        rows=table,
        caption=f"Plane through {', '.join(mark.label for mark in corners[:3])}; {setting.caption}",
        seen=_seen(table, corners),
        key=key,
    )


def _check_options(request: Request) -> None:
    if len(request.runs) != 1 and request.options.at:
        raise InputError("--at names snapshots of one run; expected one RUN with it")
    if len(request.runs) != 2 and request.options.start is not None:
        raise InputError("--start names the third point beside two runs; expected two RUNs with it")


def _corners(request: Request) -> list[Mark]:
    """The three points of the plane, and the mean of three snapshots as a fourth, which lies on it."""
    runs, options = request.runs, request.options
    if len(runs) == 3:
        return [mark_of(run) for run in runs]
    if len(runs) == 2:
        last = runs[1]
        wanted = (collection_start(last) or 0.0) if options.start is None else options.start
        return [mark_at(last, wanted), *map(mark_of, runs)]
    (run,) = runs
    if options.at:
        three = [mark_at(run, epochs) for epochs in options.at]
    else:
        three = [mark_of_snapshot(run, *found) for found in member_moments(run)[-3:]]
    if (count := len({mark.label for mark in three})) < 3:
        found = f"{count} different snapshot{'s' * (count != 1)}"
        raise InputError(f"{run.folder}: {found}; expected three (--at E E E names others)")
    mean = sum((mark.vector.double() for mark in three[1:]), start=three[0].vector.double()) / 3
    return [*three, Mark(label="their mean", method="swa", vector=mean.float())]


def _drawn(table: pandas.DataFrame, corners: Sequence[Mark], words_of: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(6.4, 3.1))
    grid, marks = table[table["kind"] == "grid"], table[table["kind"] == "mark"]
    panels: Sequence[Axes] = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (column, words) in zip(panels, words_of.items(), strict=True):
        surface = grid.pivot(index="y", columns="x", values=column)
        _contours(axes, surface, levels(surface.to_numpy()))
        axes.set(title=words, xlabel="distance in weight space, ‖·‖₂", aspect="equal")
        for mark, (_, row) in zip(corners, marks.iterrows(), strict=True):
            _mark_point(axes, mark, row, column, middle=float(marks["y"].mean()))
    panels[0].set_ylabel("distance in weight space, ‖·‖₂")
    return figure


def square(places: Sequence[tuple[float, float]], margin: float) -> list[tuple[float, float]]:
    """The ends of x and of y around some points, equally far apart; `margin` is a share of the larger extent."""
    axes = list(zip(*places, strict=True))
    half = max(max(axis) - min(axis) for axis in axes) * (0.5 + margin)
    middles = [(max(axis) + min(axis)) / 2 for axis in axes]
    return [(middle - half, middle + half) for middle in middles]


def levels(values: np.ndarray) -> list[float]:
    """Ascending levels of contours, dense near the least value, where the differences that matter are: their distances
    to it double from one to the next, up to the greatest.
    """
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.max() <= finite.min():
        return []
    least, most = float(finite.min()), float(finite.max())
    return [least + (most - least) * 2.0 ** (number - LEVELS) for number in range(LEVELS)]


def _contours(axes: Axes, surface: pandas.DataFrame, heights: Sequence[float]) -> None:
    values = np.ma.masked_invalid(surface.to_numpy())
    if not heights:
        return
    shades = [f"{0.98 - 0.45 * number / len(heights):.3f}" for number in range(len(heights) + 1)]
    axes.contourf(surface.columns, surface.index, values, levels=heights, colors=shades, extend="both")
    lines = axes.contour(surface.columns, surface.index, values, levels=heights, colors="0.25", linewidths=0.5)
    # As many digits as tell the two nearest of the labelled levels apart.
    digits = min(4, max(0, math.ceil(-math.log10(heights[2] - heights[0]))))
    axes.clabel(lines, levels=heights[::2], fontsize=5, fmt=f"%.{digits}f")


def _mark_point(axes: Axes, mark: Mark, row: pandas.Series, column: str, *, middle: float) -> None:
    form = look(mark.method)
    axes.plot(row["x"], row["y"], marker=form["marker"], color=form["color"], markeredgecolor="white", markersize=5)
    text = f"{mark.label}\n{row[column]:.2f} %" if column == "test_error" else f"{mark.label}\n{row[column]:.4g}"
    # Above the upper points and below the lower ones, so that the words of one do not cover another.
    above = row["y"] >= middle
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.75}
    axes.annotate(text, (row["x"], row["y"]), xytext=(0, 5 if above else -5), textcoords="offset points",
                  fontsize=5.5, ha="center", va="bottom" if above else "top", bbox=box,
                  parse_math=False)  # fmt: skip


def _seen(table: pandas.DataFrame, corners: Sequence[Mark]) -> str:
    grid, marks = table[table["kind"] == "grid"], table[table["kind"] == "mark"]
    named = [
        f"{mark.label} {row['test_error']:.2f} ± {row['test_error_se']:.2f} %"
        for mark, (_, row) in zip(corners, marks.iterrows(), strict=True)
    ]
    parts = []
    for column, what in (("test_error", "test error"), ("train_objective", "train loss")):
        if grid[column].isna().all():
            continue
        best = grid.nsmallest(1, column).iloc[0]
        away = np.hypot(marks["x"] - best["x"], marks["y"] - best["y"])
        unit, se = (" %", best["test_error_se"]) if column == "test_error" else (" nats", best["train_loss_se"])
        parts.append(
            f"least {what} on the grid {best[column]:.3g} ± {se:.2g}{unit}, {away.min():.3g} from "
            f"{marks['label'].iloc[int(away.argmin())]}"
        )
    sides = [distance(corners[0].vector, corner.vector) for corner in corners[1:3]]
    return (
        f"Test error {', '.join(named)}; {'; '.join(parts)} (the other points are {sides[0]:.3g} and {sides[1]:.3g} "
        f"from {corners[0].label}; ±: standard error over the images)."
    )
