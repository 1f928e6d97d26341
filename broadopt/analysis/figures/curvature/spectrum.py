"""The Hessian's spectrum over the epochs (SAM, section 4.2)."""

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from broadopt.analysis.figures.curvature.moments import TOP, Moment, chosen_epochs, measured, moments_of
from broadopt.analysis.figures.curvature.scene import Scene
from broadopt.analysis.figures.looks import End, name_lines, styles
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request, number_above, whole_number
from broadopt.analysis.landscape.store import Store

POINTS = 600
"""At which a density is drawn."""


def spectrum_options(parser: argparse.ArgumentParser) -> None:
    """The options of `spectrum` alone."""
    add = parser.add_argument
    add("--epochs", metavar="E[,E]", help="epochs with snapshots (default: --moments of them, evenly spaced)")
    add("--moments", type=whole_number(1, 8), default=4, metavar="N", help="how many epochs (default: 4)")
    add("--steps", type=whole_number(TOP, 1000), default=20, metavar="M", help="Lanczos steps (default: 20)")
    add("--starts", type=whole_number(1, 100), default=1, metavar="K", help="random starts (default: 1)")
    add("--width", type=number_above(0), default=0.01, metavar="W",
        help="of the Gaussians, as a share of a panel's range of eigenvalues (default: 0.01)")  # fmt: skip


def spectrum(request: Request) -> Drawing:
    """Densities at a few epochs above, lambda_max and lambda_max / lambda_5 over the epochs below; a line a run. Raises
    InputError.
    """
    epochs = chosen_epochs(request.runs, request.options.epochs, request.options.moments)
    scene = Scene.of(request)
    options = request.options
    store = Store(
        request.output,
        key=scene.key({"epochs": epochs, "lanczos": [options.steps, options.starts]}),
        columns=("run", "step", "start", "rank"),
    )
    rows = [row for run in request.runs for row in measured(run, epochs, scene, store)]
    table = pandas.DataFrame(rows)
    found = moments_of(table)
    return Drawing(
        figure=_drawn(found, epochs, request),
        rows=table,
        caption=_caption(scene, found),
        seen=_seen(found),
        key=store.key,
    )


def _drawn(found: Sequence[Moment], epochs: Sequence[float], request: Request) -> Figure:
    looks = styles({run.label: run.recipe.method for run in request.runs})
    figure = Figure(figsize=(6.8, 3.4))
    rows = figure.add_gridspec(2, 1, height_ratios=(1.1, 1))
    panels = rows[0].subgridspec(1, len(epochs)).subplots(sharey=True, squeeze=False)[0]
    limits = []
    for axes, epoch in zip(panels, epochs, strict=True):
        own = [one for one in found if round(one.epoch, 6) == epoch]
        limits.append(_densities(axes, own, looks, request.options.width))
        axes.set(title=f"epoch {epoch:g}", xlabel="eigenvalue")
    lows, highs = zip(*limits, strict=True)
    panels[0].set(yscale="log", ylim=(min(lows), max(highs)), ylabel="spectral density")
    left, right = rows[1].subgridspec(1, 2).subplots(squeeze=False)[0]
    ends = _over_epochs(left, found, looks, [one.largest[0] for one in found])
    left.errorbar([one.epoch for one in found], [one.largest[0] for one in found], [one.largest[1] for one in found],
                  fmt="none", ecolor="0.4", elinewidth=0.6, capsize=1.5, zorder=1)  # fmt: skip
    left.set_ylabel(r"$\lambda_\mathrm{max}$")
    _over_epochs(right, found, looks, [one.ratio[0] for one in found])
    right.set_ylabel(r"$\lambda_\mathrm{max}\,/\,\lambda_5$")
    name_lines(left, ends)
    return figure


def _densities(
    axes: Axes, found: Sequence[Moment], looks: Mapping[str, dict[str, Any]], width: float
) -> tuple[float, float]:
    """Draw the densities of one epoch; returns between which values there is something to see."""
    limits: list[float] = []
    ends = [end for one in found for end in one.spectrum.range]
    low, high = min(ends), max(ends)
    spread = high - low or 1.0
    at, sigma = np.linspace(low - 0.04 * spread, high + 0.04 * spread, POINTS), width * spread
    for one in found:
        densities, style = one.spectrum.densities(at, width=sigma), looks[one.run]
        axes.plot(at, densities.mean(0), color=style["color"], linestyle=style["linestyle"], linewidth=0.8)
        if len(densities) > 1:
            axes.fill_between(at, densities.min(0), densities.max(0), color=style["color"], alpha=0.15, linewidth=0)
        limits.append(float(densities.max()))
    # The peak of one eigenvalue among P is 1 / (P sigma sqrt(2 pi)), and less where a start has little of its vector.
    peak = 1 / (max(one.parameters for one in found) * sigma * math.sqrt(2 * math.pi))
    return peak / 1000, 3 * max(limits)


def _over_epochs(
    axes: Axes, found: Sequence[Moment], looks: Mapping[str, dict[str, Any]], values: Sequence[float]
) -> list[End]:
    """A line a run; returns their ends."""
    ends = []
    for run, style in looks.items():
        points = [(one.epoch, value) for one, value in zip(found, values, strict=True) if one.run == run]
        (drawn,) = axes.plot(*zip(*points, strict=True), **style)
        ends.append(End(*points[-1], run.replace(", ", "\n"), drawn, str(style["color"])))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if 0 < axes.dataLim.ymax < math.inf:  # not where no spectrum has five positive eigenvalues
        axes.set_ylim(0, 1.08 * axes.dataLim.ymax)
    axes.grid(axis="y")
    return ends


def _caption(scene: Scene, found: Sequence[Moment]) -> str:
    options = scene.request.options
    sizes = " and ".join(f"{size:,}" for size in sorted({one.parameters for one in found}))
    scatter = f"; mean of {options.starts} starts, band: their range" if options.starts > 1 else ""
    return (
        f"{scene.caption} BN statistics: those of each snapshot. Hessian of the train loss in {sizes} weights: "
        f"stochastic Lanczos quadrature of {options.steps} steps with full reorthogonalisation from random signs"
        f"{scatter}; each node a Gaussian of {options.width:g} of the panel's range of eigenvalues. Error bars: the "
        "residual of each Ritz value."
    )


def _seen(found: Sequence[Moment]) -> str:
    last = max(one.epoch for one in found)
    parts = []
    for one in (one for one in found if one.epoch == last):
        value, bound = one.largest
        quotient, off = one.ratio
        ratio = f", λmax/λ5 {quotient:.3g} ± {off:.1g}" if math.isfinite(quotient) else ""
        parts.append(f"{one.run} λmax {value:.4g} ± {bound:.1g}{ratio}")
    return f"At epoch {last:g}: {'; '.join(parts)} (±: the residual of Lanczos on these images)."
