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
SEEDS = (1, 2, 3)
BySeed = dict[int, float]


def averages(run: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What each collector of a run with several predicts, as `swa 1.5`, from names such as `1.5` and `ema 1.5`."""
    first = run["method"].split("+")[1]
    return {name if " " in name else f"{first} {name}": of for name, of in run["metrics"]["collected"].items()}


def rows(run: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The rows of the table that a run is part of, and its figures there."""
    if "also" in run["config"]["collect"]:
        return averages(run)
    alpha = run["config"]["step"].get("alpha", 0.7)
    name = run["method"] if alpha == 0.7 else f"{run['method']} step.alpha={alpha:g}"
    collected = run["metrics"]["collected"]
    return {f"{name} {budgets}": of for budgets, of in collected.items()} or {name: run["metrics"]["last"]}


def read() -> tuple[dict[str, BySeed], dict[str, float]]:
    """Accuracies by row and seed, and the gradients of each row in units of SGD's."""
    accuracies: dict[str, BySeed] = {}
    gradients: dict[str, float] = {}
    for path in (path for place in PLACES for path in place.rglob("result.json")):
        run = json.loads(path.read_text())
        config = run["config"]
        if run["budget"] != 10 or config["dataset"]["label_noise"]:
            continue
        assert (config["precision"], run["protocol"], run["seed"] in SEEDS) == ("bf16", "swa2018", True)
        for row, figures in rows(run).items():
            one = accuracies.setdefault(row, {}).setdefault(run["seed"], figures["test_accuracy"])
            assert one == figures["test_accuracy"], f"{row} is another where it is the only one"
            gradients[row] = run["cost"]["passes"] * figures.get("epochs", 10) / 10
    return accuracies, gradients


ACCURACIES, GRADIENTS = read()
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
    cells = [f"`{row}`", f"{GRADIENTS[row]:.3g}", f"{mean(values):.2f} ± {stdev(values):.2f}"]
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


def test_every_line_of_the_table_has_runs() -> None:
    page = section("docs/methods.md", "What they reach")
    assert sorted(re.findall(r"^\| `([^`|]+)` \|", page, flags=re.MULTILINE)) == sorted(["sgd", *OTHERS])


if __name__ == "__main__":
    print("\n".join(map(line, ["sgd", *OTHERS])))
