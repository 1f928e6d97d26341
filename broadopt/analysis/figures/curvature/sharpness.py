"""How far the loss rises in balls around the networks of any runs, and how that goes with their generalisation gap."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from scipy.stats import kendalltau

from broadopt.analysis.figures.curvature.scene import Scene, Subject, norm_words
from broadopt.analysis.figures.looks import styles
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request, number_above, whole_number
from broadopt.analysis.landscape.curvature.sharpness import RESCALING, Ball, Sharpness, sharpness_in
from broadopt.analysis.landscape.progress import bar
from broadopt.analysis.landscape.runs import Run
from broadopt.analysis.landscape.store import Point, Row, Store
from broadopt.errors import InputError

KINDS = (("plain", 2), ("adaptive", 2), ("plain", math.inf), ("adaptive", math.inf))
"""The balls of `sharpness`, in the order of its panels."""

WIDE = 20.0
"""Ratio of the highest to the lowest value from which on an axis is logarithmic."""

FEWEST = 5
"""Runs for Kendall's tau: with four, even perfect agreement has p = 0.08."""


def sharpness_options(parser: argparse.ArgumentParser) -> None:
    """The options of `sharpness` alone."""
    add, radius = parser.add_argument, number_above(0)
    add("--rho", type=radius, nargs=2, default=(0.05, 0.5), metavar=("PLAIN", "ADAPTIVE"),
        help="radii for p = 2 (default: 0.05 0.5)")  # fmt: skip
    add("--rho-inf", type=radius, nargs=2, default=(0.0002, 0.005), metavar=("PLAIN", "ADAPTIVE"),
        help="radii for p = inf (default: 0.0002 0.005)")  # fmt: skip
    add("--filter", action="store_true", help="adaptive: by the norm of each filter, not by each weight")
    add("--m", type=whole_number(1), default=100, metavar="M", help="images that share a perturbation (default: 100)")
    add("--steps", type=whole_number(1, 1000), default=5, metavar="K", help="steps of the ascent (default: 5)")


def sharpness(request: Request) -> Drawing:
    """A panel a ball, a line a run in the order of the generalisation gap. Raises InputError."""
    scene, options = Scene.of(request), request.options
    facts = {"rho": [*options.rho, *options.rho_inf], "ascent": [options.filter, options.m, options.steps]}
    store = Store(
        request.output,
        key=scene.key(facts | {"test images": request.images}),
        columns=("run", "network", "ball", "p", "m"),
    )
    rows: list[Row] = []
    subjects = [Subject(run, scene) for run in request.runs]
    for subject in subjects:
        subject.check(store, _points(subject.run, options.m))
    total = 3 * len(KINDS) * len(request.runs)
    with bar(what="sharpness", unit="ascent", total=total) as ascents:
        for subject in subjects:
            for point in _points(subject.run, options.m):
                rows.append(store.row(point, partial(rise, subject, point)))
                ascents.update()
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn_sharpness(table, request),
        rows=table,
        caption=_caption_sharpness(scene, table),
        seen=_seen_sharpness(table),
        key=store.key,
    )


def rise(subject: Subject, point: Point) -> dict[str, float]:
    """The sharpness of a point, and what the run's generalisation gap is made of."""
    options = subject.scene.request.options
    adaptive, p = point["ball"] == "adaptive", float(point["p"])
    rho = (options.rho if p == 2 else options.rho_inf)[int(adaptive)]
    ball = Ball(rho=rho, p=p, scale=("filter" if options.filter else "element") if adaptive else "one")
    loss = subject.rescaled if point["network"] == "rescaled" else subject.loss
    found = Sharpness(first_order=math.nan, one_step=math.nan, highest=math.nan, error=math.nan)
    if loss is not None:
        try:
            found = sharpness_in(loss, ball, steps=options.steps, m=int(point["m"]) or None)
        except InputError as error:
            where = f"in the {point['ball']} ball of rho {rho:g}, p = {p:g}"
            raise InputError(f"{subject.run.folder}: {error}, {where}; expected a smaller radius") from error
    return {"rho": rho, **asdict(found), **subject.outcomes}


