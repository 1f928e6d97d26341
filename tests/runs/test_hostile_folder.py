"""Results folders that someone else has made: every view answers, names what it leaves out, and runs none of it."""

import csv
import io
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from command import BIN, FULL, PATIENCE, SMALL, folders, needs_full, result
from command import run as broadopt_run
from forked import as_nobody
from stored import RESNET20, record, run, store

from broadopt import files, snapshots
from broadopt.analysis.status import estimate
from broadopt.config.identity import identity_of
from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import Recipe
from broadopt.data.datasets import size
from broadopt.methods.recorded import PASSES
from broadopt.runs import checkpoint, heartbeat, results
from broadopt.runs.begun import record_changes, unfinished
from broadopt.runs.folders import run_folder, scan
from broadopt.training.conclude import reported

Change = Callable[[dict[str, Any]], Any]


def reseal(folder: Path, change: Change) -> None:
    """Change a result.json as someone would who can compute a checksum and an identity."""
    path = folder / "result.json"
    content = json.loads(path.read_text())
    change(content)
    content["identity"] = identity_of(content["config"])
    path.write_text(json.dumps(content | {"checksum": results.checksum(content)}))


def beat(folder: Path, recorded: Mapping[str, Any], **changes: Any) -> Path:
    """Write a progress.json of a run on another machine."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "schema": 1,
        "identity": identity_of(recorded),
        "config": recorded,
        "host": "node1",
        "machine": "another",
        "pid": 7,
        "device": "a device",
        "time": time.time(),
        "moved": time.time(),
        "step": 10,
        "steps": 100,
        "epoch": 1.0,
        "epochs": 10.0,
        "images_per_epoch": 50_000,
        "images_per_second": 100.0,
        "seconds_left": 60.0,
    }
    path = folder / "progress.json"
    path.write_text(json.dumps(content | changes))
    return path


VIEWS = (("table3",), ("runs",), ("table3", "--status"), ("runs", "--status"), ("table3", "--missing"))


def views(root: Path) -> dict[tuple[str, ...], str]:
    """What each view says, on stdout and stderr together."""
    return {view: "".join(run(*view, "--results", root)) for view in VIEWS}


def count(root: Path) -> int:
    """How many finished runs broadopt-table counts."""
    out, _ = run("runs", "--results", root, "--format", "csv")
    last = [
        line
        for line in csv.DictReader(io.StringIO(out))
        if (line["metric"], line["quantity"]) == ("last", "test_accuracy")
    ]
    return sum(int(line["n"]) for line in last)


# ---- whose result it is


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The folders of two finished runs below tmp_path."""
    return store(tmp_path, record(RESNET20, "method=sgd"), last=70.0), store(tmp_path, record(RESNET20, "method=sam"))


def test_a_result_in_the_folder_of_another_run_is_left_out_and_named(tmp_path: Path, two: tuple[Path, Path]) -> None:
    sgd, sam = two
    shutil.copy(sgd / "result.json", sam / "result.json")
    place = "/".join(sgd.relative_to(tmp_path / "runs").parts)
    line = f"left out: {sam.relative_to(tmp_path)}: it belongs to another run, whose folder is {place}"
    for view, text in views(tmp_path).items():
        assert line in text, view
    assert count(tmp_path) == 1


def test_a_copied_folder_is_left_out_and_the_run_itself_is_counted(tmp_path: Path, two: tuple[Path, Path]) -> None:
    shutil.copytree(two[0], two[0].with_name("copy"))
    assert "sgd/copy: it belongs to another run" in views(tmp_path)["table3",]
    assert count(tmp_path) == 2


def test_a_heartbeat_in_the_folder_of_another_run_is_left_out_and_named(tmp_path: Path) -> None:
    first, second = (record(RESNET20, "method=sgd", seed=seed) for seed in (1, 2))
    beat(results.run_folder(tmp_path, second), first)
    for view in (("table3", "--status"), ("runs", "--status"), ("table3", "--missing")):
        assert "progress.json: it belongs to another run" in "".join(run(*view, "--results", tmp_path))


def test_the_expected_identity_is_compared_where_it_is_given(tmp_path: Path, two: tuple[Path, Path]) -> None:
    mine, other = (json.loads((folder / "result.json").read_text())["identity"] for folder in two)
    found = results.read(two[0], identity=mine)
    assert found is not None
    assert found["identity"] == mine
    with pytest.raises(ValueError, match=f"it belongs to another run, of identity {mine[:8]}"):
        results.read(two[0], identity=other)
    recorded = record(RESNET20, "method=asam")
    folder = results.run_folder(tmp_path, recorded)
    beat(folder, recorded)
    assert heartbeat.read(folder, identity=identity_of(recorded)) == heartbeat.read(folder)
    with pytest.raises(ValueError, match="it belongs to another run, of identity"):
        heartbeat.read(folder, identity=mine)


