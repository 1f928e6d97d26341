"""Learning curves: the numbers behind them, worked out by hand, from stored runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from in_process import read_csv, said
from stored import RESNET20, record, store

from broadopt.analysis.figures.looks import spread, styles
from broadopt.runs import results as results_

SAM = (RESNET20, "method=sam")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of SGD, three epochs each; SAM with two radii, one seed, of which one stopped after two epochs; SWA."""
    root = tmp_path_factory.mktemp("curves") / "results"
    store(root, record(RESNET20, seed=1), history={1: 10.0, 2: 20.0, 3: 60.0})
    store(root, record(RESNET20, seed=2), history={1: 12.0, 2: 26.0, 3: 61.0})
    store(root, record(*SAM, "step.rho=0.1"), history={1: 5.0, 2: 6.0, 3: 7.0})
    store(root, record(*SAM, "step.rho=0.5"), history={1: 4.0, 2: 5.0}, state="interrupted")
    return root


def drawn(results: Path, tmp_path: Path, *words: str) -> tuple[str, pandas.DataFrame]:
    code, output, errors = said(
        "broadopt-figure", "curves", *words, "--results", str(results), "--format", "png", cwd=tmp_path
    )
    assert code == 0, errors
    assert (tmp_path / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return output, read_csv(tmp_path / "curves.csv")


def test_a_line_is_the_mean_over_seeds_with_its_lowest_and_highest(results: Path, tmp_path: Path) -> None:
    output, rows = drawn(results, tmp_path, "method=sgd", "--quantity", "test_accuracy")
    assert rows[["line", "of", "epoch", "mean", "low", "high", "seeds"]].values.tolist() == [
        ["SGD", "weights", 1.0, 11.0, 10.0, 12.0, 2],
        ["SGD", "weights", 2.0, 23.0, 20.0, 26.0, 2],
        ["SGD", "weights", 3.0, 60.5, 60.0, 61.0, 2],
    ]
    assert output == (
        "test_accuracy of the plain weights at the last epoch, mean ± sample standard deviation (seeds): "
        "SGD 60.50 ± 0.71 (2) at epoch 3.\n"
    )
    assert "Bands: from the lowest to the highest seed." in (tmp_path / "curves.csv").read_text()


def test_stars_are_of_the_runs_own_collector_and_lines_of_a_method_differ(tmp_path: Path) -> None:
    root = tmp_path / "results"
    collected = {"1": 60.0, "1.5": 61.0, "ema 1": 62.0, "ema 1.5": 63.0}
    folder = store(root, record(RESNET20, "method=swa", seed=3), history={1: 10.0, 2: 20.0}, collected=collected)
    path = folder / "result.json"
    result = json.loads(path.read_text())
    for key, figures in result["metrics"]["collected"].items():
        figures["epochs"] = 10.0 * float(key.split()[-1])
    results_.write(folder, {key: value for key, value in result.items() if key != "checksum"})
    _, rows = drawn(root, tmp_path, "method=swa", "--quantity", "test_accuracy")
    stars = rows[rows["of"] == "collected"]
    assert stars[["epoch", "mean", "seeds"]].values.tolist() == [[10.0, 60.0, 1], [15.0, 61.0, 1]]
    assert "one seed a line; seed of the runs 3. " in (tmp_path / "curves.csv").read_text()


def test_lines_of_a_method_differ_in_their_dashes() -> None:
    looks = styles({"a": "sgd", "b": "swa", "c": "sgd"})
    assert [looks[name]["linestyle"] for name in "abc"] == ["-", "-", "--"]
    assert looks["a"]["color"] == looks["c"]["color"] == "#000000"
    looks = styles({"a": "swa", "b": "sam+swa", "c": "sam", "d": "own"})
    assert [looks[name]["linestyle"] for name in "abcd"] == ["-", "--", "-.", (0, (3, 1, 1, 1, 1, 1))]
    assert looks["a"]["color"] == looks["b"]["color"] == "#0072B2"


def test_a_band_may_be_the_standard_deviation(results: Path, tmp_path: Path) -> None:
    _, rows = drawn(results, tmp_path, "method=sgd", "--quantity", "test_accuracy", "--band", "sd")
    sd = np.std([20.0, 26.0], ddof=1)
    assert rows.loc[1, ["low", "high"]].tolist() == [23 - sd, 23 + sd]
    assert "Bands: one sample standard deviation (n - 1) on both sides." in (tmp_path / "curves.csv").read_text()


def test_runs_that_are_not_finished_are_drawn_and_named(results: Path, tmp_path: Path) -> None:
    output, rows = drawn(results, tmp_path, "method=sam", "--quantity", "test_accuracy")
    assert output.endswith(": SAM, rho 0.1 7.00 (1) at epoch 3; SAM, rho 0.5 5.00 (1) at epoch 2.\n")
    assert rows.groupby("line", sort=False)["epoch"].max().to_dict() == {"SAM, rho 0.1": 3.0, "SAM, rho 0.5": 2.0}
    assert "Not finished, open circle: SAM, rho 0.5 (interrupted, epoch 2)." in (tmp_path / "curves.csv").read_text()


def test_the_epoch_that_is_said_is_that_of_the_value(tmp_path: Path) -> None:
    folder = store(tmp_path / "results", record(RESNET20), history={5: 40.0, 10: 50.0, 13: 55.0}, state="interrupted")
    path = folder / "history.csv"
    head, *lines = path.read_text().splitlines()
    place = head.split(",").index("test_accuracy")
    last = lines[-1].split(",")
    last[place] = ""  # evaluate_every=5: epoch 13 was trained and not evaluated
    path.write_text("\n".join([head, *lines[:-1], ",".join(last)]) + "\n")
    output, _ = drawn(tmp_path / "results", tmp_path, "method=sgd", "--quantity", "test_accuracy")
    assert output.endswith(" 50.00 (1) at epoch 10.\n")


def test_a_run_is_not_drawn_as_two_seeds(results: Path, tmp_path: Path) -> None:
    (folder,) = (path.parent for path in results.rglob("result.json") if "seed1" in str(path) and "sgd" in str(path))
    words = ("broadopt-figure", "curves", str(folder), "method=sgd", "--results", str(results))
    code, _, errors = said(*words, cwd=tmp_path)
    assert (code, errors) == (2, "broadopt-figure: curves: a run was named twice; expected different runs\n")


@pytest.mark.parametrize(
    ("words", "said_"),
    [
        (("method=sgd", "--quantity", "test_acuracy"), 'did you mean "test_accuracy"?'),
        (("method=sgd", "--band", "std"), '--band "std" is none of minmax, sd'),
        (("method=asam",), "no run has this value"),
    ],
)
def test_bad_input_is_one_line(results: Path, tmp_path: Path, words: tuple[str, ...], said_: str) -> None:
    code, output, errors = said("broadopt-figure", "curves", *words, "--results", str(results), cwd=tmp_path)
    assert (code, output, len(errors.strip().splitlines())) == (2, "", 1), errors
    assert said_ in errors
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_its_history_is_named(results: Path, tmp_path: Path) -> None:
    folder = store(tmp_path / "results", record(RESNET20))
    code, _, errors = said("broadopt-figure", "curves", str(folder), cwd=tmp_path)
    assert code == 2
    assert (
        errors == f"broadopt-figure: {folder} holds no history.csv; expected the folder as broadopt-run has left it\n"
    )


def test_no_torch_is_needed() -> None:
    program = "import sys, broadopt.analysis.figures.curves; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert spread([0.1, 0.5, 0.9], [0.1] * 3) == pytest.approx([0.1, 0.5, 0.9])


def test_labels_that_collide_are_moved_apart_around_their_middle_and_keep_their_order() -> None:
    assert spread([0.5, 0.5], [0.2, 0.2]) == pytest.approx([0.4, 0.6])
    assert spread([0.52, 0.5], [0.2, 0.2]) == pytest.approx([0.61, 0.41])
    assert spread([0.0, 0.1, 0.1, 0.9], [0.2] * 4) == pytest.approx([-0.4 / 3, 0.2 / 3, 0.8 / 3, 0.9])
