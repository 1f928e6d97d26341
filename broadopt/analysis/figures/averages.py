"""Averages of weights: ensembles against SWA over the spread of what is averaged, and iterates around their mean."""

import argparse
import math
from collections.abc import Sequence

import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from broadopt.analysis.figures.looks import End, look, name_lines
from broadopt.analysis.figures.output import Drawing, seeds
from broadopt.analysis.figures.request import Request, whole_number
from broadopt.analysis.landscape import distances, probabilities
from broadopt.analysis.landscape.distances import PowerLaw, power_law
from broadopt.analysis.landscape.images import Images
from broadopt.analysis.landscape.networks import collection_start, flat, member_moments, moments, snapshot
from broadopt.analysis.landscape.probabilities import Predictions
from broadopt.analysis.landscape.progress import progress
from broadopt.analysis.landscape.runs import Run, check_different
from broadopt.devices.device import set_flags
from broadopt.errors import InputError
from broadopt.files import reason
from broadopt.predictor import Predictor
from broadopt.runs import history

SHARES = 7
"""Spreads, each 1 / sqrt(2) of the one before."""

Moments = Sequence[tuple[int, float]]
"""(step, epochs trained) of snapshots."""


# Ensembles and averages


def ensemble_options(parser: argparse.ArgumentParser) -> None:
    """How many snapshots are taken, and at how many spreads."""
    parser.add_argument(
        "--members", type=whole_number(2, 1000), default=6, metavar="N",
        help="snapshots, evenly from the first that was collected to the last (default: 6)",
    )  # fmt: skip
    parser.add_argument(
        "--shares", type=whole_number(2, 20), default=SHARES, metavar="N",
        help=f"spreads, each 0.71 of the one before (default: {SHARES})",
    )  # fmt: skip


def ensemble(request: Request) -> Drawing:
    """Distances of predictions over the spread of the weights, on log axes with fitted slopes. Raises InputError."""
    (run,) = request.runs
    taken = _evenly(member_moments(run), request.options.members)
    if len(taken) < 2:
        raise InputError(f"{run.folder} has one snapshot of a collection point; expected two at least")
    weights = _weights(run, taken)
    predictor = _predictions(run, snapshot(run, taken[0][0]), request)
    shares = [2 ** (-k / 2) for k in range(request.options.shares)]
    swa = predictor.at(distances.mean(weights).to(weights.dtype))
    rows = pandas.DataFrame(
        [
            probabilities.at_spread(predictor.at, weights, float(point["share"]), swa=swa)
            for point in progress([{"share": share} for share in shares], what="ensemble")
        ]
    )
    laws = [power_law(rows["delta"].tolist(), rows[name].tolist()) for name in ("among", "against_swa")]
    return Drawing(
        figure=_drawn(rows, laws),
        rows=rows,
        caption=_caption(run, taken, predictor, request),
        seen=_seen(rows, laws),
    )


def _weights(run: Run, taken: Moments) -> torch.Tensor:
    """The parameters of the snapshots of these moments, float32 [n, P]; one network at a time is held beside them."""
    return distances.stacked((flat(snapshot(run, step).model) for step, _ in taken), len(taken))


def _predictions(run: Run, network: Predictor, request: Request) -> Predictions:
    images = Images(run, device=request.device, seed=request.seed, data_dir=request.data_dir)
    set_flags("fp32", deterministic=False)  # Images set torch's switches for what the run was trained in
    network.model.to(device=images.device, memory_format=images.memory_format)  # type: ignore[call-overload]
    return Predictions(
        model=network.model,
        test=images.test(request.images)[0],
        train=images.augmented(request.train_images),
        batch_size=run.recipe.batch_size,
        seed=request.seed,
    )


def _evenly(found: Moments, count: int) -> Moments:
    """`count` of them, the first and the last included; all where there are no more."""
    if len(found) <= count:
        return found
    return [found[round(k * (len(found) - 1) / (count - 1))] for k in range(count)]


