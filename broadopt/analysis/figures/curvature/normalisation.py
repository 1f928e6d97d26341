"""What SAM's and ASAM's perturbations do to the loss of one trained network as their radius grows."""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from broadopt.analysis.figures.curvature.scene import Scene, Subject, norm_words
from broadopt.analysis.figures.looks import COLOURS, End, name_lines
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request, number_above, whole_number
from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.sharpness import Direction, rises_along, standard_error
from broadopt.analysis.landscape.progress import bar
from broadopt.analysis.landscape.runs import Run
from broadopt.analysis.landscape.store import Store
from broadopt.errors import InputError
from broadopt.methods.asam import asam_perturbation, scale_of
from broadopt.methods.sam import sam_perturbation

SMALL_RISE = 0.1
"""Nats: the rise at which the curves of `normalisation` are compared in words."""

SHAPES = {
    "plain": {"color": COLOURS["sam"], "linestyle": "-"},
    "element": {"color": COLOURS["asam"], "linestyle": "--"},
    "filter": {"color": COLOURS["fge"], "linestyle": ":"},
}


def normalisation_options(parser: argparse.ArgumentParser) -> None:
    """The options of `normalisation` alone."""
    add, radius = parser.add_argument, number_above(0)
    add("--rho", type=radius, nargs=2, default=(0.001, 1.0), metavar=("LOW", "HIGH"),
        help="radii for p = 2 (default: 0.001 1)")  # fmt: skip
    add("--rho-inf", type=radius, nargs=2, default=(0.000003, 0.003), metavar=("LOW", "HIGH"),
        help="radii for p = inf (default: 0.000003 0.003)")  # fmt: skip
    add("--points", type=whole_number(2, 200), default=13, metavar="N", help="radii of each line (default: 13)")
    add("--eta", type=number_above(0, inclusive=True), default=0.01, metavar="ETA", help="ASAM's eta (default: 0.01)")
    add("--m", type=whole_number(1), default=100, metavar="M", help="images that share a perturbation (default: 100)")


def normalisation(request: Request) -> Drawing:
    """A panel for p = 2 and one for p = inf; a line each for SAM's perturbation and ASAM's two. Raises InputError."""
    scene, options = Scene.of(request), request.options
    (run,) = request.runs
    ends = {2: ("--rho", options.rho), math.inf: ("--rho-inf", options.rho_inf)}
    radii = {p: _radii(option, given, options.points) for p, (option, given) in ends.items()}
    key = scene.key({"radii": list(radii.values()), "eta": options.eta, "m": options.m})
    store = Store(request.output, key=key, columns=("normalisation", "p", "rho"))
    subject, rows = Subject(run, scene), []
    lines = [(p, kind) for p in radii for kind in SHAPES]
    subject.check(store, [{"normalisation": kind, "p": p, "rho": rho} for p, kind in lines for rho in radii[p]])
    for p, kind in bar(lines, what="normalisation", unit="line"):
        # All radii of a line are measured together, where the first of them is not known.
        rises = cache(partial(_rises, subject, kind, p, radii[p], eta=options.eta, m=options.m))
        for place, rho in enumerate(radii[p]):
            rows.append(store.row({"normalisation": kind, "p": p, "rho": rho}, partial(_at, rises, place)))
    table = pandas.DataFrame(rows)
    return Drawing(
        figure=_drawn_normalisation(table, run),
        rows=table,
        caption=_caption_normalisation(scene, run),
        seen=_seen_normalisation(table),
        key=key,
    )


def _at(rises: Callable[[], list[dict[str, float]]], place: int) -> dict[str, float]:
    return rises()[place]


def _radii(option: str, ends: Sequence[float], count: int) -> list[float]:
    if not ends[0] < ends[1]:
        raise InputError(f"{option} {ends[0]:g} {ends[1]:g}: expected the lower end first")
    return [float(f"{rho:.6g}") for rho in np.geomspace(ends[0], ends[1], count)]


def _rises(
    subject: Subject, kind: str, p: float, radii: Sequence[float], *, eta: float, m: int
) -> list[dict[str, float]]:
    """Mean rise and its standard error over the chunks at each radius."""
    chunks = list(subject.loss.chunks(m))
    direction = direction_of(kind, p, subject.loss, eta=eta)
    try:
        rises = np.array([rises_along(chunk, direction, radii) for chunk in chunks])
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
    scales: dict[Tensor, str] = {weight: scale_of(name, weight, kind) for name, weight in loss.model.named_parameters()}
    return partial(asam_perturbation, rho=1.0, eta=eta, p=p, scales=scales)


def _drawn_normalisation(table: pandas.DataFrame, run: Run) -> Figure:
    figure = Figure(figsize=(6.8, 2.4))
    panels: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for axes, p in zip(panels, (2, math.inf), strict=True):
        ends = []
        for kind, style in SHAPES.items():
            own = table[(table["p"] == p) & (table["normalisation"] == kind)]
            (drawn,) = axes.plot(own["rho"], own["rise"], color=style["color"], linestyle=style["linestyle"])
            axes.fill_between(own["rho"], own["rise"] - own["error"], own["rise"] + own["error"],
                              color=style["color"], alpha=0.2, linewidth=0)  # fmt: skip
            last = own.iloc[-1]
            words = {"plain": "SAM", "element": "ASAM\nelement-wise", "filter": "ASAM\nfilter-wise"}[kind]
            ends.append(End(last["rho"], last["rise"], words, drawn, style["color"]))
        axes.set(xscale="log", yscale="log", xlabel="ρ", title=f"p = {norm_words(p)}")
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
            error = own["error"].fillna(0)
            low, middle, high = (crossing(own["rho"], own["rise"] + sign * error) for sign in (1, 0, -1))
            if math.isfinite(middle):
                # Of a bound that lies outside the radii, the side is known.
                least = f"below {own['rho'].iloc[0]:.2g}" if math.isnan(low) else f"{low:.2g}"
                most = f"above {own['rho'].iloc[-1]:.2g}" if math.isnan(high) else f"{high:.2g}"
                words.append(f"{kind} {middle:.2g}" + ("" if low == high else f" ({least} to {most})"))
            else:
                below = own["rise"].iloc[0] >= SMALL_RISE
                words.append(f"{kind} {'below the first radius' if below else 'at none of the radii'}")
        parts.append(f"for p = {norm_words(p)}: {', '.join(words)}")
    return (
        f"ρ at which the loss rises by {SMALL_RISE:g} nats, {'; '.join(parts)} (in brackets: one standard error of the "
        "rise)."
    )


def crossing(radii: ArrayLike, rises: ArrayLike) -> float:
    """The first radius at which the rise reaches SMALL_RISE, between points linearly on log axes; nan where it is
    reached at none, or at the first already.
    """
    rho, rise = np.log(np.asarray(radii)), np.asarray(rises)
    above = np.flatnonzero(rise >= SMALL_RISE)
    if not len(above) or above[0] == 0:
        return math.nan
    i = above[0]
    ends, level = rise[i - 1 : i + 1], SMALL_RISE
    if ends[0] > 0:  # a loss that falls first has no logarithm of its rise, and yet reaches the level between the two
        ends, level = np.log(ends), math.log(level)
    return float(np.exp(np.interp(level, ends, rho[i - 1 : i + 1])))
