"""How far the loss rises close to trained networks: in balls of one radius for any runs, over the radius for one."""

import argparse
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import pandas
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import kendalltau
from tqdm import tqdm

from broadopt.errors import InputError
from broadopt.figures.labels import End, name_lines
from broadopt.figures.output import COLOURS, Drawing
from broadopt.figures.request import Request, number_above, whole_number
from broadopt.figures.scene import Scene, styles
from broadopt.landscape.losses import Loss
from broadopt.landscape.networks import reported
from broadopt.landscape.runs import Run
from broadopt.landscape.sharpness import (
    RESCALING,
    Ball,
    Direction,
    Sharpness,
    rescale,
    rises_along,
    sharpness_in,
    standard_error,
)
from broadopt.landscape.store import Point, Row, Store
from broadopt.methods.asam import asam_perturbation, scale_of
from broadopt.methods.sam import sam_perturbation

KINDS = (("plain", 2), ("adaptive", 2), ("plain", math.inf), ("adaptive", math.inf))
"""The balls of `sharpness`, in the order of its panels."""

FEWEST = 5
"""Runs for Kendall's tau: with four, even perfect agreement has p = 0.08."""

SMALL_RISE = 0.1
"""Nats: the rise at which the curves of `normalisation` are compared in words."""

SHAPES = {
    "plain": {"color": COLOURS["sam"], "linestyle": "-"},
    "element": {"color": COLOURS["asam"], "linestyle": "--"},
    "filter": {"color": COLOURS["fge"], "linestyle": ":"},
}


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
    bar = tqdm(total=12 * len(request.runs), desc="sharpness", unit="ascent", file=sys.stderr, mininterval=_interval())
    with bar:
        for subject in (Subject(run, scene) for run in request.runs):
            for point in _points(subject.run, options.m):
                rows.append(store.row(point, partial(subject.rise, point)))
                bar.update()
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn_sharpness(table, request),
        rows=table,
        caption=_caption_sharpness(scene, table),
        seen=_seen_sharpness(table),
        key=store.key,
    )


class Subject:
    """One run's network, read where it is measured and not where all its rows are known."""

    def __init__(self, run: Run, scene: Scene) -> None:
        self.run, self.scene = run, scene

    @cached_property
    def loss(self) -> Loss:
        """Of the network that the run reports. Raises InputError where it has kept none."""
        return Loss(self.scene.placed(self.run, reported(self.run).model), *self.scene.train(self.run))

    @cached_property
    def loss_here(self) -> float:
        """The loss at the weights themselves, nats."""
        return self.loss.value()

    @cached_property
    def rescaled(self) -> Loss | None:
        """The same function with other weights; None where no pair of layers can be rescaled."""
        loss, model = self.loss, copy.deepcopy(self.loss.model)
        found = rescale(model, loss.images[:16])
        return Loss(model, loss.images, loss.labels) if found else None

    @cached_property
    def outcomes(self) -> dict[str, float]:
        """Errors and losses on test and training images."""
        return self.scene.outcomes(self.run, self.loss.model)

    def rise(self, point: Point) -> dict[str, float]:
        """The sharpness of a point, and what the run's generalisation gap is made of."""
        options = self.scene.request.options
        adaptive, p = point["ball"] == "adaptive", float(point["p"])
        rho = (options.rho if p == 2 else options.rho_inf)[int(adaptive)]
        ball = Ball(rho=rho, p=p, scale=("filter" if options.filter else "element") if adaptive else "one")
        loss = self.rescaled if point["network"] == "rescaled" else self.loss
        found = Sharpness(first_order=math.nan, one_step=math.nan, highest=math.nan, error=math.nan)
        if loss is not None:
            try:
                found = sharpness_in(loss, ball, steps=options.steps, m=int(point["m"]) or None)
            except InputError as error:
                raise InputError(f"{self.run.folder}: {error}, which are {point['ball']} {rho:g} away at most") from error
        return {"rho": rho, **asdict(found), **self.outcomes}


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
    order, looks = gaps(table), styles(request.runs)
    places = {run: place for place, run in enumerate(order.index[::-1])}
    figure = Figure(figsize=(6.8, 1.7 + 0.34 * len(order)))
    panels = figure.subplots(2, 2, sharey=True)
    for axes, (ball, p) in zip(panels.flat, KINDS, strict=True):
        drawn = _dots(axes, table, ball, p, places, looks)
        found = agreement(table, ball, p)
        words = f" · τ = {found[0]:.2f} (p = {found[1]:.2g})" if found else ""
        rho = float(table.loc[(table["ball"] == ball) & (table["p"] == p), "rho"].iloc[0])
        axes.set_title(f"{ball}, p = {_norm(p)}, ρ = {rho:g}{words}")
        axes.set_yticks(list(places.values()), [_row(run, order.loc[run]) for run in places])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y")
    for axes in panels[1]:
        axes.set_xlabel("highest rise of the loss in the ball, nats")
    m = int(table["m"].max())
    words = ["all images at once", f"mean over {m} at a time", f"all, layers rescaled by {RESCALING:g}"]
    figure.legend(drawn, words, loc="outside upper left", ncols=3)
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
    if (shown > 0).all():
        axes.set_xscale("log")
    for network, all_images, marker in forms:
        for _, row in _part(table, network, ball, p, all_images=all_images).iterrows():
            colour, filled = looks[row["run"]]["color"], marker == "o"
            axes.errorbar(
                row["highest"], places[row["run"]], xerr=None if math.isnan(row["error"]) else row["error"],
                marker=marker, color=colour, markerfacecolor=colour if filled else "none", linestyle="none",
                markersize=3.0 if filled else 5.0, elinewidth=0.6,
            )  # fmt: skip
    return [
        Line2D([], [], color="0.3", marker=marker, linestyle="none", markerfacecolor="0.3" if marker == "o" else "none")
        for _, _, marker in forms
    ]