def test_a_run_is_made_where_the_result_of_another_lies_in_its_folder(tmp_path: Path) -> None:
    process = broadopt_run("-m", *SMALL, "budget=0.1", "seed=1,2", cwd=tmp_path)
    assert process.returncode == 0
    first, second = folders(tmp_path)
    shutil.copy(first / "result.json", second / "result.json")
    again = broadopt_run(*SMALL, "budget=0.1", "seed=2", cwd=tmp_path)
    assert again.returncode == 0
    assert "it belongs to another run" in again.stderr
    assert "already finished" not in again.stdout
    assert result(second)["seed"] == 2


# ---- nothing that a folder names is built


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[Path]:
    """A folder that must stay empty."""
    folder = tmp_path / "marks"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


def node(marks: Path, **keys: Any) -> dict[str, Any]:
    """A config's node that leaves a mark when it is instantiated, whatever it is called with."""
    made = {"_target_": "builtins.dict", "evil": {"_target_": "tempfile.mkdtemp", "dir": str(marks)}}
    instantiated("evil", made)
    (mark,) = marks.iterdir()  # else this node is harmless and proves nothing
    mark.rmdir()
    return keys | made


@pytest.mark.parametrize("group", ["step", "collect", "model", "dataset", "schedule", "augmentation"])
@pytest.mark.parametrize("kind", ["result", "heartbeat"])
@pytest.mark.parametrize("rate", [0.0, 5000.0])
def test_no_view_calls_what_a_config_names(tmp_path: Path, marks: Path, group: str, kind: str, rate: float) -> None:
    own = record(RESNET20, "method=sam")
    kept = {key: own[group][key] for key in ("name", "fingerprint", "validation") if key in own[group]}
    evil = own | {group: node(marks, **kept | ({"name": "own"} if group == "dataset" else {}))}
    root = tmp_path / "results"
    if rate:
        store(root, record(RESNET20, "method=sgd"))  # a rate of the same network, to be scaled by gradients
    if kind == "result":
        folder = store(root, evil, state="interrupted")
        reseal(folder, lambda content: content["cost"].update(images_per_second=0.0))
    else:
        beat(results.run_folder(root, evil), evil, images_per_second=None)
    for view in VIEWS:
        tflops = ("--tflops", "1") if view == ("runs", "--status") else ()
        out, _ = run(*view, *tflops, "--results", root)
        assert out or "--missing" in view


def test_costs_come_from_the_numbers_of_a_result(tmp_path: Path) -> None:
    evil = record(RESNET20, "method=sam") | {"step": {"_target_": "os.system", "rho": 1}}
    first = evil | {"dataset": {**evil["dataset"], "fingerprint": "sha256:ab"}}
    numbers = {"parameters": 10, "macs": 1000, "images_per_epoch": 1234, "passes": 4}
    folder = store(tmp_path, first, state="interrupted")
    reseal(folder, lambda content: content["cost"].update(numbers))
    line = estimated(tmp_path, "--tflops", "1")
    # 1234 images an epoch at the rate of 5001; 200 epochs
    assert (line["estimated_from"], float(line["device_hours_needed"])) == (
        "measured",
        pytest.approx(200 * 1234 / 5001 / 3600, abs=1e-6),
    )
    reseal(folder, lambda content: content["cost"].update(images_per_second=0.0))
    line = estimated(tmp_path, "--tflops", "1")
    # 2 operations a multiply-add, 3 forward passes a gradient, 4 gradients a step
    assert (line["estimated_from"], float(line["device_hours_needed"])) == (
        "flops",
        pytest.approx(2 * 1000 * 3 * 4 * 1234 * 200 / 1e12 / 3600, abs=1e-6),
    )
    reseal(folder, lambda content: content["cost"].update(passes=None))
    assert estimated(tmp_path, "--tflops", "1")["estimated_from"] == "unknown"


def estimated(root: Path, *arguments: str) -> dict[str, str]:
    """The one line of runs --status as CSV."""
    out, _ = run("runs", "--status", *arguments, "--results", root, "--format", "csv")
    (line,) = csv.DictReader(io.StringIO(out))
    return line


def test_the_rate_of_another_method_is_scaled_by_the_passes_that_heartbeats_count(tmp_path: Path) -> None:
    foreign = {"_target_": "elsewhere.Step"}
    slow = record(RESNET20, "method=sgd") | {"step": foreign}
    beat(results.run_folder(tmp_path, slow), slow, passes=3, images_per_second=900.0)
    own = record(RESNET20, "method=sgd")
    store(tmp_path, own, state="interrupted")
    reseal(results.run_folder(tmp_path, own), lambda content: content["cost"].update(images_per_second=0.0))
    out, _ = run("table3", "--status", "--results", tmp_path, "--format", "csv", "--seeds", "1")
    sgd = next(
        line for line in csv.DictReader(io.StringIO(out)) if (line["model"], line["method"]) == ("resnet20", "sgd")
    )
    # three gradients at 900 images/s are one at 2700; the checkpoint is not there, so all 400 epochs are left
    assert sgd["estimated_from"] == "other method"
    assert float(sgd["device_hours_needed"]) == pytest.approx(400 * 50_000 / 2700 / 3600, abs=1e-6)