def _points(run: Run, m: int) -> list[Point]:
    """What is measured of one run: each ball on all images, in chunks of m, and on all after rescaling."""
    return [
        {"run": run.label, "network": network, "ball": ball, "p": p, "m": chunk}
        for network, chunk in (("stored", 0), ("stored", m), ("rescaled", 0))
        for ball, p in KINDS
    ]


def gaps(table: pandas.DataFrame) -> pandas.DataFrame:
    """By run, its generalisation gap (test error - train error, points) and the gap's standard error, largest first."""
    own = table.drop_duplicates("run").set_index("run")
    variances = [
        own[f"{split}_error"] * (100 - own[f"{split}_error"]) / own[f"{split}_images"] for split in ("train", "test")
    ]
    found = pandas.DataFrame({"gap": own["test_error"] - own["train_error"], "error": np.sqrt(sum(variances))})
    return found.sort_values("gap", ascending=False, kind="stable")


def agreement(table: pandas.DataFrame, ball: str, p: float) -> tuple[float, float] | None:
    """Kendall's tau between sharpness on all images and the gap, and its two-sided p; None for too few runs, or where
    one of the two is the same for all.
    """
    own = _part(table, "stored", ball, p, all_images=True).set_index("run")["highest"]
    gap = gaps(table)["gap"]
    if len(gap) < FEWEST:
        return None
    found = kendalltau(own.loc[gap.index], gap)
    return (float(found.statistic), float(found.pvalue)) if math.isfinite(found.statistic) else None


def _part(table: pandas.DataFrame, network: str, ball: str, p: float, *, all_images: bool) -> pandas.DataFrame:
    chunked = (table["m"] == 0) == all_images
    return table[(table["network"] == network) & (table["ball"] == ball) & (table["p"] == p) & chunked]


def _drawn_sharpness(table: pandas.DataFrame, request: Request) -> Figure:
    order, looks = gaps(table), styles({run.label: run.recipe.method for run in request.runs})
    places = {run: place for place, run in enumerate(order.index[::-1])}
    figure = Figure(figsize=(6.8, 1.7 + 0.34 * len(order)))
    panels = figure.subplots(2, 2, sharey=True)
    for axes, (ball, p) in zip(panels.flat, KINDS, strict=True):
        drawn = _dots(axes, table, ball, p, places, looks)
        found = agreement(table, ball, p)
        words = f" · τ = {found[0]:.2f} (p = {found[1]:.2g})" if found else ""
        rho = float(table.loc[(table["ball"] == ball) & (table["p"] == p), "rho"].iloc[0])
        axes.set_title(f"{ball}, p = {norm_words(p)}, ρ = {rho:g}{words}")
        axes.set_yticks(list(places.values()), [_row(run, order.loc[run]) for run in places], parse_math=False)
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y")
    for axes in panels[1]:
        axes.set_xlabel("highest rise of the loss in the ball, nats")
    m = int(table["m"].max())
    kinds = ["all images at once", f"mean over {m} at a time", f"all, layers rescaled by {RESCALING:g}"]
    figure.legend(drawn, kinds, loc="outside upper left", ncols=3)
    return figure


