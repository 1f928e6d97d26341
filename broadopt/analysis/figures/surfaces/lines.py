"""Test error and train loss along random rays from trained networks, and along the line through two of them."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from broadopt.analysis.figures.looks import look, styles
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request, number_above, whole_number
from broadopt.analysis.figures.surfaces.setting import Setting, measure_marks
from broadopt.analysis.landscape.geometry import Line, directions, distance, evenly
from broadopt.analysis.landscape.grid import measure
from broadopt.analysis.landscape.networks import Mark, mark_of
from broadopt.analysis.landscape.runs import check_different
from broadopt.analysis.landscape.store import Point, Store
from broadopt.seeds import derive

SE = {"test_error": "test_error_se", "train_objective": "train_loss_se"}
"""The column with the standard error of another: the L2 term has none."""


def rays_options(parser: argparse.ArgumentParser) -> None:
    """The options of `rays` alone."""
    add = parser.add_argument
    add("--directions", type=whole_number(1, 1000), default=10, metavar="N", help="random directions (default: 10)")
    add("--points", type=whole_number(2, 501), default=11, metavar="N", help="points of each ray (default: 11)")
    add("--distance", type=number_above(0), metavar="D",
        help="length of the rays (default: half the norm of the first run's weights)")  # fmt: skip


def rays(request: Request) -> Drawing:
    """A line a run and direction, their mean in bold; the directions are the same from each run. Raises InputError."""
    setting, marks, options = Setting.of(request), [mark_of(run) for run in request.runs], request.options
    check_different(request.runs, "rays")
    setting.take_buffers(marks)
    length = options.distance or float(marks[0].vector.norm()) / 2
    away = evenly(0.0, length, options.points)[1:]
    key = setting.key({"directions": [options.directions, "uniform"]}, [mark.vector for mark in marks])
    store = Store(request.output, key=key, columns=("run", "direction", "distance"))
    table = _along_rays(setting, marks, away, store)
    return Drawing(
        figure=_drawn_rays(table, marks, setting.panels),
        rows=table,
        caption=f"{options.directions} directions, uniform on the unit sphere, the same from each run; bold: their "
        f"mean; {setting.caption}",
        seen=_seen_rays(table, marks, away[-1]),
        key=key,
    )


def _along_rays(setting: Setting, marks: Sequence[Mark], away: Sequence[float], store: Store) -> pandas.DataFrame:
    """What is measured at each mark, as direction -1, and at the distances `away` from it in each direction."""
    request, device = setting.request, setting.images.device
    seed, count = derive(request.seed, "directions"), request.options.directions
    drawn = [one.to(device) for one in directions(count, len(marks[0].vector), seed=seed)]
    starts = {mark.label: mark.vector.to(device) for mark in marks}

    def on_ray(point: Point) -> Tensor:
        return starts[str(point["run"])] + float(point["distance"]) * drawn[int(point["direction"])]

    # At distance 0 all rays of a run are one point, which is measured once.
    centres: list[Point] = [{"run": mark.label, "direction": -1, "distance": 0.0} for mark in marks]
    points: list[Point] = [
        {"run": mark.label, "direction": number, "distance": t}
        for t in away
        for number in range(count)
        for mark in marks
    ]
    rows = measure(setting.landscape, centres, lambda point: starts[str(point["run"])], store, what="rays: runs")
    rows += measure(setting.landscape, points, on_ray, store, what="rays")
    table = pandas.DataFrame(rows)
    table["method"] = table["run"].map({mark.label: mark.method for mark in marks})
    return table


def _drawn_rays(table: pandas.DataFrame, marks: Sequence[Mark], words_of: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(6.8, 2.5))
    looks = styles({mark.label: mark.method for mark in marks})
    panels: Sequence[Axes] = figure.subplots(1, 2)
    for axes, (column, words) in zip(panels, words_of.items(), strict=True):
        for mark in marks:
            form = looks[mark.label]
            own = table[table["run"] == mark.label]
            centre = own[own["direction"] == -1]
            for _, ray in own[own["direction"] >= 0].groupby("direction"):
                whole = pandas.concat([centre, ray]).sort_values("distance")
                axes.plot(whole["distance"], whole[column], color=form["color"], linewidth=0.4, alpha=0.45)
            mean = own.groupby("distance")[column].mean()
            axes.plot(mean.index, mean, **form, linewidth=1.4)
            if axes is panels[-1]:
                axes.annotate(mark.label, (mean.index[-1], mean.iloc[-1]), xytext=(4, 0), textcoords="offset points",
                              va="center", color=form["color"], annotation_clip=False, parse_math=False)  # fmt: skip
        axes.set(title=words, xlabel="distance from the run's weights, ‖·‖₂")
        axes.grid(axis="y")
    return figure


def _seen_rays(table: pandas.DataFrame, marks: Sequence[Mark], length: float) -> str:
    """By how much error and loss have risen at the end of the rays: mean over directions and its standard error."""
    parts = []
    for column, unit, what in (("test_error", "points", "test error"), ("train_objective", "nats", "train loss")):
        words = []
        for mark in marks:
            own = table[table["run"] == mark.label]
            centre = float(own.loc[own["direction"] == -1, column].iloc[0])
            rises = own.loc[own["distance"] == length, column].loc[lambda values: values.notna()] - centre
            words.append(f"{mark.label} {rises.mean():.3g}{plus_minus(rises)} {unit}")
        parts.append(f"{what} has risen by {', '.join(words)}")
    count = int(table["direction"].max()) + 1
    return (
        f"At distance {length:.3g} {'; '.join(parts)} (mean over {count} direction{'s' * (count != 1)}"
        f"{' ± its standard error' * (count > 1)})."
    )


def plus_minus(values: pandas.Series) -> str:
    """` ± standard error of the mean`; nothing for one value."""
    return f" ± {values.std(ddof=1) / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""


def line_options(parser: argparse.ArgumentParser) -> None:
    """The options of `line` alone."""
    add = parser.add_argument
    add("--points", type=whole_number(2, 2001), default=31, metavar="N", help="points of the line (default: 31)")
    add("--margin", type=number_above(0), default=1.0, metavar="F",
        help="how far the line reaches beyond both runs, as a share of their distance (default: 1)")  # fmt: skip


def line(request: Request) -> Drawing:
    """Two panels over the signed distance from the first run, both runs marked. Raises InputError."""
    setting, marks = Setting.of(request), [mark_of(run) for run in request.runs]
    through = Line.through(marks[0].vector, marks[1].vector)
    length, margin = distance(marks[0].vector, marks[1].vector), request.options.margin
    ticks = evenly(-margin * length, (1 + margin) * length, request.options.points)
    key = setting.key({"ticks": ticks}, [tensor for mark in marks for tensor in mark.tensors])
    store = Store(request.output, key=key, columns=("kind", "distance"))
    device = setting.images.device
    on_device = Line(through.origin.to(device), through.u.to(device))
    rows = measure_marks(setting, marks, [{"distance": 0.0}, {"distance": length}], store)
    points: list[Point] = [{"kind": "line", "distance": tick} for tick in ticks]
    rows += measure(setting.landscape, points, lambda point: on_device.at(float(point["distance"])), store, what="line")
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn_line(table, marks, setting.panels),
        rows=table,
        caption=f"Line through {marks[0].label} (0) and {marks[1].label} ({length:.3g}); {setting.caption}",
        seen=_seen_line(table, marks, length, min(1.0, margin) * length),
        key=key,
    )


def _drawn_line(table: pandas.DataFrame, marks: Sequence[Mark], words_of: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(3.4, 3.4))
    panels: Sequence[Axes] = figure.subplots(2, 1, sharex=True)
    shown = table[table["kind"] != "stored"].sort_values("distance")
    for axes, (column, words) in zip(panels, words_of.items(), strict=True):
        axes.plot(shown["distance"], shown[column], color="0.3")
        axes.fill_between(
            shown["distance"], shown[column] - shown[SE[column]], shown[column] + shown[SE[column]], color="0.85"
        )
        for number, (mark, (_, row)) in enumerate(zip(marks, table[table["kind"] == "mark"].iterrows(), strict=True)):
            form = look(mark.method, number)
            axes.axvline(row["distance"], color=form["color"], linewidth=0.5, linestyle=":")
            axes.plot(row["distance"], row[column], color=form["color"], marker=form["marker"], markersize=4.5)
            if axes is panels[0]:
                axes.annotate(mark.label, (row["distance"], 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                              textcoords="offset points", ha="center", color=form["color"],
                              parse_math=False)  # fmt: skip
        axes.set_ylabel(words)
    panels[1].set_xlabel(f"signed distance from {marks[0].label}, ‖·‖₂", parse_math=False)
    return figure


@dataclass(frozen=True)
class Rise:
    """By how much a quantity is higher at a distance from a run than at it, towards the other run and away from it."""

    towards: float
    away: float
    error: float
    """Standard error of the difference of the two."""


def rises(table: pandas.DataFrame, column: str, *, at: float, other: float, reach: float) -> Rise:
    """The rises of `column` at the distance `reach` on both sides of the run at `at`, between points linearly."""
    shown = table[table["kind"] != "stored"].sort_values("distance")
    ticks = shown["distance"].to_numpy()
    sign = math.copysign(1.0, other - at)
    values, errors = (
        [float(np.interp(at + step * sign * reach, ticks, shown[name].to_numpy())) for step in (0, 1, -1)]
        for name in (column, SE[column])
    )
    return Rise(values[1] - values[0], values[2] - values[0], math.hypot(errors[1], errors[2]))


def _seen_line(table: pandas.DataFrame, marks: Sequence[Mark], length: float, reach: float) -> str:
    named = [
        f"{mark.label} {row['test_error']:.2f} ± {row['test_error_se']:.2f} %"
        for mark, (_, row) in zip(marks, table[table["kind"] == "mark"].iterrows(), strict=True)
    ]
    parts = []
    for mark, other, at, opposite in (
        (marks[0], marks[1], 0.0, length),
        (marks[1], marks[0], length, 0.0),
    ):
        found = rises(table, "train_objective", at=at, other=opposite, reach=reach)
        parts.append(
            f"{reach:.3g} from {mark.label} the train loss changes by {found.towards:+.3g} nats towards {other.label} "
            f"and by {found.away:+.3g} away (difference {found.away - found.towards:+.2g} ± {found.error:.1g})"
        )
    return (
        f"Test error {', '.join(named)}; {'; '.join(parts)} (±: standard error over the images, of a difference as of "
        "independent ones)."
    )