def test_the_rate_of_a_step_that_takes_other_gradients_is_that_of_another_method(tmp_path: Path) -> None:
    rate = 1000.0
    for method, passes, state in (("sam", 2, "finished"), ("late_sam", 1.6, "interrupted")):
        folder = store(tmp_path, record(RESNET20, f"method={method}"), state=state)
        numbers = {"passes": passes, "images_per_second": rate if state == "finished" else 0.0}
        reseal(folder, lambda content, numbers=numbers: content["cost"].update(numbers))
    out, _ = run("runs", "--status", "--results", tmp_path, "--format", "csv")
    (line,) = (line for line in csv.DictReader(io.StringIO(out)) if line["method"] == "late_sam")
    assert line["estimated_from"] == "other method"
    assert float(line["device_hours_needed"]) == pytest.approx(200 * 50_000 / (rate * 2 / 1.6) / 3600, abs=1e-6)


def test_what_is_known_without_torch_is_what_torch_would_say() -> None:
    from broadopt.config.instantiate import instantiated
    from broadopt.config.run_config import DatasetConfig

    found = {}
    always = {"looksam": ("step.every=1",)}  # of the others a record without further keys is one of each batch
    for method in ("sgd", "sam", "asam", "friendly_sam", "gsam", "looksam", "msam"):
        step = record(RESNET20, f"method={method}", *always.get(method, ()))["step"]
        weights = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(weights.parameters(), lr=0.1, momentum=0.9)
        found[step["_target_"]] = instantiated("step", step, weights, optimizer).passes
    assert found == PASSES
    cifar, digits = record(RESNET20)["dataset"], record("experiment=quickstart")["dataset"]
    for dataset in (cifar, digits):
        config = DatasetConfig(
            name=dataset["name"], label_noise=0.0, validation=0, target={"_target_": dataset["_target_"]}
        )
        assert estimate.IMAGES[dataset["_target_"]] == size(config)[1]


