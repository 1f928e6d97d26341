"""How far predictions can be trusted: calibration of any runs, and accuracy where training labels are wrong."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broadopt.analysis.comparing.keys import recipe_id
from broadopt.analysis.comparing.statistics import difference
from broadopt.analysis.figures.output import Drawing, End, name_lines, place_legend, seeds, styles
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run, check_different, labels
from broadopt.analysis.tables.options import one_of
from broadopt.analysis.tables.summary import longest_key, reading, summarise, text
from broadopt.config.run_config import KINDS_OF_NOISE
from broadopt.errors import InputError

if TYPE_CHECKING:
    from broadopt.analysis.landscape.probabilities import Reliability

FEWEST = 10
"""Images of a bin from which on its accuracy is drawn."""

SAME = 0.5
"""Percentage points by which accuracy may differ from the stored one: rounding on another device moves a few images."""

METRICS = {
    "reported": "of what each run reports: its last weights, SWA's average or FGE's ensemble",
    "last": "of the weights after the last epoch",
    "best": "of the best epoch, chosen on the test set",
}


# Calibration


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
    if request.images is None and abs(found.accuracy - kept["test_accuracy"]) > SAME:
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


def _draw_reliability(upper: Axes, lower: Axes, one: Measured, style: Mapping[str, Any]) -> End:
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


# Label noise


@dataclass(frozen=True, kw_only=True)
class Course:
    """Runs of one config and kind of noise that differ in their seed and in the share of wrong labels: accuracy by
    share and seed.
    """

    label: str
    recipe: str
    """Of the config; lines of several kinds of noise that share it have the same runs without wrong labels."""
    method: str
    values: Mapping[float, Mapping[int, float]]
    """Percent."""


def noise_options(parser: argparse.ArgumentParser) -> None:
    """Which accuracy is drawn."""
    parser.add_argument(
        "--metric", default="reported",
        help="reported (default: last weights, or what was collected), last, or best (chosen on the test set)",
    )  # fmt: skip


def noise(request: Request) -> Drawing:
    """Test accuracy over the share of wrong training labels, a line a method. Raises InputError."""
    metric = request.options.metric
    one_of("--metric", metric, tuple(METRICS))
    check_different(request.runs, request.figure)
    courses = _courses(request.runs, metric)
    if max(len(course.values) for course in courses) < 2:
        raise InputError(
            "noise: expected runs of a method at two shares of wrong labels at least; broadopt-run -m "
            "method=sgd,sam,asam dataset.label_noise=0.2,0.4,0.6 trains them"
        )
    rows = pandas.DataFrame([row for course in courses for row in _rows(course)])
    figure = Figure(figsize=(3.4, 2.4))
    axes = figure.subplots()
    width = 100 * max(max(course.values) - min(course.values) for course in courses)
    # Beside each other, so that the bars of one share can be told apart.
    shifts = [0.012 * width * (number - (len(courses) - 1) / 2) for number in range(len(courses))]
    looks = styles({course.label: course.method for course in courses})
    ends = [_draw(axes, course, looks[course.label], shift) for course, shift in zip(courses, shifts, strict=True)]
    axes.set(xlabel="training labels that are wrong, %", ylabel="test accuracy, %")
    axes.set_xticks(sorted({100 * share for course in courses for share in course.values}))
    axes.grid(axis="y")
    name_lines(axes, ends)
    return Drawing(figure=figure, rows=rows, caption=_caption(request.runs, courses, metric), seen=_seen(courses))


def _courses(runs: Sequence[Run], metric: str) -> list[Course]:
    recipes: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        if run.recipe.dataset.noise not in KINDS_OF_NOISE:
            raise InputError(f"{run.folder}: its labels are of a file, of which no share is recorded; expected runs "
                             "with dataset.label_noise")  # fmt: skip
        # A run without wrong labels is where every kind of noise begins, whichever kind it names.
        kind = run.recipe.dataset.noise if run.recipe.dataset.label_noise else CLEAN
        recipe = recipe_id(_without(run.result["config"], "label_noise", "noise"))
        recipes.setdefault(recipe, {}).setdefault(kind, []).append(run)
    groups = [(recipe, group) for recipe, kinds in recipes.items() for group in _with_clean(kinds)]
    names = labels([_without(group[0].result["config"], "label_noise") for _, group in groups])
    courses = []
    for label, (recipe, group) in zip(names, groups, strict=True):
        values: dict[float, dict[int, float]] = {}
        for run in sorted(group, key=lambda run: (run.recipe.dataset.label_noise, run.recipe.seed)):
            values.setdefault(run.recipe.dataset.label_noise, {})[run.recipe.seed] = _accuracy(run, metric)
        courses.append(Course(label=label, recipe=recipe, method=group[0].recipe.method, values=values))
    return courses


CLEAN = ""
"""Stands for a kind of noise where no label is wrong."""


def _with_clean(kinds: Mapping[str, Sequence[Run]]) -> list[list[Run]]:
    """The runs of each kind of noise, first, with those that have none; these alone where there is no noise."""
    clean = kinds.get(CLEAN, [])
    return [[*group, *clean] for kind, group in kinds.items() if kind != CLEAN] or [list(clean)]


def _without(config: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """A recorded config without its seed and these keys of its data set."""
    dataset = {key: value for key, value in config["dataset"].items() if key not in keys}
    return {key: value for key, value in config.items() if key != "seed"} | {"dataset": dataset}


def _accuracy(run: Run, metric: str) -> float:
    result = dict(run.result)
    key = longest_key([result]) if metric == "reported" else None
    name = "collected" if key is not None else "last" if metric == "reported" else metric
    value = reading(result, metric=name, key=key)
    if value is None:
        raise InputError(f"{run.folder}: its result has no accuracy of {name}; expected a run with one")
    return value


def _rows(course: Course) -> list[dict[str, Any]]:
    found = []
    for share, values in course.values.items():
        summary = summarise(values.values())
        assert summary is not None  # a share stands in a course where a run of it is read
        found.append(
            {"line": course.label, "method": course.method, "label_noise": share, "test_accuracy": summary.mean}
            | {"std": summary.std, "seeds": summary.n, "seed": " ".join(map(str, values))}
        )
    return found


def _draw(axes: Axes, course: Course, style: Mapping[str, Any], shift: float) -> End:
    rows = _rows(course)
    shares, means = [100 * row["label_noise"] + shift for row in rows], [row["test_accuracy"] for row in rows]
    bars = [row["std"] or 0.0 for row in rows]
    drawn = axes.errorbar(shares, means, yerr=bars, capsize=1.5, elinewidth=0.6, capthick=0.6, **style)
    return End(shares[-1], means[-1], course.label.replace(", ", "\n"), drawn, style["color"])


def _caption(runs: Sequence[Run], courses: Sequence[Course], metric: str) -> str:
    data = ", ".join(sorted({run.recipe.dataset.name for run in runs}))
    noises = {run.recipe.dataset.noise for run in runs if run.recipe.dataset.label_noise}
    kinds = " and ".join(kind for kind in KINDS_OF_NOISE if kind in noises)
    counts = sorted({len(values) for course in courses for values in course.values.values()})
    over = (
        "one seed a point"
        if counts == [1]
        else (
            f"mean over {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " seeds, bars ± one sample "
            "standard deviation"
        )
    )
    return (
        f"Test accuracy on the whole test set of {data}, whose labels are true, {METRICS[metric]}; {over}; "
        f"{seeds(runs)}. Training labels: the given share, drawn by the seed, is wrong ({kinds}); methods of one seed "
        "have the same wrong labels."
    )


def _seen(courses: Sequence[Course]) -> str:
    """All lines at the highest share that all have, each with its difference to the first."""
    common = set.intersection(*(set(course.values) for course in courses))
    if not common:
        return "The lines have no share of wrong labels in common."
    share = max(common)
    first, *others = courses
    parts = [f"{first.label} {text(summarise(first.values[share].values()))} %"]
    for course in others:
        if share == 0 and course.recipe == first.recipe:
            parts.append(f"{course.label}: the same runs as {first.label}")
            continue
        found = difference(course.values[share], first.values[share])
        assert found is not None
        interval = (
            f"95 % interval {found.low:+.2f} to {found.high:+.2f}, {found.test}"
            if found.low is not None and found.high is not None
            else found.why_not
        )
        summary = text(summarise(course.values[share].values()))
        parts.append(f"{course.label} {summary} %, {found.mean:+.2f} to {first.label} ({interval})")
    return f"With {100 * share:g} % wrong labels, mean ± std (seeds): {'; '.join(parts)}."
