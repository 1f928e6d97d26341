"""load_results and load_history on stored runs: columns, rows, order, selection, warnings, bad input."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
from printed import tables
from stored import RESNET20, VGG16, record, run, store

import broadopt
from broadopt.analysis.comparing.keys import completed
from broadopt.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over rho beside SGD, ten seeds of one rho, a failed and an interrupted run, and SWA."""
    folder = tmp_path_factory.mktemp("stored")
    for seed in (10, 2, 1):
        store(folder, record(RESNET20, "method=sam", "step.rho=0.5", seed=seed), last=70.0 + seed)
    store(folder, record(RESNET20, "method=sam", "step.rho=0.05"), history={1: 71.5, 2: 71.0})
    store(folder, record(RESNET20, "method=sgd", "budget=200"), last=69.0, device="H100")
    store(folder, record(RESNET20, "method=sgd", "budget=200", seed=2), last=1.0, state="failed", history={1: 1.0})
    store(
        folder, record(RESNET20, "method=sgd", "budget=200", seed=3), last=50.0, state="interrupted", history={1: 50.0}
    )
    store(folder, record(VGG16, "method=swa"), last=60.0, collected={"1": 73.8, "1.5": 74.2})
    return folder


def test_a_row_a_run_with_every_key_metric_and_cost(root: Path) -> None:
    frame = broadopt.load_results(root)
    place = ["dataset", "model", "method", "protocol", "budget", "precision", "seed", "state"]
    assert list(frame.columns[:12]) == [*place, "recipe", "identity", "folder", "epochs"]
    assert frame[["model", "method", "seed"]].values.tolist() == [
        ["resnet20", "sgd", 1],
        ["resnet20", "sam", 1],
        ["resnet20", "sam", 1],
        ["resnet20", "sam", 2],
        ["resnet20", "sam", 10],
        ["vgg16", "swa", 1],
    ]
    assert frame["step.rho"].tolist()[1:5] == [0.05, 0.5, 0.5, 0.5]
    assert frame["step.rho"].isna().tolist() == [True, False, False, False, False, True]
    assert frame["metrics.last.test_accuracy"].tolist() == [69.0, 71.0, 71.0, 72.0, 80.0, 60.0]
    assert frame["metrics.best.test_accuracy"].tolist()[1] == 71.5
    assert frame["metrics.collected.1.5.test_accuracy"].tolist()[5] == 74.2
    assert frame["cost.train_seconds"].tolist() == [101.0, 101.0, 101.0, 102.0, 110.0, 101.0]
    assert frame["environment.device"].tolist()[0] == "H100"
    assert frame["augmentation.mean"].tolist()[0] == "[0.5071, 0.4867, 0.4408]"
    assert frame["weight_decay"].tolist()[:5] == [0.0005] * 5
    assert frame["recipe"].nunique() == 4
    stored = json.loads((root / frame["folder"][4] / "result.json").read_text())
    assert (stored["identity"], stored["seed"]) == (frame["identity"][4], 10)
    means = frame.groupby(["method", "recipe"], sort=False)["metrics.last.test_accuracy"].mean()
    assert means.tolist() == [69.0, 71.0, pytest.approx((71 + 72 + 80) / 3), 60.0]


def test_a_bound_on_the_gradient_is_none_where_it_is_not_recorded() -> None:
    bounded, plain = ({"lr": 0.1, **more} for more in ({"clip": 1.0}, {}))
    assert completed([bounded, plain]) == [bounded, {"lr": 0.1, "clip": None}]


def test_a_key_that_is_not_recorded_at_its_first_value_has_that_value(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sam"))
    store(tmp_path, record(RESNET20, "method=sam", "step.chunk=32", seed=2))
    store(tmp_path, record(RESNET20, "method=sam", "step.perturbation=share", seed=3))
    store(tmp_path, record(RESNET20, "method=sgd", "budget=200"))
    frame = broadopt.load_results(tmp_path).set_index(["method", "seed"])
    assert frame["step.perturbation"].dropna().to_dict() == {
        ("sam", 1): "global",
        ("sam", 2): "global",
        ("sam", 3): "share",
    }
    assert frame["step.chunk"].dropna().to_dict() == {("sam", 2): 32}
    (first,) = broadopt.load_results(tmp_path, where="step.perturbation=global step.chunk=none")["seed"]
    assert first == 1


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({"step.rho": 0.5}, 3),
        ({"step.rho": [0.05, 0.5], "seed": range(1, 3)}, 3),
        (["step.rho=0.05,5e-1", "seed=1,2"], 3),
        ("method=sgd,swa", 2),
        ({"step.rho": None}, 2),
        ("model=vgg16 dataset=cifar100 nesterov=false", 1),
        ("augmentation.mean=[0.5071,0.4867,0.4408]", 5),
        ("collect.budgets=[1,1.25,1.5]", 1),
        ("nesterov=0", None),
        ({}, 6),
    ],
)
def test_where(root: Path, where: object, rows: int | None) -> None:
    if rows is None:
        with pytest.raises(InputError, match=r"no run has this value; they have false$"):
            broadopt.load_results(root, where=where)  # type: ignore[arg-type]
    else:
        assert len(broadopt.load_results(root, where=where)) == rows  # type: ignore[arg-type]


