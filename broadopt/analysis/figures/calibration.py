"""How far the confidence of predictions can be trusted: reliability diagrams of any runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broadopt.analysis.figures.looks import End, place_legend, styles
from broadopt.analysis.figures.output import Drawing, seeds
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run, check_different
from broadopt.errors import InputError

if TYPE_CHECKING:
    from broadopt.analysis.landscape.probabilities import Reliability

FEWEST = 10
"""Images of a bin from which on its accuracy is drawn."""

SAME = 0.5
"""Percentage points by which accuracy may differ from the stored one: rounding on another device moves a few images."""

MOVED = 3
"""Images that it may move however few there are."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run, and the calibration of what it reports."""

    run: Run
    found: "Reliability"
    stored: Mapping[str, float]


def calibration(request: Request) -> Drawing:
    """Reliability diagram of all runs, and below it how their confidences are distributed. Raises InputError."""
    check_different(request.runs, request.figure)
    measured = [_measured(run, request) for run in request.runs]
    rows = pandas.DataFrame([row for one in measured for row in _bins(one)])
    figure = Figure(figsize=(3.4, 3.4 + 0.13 * len(measured)))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    upper.plot([0, 100], [0, 100], color="0.7", linewidth=0.6)
    looks = styles({one.run.label: one.run.recipe.method for one in measured})
    ends = [_draw_reliability(upper, lower, one, looks[one.run.label]) for one in measured]
    upper.set(ylabel="accuracy, %", xlim=(0, 102), ylim=(0, 102))
    upper.text(99, 4, "below the diagonal: over-confident", fontsize=5.5, color="0.45", ha="right")
    lower.set(xlabel="confidence (highest probability), %", ylabel="images, %", yscale="log")
    place_legend(figure, [end.artist for end in ends], [end.text for end in ends], ncols=1)
    return Drawing(figure=figure, rows=rows, caption=_said(measured, request), seen=_seen_calibration(measured))


def _measured(run: Run, request: Request) -> Measured:
    from broadopt.analysis.landscape import probabilities
    from broadopt.analysis.landscape.images import Images

    images = Images(run, device=request.device, seed=request.seed, data_dir=request.data_dir)
    inputs, targets = images.test(request.images)
    predictions = probabilities.of_run(run, inputs, memory_format=images.memory_format)
    found, kept = probabilities.reliability(predictions, targets, seed=request.seed), run.reported
    most = max(SAME, 100 * MOVED / len(targets))
    # Images are counted whole: the difference of two percentages is rounded.
    if request.images is None and abs(found.accuracy - kept["test_accuracy"]) > most + 1e-9:
        raise InputError(
            f"{run.folder}: what it has kept reaches {found.accuracy:.2f} % on the test set, its result says "
            f"{kept['test_accuracy']:.2f} %; expected the weights and the images of the run"
        )
    return Measured(run=run, found=found, stored=kept)


def _bins(one: Measured) -> list[dict[str, Any]]:
    found = one.found
    head = {"run": one.run.label, "method": one.run.recipe.method, "seed": one.run.recipe.seed}
    tail = {"test_accuracy": found.accuracy, "nll": found.nll, "nll_error": found.nll_error, "ece": found.ece}
    tail |= {"ece_error": found.ece_error, "ece_stored": one.stored["test_ece"]}
    return [head | asdict(each) | tail for each in found.bins]


def _draw_reliability(upper: Axes, lower: Axes, one: Measured, style: dict[str, Any]) -> End:
    total = sum(each.images for each in one.found.bins)
    kept = [each for each in one.found.bins if each.images >= FEWEST]
    bars = [100 * math.sqrt(each.accuracy * (1 - each.accuracy) / each.images) for each in kept]
    x, y = [100 * each.confidence for each in kept], [100 * each.accuracy for each in kept]
    drawn = upper.errorbar(x, y, yerr=bars, elinewidth=0.5, **style | {"markersize": 2.5, "linewidth": 0.8})
    shares = [100 * each.images / total for each in one.found.bins]
    middles = [50 * (each.low + each.high) for each in one.found.bins]
    lower.plot(middles, shares, **style | {"markersize": 2.0, "linewidth": 0.8})
    text_ = f"{one.run.label}: NLL {one.found.nll:.3f}, ECE {100 * one.found.ece:.2f} %"
    return End(x[-1] if x else 0.0, y[-1] if y else 0.0, text_, drawn, style["color"])


def _said(measured: Sequence[Measured], request: Request) -> str:
    whole = request.images is None
    precisions = " and ".join(sorted({one.run.recipe.precision for one in measured}))
    parts = [
        f"What each run reports (last weights, SWA's average, the mean of FGE's members from their snapshots) on "
        f"{_data(measured)}{'' if whole else ', drawn by the seed of the figure'}, the same for all "
        f"runs of a data set, with the run's own BN statistics; {precisions} on {request.device.type}; "
        f"{seeds(request.runs, request.seed)}.",
        f"15 bins of equal width, as in Guo et al. 2017; those of {FEWEST} images or more are drawn above, bars ± one "
        "binomial standard error.",
    ]
    if whole:
        most = max(abs(one.found.ece - one.stored["test_ece"]) for one in measured)
        parts.append(f"The ECE is that of the run's own result{'' if most == 0 else f' to within {most:.1g}'}.")
    return " ".join(parts)


def _data(measured: Sequence[Measured]) -> str:
    """How many test images of which data sets: two of one name may differ in their images."""
    counts = {
        (one.run.recipe.dataset.name, one.run.recipe.dataset.fingerprint or ""): sum(
            each.images for each in one.found.bins
        )
        for one in measured
    }
    (name, _), first = min(counts.items())
    others = [f"{count:,} of {other}" for (other, _), count in sorted(counts.items())[1:]]
    return " and ".join([f"{first:,} test images of {name}", *others])


def _seen_calibration(measured: Sequence[Measured]) -> str:
    parts = [
        f"{one.run.label} NLL {one.found.nll:.4f} ± {one.found.nll_error:.4f}, ECE {100 * one.found.ece:.2f} ± "
        f"{100 * one.found.ece_error:.2f} %, accuracy {one.found.accuracy:.2f} %"
        for one in measured
    ]
    return f"On test images (± one standard error over the images): {'; '.join(parts)}."