@pytest.mark.parametrize("view", [["table3", "--status"], ["runs", "--status"], ["table3", "--missing"]])
def test_the_status_imports_no_torch(view: list[str], tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"), state="interrupted")
    store(tmp_path, record(RESNET20, "method=sam"), state="interrupted")
    program = f"""
import sys
from broadopt.table import main
sys.argv = ["broadopt-table", *{view!r}, "--results", {str(tmp_path)!r}]
try:
    main()
finally:
    print("imported:", [name for name in ("torch",) if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([BIN / "python", "-c", program], capture_output=True, text=True)
    assert (done.returncode, "imported: []" in done.stderr) == (0, True), done.stderr


# ---- values that no run writes


def put(*path: str, value: Any) -> Change:
    """A change that sets one field."""

    def change(content: dict[str, Any]) -> None:
        *groups, leaf = path
        for group in groups:
            content = content[group]
        content[leaf] = value

    return change


BAD_FIELDS: dict[str, tuple[Change, str]] = {
    "metrics are a list": (put("metrics", value=[]), "metrics: expected a mapping, found []"),
    "a metric is a word": (put("metrics", "last", "test_accuracy", value="x"), "metrics.last.test_accuracy: expected"),
    "101 percent": (put("metrics", "best", "test_accuracy", value=101), "metrics.best.test_accuracy: expected"),
    "true as a number": (put("epochs", value=True), "epochs: expected a number from 0 to 1e+15, found True"),
    "a whole number no float can hold": (put("epochs", value=10**400), "epochs: expected a number"),
    "finished without figures": (put("metrics", "last", value=None), "finished without metrics.last"),
    "budgets that are words": (put("metrics", "collected", value={"\x1b[31m": {}}), "metrics.collected: expected"),
    "no rate": (put("cost", value={"train_seconds": 1.0}), "cost: without images_per_second"),
    "a rate next to nothing": (put("cost", "images_per_second", value=1e-300), "cost.images_per_second: expected"),
    "passes are none": (put("cost", "passes", value=0), "cost.passes: expected a number from 1e-09 to"),
    "another data set than the config's": (
        put("dataset", value="cifar10"),
        "dataset cifar10 is not that of its config",
    ),
    "another precision than the config's": (
        put("environment", "precision", value="bf16"),
        "environment.precision is not that of its config",
    ),
    "a seed that is no number": (put("seed", value="1"), "seed: expected a whole number"),
    "a name that leads away": (put("config", "model", "name", value="../../x"), "config.model.name: expected a name"),
    "an escape in a name": (put("config", "method", value="\x1b[2J"), "config.method: expected a name"),
    "a precision that is none": (put("config", "precision", value="fp7"), "config.precision: expected fp32, tf32 or"),
    "collect is a number": (put("config", "collect", value=5), "config.collect: expected a mapping, found 5"),
    "budgets that are none": (put("config", "collect", "budgets", value=[None]), "config.collect.budgets: expected"),
    "a failure without a reason": (put("failure", value={"reason": " \n"}), "failure.reason: expected"),
    "a trunk of half an epoch": (
        put("trunk", value={"identity": "0" * 64, "epochs": 0.5, "run": "runs/x", "train_seconds": 1.0}),
        "trunk.epochs: expected a whole number from 1",
    ),
    "a trunk of nobody": (
        put("trunk", value={"identity": "0" * 64, "epochs": 1, "train_seconds": 1.0}),
        "trunk: without run",
    ),
    "a trunk of no time": (
        put("trunk", value={"identity": "0" * 64, "epochs": 1, "run": "runs/x", "train_seconds": -1.0}),
        "trunk.train_seconds: expected a number from 0",
    ),
    "a number that is not finite": (put("config", "lr", value=float("inf")), "not JSON"),
    "deep": (put("config", "model", "deep", value=json.loads("[" * 300 + "]" * 300)), "nested more than 32 deep"),
    "semantics with an escape": (put("semantics", value="\x1b[31m"), "computed under no known semantics"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_resealed_result_with_a_value_that_cannot_be_is_left_out_in_one_line(tmp_path: Path, name: str) -> None:
    change, words = BAD_FIELDS[name]
    folder = store(tmp_path, record(RESNET20, "method=sgd"))
    store(tmp_path, record(RESNET20, "method=sgd", seed=2))
    reseal(folder, change)
    (line,) = results.read_all(tmp_path)[1]
    assert line.startswith(f"{folder.relative_to(tmp_path)}: {words}"), line
    assert line.isprintable()
    assert len(line) < 300
    assert [one["seed"] for one in results.read_all(tmp_path)[0]] == [2]


BAD_BEATS: dict[str, tuple[dict[str, Any], str]] = {
    "a time that is a word": ({"time": "now"}, "time: expected a number"),
    "an epoch that is a list": ({"epoch": []}, "epoch: expected a number"),
    "no epochs at all": ({"epochs": 0}, "epochs: expected a number"),
    "no images": ({"images_per_epoch": 0}, "images_per_epoch: expected a whole number from 1"),
    "time left without end": ({"seconds_left": 10**30}, "seconds_left: expected a number"),
    "steps that are none": ({"steps": 0}, "steps: expected a whole number from 1"),
    "a host that is a number": ({"host": 5}, "host: expected at most 1000 characters"),
    "another identity": ({"identity": "0" * 64}, "its identity is not that of its config"),
    "a config that is a list": ({"config": []}, "config: expected a mapping"),
}


@pytest.mark.parametrize("name", BAD_BEATS)
def test_a_heartbeat_with_a_value_that_cannot_be_is_left_out_in_one_line(tmp_path: Path, name: str) -> None:
    changes, words = BAD_BEATS[name]
    recorded = record(RESNET20, "method=sgd")
    folder = results.run_folder(tmp_path, recorded)
    path = beat(folder, recorded, **changes)
    out, _ = run("runs", "--status", "--results", tmp_path)
    assert f"- left out: {path.relative_to(tmp_path)}: {words}" in " ".join(out.split())


def test_a_bad_result_does_not_end_a_sweep(tmp_path: Path) -> None:
    sweep = ("-m", *SMALL, "budget=0.1", "hydra/launcher=local", "hydra.launcher.n_jobs=1", "seed=1,2")
    evil = record("experiment=quickstart", seed=9)
    reseal(store(tmp_path / "results", evil), put("cost", value=7))
    reseal(store(tmp_path / "results", evil | {"seed": 8}), put("config", "dataset", value={"name": "digits"}))
    beat(results.run_folder(tmp_path / "results", evil | {"seed": 7}), evil | {"seed": 7}, config=[])
    process = broadopt_run(*sweep, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("finished: ") == 2


def test_numbers_at_the_edge_of_what_is_allowed_are_shown(tmp_path: Path) -> None:
    for edge in (0.0, 1e-9, 1e15):
        recorded = record(RESNET20, "method=sgd", seed=int(edge > 0) + int(edge > 1))
        folder = store(tmp_path, recorded, state="interrupted")
        reseal(folder, lambda content: content["cost"].update(train_seconds=edge, images_per_second=edge))  # noqa: B023
        beat(folder, recorded, epoch=edge, images_per_second=edge, seconds_left=edge, time=edge, moved=edge)
    shown = views(tmp_path)
    assert [view for view, text in shown.items() if "left out" in text] == []
    assert ". 3 runs: 3 running." in " ".join(shown["runs", "--status"].split())  # lines are broken anywhere


def test_values_of_any_length_are_shown_in_part_and_at_once(tmp_path: Path) -> None:
    own = record(RESNET20, "method=sgd")
    long = "x " * 100_000
    keys = {f"key{number}": number for number in range(20_000)}
    for seed, model in enumerate(({long: long}, keys, {"list": [long] * 3}, {"spaces": " " * 300_000})):
        store(tmp_path, {**own, "seed": seed, "model": {**own["model"], **model}}, state="interrupted")
        store(tmp_path, {**own, "seed": seed + 10, "model": {**own["model"], **model}})
    failed = store(tmp_path, {**own, "seed": 30}, state="failed")
    reseal(failed, put("failure", value={"reason": long}))
    for view, text in views(tmp_path).items():
        assert len(text) < 200_000, view
    assert "and more" in views(tmp_path)["runs",]


# ---- what lies there in place of a file


@pytest.mark.parametrize("name", ["result.json", "progress.json"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a fifo", "a device, a FIFO or a socket, not a regular file"),
        ("a folder", "a folder, not a regular file"),
        ("a device", "a device, a FIFO or a socket, not a regular file"),
        ("a sparse file", "2,147,483,648 bytes, expected 1,048,576 at most"),
        ("a link to itself", "Too many levels of symbolic links"),
        ("brackets", "nested more than 32 deep"),
        ("a word", "not JSON, perhaps truncated"),
        ("surrogates", "not of schema 1"),
    ],
)
def test_what_is_no_file_of_a_run_is_left_out_and_named(tmp_path: Path, name: str, kind: str, words: str) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"), state="interrupted")
    (folder / "result.json").unlink()
    lay(folder / name, kind)
    store(tmp_path, record(RESNET20, "method=sgd", seed=2))
    place = f"{folder.relative_to(tmp_path)}" + (f"/{name}" if name == "progress.json" else "")
    for view, text in views(tmp_path).items():
        if name == "result.json" or "--status" in view or "--missing" in view:
            assert f"left out: {place}: {words}" in " ".join(text.split()), view
    assert count(tmp_path) == 1


def lay(path: Path, kind: str) -> None:
    """Put something else in a file's place."""
    if kind == "a fifo":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a sparse file":
        with path.open("wb") as file:
            file.truncate(2**31)
    else:
        path.write_text({"brackets": "[" * 500_000, "a word": "hello", "surrogates": '"\\ud800"'}[kind])


@pytest.mark.parametrize("name", [".lock", "checkpoint-0000000001.ckpt", "checkpoint-x.ckpt", "output.txt"])
@pytest.mark.parametrize("kind", ["a fifo", "a folder", "a link to itself", "brackets"])
def test_what_lies_beside_a_result_holds_no_view_up(tmp_path: Path, name: str, kind: str) -> None:
    recorded = record(RESNET20, "method=sgd")
    folder = store(tmp_path, recorded, state="interrupted")
    beat(folder, recorded, machine=heartbeat.machine())
    lay(folder / name, kind)
    assert "1 interrupted" in " ".join(views(tmp_path)["table3", "--status"].split())


@pytest.mark.parametrize("kind", ["a fifo", "a folder", "a device", "a link to itself", "brackets", "a word"])
def test_a_checkpoint_that_is_none_is_passed_over(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    lay(tmp_path / "checkpoint-0000000001.ckpt", kind)
    assert checkpoint.load(tmp_path, identity="x", device="cpu") is None
    (said,) = caplog.messages
    assert said.startswith(f"checkpoint {tmp_path}/checkpoint-0000000001.ckpt is passed over: ")
    assert said.isprintable()


def test_checkpoints_that_were_passed_over_push_no_good_one_out(tmp_path: Path) -> None:
    strays = [tmp_path / f"checkpoint-{step:010d}.ckpt" for step in (15, 9999999998, 9999999999)]
    for stray in strays:
        lay(stray, "a word")
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, {"step": step}, identity="x", step=step)
    kept = [path for path in checkpoint.files(tmp_path) if path not in strays]
    assert [path.name for path in kept] == ["checkpoint-0000000030.ckpt", "checkpoint-0000000020.ckpt"]
    assert checkpoint.load(tmp_path, identity="x", device="cpu") == {"step": 30}


# ---- folders


def seen(root: Path) -> list[str]:
    """What each view says, in the order of VIEWS."""
    return [" ".join(text.split()) for text in views(root).values()]


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that every user may read. Not below pytest's own, which each pytest that starts shuts for others."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def shut(for_all: Path) -> Iterator[Path]:
    """A folder with two runs, that of one of which cannot be read."""
    store(for_all, record(RESNET20, "method=sgd", seed=2))
    folder = store(for_all, record(RESNET20, "method=sgd"))
    seen(for_all)  # what is imported, or kept for the next command, is so before the user changes
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
def test_a_run_folder_that_cannot_be_read_is_left_out_and_named(for_all: Path, shut: Path, mode: int) -> None:
    shut.chmod(mode)
    place = shut.relative_to(for_all)
    # Without leave to list there is nothing to be found; with leave to list alone the files cannot be opened.
    words = "Permission denied" if mode & 0o444 else "cannot be listed (Permission denied)"
    texts = as_nobody(lambda: seen(for_all))
    assert isinstance(texts, list), texts
    assert all(f"left out: {place}: {words}" in text for text in texts), texts
    assert "1 finished" in texts[2]
    assert "its folder cannot be read" in texts[2]
    assert as_nobody(lambda: count(for_all)) == 1


def test_a_group_of_runs_that_cannot_be_read_is_left_out_and_named(for_all: Path, shut: Path) -> None:
    for path in (shut.parent, for_all / "runs"):
        path.chmod(0o000)
        texts = as_nobody(lambda: seen(for_all))
        path.chmod(0o755)
        place = path.relative_to(for_all)
        assert all(f"left out: {place}: cannot be listed (Permission denied)" in text for text in texts), texts


def test_a_result_that_cannot_be_read_is_left_out_and_named(for_all: Path, shut: Path) -> None:
    (shut / "result.json").chmod(0o000)
    texts = as_nobody(lambda: seen(for_all))
    assert all(f"left out: {shut.relative_to(for_all)}: Permission denied" in text for text in texts), texts


def test_a_sweep_goes_on_beside_a_folder_that_cannot_be_read(for_all: Path, shut: Path) -> None:
    shut.chmod(0o000)
    paths, left_out = as_nobody(lambda: [list(map(str, found)) for found in scan(for_all, "result.json")])
    assert len(paths) == 1
    assert left_out == [f"{shut.relative_to(for_all)}: cannot be listed (Permission denied)"]


def test_a_file_in_place_of_the_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    for view, text in views(tmp_path).items():
        assert "left out: runs: a file, expected a folder of runs" in text, view
    out, err = run("table3", "--results", tmp_path / "runs", expect=2)
    assert (out, err.count("\n")) == ("", 1)
    assert "is not a folder" in err


def test_a_sweep_beside_a_file_in_place_of_the_runs_is_refused_in_one_line_a_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/runs").write_text("")
    process = broadopt_run(*SMALL, "budget=0.1", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("\n") == 1
    assert "cannot be written" in process.stderr


@pytest.mark.parametrize("target", [".", "..", "loop", "digits/..", "nowhere", "/"])
def test_a_link_that_loops_or_leads_back_up_ends(tmp_path: Path, target: str) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"))
    (tmp_path / "runs/digits").mkdir()
    (tmp_path / "runs/loop").symlink_to(target)
    (tmp_path / "runs/digits/again").symlink_to("../loop")
    found, left_out = scan(tmp_path, "result.json")
    assert len(found) == 1
    too_many = "Too many levels of symbolic links"
    both = [f"runs/digits/again: {too_many}", f"runs/loop: {too_many}"]
    assert left_out == (both if target == "loop" else [])
    assert count(tmp_path) == 1


def test_links_are_followed_by_every_view_once(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    store(elsewhere, record(RESNET20, "method=sgd"))
    (tmp_path / "results/runs").mkdir(parents=True)
    (tmp_path / "results/runs/cifar100").symlink_to(elsewhere / "runs/cifar100")
    assert count(tmp_path / "results") == 1
    assert "1 finished" in seen(tmp_path / "results")[2]
    # Twice the same folder, the second time under a name that is not its own: the own name is the one that counts.
    (tmp_path / "results/runs/another").symlink_to(elsewhere / "runs/cifar100")
    store(tmp_path / "results", record(RESNET20, "method=sgd", "dataset=cifar10"))
    (tmp_path / "results/runs/aaa").symlink_to("cifar10")
    assert results.read_all(tmp_path / "results")[1] == []
    assert count(tmp_path / "results") == 2


# ---- what is written


def output(root: Path, target: Path) -> "subprocess.CompletedProcess[str]":
    command = [BIN / "broadopt-table", "table3", "--results", root, "--format", "csv", "--output", target]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)


def test_output_goes_into_a_device_a_fifo_or_what_a_link_leads_to(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"))
    expected, _ = run("table3", "--results", tmp_path, "--format", "csv")
    device = tmp_path / "null"
    if os.getuid() == 0:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    else:
        device = Path("/dev/null")
    assert output(tmp_path, device).returncode == 0
    assert stat.S_ISCHR(device.stat().st_mode)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE, text=True)
    try:
        assert output(tmp_path, fifo).returncode == 0
        assert reader.communicate(timeout=PATIENCE)[0] == expected
    finally:
        reader.kill()  # where nobody has written it waits for ever
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    (tmp_path / "there").mkdir()
    for link, target in (
        (tmp_path / "link", tmp_path / "there/table"),
        (tmp_path / "dangling", tmp_path / "there/new"),
    ):
        link.symlink_to(target)
        if link.name == "link":
            target.write_text("old")
        assert output(tmp_path, link).returncode == 0
        assert link.is_symlink()
        assert target.read_text(encoding="utf-8") == expected
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["new", "table"]
    said = output(tmp_path, tmp_path / "there")
    assert (said.returncode, said.stderr.count("\n")) == (2, 1)
    assert "cannot be written: Is a directory" in said.stderr


def test_a_file_that_is_written_goes_through_no_link_that_was_laid_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by one who guesses the name that is drawn."""
    (tmp_path / "precious").write_text("kept")
    for name in ("result.json", "n" * 255):
        with files.replacing(tmp_path / name) as file:
            file.write(b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n" * 255, "precious", "result.json"]
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "drawn")
    (tmp_path / ".result.json.drawn.tmp").symlink_to("precious")
    with pytest.raises(FileExistsError), files.replacing(tmp_path / "result.json") as file:
        file.write(b"newer")
    assert (tmp_path / "precious").read_text() == "kept"
    assert (tmp_path / "result.json").read_text() == "new"


def test_a_closed_pipe_ends_a_table_in_order(tmp_path: Path) -> None:
    command = [str(BIN / "broadopt-table"), "table3", "--results", str(tmp_path)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@needs_full
def test_a_full_disk_ends_a_table_in_order(tmp_path: Path) -> None:
    command = [str(BIN / "broadopt-table"), "table3", "--results", str(tmp_path)]
    with FULL.open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "broadopt-table: the table cannot be written: No space left on device\n"


ESCAPES = "\x1b[2J\x1b]0;owned\x07\u202e\x9b"


def test_no_escape_of_a_file_or_a_name_reaches_a_terminal(tmp_path: Path) -> None:
    own = record(RESNET20, "method=sgd")
    store(tmp_path, {**own, "augmentation": {**own["augmentation"], ESCAPES: ESCAPES}})
    (store(tmp_path, record(RESNET20, "method=sam")) / "result.json").write_text(f"{{{ESCAPES}")
    reseal(store(tmp_path, record(RESNET20, "method=asam")), put("state", value=ESCAPES))
    reseal(failed := store(tmp_path, {**own, "seed": 2}, state="failed"), put("failure", value={"reason": ESCAPES}))
    beat(failed.with_name("seed3"), own | {"seed": 3}, host=ESCAPES, device=ESCAPES)
    beat(results.run_folder(tmp_path, own | {"seed": 4}), own | {"seed": 4}, host=ESCAPES, device=ESCAPES)
    folder = tmp_path / "runs" / ESCAPES.replace("/", "") / "x"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{")
    for view, text in views(tmp_path).items():
        assert all(character.isprintable() or character == "\n" for character in text), (view, text)
    _, err = run("table3", "--results", tmp_path / ESCAPES, expect=2)
    assert err.removesuffix("\n").isprintable()


FORMULAS = ("=cmd|' /C calc'!A0", "@SUM(1)", "+1+cmd", "-1+cmd", "\t=1", "\r=1", "＝1")


@pytest.mark.parametrize("formula", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path, formula: str) -> None:
    own = record(RESNET20, "method=sgd")
    reseal(store(tmp_path, own, state="failed"), put("failure", value={"reason": formula}))
    store(tmp_path, {**own, "seed": 2, "model": {**own["model"], "note": formula}}, last=0.0, best=0.0)
    store(tmp_path, {**own, "seed": 4}, best=60.0)
    named = formula if formula.isprintable() else "=named"
    store(tmp_path, {**own, "seed": 3, "dataset": {**own["dataset"], "name": named}})
    cells = []
    for view in (("runs",), ("table3",), ("runs", "--status"), ("table3", "--status")):
        out, _ = run(*view, "--results", tmp_path, "--format", "csv")
        cells += [cell for line in csv.reader(io.StringIO(out)) for cell in line]
    assert f"'{named}" in cells
    for cell in cells:
        if cell.startswith(("=", "+", "-", "@", "\t", "\r", "＝")):
            float(cell)  # a number, such as the difference from the paper's
    assert any(cell.startswith("-") for cell in cells)


def test_a_lock_of_a_machine_that_has_gone_silent_is_said_to_be_so(tmp_path: Path) -> None:
    recorded = record(RESNET20)
    folder = run_folder(tmp_path, recorded)
    path = beat(folder, recorded, host="no\x1b[de1")
    assert heartbeat.silence(folder) == ""
    beat(folder, recorded, host="no\x1b[de1", time=time.time() - 3600)
    os.utime(path, (time.time() - 3600,) * 2)
    assert heartbeat.silence(folder).startswith("; the last heartbeat, from no\\x1b[de1, is 60 minutes old: ")
    path.unlink()
    assert heartbeat.silence(folder) == ""


# ---- what a run writes stays in its folder


WRITTEN = ("config.yaml", "error.txt", "code.diff", "code.resumed.diff", "history.csv", "progress.json", "output.txt")
WRITTEN += ("predictor.safetensors",)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a run was made, with its results."""
    cwd = tmp_path_factory.mktemp("finished")
    assert broadopt_run(*SMALL, "budget=0.1", "method=sgd", cwd=cwd).returncode == 0
    return cwd


@pytest.mark.parametrize("kind", ["link", "FIFO", "folder"])
def test_a_run_writes_through_nothing_that_lies_in_its_folder(finished: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder,) = folders(tmp_path)
    mine = tmp_path / "mine"
    mine.write_text("my own file")
    # What a run has to write, and cannot where a folder is, it says in one line; that is the next test.
    names = ("history.csv", "error.txt", "checkpoint-0000000001.ckpt", ".x.tmp") if kind == "folder" else WRITTEN
    for name in names:
        (folder / name).unlink(missing_ok=True)
        if kind == "link":
            (folder / name).symlink_to(mine)
        else:
            os.mkfifo(folder / name) if kind == "FIFO" else (folder / name).mkdir()
    done = broadopt_run(*SMALL, "budget=0.1", "method=sgd", "force=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert mine.read_text() == "my own file"
    for name in {"config.yaml", "history.csv", "predictor.safetensors"} | ({"code.diff"} & {*os.listdir(folder)}):
        assert stat.S_ISREG((folder / name).lstat().st_mode), name
    assert result(folder)["state"] == "finished"


def test_a_folder_in_the_place_of_a_runs_file_is_named_in_one_line(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder,) = folders(tmp_path)
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").mkdir()
    done = broadopt_run(*SMALL, "budget=0.1", "method=sgd", "force=true", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"broadopt-run: {folder.relative_to(tmp_path)}/config.yaml: Is a directory\n"


def test_a_lock_that_is_a_link_is_not_followed(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (folder,) = folders(tmp_path)
    mine = tmp_path / "mine"
    mine.write_text("my own file")
    (folder / ".lock").unlink()
    (folder / ".lock").symlink_to(mine)
    done = broadopt_run(*SMALL, "budget=0.1", "method=sgd", "force=true", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"{folder.relative_to(tmp_path)} cannot be written" in done.stderr
    assert mine.read_text() == "my own file"


def test_texts_and_heartbeats_are_not_written_through_links(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "run"
    mine.write_text("my own file")
    folder.mkdir()
    foreseen = f".progress.json.{os.getpid()}.tmp"  # of which name it is not made any more
    for name in ("code.diff", "error.txt", "progress.json", foreseen):
        (folder / name).symlink_to(mine)
    record_changes(folder, "changes\n", resumed=False)
    assert "ZeroDivisionError" in reported(ZeroDivisionError("x"), folder)
    with heartbeat.Heartbeat(folder, record(RESNET20), device="a device"):
        assert json.loads((folder / "progress.json").read_text())["device"] == "a device"
    assert mine.read_text() == "my own file"
    assert (folder / "code.diff").read_text() == "changes\n"
    assert sorted(path.name for path in folder.iterdir()) == [foreseen, "code.diff", "error.txt"]


def test_why_a_run_failed_is_said_where_its_traceback_cannot_be_kept(tmp_path: Path) -> None:
    (tmp_path / "error.txt").mkdir()
    assert reported(ZeroDivisionError("x"), tmp_path) == "ZeroDivisionError: x"


def test_snapshots_behind_a_link_are_anothers(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    other.mkdir()
    for name in ("step-0000000000.safetensors", ".step-0000000001.safetensors.1.tmp"):
        (other / name).write_text("another's")
    (run / "snapshots").symlink_to(other)
    assert snapshots.files(run) == unfinished(run) == []
    recipe = Recipe.of_record(record(RESNET20, fingerprint="sha256:x"))
    keep = snapshots.Snapshots(run, recipe=recipe, classes=("a", "b"))
    with pytest.raises(OSError, match="a link, expected a folder"):
        keep(torch.nn.Linear(1, 1), 0)
    assert {path.read_text() for path in other.iterdir()} == {"another's"}