def test_states(root: Path) -> None:
    frame = broadopt.load_results(root, states=("failed", "interrupted"))
    assert frame[["state", "seed"]].values.tolist() == [["failed", 2], ["interrupted", 3]]
    assert len(broadopt.load_results(root, states="finished")) == 6


def test_history_is_a_row_an_epoch_of_runs_in_every_state(root: Path) -> None:
    frame = broadopt.load_history(root)
    columns = ["method", "seed", "state", "epoch", "test_accuracy"]
    assert frame[columns].values.tolist() == [
        ["sgd", 2, "failed", 1.0, 1.0],
        ["sgd", 3, "interrupted", 1.0, 50.0],
        ["sam", 1, "finished", 1.0, 71.5],
        ["sam", 1, "finished", 2.0, 71.0],
    ]
    assert list(frame.columns[-5:]) == ["epoch", "lr", "test_accuracy", "test_nll", "test_ece"]
    merged = frame.merge(broadopt.load_results(root)[["identity", "step.rho"]])
    assert merged["step.rho"].tolist() == [0.05, 0.05]


def test_several_folders_a_run_once(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "a")
    store(tmp_path / "b", record(RESNET20, "method=asam"))
    shutil.copytree(root / "runs/cifar100/vgg16", tmp_path / "b/runs/cifar100/vgg16")
    frame = broadopt.load_results(tmp_path / "a", tmp_path / "b")
    assert frame["method"].tolist() == ["sgd", "sam", "sam", "sam", "sam", "asam", "swa"]
    assert frame["folder"][6].startswith(f"{tmp_path}/a/runs/cifar100/vgg16/swa/seed1-")
    assert len(broadopt.load_history(tmp_path / "a", tmp_path / "b")) == 4


