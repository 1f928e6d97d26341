"""The table of docs/methods.md is that of the committed runs, read from their files alone: differences are paired by
seed, intervals and p values are scipy's, and corrected by statsmodels.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from documents import section
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESULTS = Path(__file__).parent.parent / "results"
PLACES = [RESULTS / "cifar10_resnet20_10epochs", RESULTS / "cifar10_resnet20_methods"]
BENCHMARK = RESULTS / "benchmark/methods.json"
SEEDS = (1, 2, 3)
BySeed = dict[int, float]
LONGER = "sgd budget=15"
"""SGD that is given as many epochs as an average has after 1.5 budgets."""


def averages(run: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What each collector of a run with several predicts, as `swa 1.5`, from names such as `1.5` and `ema 1.5`."""
    first = run["method"].split("+")[1]
    return {name if " " in name else f"{first} {name}": of for name, of in run["metrics"]["collected"].items()}


def rows(run: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The rows of the table that a run is part of, and its figures there."""
    if "also" in run["config"]["collect"]:
        return averages(run)
    step = run["config"]["step"]
    own = [f"step.{key}={json.dumps(step[key])}" for key in ("every", "ascent", "second_order") if key in step]
    name = " ".join([run["method"], *own]) if run["method"] == "sam" else run["method"]
    if run["budget"] != 10:
        name += f" budget={run['budget']:g}"
    collected = run["metrics"]["collected"]
    return {f"{name} {budgets}": of for budgets, of in collected.items()} or {name: run["metrics"]["last"]}


def read() -> tuple[dict[str, BySeed], dict[str, float], dict[str, float]]:
    """Accuracies by row and seed; the gradients of each row and the seconds of its steps, in units of SGD's."""
    accuracies: dict[str, BySeed] = {}
    gradients: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for path in (path for place in PLACES for path in place.rglob("result.json")):
        run = json.loads(path.read_text())
        config = run["config"]
        if config["dataset"]["label_noise"] or (run["budget"] != 10 and LONGER not in rows(run)):
            continue
        assert (config["precision"], run["protocol"], run["seed"] in SEEDS) == ("bf16", "swa2018", True)
        for row, figures in rows(run).items():
            one = accuracies.setdefault(row, {}).setdefault(run["seed"], figures["test_accuracy"])
            assert one == figures["test_accuracy"], f"{row} is another where it is the only one"
            budgets = figures.get("epochs", run["budget"]) / 10
            gradients[row] = run["cost"]["passes"] * budgets
            seconds[row] = RATIOS.get(row, 1) * budgets
    return accuracies, gradients, seconds


RATIOS = {row["method"]: row["ratio"] for row in json.loads(BENCHMARK.read_text())["rows"]}
"""Seconds of a step over SGD's; rows that are not among them are SGD's steps with a collector."""
ACCURACIES, GRADIENTS, SECONDS = read()
SGD = ACCURACIES["sgd"]
OTHERS = sorted(ACCURACIES.keys() - {"sgd"})
TESTS = {
    row: stats.ttest_rel([ACCURACIES[row][seed] for seed in SEEDS], [SGD[seed] for seed in SEEDS]) for row in OTHERS
}


HOLM = dict(zip(OTHERS, multipletests([TESTS[row].pvalue for row in OTHERS], method="holm")[1], strict=True))
"""The p values after Holm's correction for all rows."""


def line(row: str) -> str:
    """A line of the table."""
    values = ACCURACIES[row].values()
    cells = [f"`{row}`", f"{GRADIENTS[row]:.3g}", f"{SECONDS[row]:.3g}", f"{mean(values):.2f} ± {stdev(values):.2f}"]
    if row == "sgd":
        return "| " + " | ".join(cells) + " | | |"
    interval = TESTS[row].confidence_interval(0.95)
    difference = f"{mean(values) - mean(SGD.values()):+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    return "| " + " | ".join([*cells, difference, f"{HOLM[row]:.3f}"]) + " |"


def test_every_row_has_its_three_seeds() -> None:
    assert {row: sorted(found) for row, found in ACCURACIES.items()} == {row: [*SEEDS] for row in ACCURACIES}


@pytest.mark.parametrize("row", ["sgd", *OTHERS])
def test_a_line_of_the_table_is_that_of_the_runs(row: str) -> None:
    assert line(row) in section("docs/methods.md", "What they reach").splitlines()


def test_the_differences_between_averages_are_those_of_the_runs() -> None:
    page = " ".join(section("docs/methods.md", "What they reach").split())
    for row, sign, words in (("ema 1.5", 1, "EMA above SWA by"), ("swag 1.5", -1, "SWAG below it by")):
        test = stats.ttest_rel(*([of[seed] for seed in SEEDS] for of in (ACCURACIES[row], ACCURACIES["swa 1.5"])))
        low, high = sorted(sign * end for end in test.confidence_interval(0.95))
        difference = sign * (mean(ACCURACIES[row].values()) - mean(ACCURACIES["swa 1.5"].values()))
        assert f"{words} {difference:.2f} ({low:.2f} to {high:.2f}" in page


def test_rows_without_a_measured_ratio_are_of_sgds_steps() -> None:
    own = {row.split()[0] for row in ACCURACIES.keys() - RATIOS.keys() - {LONGER}}
    assert own == {"fge", "swa", "ema", "lawa", "swag"}


def test_the_steps_are_said_to_differ_as_the_runs_do() -> None:
    """Of all steps of one training's length but LookSAM's: from which mean to which, and what the intervals hold."""
    steps = [row for row in OTHERS if row in RATIOS and row != "looksam"]
    means = [mean(ACCURACIES[row].values()) - mean(SGD.values()) for row in steps]
    ends = [TESTS[row].confidence_interval(0.95) for row in steps]
    words = f"from {min(means):.2f} to +{max(means):.2f}, and no interval of theirs leaves out 0; they reach from"
    words += f" {min(end.low for end in ends):.2f} to +{max(end.high for end in ends):.2f}"
    assert all(end.low < 0 < end.high for end in ends)
    page = " ".join(section("docs/methods.md", "What they reach").split())
    assert words in page
    exact = "sam step.second_order=true"
    assert f"(`{exact}`) costs {SECONDS[exact]:.1f} times SGD's seconds." in page


def test_the_averages_are_said_to_lie_above_sgd_as_the_runs_do() -> None:
    averages = ("swa 1.5", "ema 1.5", "swag 1.5")
    assert all(TESTS[row].confidence_interval(0.95).low > 0 for row in averages)
    low, high = (end(HOLM[row] for row in averages) for end in (min, max))
    assert f"corrected p {low:.2f} to {high:.2f}" in " ".join(section("docs/methods.md", "What they reach").split())


def test_the_averages_are_held_against_sgd_of_as_many_epochs() -> None:
    page = " ".join(section("docs/methods.md", "What they reach").split())
    assert "lies above all three of them" in page
    for name, row in (("EMA", "ema 1.5"), ("SWA", "swa 1.5"), ("SWAG", "swag 1.5")):
        words = against_longer(row)
        assert f"{name} {words}" in page
        assert words.startswith("-")
        assert " to -" in words  # the whole interval lies below 0


def against_longer(row: str) -> str:
    """The difference of an average from SGD with 15 epochs, in percentage points, and its interval."""
    test = stats.ttest_rel(*([of[seed] for seed in SEEDS] for of in (ACCURACIES[row], ACCURACIES[LONGER])))
    interval = test.confidence_interval(0.95)
    difference = mean(ACCURACIES[row].values()) - mean(ACCURACIES[LONGER].values())
    return f"{difference:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"


def test_every_line_of_the_table_has_runs() -> None:
    page = section("docs/methods.md", "What they reach")
    assert sorted(re.findall(r"^\| `([^`|]+)` \|", page, flags=re.MULTILINE)) == sorted(["sgd", *OTHERS])


if __name__ == "__main__":
    print("\n".join(map(line, ["sgd", *OTHERS])))