def _dots(
    axes: Axes,
    table: pandas.DataFrame,
    ball: str,
    p: float,
    places: Mapping[str, int],
    looks: Mapping[str, Mapping[str, Any]],
) -> list[Artist]:
    """A row a run; returns what stands for the three kinds of points in a legend."""
    forms = (("stored", True, "o"), ("stored", False, "s"), ("rescaled", True, "D"))
    shown = table[(table["ball"] == ball) & (table["p"] == p)]["highest"].dropna()
    for network, all_images, marker in forms:
        for _, row in _part(table, network, ball, p, all_images=all_images).iterrows():
            colour, filled = looks[row["run"]]["color"], marker == "o"
            axes.errorbar(
                row["highest"], places[row["run"]], xerr=None if math.isnan(row["error"]) else row["error"],
                marker=marker, color=colour, markerfacecolor=colour if filled else "none", linestyle="none",
                markersize=3.0 if filled else 5.0, elinewidth=0.6,
            )  # fmt: skip
    if shown.min() > 0 and shown.max() > WIDE * shown.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=min(0.0, shown.min()))
    return [
        Line2D([], [], color="0.3", marker=marker, linestyle="none", markerfacecolor="0.3" if marker == "o" else "none")
        for _, _, marker in forms
    ]


def _row(run: str, gap: pandas.Series) -> str:
    return f"{run.replace(', ', chr(10))}\ngap {gap['gap']:.1f} ± {gap['error']:.1f}"


def _caption_sharpness(scene: Scene, table: pandas.DataFrame) -> str:
    options, (first, *_) = scene.request.options, table.to_dict("records")
    fixed = sorted({run for run in table["run"] if _part(table, "rescaled", "plain", 2, all_images=True)
                    .set_index("run")["highest"].isna()[run]})  # fmt: skip
    none = f" No two layers of {', '.join(fixed)} can be rescaled." if fixed else ""
    scale = "the norm of its filter" if options.filter else "|w|"
    return (
        f"max L(w + ε) - L(w) over ‖ε/T‖ ≤ ρ, T = 1 (plain) or {scale} for each weight (adaptive), by "
        f"{options.steps} steps of projected normalised gradient ascent, the first onto the ball's surface. "
        f"{scene.caption} BN statistics: those that the run stored. Diamonds: layers ahead of a ReLU times "
        f"{RESCALING:g}, the layer behind it divided by {RESCALING:g}, which leaves the network's function as it is."
        f"{none} Gap: test error on {int(first['test_images']):,} test images less train error on "
        f"{int(first['train_images']):,} training images, points, ± its standard error. Error bars: the standard error "
        f"over chunks of {options.m} images."
    )


def _seen_sharpness(table: pandas.DataFrame) -> str:
    ratios = {ball: _rescaled_ratio(table, ball) for ball in ("plain", "adaptive")}
    words = [f"{ball} sharpness by {ratio}" for ball, ratio in ratios.items() if ratio]
    parts = [f"Rescaling layers multiplies {' and '.join(words)}"] if words else ["No layers could be rescaled"]
    found = {(ball, p): agreement(table, ball, p) for ball, p in KINDS}
    known = [
        f"{ball}, p = {norm_words(p)}: {one[0]:.2f} (p-value {one[1]:.2g})" for (ball, p), one in found.items() if one
    ]
    count = table["run"].nunique()
    if known:
        parts.append(f"Kendall's τ with the generalisation gap over {count} runs: {', '.join(known)}")
    elif count < FEWEST:
        parts.append(f"Kendall's τ with the generalisation gap needs {FEWEST} runs, here: {count}")
    else:
        parts.append("Kendall's τ with the generalisation gap: none, since one of the two is the same for all runs")
    return f"{'; '.join(parts)}."


def _rescaled_ratio(table: pandas.DataFrame, ball: str) -> str:
    """By how much rescaling multiplies the highest rise, lowest to highest over runs and p; "" where nothing could be
    rescaled.
    """
    ratios: list[float] = []
    for p in (2, math.inf):
        before, after = (
            _part(table, network, ball, p, all_images=True).set_index("run")["highest"]
            for network in ("stored", "rescaled")
        )
        ratios += (after / before).replace([math.inf, -math.inf], math.nan).dropna().tolist()
    low, high = (f"{value:.3g}" for value in (min(ratios), max(ratios))) if ratios else ("", "")
    return low if low == high else f"{low} to {high}"