def test_the_folder_above_or_below_is_found(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(root, tmp_path / "mine/first")
    for folder in (tmp_path / "mine", tmp_path / "mine/first/runs"):
        assert len(broadopt.load_results(folder)) == 6
    monkeypatch.chdir(tmp_path / "mine/first/runs")
    assert len(broadopt.load_results(".")) == 6
    shutil.copytree(root, tmp_path / "mine/second")
    words = f"results folder {tmp_path}/mine holds no runs/, but 2 of its folders do: "
    with pytest.raises(InputError, match=f"^{re.escape(words)}--results .*/first --results .*/second$"):
        broadopt.load_results(tmp_path / "mine")


def test_what_cannot_be_trusted_is_left_out_with_a_warning(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "damaged")
    (broken,) = (tmp_path / "damaged/runs/cifar100/vgg16/swa").iterdir()
    (broken / "result.json").write_text("{")
    with pytest.warns(UserWarning, match=f"^left out: runs/cifar100/vgg16/swa/{broken.name}: not JSON"):
        assert len(broadopt.load_results(tmp_path / "damaged")) == 5
    (broken / "result.json").unlink()
    (odd,) = (tmp_path / "damaged/runs/cifar100/resnet20/sam").glob("*/history.csv")
    for content, why in (
        ("epoch\n1\n1\n", "without a column epoch that ascends"),
        (f"epoch{',a' * 100}\n1{',1' * 100}\n", "101 columns; expected 100 at most"),
        (f"epoch\n{'x' * 100_000}\n", r"not a table of numbers \(could not convert .*: 'x{500,1000}\.\.\.$"),
        ("epoch\nx\n", "not a table of num"),
        ("epoch,test_accuracy\n1,100.1\n", "test_accuracy: expected a number from 0 to 100, found 100.1"),
        ("epoch,test_nll\n1,-1e308\n", "test_nll: expected a number from -1e\\+100 to 1e\\+100, found -1e\\+308"),
    ):
        odd.write_text(content)
        with pytest.warns(UserWarning, match=f"^left out: runs/.*/history.csv: {why}"):
            assert len(broadopt.load_history(tmp_path / "damaged")) == 2


LIES = {
    "another seed's": (None, "last test_accuracy 72, there 71"),
    "an epoch edited": (lambda text: text.replace("40.0", "71.6"), "best test_accuracy 71.6, there 71"),
    "the last edited": (lambda text: text.replace("1.45", "1.44"), "last test_nll 1.44, there 1.45"),
    "cut off": (lambda text: text[: text.index("2.0,")], "last test_accuracy 40, there 71"),
    "no figures": (lambda text: "epoch,lr\n1.0,0.1\n2.0,0.1\n", "no epoch is evaluated"),
    "a figure lacks": (lambda text: text.replace(",1.45,", ",,"), "an evaluated epoch without test_nll"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_history_that_a_result_was_not_made_of_is_left_out(tmp_path: Path, lie: str) -> None:
    one, other = (
        store(tmp_path, record(RESNET20, "method=sam", seed=seed), history={1: 40.0, 2: 70.0 + seed}) for seed in (1, 2)
    )
    change, why = LIES[lie]
    path = one / "history.csv"
    path.write_text(change(path.read_text()) if change else (other / "history.csv").read_text())
    line = f"^left out: runs/.*/seed1-.*/history.csv: not the history that result.json was made of: {why}$"
    with pytest.warns(UserWarning, match=line):
        frame = broadopt.load_history(tmp_path)
    assert frame[["seed", "test_accuracy"]].values.tolist() == [[2, 40.0], [2, 72.0]]


def test_no_key_of_a_recorded_config_takes_the_place_of_what_a_result_says(tmp_path: Path) -> None:
    added = {
        "state": "failed",
        "identity": "0",
        "folder": "x",
        "epochs": 1,
        "metrics": {"last": {"test_ece": 0, "x": 1}},
    }
    store(tmp_path, {**record(RESNET20, "method=sgd"), **added}, last=70.0)
    (row,) = broadopt.load_results(tmp_path).to_dict("records")
    assert (row["state"], row["epochs"], row["metrics.last.test_ece"]) == ("finished", 400.0, 0.03)
    assert row["folder"].startswith("runs/cifar100/resnet20/sgd/seed1-")
    assert row["folder"].endswith(row["identity"][:8])
    assert "metrics.last.x" not in row


def test_no_column_of_a_history_takes_the_place_of_what_a_result_says(tmp_path: Path) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd", seed=3), history={1: 50.0})
    (folder / "history.csv").write_text("epoch,seed,budget,test_accuracy,test_nll,test_ece\n1.0,7,8,50.0,2.5,0.05\n")
    (row,) = broadopt.load_history(tmp_path).to_dict("records")
    assert (row["epoch"], row["seed"], row["budget"]) == (1.0, 3, 400.0)


def test_an_empty_folder_is_an_empty_data_frame(tmp_path: Path) -> None:
    frame = broadopt.load_results(tmp_path)
    assert (len(frame), list(frame.columns[:3])) == (0, ["dataset", "model", "method"])
    assert len(broadopt.load_history(tmp_path)) == 0


def test_bad_input_of_python_is_one_line(root: Path) -> None:
    for arguments, words in (
        ({"where": {"step.rh": 1}}, '--where step.rh: no run has a key of this name; did you mean "step.rho"?'),
        ({"where": "step.rho=0.3"}, "--where step.rho=0.3: no run has this value; they have 0.05, 0.5"),
        ({"states": ["finishd"]}, "states finishd: expected some of finished, failed, interrupted; did you mean "),
    ):
        with pytest.raises(InputError) as raised:
            broadopt.load_results(root, **arguments)  # type: ignore[arg-type]
        assert str(raised.value).startswith(words)
    with pytest.raises(AttributeError, match="module 'broadopt' has no attribute 'load_result'"):
        broadopt.load_result  # noqa: B018


def test_reading_imports_no_torch_and_importing_broadopt_no_pandas(root: Path) -> None:
    program = f"""
import sys, broadopt
print("pandas" in sys.modules)
print(len(broadopt.load_results({str(root)!r})), len(broadopt.load_history({str(root)!r})))
print([name for name in ("torch", "hydra", "scipy", "statsmodels") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n6 4\n[]\n"


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_per_run_has_the_columns_and_rows_of_load_results(root: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / f"runs.{form}"
    arguments = ("runs", "--per-run", "--format", form, "--results", root)
    _, remarks = run(*arguments, "--output", target)
    assert re.findall("not counted: 1 (failed|interrupted)", remarks) == ["failed", "interrupted"]
    if form != "parquet":
        assert run(*arguments)[0].encode() == target.read_bytes()
    read = {"csv": pandas.read_csv, "json": pandas.read_json, "parquet": pandas.read_parquet}[form]
    frame, expected = read(target), broadopt.load_results(root)  # type: ignore[operator]
    assert list(frame.columns) == list(expected.columns)
    for name in ("step.rho", "seed", "method", "metrics.last.test_accuracy", "augmentation.mean", "identity"):
        assert frame[name].dropna().tolist() == expected[name].dropna().tolist()
        assert frame[name].isna().tolist() == expected[name].isna().tolist()


def test_per_run_with_columns_and_conditions(root: Path) -> None:
    words = ("--where", "method=sam", "--columns", "step.rho", "seed,metrics.last.test_accuracy")
    out, _ = run("runs", "--per-run", "--results", root, *words)
    assert list(csv.reader(io.StringIO(out))) == [
        ["step.rho", "seed", "metrics.last.test_accuracy"],
        ["0.05", "1", "71.0"],
        ["0.5", "1", "71.0"],
        ["0.5", "2", "72.0"],
        ["0.5", "10", "80.0"],
    ]


def test_values_of_several_types_are_texts_in_parquet(tmp_path: Path) -> None:
    own = record(RESNET20, "method=sgd", "budget=200")
    for seed, value in ((1, 2.0), (2, "inf"), (3, None), (4, 10**30)):
        store(tmp_path, {**own, "seed": seed, "model": {**own["model"], "own": value}})
    run("runs", "--per-run", "--format", "parquet", "--results", tmp_path, "--output", tmp_path / "runs.parquet")
    column = pandas.read_parquet(tmp_path / "runs.parquet")["model.own"]
    assert sorted(column.dropna()) == ["1000000000000000000000000000000", "2.0", "inf"]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_column_that_is_asked_for_twice_is_there_once(root: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / f"runs.{form}"
    asked = ("--columns", "seed", "method,seed", "--output", target)
    run("runs", "--per-run", "--format", form, "--results", root, *asked)
    read = {"csv": pandas.read_csv, "json": pandas.read_json, "parquet": pandas.read_parquet}[form]
    assert list(read(target).columns) == ["seed", "method"]  # type: ignore[operator]


def test_texts_of_others_do_no_harm_in_a_csv_or_json(tmp_path: Path) -> None:
    recorded = record(RESNET20, "method=sgd")
    store(tmp_path, {**recorded, "model": {**recorded["model"], "odd\x1b": "=1+1\u202e"}})
    out, _ = run("runs", "--per-run", "--results", tmp_path, "--columns", "model.odd\x1b")
    assert out == "model.odd\\x1b\n'=1+1\\u202e\n"
    out, _ = run("runs", "--per-run", "--format", "json", "--results", tmp_path)
    assert out.isascii()
    assert json.loads(out)[0]["model.odd\x1b"] == "=1+1\u202e"


@pytest.mark.parametrize("several", [numpy.array, pandas.Series, pandas.Index])
def test_values_may_be_those_of_an_array(root: Path, several: Callable[[list[int]], Any]) -> None:
    assert broadopt.load_results(root, where={"seed": several([1, 2])})["seed"].tolist() == [1, 1, 1, 2, 1]
    assert broadopt.load_results(root, where={"seed": several([1, 2])[0]})["seed"].tolist() == [1, 1, 1, 1]


def test_long_lists_that_differ_at_their_end_are_two(tmp_path: Path) -> None:
    """Two networks whose lists begin alike for longer than a table shows."""
    recorded = record(RESNET20, "method=sgd")
    widths = [[*range(100), last] for last in (7, 8)]
    for width in widths:
        store(tmp_path, {**recorded, "model": {**recorded["model"], "widths": width}})
    found = broadopt.load_results(tmp_path)["model.widths"].tolist()
    assert found == [str(width) for width in widths]
    out, _ = run("runs", "--results", tmp_path, "--format", "csv")
    records = csv.DictReader(io.StringIO(out))
    assert {row["model.widths"] for row in records} == {str(width) for width in widths}
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    assert [row[:2] for row in tables(out)[0]] == [
        ["method", "model.widths"],
        *(["sgd", f"{str(width)[:197]}..."] for width in widths),
    ]


def test_no_warning_where_all_is_well(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"), history={1: 40.0})
    store(tmp_path, record(RESNET20, "method=sgd", seed=2), state="failed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        broadopt.load_results(tmp_path)
        broadopt.load_history(tmp_path)
