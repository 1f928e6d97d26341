"""Learning curves and lr schedules of runs, also of those that are going on, from their history.csv alone."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broadopt.analysis.comparing.keys import recipe_id
from broadopt.analysis.figures.looks import End, name_lines, styles
from broadopt.analysis.figures.output import Drawing, seeds
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run, check_different, labels
from broadopt.analysis.tables.options import one_of
from broadopt.analysis.tables.summary import summarise, text
from broadopt.errors import InputError, nearest
from broadopt.files import reason
from broadopt.runs import history
from broadopt.runs.objective import evaluation_point

UNITS = {"accuracy": "%", "nll": "nats", "loss": "nats"}
BANDS = {"minmax": "from the lowest to the highest seed", "sd": "one sample standard deviation (n - 1) on both sides"}
COLLECTED = {"test_accuracy", "test_nll", "test_ece"}
"""Quantities that a collector's predictor has as well."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Runs of one config that differ in their seed alone."""

    label: str
    runs: tuple[Run, ...]
    histories: tuple[Sequence[Mapping[str, float]], ...]

    @property
    def method(self) -> str:
        """Their method."""
        return self.runs[0].recipe.method

    @property
    def unfinished(self) -> list[Run]:
        """Those that have no end yet."""
        return [run for run in self.runs if run.result["state"] != "finished"]


def curves_options(parser: argparse.ArgumentParser) -> None:
    """Which columns of history.csv are drawn, and the bands over seeds."""
    parser.add_argument(
        "--quantity", metavar="NAME[,NAME]", default="test_accuracy,train_loss,lr",
        help="columns of history.csv, a panel each (default: test_accuracy,train_loss,lr)",
    )  # fmt: skip
    parser.add_argument(
        "--band", metavar="KIND", default="minmax", help="minmax (default): lowest to highest seed; sd: ± one std"
    )


def curves(request: Request) -> Drawing:
    """A panel a quantity over the epochs trained; a line a config, its mean over seeds with a band."""
    band = request.options.band
    one_of("--band", band, tuple(BANDS))
    check_different(request.runs, request.figure)
    lines = gathered(request.runs)
    quantities = _quantities(request.options.quantity, lines)
    rows = pandas.concat([points(line, quantity, band=band) for quantity in quantities for line in lines])
    figure = Figure(figsize=(3.4, 0.5 + 1.35 * len(quantities)))
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    drawn = [
        _draw(axes, quantity, lines, rows[rows["quantity"] == quantity])
        for axes, quantity in zip(panels, quantities, strict=True)
    ]
    panels[-1].set_xlabel("epochs trained")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    name_lines(panels[0], drawn[0])
    return Drawing(
        figure=figure, rows=rows, caption=_caption(lines, rows, band), seen=_seen(lines, rows, quantities[0])
    )


def gathered(runs: Sequence[Run]) -> list[Line]:
    """The runs by their configs without the seeds, in the order in which they come. Raises InputError where a history
    cannot be read.
    """
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(recipe_id(run.result["config"]), []).append(run)
    seedless = [
        {key: value for key, value in group[0].result["config"].items() if key != "seed"} for group in together.values()
    ]
    return [
        Line(label=label, runs=tuple(group), histories=tuple(map(_history, group)))
        for label, group in zip(labels(seedless), together.values(), strict=True)
    ]


def _history(run: Run) -> list[dict[str, float]]:
    try:
        rows = history.rows_of(run.folder, run.result)
    except (OSError, ValueError) as error:
        raise InputError(f"{run.folder / history.NAME}: {reason(error)}") from error
    if not rows:
        raise InputError(f"{run.folder} holds no {history.NAME}; expected the folder as broadopt-run has left it")
    return rows


def _quantities(asked: str, lines: Sequence[Line]) -> list[str]:
    known = {name for line in lines for rows in line.histories for row in rows for name in row} - {"epoch"}
    found = list(dict.fromkeys(part for part in asked.split(",") if part))
    for name in found:
        if name not in known:
            raise InputError(f"--quantity {name}: expected some of {', '.join(sorted(known))}{nearest(name, known)}")
    if not found:
        raise InputError(f"--quantity: expected some of {', '.join(sorted(known))}")
    return found


def points(line: Line, quantity: str, *, band: str) -> pandas.DataFrame:
    """A row an epoch of the runs' plain weights, and a row an evaluation point of what they collected: mean, low and
    high over those seeds that have come so far.
    """
    values: dict[tuple[str, float], list[float]] = {}
    for run, rows in zip(line.runs, line.histories, strict=True):
        for row in rows:
            if quantity in row:
                values.setdefault(("weights", row["epoch"]), []).append(row[quantity])
        for seen in _collected(run) if quantity in COLLECTED else []:
            values.setdefault(("collected", seen["epochs"]), []).append(seen[quantity])
    return pandas.DataFrame(
        [
            {"line": line.label, "method": line.method, "quantity": quantity, "of": of, "epoch": epoch}
            | _band(found, band)
            for (of, epoch), found in sorted(values.items(), key=lambda item: (item[0][0] != "weights", item[0][1]))
        ]
    )


