"""result.json and history.csv: every field of the contract, what happens to a run that fails, whom a table believes."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, Sweep, folders, history, outcome, result, run

from broadopt.config.identity import identity_of
from broadopt.runs import history as histories
from broadopt.runs import results

METHODS = ("asam", "fge", "sam", "sgd", "swa")
STEPS_PER_EPOCH = 45  # 1438 digits in batches of 32
TEST_IMAGES = 359


def are_metrics(values: dict[str, Any], split: str = "test") -> bool:
    """Percent, nats and a fraction, of a split's whole number of hits."""
    assert all(type(values[f"{split}_{name}"]) is float for name in ("accuracy", "nll", "ece"))
    return 0 <= values[f"{split}_accuracy"] <= 100 and values[f"{split}_nll"] > 0 and 0 <= values[f"{split}_ece"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_a_result_holds_every_field_of_the_contract(five_runs: Sweep, method: str) -> None:
    found = result(five_runs.folders[method])
    names = ("dataset", "model", "method", "protocol", "seed", "budget", "schema", "semantics", "state")
    assert [found[name] for name in names] == ["digits", "small", method, "swa2018", 1, 2.0, 1, 1, "finished"]
    assert found["identity"] == identity_of(found["config"])
    assert len(found["identity"]) == 64
    assert found["epochs"] == (3 if method == "swa" else 2)
    assert {key: type(value) for key, value in found["cost"].items()} == {
        "train_seconds": float,
        "images_per_second": float,
        "gradient_evaluations": int,
        "peak_memory_bytes": int,
        "parameters": int,
        "macs": int,
        "images_per_epoch": int,
        "passes": int,
    }
    # By hand: 8 filters of 3x4x4 at 8x8 places with their biases and BN, then a linear layer from 512 to 10.
    assert found["cost"]["parameters"] == 8 * 48 + 8 + 16 + 512 * 10 + 10
    assert found["cost"]["macs"] == 64 * 8 * 48 + 512 * 10
    assert found["cost"]["images_per_epoch"] == 1438
    assert found["cost"]["passes"] == (2 if method in ("sam", "asam") else 1)
    assert found["cost"]["images_per_second"] == pytest.approx(1438 * found["epochs"] / found["cost"]["train_seconds"])
    assert {"broadopt", "torch", "python", "device", "precision", "git_commit"} <= set(found["environment"])
    assert found["environment"]["precision"] == found["config"]["precision"] == "fp32"


@pytest.mark.parametrize("method", METHODS)
def test_a_sharpness_aware_step_costs_two_gradients(five_runs: Sweep, method: str) -> None:
    steps = STEPS_PER_EPOCH * (3 if method == "swa" else 2)
    passes = 2 if method in ("sam", "asam") else 1
    assert result(five_runs.folders[method])["cost"]["gradient_evaluations"] == passes * steps


@pytest.mark.parametrize("method", METHODS)
def test_last_and_best_are_those_of_the_history(five_runs: Sweep, method: str) -> None:
    rows, metrics = history(five_runs.folders[method]), result(five_runs.folders[method])["metrics"]
    assert are_metrics(metrics["last"])
    assert metrics["last"] == {key: rows[-1][key] for key in ("test_accuracy", "test_nll", "test_ece")}
    highest = max(row["test_accuracy"] for row in rows)
    first = next(row["epoch"] for row in rows if row["test_accuracy"] == highest)
    assert metrics["best"] == {"test_accuracy": highest, "epoch": first}
    hits = highest * TEST_IMAGES / 100
    assert hits == pytest.approx(round(hits), abs=1e-9)


def test_what_is_collected_is_keyed_by_the_budgets_spent(five_runs: Sweep) -> None:
    collected = {method: result(folder)["metrics"]["collected"] for method, folder in five_runs.folders.items()}
    assert {method: list(values) for method, values in collected.items()} == {
        "asam": [],
        "fge": ["1"],
        "sam": [],
        "sgd": [],
        "swa": ["1", "1.25", "1.5"],
    }
    assert all(are_metrics(values) for keyed in collected.values() for values in keyed.values())
    readouts = {key: (values["epochs"], values["members"]) for key, values in collected["swa"].items()}
    end_of_2, after_2_and_a_half, end_of_3 = 2.0, 113 / STEPS_PER_EPOCH, 3.0  # 2.5 * 45 steps, rounded up
    assert readouts == {"1": (end_of_2, 1), "1.25": (after_2_and_a_half, 1), "1.5": (end_of_3, 2)}


def test_best_counts_only_epochs_that_were_evaluated(tmp_path: Path) -> None:
    assert run(*SMALL, "budget=3", "evaluate_every=2", cwd=tmp_path).returncode == 0
    (folder,) = folders(tmp_path)
    with (folder / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["test_accuracy"] != "" for row in rows] == [False, True, True]
    highest = max(rows[1:], key=lambda row: float(row["test_accuracy"]))
    best = {key: float(highest[key]) for key in ("test_accuracy", "epoch")}
    assert result(folder)["metrics"]["best"] == best


def test_the_best_epochs_on_test_and_on_held_out_images_are_each_its_own() -> None:
    names = [f"{split}_{name}" for split in ("validation", "test") for name in ("accuracy", "nll", "ece")]
    figures = [(70.0, 0.9, 0.3, 60.0, 1.1, 0.2), (80.0, 0.8, 0.2, 50.0, 1.2, 0.1), (80.0, 0.7, 0.1, 55.0, 1.3, 0.4)]
    rows = [{"epoch": epoch, **dict(zip(names, row, strict=True))} for epoch, row in enumerate(figures, start=1)]
    found = histories.metrics(rows, {})
    assert found["best"] == {"test_accuracy": 60.0, "epoch": 1}
    assert found["last"] == {"test_accuracy": 55.0, "test_nll": 1.3, "test_ece": 0.4}
    assert found["validation"] == {
        "last": {"validation_accuracy": 80.0, "validation_nll": 0.7, "validation_ece": 0.1},
        "best": {"validation_accuracy": 80.0, "epoch": 2},  # the first of equals
    }


def test_each_number_of_a_result_is_shown_as_what_it_is() -> None:
    average = {"test_accuracy": 93.125, "test_nll": 0.4, "test_ece": 0.04, "members": 5.0}
    found = {
        **{"method": "asam+swa", "model": "wrn16_8", "dataset": "cifar100", "seed": 7, "epochs": 4.0},
        "metrics": {
            "last": {"test_accuracy": 91.25, "test_nll": 0.5, "test_ece": 0.03125},
            "best": {"test_accuracy": 92.5, "epoch": 3.0},
            "collected": {"1": average, "ema 1.5": {**average, "test_accuracy": 94.0, "members": 1.0}},
        },
        "cost": {"train_seconds": 120.0, "images_per_second": 4500.0},
    }
    assert results.summary(found).splitlines() == [
        "  last  test accuracy 91.25 %, nll 0.5000, ece 0.0312",
        "  best  test accuracy 92.50 % in epoch 3",
        "  collected after 1 budget (5 members)  test accuracy 93.12 %, nll 0.4000, ece 0.0400",
        "  collected by ema after 1.5 budgets (1 member)  test accuracy 94.00 %, nll 0.4000, ece 0.0400",
        "  4 epochs, 120 s in training steps, 4500 images/s",
    ]
    assert results.line(found) == (
        "asam+swa, wrn16_8, cifar100, seed 7: test accuracy last 91.25 %, best 92.50 %, "
        "collected after 1 budget 93.12 %, collected by ema after 1.5 budgets 94.00 %"
    )


def test_held_out_images_and_noise_leave_the_test_set_as_it_is(tmp_path: Path) -> None:
    # Without BN and at no learning rate to speak of, what is trained on cannot show in the test metrics.
    still = (*SMALL, "model.batch_norm=false", "lr=1e-30", "budget=1")
    process = run("-m", *still, "dataset.validation=0,200", "dataset.label_noise=0,0.4", cwd=tmp_path)
    assert process.returncode == 0
    found = {}
    for folder in folders(tmp_path):
        dataset = result(folder)["config"]["dataset"]
        found[dataset["validation"], dataset["label_noise"]] = (result(folder)["metrics"], history(folder))
    assert set(found) == {(0, 0.0), (0, 0.4), (200, 0.0), (200, 0.4)}
    tests = [metrics["last"] for metrics, _ in found.values()]
    assert tests == [tests[0]] * 4
    assert ["validation" in metrics for metrics, _ in found.values()] == [count > 0 for count, _ in found]
    for key in ((200, 0.0), (200, 0.4)):
        metrics, rows = found[key]
        assert are_metrics(metrics["validation"]["last"], "validation")
        assert metrics["validation"]["best"] == {"validation_accuracy": rows[0]["validation_accuracy"], "epoch": 1.0}
        assert rows[0]["validation_accuracy"] % 0.5 == 0
    # The held-out images keep their true labels, those trained on do not.
    assert found[200, 0.0][0]["validation"] == found[200, 0.4][0]["validation"]
    assert found[0, 0.0][1][0]["train_loss"] != found[0, 0.4][1][0]["train_loss"]


def test_a_loss_that_is_not_finite_fails_the_run(tmp_path: Path) -> None:
    process = run(*SMALL, "budget=2", "lr=1e30", cwd=tmp_path)
    assert process.returncode == 1
    (folder,) = folders(tmp_path)
    found = result(folder)
    failure = found["failure"]
    assert found["state"] == "failed"
    assert (failure["epoch"], failure["lr"]) == (1, 1e30)
    assert 1.5 < failure["last_finite_loss"] < 4  # of the first batch: log 10, more or less
    assert process.stderr == f"broadopt-run: {failure['reason']}\n"
    assert failure["reason"].startswith("features.0.weight is not finite in epoch 1 at lr 1e+30")
    assert found["metrics"] == {"last": None, "best": None, "collected": {}}


def test_a_run_that_fails_in_a_sweep_is_named_and_the_others_finish(tmp_path: Path) -> None:
    process = run("-m", *SMALL, "budget=0.1", "lr=1e30,0.1", "seed=1,-1", cwd=tmp_path)
    assert process.returncode == 1
    states = {(found["config"]["lr"], found["seed"]): found["state"] for found in map(result, folders(tmp_path))}
    assert states == {(1e30, 1): "failed", (0.1, 1): "finished"}
    head, *named = process.stderr.splitlines()[-4:]
    assert head == "broadopt-run: 3 of the sweep's runs failed:"
    failed = [line.split(": ")[0].split()[-2:] for line in named]
    assert failed == [["lr=1e+30", "seed=1"], ["lr=1e+30", "seed=-1"], ["lr=0.1", "seed=-1"]]


def test_a_mistake_in_a_network_fails_the_run_with_the_traceback_in_a_file(tmp_path: Path) -> None:
    process = run(*SMALL, "model=broken", cwd=tmp_path)
    assert process.returncode == 1
    (folder,) = folders(tmp_path)
    assert len(process.stderr.splitlines()) == 1
    assert f"(see {folder.relative_to(tmp_path)}/error.txt)" in process.stderr
    assert "own_network.py" in (folder / "error.txt").read_text()
    assert result(folder)["state"] == "failed"


def test_an_edited_result_is_set_aside_and_the_run_is_made_anew(five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.cwd / "results/runs/digits/small/sgd", tmp_path / "results/runs/digits/small/sgd")
    (folder,) = folders(tmp_path)
    before = outcome(result(folder))
    edited = (folder / "result.json").read_text().replace('"epochs": 2.0', '"epochs": 3.0')
    (folder / "result.json").write_text(edited)
    process = run(*SMALL, "budget=2", cwd=tmp_path)
    assert process.returncode == 0
    place = folder.relative_to(tmp_path) / "result.json"
    assert process.stderr == f"{place}: its checksum does not fit: edited or damaged; it is set aside\n"
    assert (folder / "result.1.json").read_text() == edited
    assert outcome(result(folder)) == before


def edited(content: dict[str, Any], **changes: Any) -> str:
    """The content with other values and the checksum of the old ones."""
    return json.dumps(content | changes)


def resealed(content: dict[str, Any], **changes: Any) -> str:
    """The content with other values and a checksum that fits."""
    return json.dumps(content | changes | {"checksum": results.checksum(content | changes)})


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "edited": (lambda content: edited(content, budget=200.0), "its checksum does not fit: edited or damaged"),
    "truncated": (lambda content: json.dumps(content)[:-20], "not JSON, perhaps truncated"),
    "empty": (lambda content: "", "not JSON, perhaps truncated"),
    "no object": (lambda content: "[1]", "not of schema 1"),
    "of another schema": (lambda content: resealed(content, schema=2), "not of schema 1"),
    "of other semantics": (lambda content: resealed(content, semantics=0), "computed under semantics 0"),
    "of another config": (
        lambda content: resealed(content, config=content["config"] | {"lr": 0.2}),
        "its identity is not that of its config",
    ),
    "of no known state": (
        lambda content: resealed(content, state="done"),
        "state: expected finished, failed or interrupted, found done",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_result_that_cannot_be_trusted_is_left_out_and_named(five_runs: Sweep, tmp_path: Path, damage: str) -> None:
    shutil.copytree(five_runs.cwd / "results/runs", tmp_path / "runs")
    folder = next((tmp_path / "runs/digits/small/sam").iterdir())
    change, reason = DAMAGES[damage]
    (folder / "result.json").write_text(change(result(folder)))
    read, left_out = results.read_all(tmp_path)
    assert [entry["method"] for entry in read] == ["asam", "fge", "sgd", "swa"]
    (line,) = left_out
    assert line.startswith(f"{folder.relative_to(tmp_path)}: {reason}")


def test_a_byte_identical_copy_of_a_run_counts_once(five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.cwd / "results/runs", tmp_path / "runs")
    folder = next((tmp_path / "runs/digits/small/sam").iterdir())
    shutil.copytree(folder, tmp_path / "runs/old/digits/small/sam" / folder.name)
    read, left_out = results.read_all(tmp_path)
    assert left_out == []
    assert [entry["method"] for entry in read] == ["asam", "fge", "sam", "sgd", "swa"]
    assert [entry["folder"] for entry in read if entry["method"] == "sam"] == [f"runs/digits/small/sam/{folder.name}"]


def test_two_different_results_of_one_run_are_both_left_out_and_named(five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.cwd / "results/runs", tmp_path / "runs")
    folder = next((tmp_path / "runs/digits/small/sam").iterdir())
    copy = tmp_path / "runs/again/digits/small/sam" / folder.name
    shutil.copytree(folder, copy)
    other = json.loads((copy / "result.json").read_text())
    other["environment"]["host"] = "elsewhere"
    results.write(copy, {key: value for key, value in other.items() if key != "checksum"})
    read, left_out = results.read_all(tmp_path)
    assert [entry["method"] for entry in read] == ["asam", "fge", "sgd", "swa"]
    names = sorted([f"runs/digits/small/sam/{folder.name}", f"runs/again/digits/small/sam/{folder.name}"])
    assert left_out == [
        f"{names[0]}: its identity is also that of {names[1]}",
        f"{names[1]}: its identity is also that of {names[0]}",
    ]


def test_of_copies_of_a_run_the_one_that_is_finished_counts(five_runs: Sweep, tmp_path: Path) -> None:
    """As where a results folder was copied while the run was under way."""
    older, newer = tmp_path / "older", tmp_path / "newer"
    for root in (older, newer):
        shutil.copytree(five_runs.cwd / "results", root)
    folder = next((older / "runs/digits/small/sam").iterdir())
    before = json.loads((folder / "result.json").read_text()) | {"state": "interrupted", "epochs": 1.0}
    results.write(folder, {key: value for key, value in before.items() if key != "checksum"})
    for roots in ([older, newer], [newer, older]):
        read, left_out = results.read_several(roots)
        assert {entry["method"]: entry["state"] for entry in read} == dict.fromkeys(five_runs.folders, "finished")
        place = f"runs/digits/small/sam/{folder.name}"
        assert left_out == [f"{older}/{place}: interrupted, and finished in {newer}/{place}"]


def test_of_unfinished_copies_of_a_run_the_one_with_the_most_epochs_counts(five_runs: Sweep, tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("first", "second", "third")]
    place = next((five_runs.cwd / "results/runs/digits/small/sam").iterdir()).relative_to(five_runs.cwd / "results")
    found = result(five_runs.cwd / "results" / place)
    found.pop("checksum")
    for root, state, epochs in zip(roots, ("interrupted", "failed", "interrupted"), (1.0, 1.5, 1.5), strict=True):
        (root / place).mkdir(parents=True)
        results.write(root / place, {**found, "state": state, "epochs": epochs})
    read, left_out = results.read_several(roots)
    assert [(entry["state"], entry["folder"]) for entry in read] == [("failed", f"{roots[1]}/{place}")]
    assert left_out == [
        f"{roots[0]}/{place}: interrupted after 1 epochs, and failed after 1.5 epochs in {roots[1]}/{place}",
        f"{roots[2]}/{place}: interrupted after 1.5 epochs, and failed after 1.5 epochs in {roots[1]}/{place}",
    ]


def test_all_results_are_read_in_the_order_of_their_folders(five_runs: Sweep) -> None:
    read, left_out = results.read_all(five_runs.cwd / "results")
    assert left_out == []
    assert [entry.pop("folder") for entry in read] == [
        folder.relative_to(five_runs.cwd / "results").as_posix() for folder in folders(five_runs.cwd)
    ]
    assert read == [result(folder) for folder in folders(five_runs.cwd)]


def test_a_result_that_was_set_aside_is_not_read_and_never_overwritten(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "result.json").write_text(str(number))
        (tmp_path / "history.csv").write_text(str(number))
        results.set_aside(tmp_path)
        if number == 1:
            (tmp_path / "result.1.json").unlink()
    assert results.read(tmp_path) is None
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {
        "history.1.csv": "0",
        "result.2.json": "1",
        "history.2.csv": "1",
        "result.3.json": "2",
        "history.3.csv": "2",
    }


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_result_with_a_number_that_is_not_finite_is_never_written(tmp_path: Path, value: float) -> None:
    (tmp_path / "result.json").write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(tmp_path, {"value": value})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"result.json": "old"}
