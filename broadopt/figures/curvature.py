"""The Hessian's spectrum over the epochs (SAM, section 4.2)."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from broadopt.errors import InputError
from broadopt.figures.output import Drawing
from broadopt.figures.request import Request, Run, number_above, whole_number
from broadopt.figures.series import end_labels, looks
from broadopt.landscape import spectrum as hessian
from broadopt.landscape.images import Images, check_same
from broadopt.landscape.losses import Loss
from broadopt.landscape.networks import moments, snapshots

POINTS = 600
"""At which a density is drawn."""

TOP = 5
"""Eigenvalues whose ratio is shown: the largest over the fifth, as in SAM."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The spectrum of one run's network at one epoch."""

    run: Run
    step: int
    epoch: float
    spectrum: hessian.Spectrum
    weights: int
    """Number of weights."""

    @property
    def top(self) -> list[tuple[float, float]]:
        """The TOP largest eigenvalues, each with the radius within which it is known."""
        return self.spectrum.top(TOP)

    @property
    def ratio(self) -> float:
        """lambda_max / lambda_5; nan unless both are positive."""
        (first, _), (fifth, _) = self.top[0], self.top[-1]
        return first / fifth if fifth > 0 else math.nan


def spectrum_options(parser: argparse.ArgumentParser) -> None:
    """What `spectrum` takes beside the options of all figures."""
    add = parser.add_argument
    add("--epochs", metavar="E[,E]", help="epochs with snapshots (default: --moments of them, evenly spaced)")
    add("--moments", type=whole_number(1, 8), default=4, metavar="N", help="how many epochs (default: 4)")
    add("--steps", type=whole_number(2, 1000), default=20, metavar="M", help="Lanczos steps (default: 20)")
    add("--starts", type=whole_number(1, 100), default=1, metavar="K", help="random starts (default: 1)")
    add("--width", type=number_above(0), default=0.01, metavar="W",
        help="of the Gaussians, in ranges of an epoch's eigenvalues (default: 0.01)")  # fmt: skip


def spectrum(request: Request) -> Drawing:
    """Densities at a few epochs above, lambda_max and lambda_max / lambda_5 over the epochs below; a line a run."""
    check_same(request.runs, networks=False)
    epochs = chosen_epochs(request.runs, request.options.epochs, request.options.moments)
    found, images = measure(request, epochs)
    styles = looks(request.runs)
    figure = Figure(figsize=(6.8, 3.3))
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    panels = np.atleast_1d(upper.subplots(1, len(epochs), sharey=True))
    for axes, epoch in zip(panels, epochs, strict=True):
        _densities(axes, [one for one in found if _same(one.epoch, epoch)], styles, request.options.width)
        axes.set_title(f"epoch {epoch:g}")
        axes.set_xlabel("eigenvalue")
    panels[0].set_ylabel("spectral density")
    left, right = lower.subplots(1, 2)
    _over_epochs(left, found, styles, {id(one): one.top[0][0] for one in found})
    left.set_ylabel(r"$\lambda_\mathrm{max}$")
    _over_epochs(right, found, styles, {id(one): one.ratio for one in found})
    right.set_ylabel(r"$\lambda_\mathrm{max} / \lambda_5$")
    return Drawing(figure=figure, rows=_rows(found), caption=_caption(request, images, found), seen=_seen(found))


def chosen_epochs(runs: Sequence[Run], given: str | None, count: int) -> list[float]:
    """The epochs that are shown: those `given`, or `count` evenly spaced among those of which all runs have snapshots.

    The start is one of them only where it is given: before any training, BN's stored statistics are no image's. Raises
    InputError for an epoch without snapshots.
    """
    kept = [{round(epochs, 6) for _, epochs in moments(run)} for run in runs]
    common = sorted(set.intersection(*kept))
    later = [epoch for epoch in common if epoch > 0]
    if given is None:
        if not later:
            raise InputError(
                f"{runs[-1].folder}: its snapshots are of no epoch of which {runs[0].folder} has one; expected runs "
                "with snapshots of the same epochs"
            )
        places = np.linspace(0, len(later) - 1, min(count, len(later))) if count > 1 else [len(later) - 1]
        return [later[round(place)] for place in places]
    wanted = sorted({_epoch(text) for text in given.split(",")})
    for epoch in wanted:
        if not any(_same(epoch, one) for one in common):
            listed = ", ".join(f"{one:g}" for one in common)
            raise InputError(f"--epochs {epoch:g}: expected epochs with snapshots of every run: {listed or 'none'}")
    return wanted