def _collected(run: Run) -> list[Mapping[str, float]]:
    """At each evaluation point of the run's own collector, not of those beside it."""
    collected = run.result["metrics"].get("collected") or {}
    return [figures for key, figures in collected.items() if not evaluation_point(key)[0]]


def _band(values: Sequence[float], band: str) -> dict[str, Any]:
    summary = summarise(values)
    assert summary is not None  # there is a value at every epoch that has a row
    low, high = min(values), max(values)
    if band == "sd":
        low, high = (summary.mean + sign * (summary.std or 0.0) for sign in (-1, 1))
    return {"mean": summary.mean, "low": low, "high": high, "seeds": summary.n}


def _draw(axes: Axes, quantity: str, lines: Sequence[Line], rows: pandas.DataFrame) -> list[End]:
    """The lines of one panel; returns their ends."""
    ends = []
    looks = styles({line.label: line.method for line in lines})
    for line in lines:
        own = rows[rows["line"] == line.label]
        style = looks[line.label]
        weights, collected = own[own["of"] == "weights"], own[own["of"] == "collected"]
        if weights.empty:
            raise InputError(f"{line.runs[0].folder}: none of its epochs has {quantity} (yet)")
        (drawn,) = axes.plot(weights["epoch"], weights["mean"], color=style["color"], linestyle=style["linestyle"])
        last = weights.iloc[-1]
        ends.append(End(last["epoch"], last["mean"], _words(line), drawn, style["color"]))
        if (weights["seeds"] > 1).any():
            axes.fill_between(weights["epoch"], weights["low"], weights["high"], color=style["color"], alpha=0.2, lw=0)
        if line.unfinished:
            axes.plot(last["epoch"], last["mean"], color=style["color"], marker="o", markerfacecolor="white")
        if len(collected):
            axes.plot(collected["epoch"], collected["mean"], color=style["color"], marker="*", ms=4.5, lw=0.5, ls=":")
    unit = next((unit for part, unit in UNITS.items() if quantity.endswith(part)), "")
    axes.set_ylabel(f"{quantity.replace('_', ' ')}{f', {unit}' if unit else ''}")
    axes.grid(axis="y")
    if quantity == "lr" and (rows["mean"] > 0).all() and rows["mean"].max() > 10 * rows["mean"].min():
        axes.set_yscale("log")
    return ends


def _words(line: Line) -> str:
    states = ", ".join(sorted({str(run.result["state"]) for run in line.unfinished}))
    return line.label.replace(", ", "\n") + (f"\n({states})" if states else "")


def _caption(lines: Sequence[Line], rows: pandas.DataFrame, band: str) -> str:
    counts = sorted({len(line.runs) for line in lines})
    over = (
        "one seed a line"
        if counts == [1]
        else f"the mean over {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " seeds"
    )
    parts = [f"As history.csv has it, once an epoch: {over}; {seeds([run for line in lines for run in line.runs])}."]
    if counts[-1] > 1:
        parts.append(f"Bands: {BANDS[band]}.")
    precisions = ", ".join(sorted({run.recipe.precision for line in lines for run in line.runs}))
    parts.append(f"Test figures: the whole test set, plain weights, {precisions}. lr: of an epoch's last step.")
    if (rows["of"] == "collected").any():
        parts.append("Stars: what SWA's average or FGE's ensemble predicts at its evaluation points.")
    going = [
        f"{run.label} ({run.result['state']}, epoch {rows_[-1]['epoch']:g})"
        for line in lines
        for run, rows_ in zip(line.runs, line.histories, strict=True)
        if run in line.unfinished
    ]
    if going:
        parts.append(f"Not finished, open circle: {'; '.join(going)}.")
    uneven = [line.label for line in lines if len({len(rows) for rows in line.histories}) > 1]
    if uneven:
        parts.append(f"Fewer seeds towards the end, as the CSV counts them: {'; '.join(uneven)}.")
    return " ".join(parts)


def _seen(lines: Sequence[Line], rows: pandas.DataFrame, quantity: str) -> str:
    """The last value of each line, in the order of the lines."""
    digits = 2 if "accuracy" in quantity else 4
    ends = []
    for line in lines:
        rows_with = [[row for row in rows_ if quantity in row] for rows_ in line.histories]
        last = [found[-1][quantity] for found in rows_with if found]
        epochs = sorted({found[-1]["epoch"] for found in rows_with if found})
        span = f"{epochs[0]:g}" if len(epochs) == 1 else f"{epochs[0]:g} to {epochs[-1]:g}"
        ends.append(f"{line.label} {text(summarise(last), digits=digits)} at epoch {span}")
    return (
        f"{quantity} of the plain weights at the last epoch, mean ± sample standard deviation (seeds): "
        f"{'; '.join(ends)}."
    )