def _row(run: str, gap: pandas.Series) -> str:
    return f"{run.replace(', ', chr(10))}\ngap {gap['gap']:.1f} ± {gap['error']:.1f}"


def _norm(p: float) -> str:
    return "∞" if p == math.inf else f"{p:g}"


def _interval() -> float:
    """Seconds between two lines of progress: seldom where they are not one line of a terminal."""
    return 0.5 if sys.stderr.isatty() else 30.0


def _caption_sharpness(scene: Scene, table: pandas.DataFrame) -> str:
    options, (first, *_) = scene.request.options, table.to_dict("records")
    fixed = sorted({run for run in table["run"] if _part(table, "rescaled", "plain", 2, all_images=True)
                    .set_index("run")["highest"].isna()[run]})  # fmt: skip
    none = f" No two layers of {', '.join(fixed)} can be rescaled." if fixed else ""
    return (
        f"max L(w + ε) - L(w) over ‖ε/T‖ ≤ ρ, T = 1 (plain) or {'the norm of its filter' if options.filter else '|w|'} "
        f"for each weight (adaptive), by {options.steps} steps of projected normalised gradient ascent, the first onto "
        f"the ball's surface. {scene.caption} BN statistics: those that the run stored. Diamonds: BN or a layer ahead "
        f"of ReLU times {RESCALING:g} and the layer behind it divided by it, which leaves the network's function as it "
        f"is.{none} Gap: test error on {int(first['test_images']):,} test images less train error on "
        f"{int(first['train_images']):,} training images, points, ± its standard error. Error bars: the standard error "
        f"over chunks of {options.m} images."
    )


def _seen_sharpness(table: pandas.DataFrame) -> str:
    ratios = {ball: _rescaled_ratio(table, ball) for ball in ("plain", "adaptive")}
    words = [f"{ball} sharpness by {ratio}" for ball, ratio in ratios.items() if ratio]
    parts = [f"Rescaling layers multiplies {' and '.join(words)}"] if words else ["No layers could be rescaled"]
    found = {(ball, p): agreement(table, ball, p) for ball, p in KINDS}
    known = [f"{ball}, p = {_norm(p)}: {one[0]:.2f} (p-value {one[1]:.2g})" for (ball, p), one in found.items() if one]
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


def normalisation_options(parser: argparse.ArgumentParser) -> None:
    """The options of `normalisation` alone."""
    add, radius = parser.add_argument, number_above(0)
    add("--rho", type=radius, nargs=2, default=(0.01, 10.0), metavar=("LOW", "HIGH"),
        help="radii for p = 2 (default: 0.01 10)")  # fmt: skip
    add("--rho-inf", type=radius, nargs=2, default=(0.00001, 0.1), metavar=("LOW", "HIGH"),
        help="radii for p = inf (default: 0.00001 0.1)")  # fmt: skip
    add("--points", type=whole_number(2, 200), default=13, metavar="N", help="radii of each line (default: 13)")
    add("--eta", type=number_above(0, inclusive=True), default=0.01, metavar="ETA", help="ASAM's eta (default: 0.01)")
    add("--m", type=whole_number(1), default=100, metavar="M", help="images that share a perturbation (default: 100)")


def normalisation(request: Request) -> Drawing:
    """A panel for p = 2 and one for p = inf; a line each for SAM's perturbation and ASAM's two. Raises InputError."""
    scene, options = Scene.of(request), request.options
    (run,) = request.runs
    radii = {2: _radii("--rho", options.rho, options.points), math.inf: _radii("--rho-inf", options.rho_inf, options.points)}
    key = scene.key({"radii": list(radii.values()), "eta": options.eta, "m": options.m})
    store = Store(request.output, key=key, columns=("normalisation", "p", "rho"))
    subject, rows = Subject(run, scene), []
    for p, of_p in radii.items():
        for kind in SHAPES:
            rises = cache(partial(_rises, subject, kind, p, of_p, eta=options.eta, m=options.m))
            for place, rho in enumerate(of_p):
                rows.append(store.row({"normalisation": kind, "p": p, "rho": rho}, lambda r=rises, i=place: r()[i]))
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn_normalisation(table, run),
        rows=table,
        caption=_caption_normalisation(scene, run),
        seen=_seen_normalisation(table),
        key=key,
    )


