"""The table of label noise: which run is of which row, and what is compared with what."""

import re
from pathlib import Path

import pandas
import pytest
from stored import record, run, store

ROW = "experiment=label_noise/resnet32"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGD and SAM at 20 %, two seeds each; SAM at a share that no row has, and at 20 % with another radius."""
    root = tmp_path_factory.mktemp("noise") / "results"
    for seed in (1, 2):
        store(root, record(ROW, "dataset.label_noise=0.2", seed=seed), last=80.0 + seed, best=90.0 + seed)
        sam = (ROW, "method=sam", "dataset.label_noise=0.2")
        store(root, record(*sam, "step.rho=0.1", seed=seed), last=90.0 + seed, best=92.0 + seed)
    store(root, record(ROW, "method=sam", "dataset.label_noise=0.3", "step.rho=0.1"), last=70.0)
    store(root, record(*sam, "step.rho=0.2"), last=60.0)
    return root


def rows(runs: Path, *arguments: str) -> pandas.DataFrame:
    target = runs.parent / "table.csv"
    run("label_noise", "--results", runs, "--format", "csv", "--output", target, *arguments)
    return pandas.read_csv(target)


def test_a_run_fills_the_row_of_its_share_beside_the_published_value(runs: Path) -> None:
    table = rows(runs)
    filled = table[(table["table"] == "label_noise") & (table["n"] > 0)]
    assert filled[["row", "column", "n", "mean", "paper_mean"]].values.tolist() == [
        ["ResNet-32, 20 %", "SGD last", 2, 81.5, 84.8],
        ["ResNet-32, 20 %", "SAM last", 2, 91.5, 95.1],
        ["ResNet-32, 20 %", "SGD best", 2, 91.5, 91.32],
        ["ResNet-32, 20 %", "SAM best", 2, 93.5, 92.94],
    ]
    assert filled["difference"].round(2).tolist() == [-3.3, -3.6, 0.18, 0.56]


def test_other_runs_are_held_against_the_row_that_is_nearest(runs: Path) -> None:
    page = " ".join(run("label_noise", "--results", runs)[0].split())
    assert "dataset.label_noise 0.3 instead of 0.2" in page
    assert "step.rho 0.2 instead of 0.1" in page


def test_last_is_compared_with_last_and_best_with_best(runs: Path) -> None:
    table = rows(runs, "--against", "sgd")
    found = table[table["quantity"] == "difference"].set_index("column")
    assert found["mean"].to_dict() == {"SAM last": 10.0, "SAM best": 2.0}
    assert found["compared_with"].to_dict() == {"SAM last": "SGD last", "SAM best": "SGD best"}
    page = run("label_noise", "--results", runs, "--against", "sgd")[0]
    assert "**Differences to sgd**" in page
    assert re.findall(r"\| SAM (last|best) .* SGD (last|best) +\|\n", page) == [("last", "last"), ("best", "best")]


@pytest.mark.parametrize(("metric", "difference"), [("last", 10.0), ("best", 2.0)])
def test_by_one_metric_each_pair_is_tested_once(runs: Path, metric: str, difference: float) -> None:
    """The columns of last and best are of the same runs; a second test of them would count in Holm's correction."""
    table = rows(runs, "--against", "sgd", "--metric", metric)
    found = table[table["quantity"] == "difference"]
    assert found[["row", "column", "compared_with", "mean"]].values.tolist() == [
        ["ResNet-32, 20 %", f"SAM {metric}", f"SGD {metric}", difference]
    ]


def test_what_is_missing_is_one_command_a_cell(runs: Path) -> None:
    out, _ = run("label_noise", "--missing", "--seeds", "1", "--results", runs)
    lines = [line.partition(" seed=")[0] for line in out.splitlines()]
    assert len(lines) == 5 * 3 - 2
    assert f"broadopt-run {ROW} method=sam dataset.label_noise=0.8 step.rho=0.05" in lines
    assert f"broadopt-run {ROW} method=sam dataset.label_noise=0.2 step.rho=0.1" not in lines
