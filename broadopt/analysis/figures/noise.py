"""Test accuracy over label noise, from the results of runs alone."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from broadopt.analysis.comparing.keys import recipe_id
from broadopt.analysis.comparing.statistics import difference
from broadopt.analysis.figures.looks import End, name_lines, styles
from broadopt.analysis.figures.output import Drawing, seeds
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.runs import Run, check_different, labels
from broadopt.analysis.tables.options import one_of
from broadopt.analysis.tables.summary import longest_key, reading, summarise, text
from broadopt.config.run_config import KINDS_OF_NOISE
from broadopt.errors import InputError

METRICS = {
    "reported": "of what each run reports: its last weights, SWA's average or FGE's ensemble",
    "last": "of the weights after the last epoch",
    "best": "of the best epoch, chosen on the test set",
}

CLEAN = ""
"""Stands for a kind of noise where no label is wrong."""

ASYMMETRIC = (
    "With asymmetric noise the share is that of each class which is taken for another: five of the ten of CIFAR-10, so "
    "that half the share of all labels is wrong, and all of CIFAR-100."
)


@dataclass(frozen=True, kw_only=True)
class Curve:
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
    """Test accuracy over label noise, a line a method. Raises InputError."""
    metric = request.options.metric
    one_of("--metric", metric, tuple(METRICS))
    check_different(request.runs, request.figure)
    curves = _curves(request.runs, metric)
    if max(len(curve.values) for curve in curves) < 2:
        raise InputError(
            "noise: expected runs of a method at two shares of wrong labels at least; broadopt-run -m "
            "method=sgd,sam,asam dataset.label_noise=0.2,0.4,0.6 trains them"
        )
    rows = pandas.DataFrame([row for curve in curves for row in _rows(curve)])
    figure = Figure(figsize=(3.4, 2.4))
    axes = figure.subplots()
    width = 100 * max(max(curve.values) - min(curve.values) for curve in curves)
    # Beside each other, so that the bars of one share can be told apart.
    shifts = [0.012 * width * (number - (len(curves) - 1) / 2) for number in range(len(curves))]
    looks = styles({curve.label: curve.method for curve in curves})
    ends = [_draw(axes, curve, looks[curve.label], shift) for curve, shift in zip(curves, shifts, strict=True)]
    is_share_of_all = "asymmetric" not in _kinds(request.runs)
    axes.set(xlabel="training labels that are wrong, %" if is_share_of_all else "label noise, %")
    axes.set_ylabel("test accuracy, %")
    axes.set_xticks(sorted({100 * share for curve in curves for share in curve.values}))
    axes.grid(axis="y")
    name_lines(axes, ends)
    return Drawing(
        figure=figure,
        rows=rows,
        caption=_caption(request.runs, curves, metric),
        seen=_seen(curves, "wrong labels" if is_share_of_all else "label noise"),
    )


def _kinds(runs: Sequence[Run]) -> list[str]:
    """The kinds of noise that some labels of the runs are wrong by."""
    noises = {run.recipe.dataset.noise for run in runs if run.recipe.dataset.label_noise}
    return [kind for kind in KINDS_OF_NOISE if kind in noises]


def _curves(runs: Sequence[Run], metric: str) -> list[Curve]:
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
    curves = []
    for label, (recipe, group) in zip(names, groups, strict=True):
        values: dict[float, dict[int, float]] = {}
        for run in sorted(group, key=lambda run: (run.recipe.dataset.label_noise, run.recipe.seed)):
            values.setdefault(run.recipe.dataset.label_noise, {})[run.recipe.seed] = _accuracy(run, metric)
        curves.append(Curve(label=label, recipe=recipe, method=group[0].recipe.method, values=values))
    return curves


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


def _rows(curve: Curve) -> list[dict[str, Any]]:
    found = []
    for share, values in curve.values.items():
        summary = summarise(values.values())
        assert summary is not None  # a share stands in a curve where a run of it is read
        found.append(
            {"line": curve.label, "method": curve.method, "label_noise": share, "test_accuracy": summary.mean}
            | {"std": summary.std, "seeds": summary.n, "seed": " ".join(map(str, values))}
        )
    return found


def _draw(axes: Axes, curve: Curve, style: Mapping[str, Any], shift: float) -> End:
    rows = _rows(curve)
    shares, means = [100 * row["label_noise"] + shift for row in rows], [row["test_accuracy"] for row in rows]
    bars = [row["std"] or 0.0 for row in rows]
    drawn = axes.errorbar(shares, means, yerr=bars, capsize=1.5, elinewidth=0.6, capthick=0.6, **style)
    return End(shares[-1], means[-1], curve.label.replace(", ", "\n"), drawn, style["color"])


def _caption(runs: Sequence[Run], curves: Sequence[Curve], metric: str) -> str:
    data = ", ".join(sorted({run.recipe.dataset.name for run in runs}))
    kinds = _kinds(runs)
    counts = sorted({len(values) for curve in curves for values in curve.values.values()})
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
        f"{seeds(runs)}. Training labels: the given share, drawn by the seed, is wrong ({' and '.join(kinds)}); "
        f"methods of one seed {'and kind ' if len(kinds) > 1 else ''}have the same wrong labels."
        f"{f' {ASYMMETRIC}' if 'asymmetric' in kinds else ''}"
    )


def _seen(curves: Sequence[Curve], noise: str) -> str:
    """All lines at the highest share that all have, each with its difference to the first; `noise`: what it is of."""
    common = set.intersection(*(set(curve.values) for curve in curves))
    if not common:
        return f"The lines have no share of {noise} in common."
    share = max(common)
    first, *others = curves
    parts = [f"{first.label} {text(summarise(first.values[share].values()))} %"]
    for curve in others:
        if share == 0 and curve.recipe == first.recipe:
            parts.append(f"{curve.label}: the same runs as {first.label}")
            continue
        found = difference(curve.values[share], first.values[share])
        assert found is not None
        interval = (
            f"95 % interval {found.low:+.2f} to {found.high:+.2f}, {found.test}"
            if found.low is not None and found.high is not None
            else found.why_not
        )
        summary = text(summarise(curve.values[share].values()))
        parts.append(f"{curve.label} {summary} %, {found.mean:+.2f} to {first.label} ({interval})")
    return f"With {100 * share:g} % {noise}, mean ± std (seeds): {'; '.join(parts)}."