def _drawn(rows: pandas.DataFrame, laws: Sequence[PowerLaw]) -> Figure:
    figure = Figure(figsize=(3.4, 2.5))
    axes = figure.subplots()
    words = ("snapshots among\nthemselves", "ensemble against\nSWA")
    ends = []
    for name, law, word, method in zip(("among", "against_swa"), laws, words, ("fge", "swa"), strict=True):
        style = look(method)
        (drawn,) = axes.plot(rows["delta"], rows[name], color=style["color"], marker=style["marker"], linestyle="none")
        fitted = [law.factor * x**law.slope for x in rows["delta"]]
        axes.plot(rows["delta"], fitted, color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
        ends.append(End(rows["delta"].max(), rows[name].max(), f"{word},\nslope {law}", drawn, style["color"]))
    axes.set(xscale="log", yscale="log", xlabel="spread Δ of the weights (largest distance from their mean)")
    axes.set_ylabel("mean L2 distance of probabilities")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    name_lines(axes, ends)
    return figure


def _caption(run: Run, taken: Moments, predictor: Predictions, request: Request) -> str:
    bn = (
        f"BN re-estimated at all weights on {len(predictor.train):,} augmented training images"
        if predictor.has_bn
        else "a network without BN"
    )
    return (
        f"{run.label} on {run.recipe.dataset.name}: {len(taken)} snapshots w_i of collection points, epochs "
        f"{taken[0][1]:.4g} to {taken[-1][1]:.4g}, contracted towards their mean, w_i(t) = mean + t (w_i - mean), for "
        "a range of t; SWA is the network at the mean, the ensemble the mean of the probabilities. "
        f"{len(predictor.test):,} test images; {bn}; fp32 on {predictor.test.device.type}; "
        f"{seeds(request.runs, request.seed)}. Expected from a Taylor expansion: slopes 1 and 2."
    )


def _seen(rows: pandas.DataFrame, laws: Sequence[PowerLaw]) -> str:
    first = rows.iloc[0]
    return (
        f"Slopes {laws[0]} (snapshots among themselves; expected 1) and {laws[1]} (ensemble against SWA; expected 2), "
        f"± standard error of the fit; at the snapshots themselves, Δ = {first['delta']:.3g}: distances "
        f"{first['among']:.4f} and {first['against_swa']:.4f}, the same class for {first['same_class_among']:.2f} % "
        f"and {first['same_class_as_swa']:.2f} % of the images."
    )


# Iterates around their mean


def trajectory_options(parser: argparse.ArgumentParser) -> None:
    """From which epoch on the iterates are taken."""
    parser.add_argument(
        "--from", dest="start", type=float, metavar="EPOCH",
        help="the first epoch (default: where the run's collector begins, else half of the training)",
    )  # fmt: skip


def trajectory(request: Request) -> Drawing:
    """Distances of the iterates of each run from their mean, from each other and of their running mean. Raises
    InputError.
    """
    check_different(request.runs, request.figure)
    tables = [_course(run, request.options.start) for run in request.runs]
    rows = pandas.concat(tables)
    figure = Figure(figsize=(3.4, 1.3 + 1.3 * len(tables)))
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    for axes, table, run in zip(panels, tables, request.runs, strict=True):
        ends = _draw_course(axes, table)
        if len(tables) > 1:
            axes.set_title(run.label, parse_math=False)
        if axes is panels[0]:
            name_lines(axes, ends)
    panels[-1].set_xlabel("epochs trained")
    figure.supylabel("distance in weight space", fontsize="medium")
    return Drawing(figure=figure, rows=rows, caption=_described(request.runs, tables), seen=_seen_courses(tables))


def _course(run: Run, start: float | None) -> pandas.DataFrame:
    found = moments(run)
    begin = collection_start(run) if start is None else start
    if begin is None:
        begin = found[-1][1] / 2
    taken = [(step, epochs) for step, epochs in found if epochs >= begin - 1e-9]
    if len(taken) < 3:
        raise InputError(
            f"{run.folder} has {len(taken)} snapshots from epoch {begin:g} on; expected three at least "
            f"(--from EPOCH, of {found[0][1]:g} to {found[-1][1]:g})"
        )
    around = distances.around_mean(_weights(run, taken))
    return pandas.DataFrame({"run": run.label, "epoch": [epochs for _, epochs in taken], **around})


WORDS = {
    "from_others": "iterate from the\nothers, mean",
    "from_mean": "iterate from\nthe mean",
    "running_mean_from_mean": "running mean\nfrom the mean",
}


def _draw_course(axes: Axes, table: pandas.DataFrame) -> list[End]:
    ends = []
    looks = ({"color": "0.0", "marker": "o"}, {"color": "0.5", "marker": "D", "linestyle": "--"}, look("swa"))
    for (name, word), own in zip(WORDS.items(), looks, strict=True):
        style = own | {"markersize": 2.5, "linewidth": 0.8}
        (drawn,) = axes.plot(table["epoch"], table[name], **style)
        ends.append(End(table["epoch"].iloc[-1], table[name].iloc[-1], word, drawn, style["color"]))
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    return ends


def _described(runs: Sequence[Run], tables: Sequence[pandas.DataFrame]) -> str:
    parts = [
        f"{run.label} on {run.recipe.dataset.name}, {run.recipe.model.name}: {len(table)} snapshots of epochs "
        f"{table['epoch'].iloc[0]:.4g} to {table['epoch'].iloc[-1]:.4g}{_lr(run, table)}"
        for run, table in zip(runs, tables, strict=True)
    ]
    return (
        f"{'; '.join(parts)}. Euclidean distances of all parameters, without BN's running statistics; the mean is "
        "that of these snapshots; float64 on cpu; "
        f"{seeds(runs)}. Iterates independent of each other on a shell of radius r around it lie √2 r apart."
    )


def _lr(run: Run, table: pandas.DataFrame) -> str:
    """The learning rates of these epochs, as history.csv has them."""
    try:
        rows = history.rows_of(run.folder, run.result)
    except (OSError, ValueError) as error:
        raise InputError(f"{run.folder / history.NAME}: {reason(error)}") from error
    rates = [row["lr"] for row in rows if row["epoch"] >= table["epoch"].iloc[0] and "lr" in row]
    if not rates:
        return ""
    low, high = min(rates), max(rates)
    return f", lr {low:.4g}" if low == high else f", lr {low:.4g} to {high:.4g}"


def _seen_courses(tables: Sequence[pandas.DataFrame]) -> str:
    parts = []
    for table in tables:
        count, radius, apart = len(table), table["from_mean"], table["from_others"]
        # The mean of n is itself made of them: |w_i - mean|^2 has (n - 1) / n of the variance of one iterate.
        expected = math.sqrt(2 * count / (count - 1))
        parts.append(
            f"{table['run'].iloc[0]}: {radius.mean():.3g} ± {radius.std():.2g} from the mean, {apart.mean():.3g} ± "
            f"{apart.std():.2g} from each other, a ratio of {apart.mean() / radius.mean():.2f} (independent iterates: "
            f"{expected:.2f})"
        )
    return f"Distance of the iterates, mean ± standard deviation over snapshots: {'; '.join(parts)}."