def measure(request: Request, epochs: Sequence[float]) -> tuple[list[Moment], Images]:
    """The spectrum of each run at each of the epochs, and the images of the last run. Raises InputError."""
    options, device, found = request.options, request.device, []
    total = len(request.runs) * len(epochs) * options.steps
    with tqdm(total=total, desc="spectrum", unit="step", disable=None, leave=False) as progress:
        for run in request.runs:
            images = Images(run, device=device, seed=request.seed, data_dir=request.data_dir)
            inputs, labels = images.train(request.train_images)
            steps = [step for step, epoch in moments(run) if any(_same(epoch, one) for one in epochs)]
            for step in steps:
                ((_, epoch, network),) = snapshots(run, steps=[step])
                model = network.model.to(device, memory_format=images.memory_format)  # type: ignore[call-overload]
                loss = Loss(model, inputs, labels)
                try:
                    nodes = hessian.spectrum(
                        loss, steps=options.steps, starts=options.starts, seed=request.seed, advance=progress.update
                    )
                except InputError as error:
                    raise InputError(f"{run.folder}, epoch {epoch:g}: {error}") from error
                found.append(Moment(run=run, step=step, epoch=epoch, spectrum=nodes, weights=loss.size))
    return found, images


def _epoch(text: str) -> float:
    try:
        epoch = float(text)
    except ValueError:
        epoch = math.nan
    if not 0 <= epoch < math.inf:
        raise InputError(f"--epochs {text}: expected numbers >= 0, separated by commas")
    return epoch


def _same(one: float, other: float) -> bool:
    return abs(one - other) < 1e-5


def _densities(axes: Axes, found: Sequence[Moment], styles: Mapping[str, dict[str, object]], width: float) -> None:
    ranges = [one.spectrum.range for one in found]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    spread = max(high - low, 1e-30)
    at = np.linspace(low - 0.04 * spread, high + 0.04 * spread, POINTS)
    sigma = width * spread
    for one in found:
        densities = one.spectrum.densities(at, width=sigma)
        style = {key: value for key, value in styles[one.run.label].items() if key != "marker"}
        axes.plot(at, densities.mean(0), **style)  # type: ignore[arg-type]  # matplotlib takes what `look` gives
        if len(densities) > 1:
            axes.fill_between(at, densities.min(0), densities.max(0), color=style["color"], alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    # One eigenvalue among P has a peak of 1 / (P sigma sqrt(2 pi)): below a tenth of it there is nothing to see.
    peak = 1 / (found[0].weights * sigma * math.sqrt(2 * math.pi))
    axes.set_ylim(bottom=min(peak / 10, axes.get_ylim()[0] if axes.lines == [] else peak / 10))


def _over_epochs(
    axes: Axes, found: Sequence[Moment], styles: Mapping[str, dict[str, object]], values: Mapping[int, float]
) -> None:
    ends = []
    for label, style in styles.items():
        points = [(one.epoch, values[id(one)]) for one in found if one.run.label == label]
        axes.plot(*zip(*points, strict=True), **style)  # type: ignore[arg-type]  # matplotlib takes what `look` gives
        ends.append((*points[-1], label, str(style["color"])))
    axes.set_xlabel("epoch")
    axes.set_ylim(bottom=0)
    end_labels(axes, ends)


def _rows(found: Sequence[Moment]) -> pandas.DataFrame:
    rows = []
    for one in found:
        for start, nodes in enumerate(one.spectrum.starts, start=1):
            for place, (value, weight, bound) in enumerate(
                zip(nodes.values, nodes.weights, nodes.bounds, strict=True), start=-len(nodes.values)
            ):
                where = {"run": one.run.label, "step": one.step, "epoch": one.epoch, "start": start}
                rows.append({**where, "rank": -place, "eigenvalue": value, "weight": weight, "bound": bound})
    return pandas.DataFrame(rows)


def _caption(request: Request, images: Images, found: Sequence[Moment]) -> str:
    options = request.options
    count = min(request.train_images, images.train_size)
    noisy = any(run.recipe.dataset.label_noise for run in request.runs)
    sizes = sorted({one.weights for one in found})
    band = f"; mean of {options.starts} starts, band: their range" if options.starts > 1 else ""
    return (
        f"Hessian of the mean cross-entropy, without weight decay, of {' and '.join(f'{size:,}' for size in sizes)} "
        f"weights on {count:,} of {images.train_size:,} training images (unaugmented, chosen by seed {request.seed}"
        f"{', labels with the noise of the training' if noisy else ''}). Networks in evaluation mode, with the BN "
        f"statistics of each snapshot; float32. Stochastic Lanczos quadrature, {options.steps} steps with full "
        f"reorthogonalisation from random signs (seed {request.seed}){band}; each node a Gaussian of {options.width:g} "
        "of the range of the panel's eigenvalues."
    )


def _seen(found: Sequence[Moment]) -> str:
    last = max(one.epoch for one in found)
    parts = []
    for one in (one for one in found if one.epoch == last):
        (value, bound), ratio = one.top[0], one.ratio
        words = f"{one.run.label} λmax {value:.4g} ± {bound:.1g}"
        parts.append(words + (f" and λmax/λ5 {ratio:.3g}" if math.isfinite(ratio) else ""))
    return f"At epoch {last:g}: {'; '.join(parts)} (±: how far Lanczos may be off on these images)."