def _radii(option: str, ends: Sequence[float], count: int) -> list[float]:
    if not ends[0] < ends[1]:
        raise InputError(f"{option} {ends[0]:g} {ends[1]:g}: expected the lower end first")
    return [float(f"{rho:.6g}") for rho in np.geomspace(*ends, count)]


def _rises(subject: Subject, kind: str, p: float, radii: Sequence[float], *, eta: float, m: int) -> list[dict[str, float]]:
    """Mean rise and its standard error over the chunks at each radius."""
    chunks = list(subject.loss.chunks(m))
    direction = direction_of(kind, p, subject.loss, eta=eta)
    label = f"normalisation: {kind}, p = {p:g}"
    bar = tqdm(chunks, desc=label, unit="chunk", file=sys.stderr, mininterval=_interval())
    try:
        rises = np.array([rises_along(chunk, direction, radii) for chunk in bar])
    except InputError as error:
        raise InputError(f"{subject.run.folder}, {kind}, p = {p:g}: {error}; expected smaller radii") from error
    shares = np.array([len(chunk) / len(subject.loss) for chunk in chunks])
    return [
        {"rise": float(shares @ column), "error": standard_error(column, shares), "chunks": len(chunks),
         "loss": subject.loss_here} for column in rises.T
    ]  # fmt: skip


def direction_of(kind: str, p: float, loss: Loss, *, eta: float) -> Direction:
    """The perturbation of radius 1 of SAM ("plain") or of ASAM, as the training has it: without T on biases."""
    if kind == "plain":
        return partial(sam_perturbation, rho=1.0, p=p)
    scales = {weight: scale_of(name, weight, kind) for name, weight in loss.model.named_parameters()}
    return partial(asam_perturbation, rho=1.0, eta=eta, p=p, scales=scales)


def _drawn_normalisation(table: pandas.DataFrame, run: Run) -> Figure:
    figure = Figure(figsize=(6.8, 2.4))
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axes, p in zip(panels, (2, math.inf), strict=True):
        ends = []
        for kind, style in SHAPES.items():
            own = table[(table["p"] == p) & (table["normalisation"] == kind)]
            (drawn,) = axes.plot(own["rho"], own["rise"], **style)
            axes.fill_between(own["rho"], own["rise"] - own["error"], own["rise"] + own["error"],
                              color=style["color"], alpha=0.2, linewidth=0)  # fmt: skip
            last = own.iloc[-1]
            words = {"plain": "SAM", "element": "ASAM\nelement-wise", "filter": "ASAM\nfilter-wise"}[kind]
            ends.append(End(last["rho"], last["rise"], words, drawn, style["color"]))
        axes.set(xscale="log", yscale="log", xlabel="ρ", title=f"p = {_norm(p)}")
        axes.grid()
    panels[0].set_ylabel("rise of the loss, nats")
    name_lines(panels[1], ends)
    return figure


def _caption_normalisation(scene: Scene, run: Run) -> str:
    options = scene.request.options
    return (
        f"{run.label}, {run.recipe.model.name}: L(w + ε) - L(w), ε as SAM and ASAM (η = {options.eta:g}, biases not "
        f"scaled) take it from the gradient of the same {options.m} images; mean over such chunks, band: its standard "
        f"error. {scene.caption} BN statistics: those that the run stored."
    )


def _seen_normalisation(table: pandas.DataFrame) -> str:
    parts = []
    for p in (2, math.inf):
        words = []
        for kind in SHAPES:
            own = table[(table["p"] == p) & (table["normalisation"] == kind)]
            low, middle, high = (crossing(own["rho"], own["rise"] + sign * own["error"].fillna(0)) for sign in (1, 0, -1))
            around = f" ({low:.2g} to {high:.2g})" if low < high else ""
            words.append(f"{kind} {middle:.2g}{around}" if math.isfinite(middle) else f"{kind} outside of the radii")
        parts.append(f"for p = {_norm(p)} at ρ = {', '.join(words)}")
    return f"The loss rises by {SMALL_RISE:g} nats {'; '.join(parts)} (in brackets: one standard error of the rise)."


def crossing(radii: Sequence[float], rises: Sequence[float]) -> float:
    """The first radius at which the rise reaches SMALL_RISE, between points linearly on log axes; nan outside."""
    rho, rise = np.log(np.asarray(radii)), np.asarray(rises)
    above = np.flatnonzero(rise >= SMALL_RISE)
    if not len(above) or above[0] == 0 or rise[above[0] - 1] <= 0:
        return math.nan
    i = above[0]
    return float(np.exp(np.interp(math.log(SMALL_RISE), np.log(rise[i - 1 : i + 1]), rho[i - 1 : i + 1])))
