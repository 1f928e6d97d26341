"""What trackers are given: comparison with what they have, names, values; and what is refused."""

import json
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from command import SMALL
from filelock import FileLock
from in_process import said
from omegaconf import OmegaConf
from stored import RESNET20, record, store
from tracked import EACH, held_by

from broadopt.config.compose import compose, run_config
from broadopt.errors import InputError
from broadopt.runs import history as histories
from broadopt.runs import results
from broadopt.runs.heartbeat import Heartbeat, machine
from broadopt.runs.repeat import repeated
from broadopt.trackers import trackio_run
from broadopt.trackers.choose import PACKAGES, check_installed, opened
from broadopt.trackers.record import TrackedRun, flat, points_of
from broadopt.trackers.record import record as give
from broadopt.trackers.stored import stored_runs

CONFIG = record(RESNET20, "method=asam", seed=7)


def losses(*values: float) -> dict[int, dict[str, float]]:
    return {step: {"train/loss": value} for step, value in enumerate(values, start=1)}


@pytest.mark.parametrize("tracker", EACH)
def test_what_differs_from_the_history_is_sent_anew(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = TrackedRun.of(CONFIG)
    three, two, one = losses(1, 0.5, 0.25), losses(1, 0.75), losses(1)
    given = [(three, "failed"), (three, "interrupted"), (two, "running"), (one, "finished")]
    statuses = {
        "mlflow": ["FAILED", "KILLED", "RUNNING", "FINISHED"],
        "wandb": ["1", "1", "0", "0"],
    }
    for number, (points, state) in enumerate(given):
        writer = opened(tracker, run, tmp_path)
        give(writer, points, complete=state == "finished")
        writer.finish(state)
        # W&B itself adds an epoch where there is none, which every row of a history has.
        held = held_by(tracker, tmp_path)
        values = sorted(value for value in held.values if value[1] != "epoch")
        assert values == [(step, "train/loss", found["train/loss"]) for step, found in points.items()]
        assert held.state == (statuses[tracker][number] if tracker in statuses else None)


class Memory:
    """A tracker that notes what is done to it."""

    def __init__(self, points: Mapping[int, Mapping[str, float]]) -> None:
        self.points = {step: dict(values) for step, values in points.items()}
        self.done: list[object] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.done.append((step, dict(values)))

    def forget(self, step: int) -> None:
        self.done.append(step)
        self.points = {known: values for known, values in self.points.items() if known < step}

    def finish(self, state: str) -> None:
        self.done.append(state)


@pytest.mark.parametrize(
    ("there", "given", "complete", "done"),
    [
        ({}, losses(3, 2), True, [(1, {"train/loss": 3}), (2, {"train/loss": 2})]),
        (losses(3, 2), losses(3, 2), True, []),
        (losses(3), losses(3, 2), False, [(2, {"train/loss": 2})]),
        (losses(3), {1: {"train/loss": 3, "lr": 0.1}}, False, [(1, {"lr": 0.1})]),
        (losses(3, 1 / 3), losses(3, 0.3333333432674408), True, []),  # as 32 bits
        (losses(3, 2, 1), losses(3), False, []),  # resumed from an older checkpoint: the epochs are yet to come
        (losses(3, 2, 1), losses(3, 2.1), False, [2, (2, {"train/loss": 2.1})]),
        (losses(3, 2, 1), losses(3), True, [2]),
    ],
)
def test_only_what_is_missing_is_sent(there: dict, given: dict, complete: bool, done: list) -> None:
    tracker = Memory(there)
    give(tracker, given, complete=complete)
    assert tracker.done == done
    given_again = Memory(tracker.points)
    give(given_again, given, complete=complete)
    assert given_again.done == []


def test_points_are_at_whole_epochs() -> None:
    rows = [{"epoch": 1.0, "lr": 0.1, "train_loss": 2.0}, {"epoch": 1.5, "lr": 0.05, "validation_nll": 3.0}]
    metrics = {
        "best": {"test_accuracy": 50.0, "epoch": 1.0},
        "collected": {"1.25": {"test_nll": 1.0, "members": 2.0}},
        "validation": {"last": {}, "best": {"validation_accuracy": 40.0, "epoch": 1.5}},
    }
    first = {"epoch": 1.0, "lr": 0.1, "train/loss": 2.0}
    last = {"epoch": 1.5, "lr": 0.05, "validation/nll": 3.0}
    final = {
        "best/test_accuracy": 50.0,
        "best/epoch": 1.0,
        "collected/1.25/test_nll": 1.0,
        "collected/1.25/members": 2.0,
        "validation_best/validation_accuracy": 40.0,
        "validation_best/epoch": 1.5,
    }
    assert points_of(rows) == {1: first, 2: last}
    assert points_of(rows, metrics) == {1: first, 2: last | final}
    assert points_of([], metrics) == {}


def test_a_run_is_named_by_its_record() -> None:
    run = TrackedRun.of(CONFIG)
    folder = results.run_folder("anywhere", CONFIG)
    assert run.name == folder.relative_to("anywhere/runs").as_posix() == f"{run.group}/{folder.name}"
    assert run.group == "cifar100/resnet20/asam"
    assert folder.name == f"seed7-{run.identity[:8]}"
    assert run.hyperparameters["step.rho"] == CONFIG["step"]["rho"]
    assert flat({"a": {"b": [1, 2.5], "c": None}, "d": True}) == {"a.b": "[1, 2.5]", "a.c": "null", "d": True}


# What is refused


@pytest.mark.parametrize("tracker", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGES[tracker][-1]
    monkeypatch.setitem(sys.modules, package, None)  # as where there is none
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    line = f"tracker={tracker}: {package} is not installed: pip install '.[{tracker}]' in the checkout\n"
    assert said("broadopt-run", *SMALL, f"tracker={tracker}", cwd=tmp_path) == (2, "", f"broadopt-run: {line}")
    assert not (tmp_path / "results").exists()
    tmp_path.joinpath("results").mkdir()
    assert said("broadopt-export", tracker, cwd=tmp_path) == (2, "", f"broadopt-export: {line}")


def test_mlflow_on_a_server_needs_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    check_installed(["mlflow"])


@pytest.mark.parametrize("name", ["exp a?b#c", "per%20cent"])
def test_a_folder_that_mlflow_would_take_for_another_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store(tmp_path / "results", CONFIG, history={1: 70.0})
    code, output, errors = said("broadopt-export", "mlflow", "results", "--output", name, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors == (
        f"broadopt-export: {tmp_path / name}: MLflow's address of a database has no room for ? and %; expected another "
        "folder, as broadopt-export mlflow RESULTS --output FOLDER takes\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_folder_of_a_trackers_name_is_no_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "wandb", ("a_tracker",))
    with pytest.raises(InputError, match=r"^tracker=wandb: a_tracker is not installed: "):
        check_installed(["wandb"])


EXPECTED = ": expected none, one of tensorboard, wandb, mlflow, trackio, or a list of them"


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("tensorbord", f'"tensorbord"{EXPECTED}; did you mean "tensorboard"?'),
        ("tb", f'"tb"{EXPECTED}; did you mean "tensorboard"?'),
        ("null", f'null{EXPECTED}; did you mean "none"?'),
        ("true", f"true{EXPECTED}"),
        ("[wandb,wandb]", f'["wandb", "wandb"]{EXPECTED}'),
        ("[wandb,none]", f'["wandb", "none"]{EXPECTED}'),
    ],
)
def test_a_tracker_that_there_is_not_is_refused(value: str, line: str, tmp_path: Path) -> None:
    assert said("broadopt-run", *SMALL, f"tracker={value}", cwd=tmp_path) == (2, "", f"broadopt-run: tracker={line}\n")


@pytest.mark.parametrize("name", trackio_run.REMOTE)
def test_a_trackio_elsewhere_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "user/space")
    with pytest.raises(ValueError, match=f"^{name} is set: expected a local trackio"):
        trackio_run.opened(TrackedRun.of(CONFIG), tmp_path)


NONE_OF = "is none of tensorboard, wandb, mlflow, trackio"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("", "the following arguments are required: TRACKER; see broadopt-export --help"),
        ("wanddb results", f'tracker "wanddb" {NONE_OF}; did you mean "wandb"?'),
        ("csv results", f'tracker "csv" {NONE_OF}'),
        ("tensorboard nowhere", "results folder nowhere does not exist: RESULTS names the folder that holds runs/"),
        (
            "tensorboard results/a_file",
            "results folder results/a_file is not a folder: RESULTS names the folder that holds runs/",
        ),
        ("tensorboard --out x", 'unknown option --out; did you mean "--output"?'),
        ("--completion tcsh", '--completion "tcsh" is none of bash, zsh, fish'),
    ],
)
def test_what_the_command_does_not_understand_is_one_line(arguments: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a_file").touch()
    assert said("broadopt-export", *arguments.split(), cwd=tmp_path) == (2, "", f"broadopt-export: {line}\n")


def test_the_command_completes_its_trackers(tmp_path: Path) -> None:
    code, script, errors = said("broadopt-export", "--completion", "bash", cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert "words='tensorboard wandb mlflow trackio --help --output --completion'" in script
    assert script.rstrip().endswith("complete -o default -F _broadopt_export broadopt-export")


# What is exported

FIGURES = "test_accuracy,test_nll,test_ece"


def with_history(root: Path, *, seed: int, history: str | None) -> Path:
    """A finished run whose figures are those of this history.csv, where it has any."""
    folder = store(root, record(RESNET20, "method=asam", seed=seed))
    if history is not None:
        (folder / "history.csv").write_text(history)
    with suppress(ValueError):
        made = histories.metrics(histories.read(folder), {})
        result = json.loads((folder / "result.json").read_text())
        results.write(folder, result | {"metrics": made if made["last"] else result["metrics"]})
    return folder


def test_runs_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    root = tmp_path / "results"
    text = f"epoch,lr,train_loss,{FIGURES}\n1.0,0.1,2.5,,,\n2.0,0.1,2.25,40.0,3.0,0.06\n"
    good = with_history(root, seed=1, history=text)
    no_number = "not a table of numbers ({})"
    bad = {
        with_history(root, seed=2, history=None): "it is finished and has no history.csv",
        with_history(root, seed=3, history="epoch,lr\n1.0,high\n"): no_number.format(
            "could not convert string to float: 'high'"
        ),
        with_history(root, seed=4, history="epoch,lr\n1.0,0.1,0.2\n"): no_number.format(
            "float() argument must be a string or a real number, not 'list'"
        ),
        with_history(root, seed=5, history="lr\n0.1\n"): "without a column epoch that ascends",
        with_history(root, seed=6, history=text): "its checksum does not fit: edited or damaged",
        with_history(root, seed=7, history=text): "not the history that result.json was made of: best epoch 1, there 2",
    }
    edited = next(folder for folder in bad if folder.name.startswith("seed6"))
    (edited / "result.json").write_text((edited / "result.json").read_text().replace('"epoch": 2', '"epoch": 4'))
    other = next(folder for folder in bad if folder.name.startswith("seed7"))
    (other / "history.csv").write_text(text.replace("2.5,,,", "2.5,40.0,3.0,0.06"))

    code, output, errors = said("broadopt-export", "tensorboard", cwd=tmp_path)

    assert (code, output) == (0, "tensorboard: 1 run (1 finished)\n")
    lines = [f"broadopt-export: left out: {folder.relative_to(root)}: {reason}" for folder, reason in bad.items()]
    assert sorted(errors.splitlines()) == sorted(lines)
    held = held_by("tensorboard", root)
    assert held.name == good.relative_to(root / "runs").as_posix()
    curves = [value for value in held.values if value[1] in ("train/loss", "test/accuracy")]
    assert sorted(curves) == [(1, "train/loss", 2.5), (2, "test/accuracy", 40.0), (2, "train/loss", 2.25)]


def copied(folder: Path, name: str, **changed: object) -> Path:
    """A copy of a run folder below another one, as after merging results folders, with other fields in its result."""
    runs = folder.parents[3]
    copy = runs / name / folder.relative_to(runs)
    shutil.copytree(folder, copy)
    stored = json.loads((copy / "result.json").read_text())
    if changed:
        results.write(copy, stored | changed)
    return copy


def test_of_copies_of_a_run_the_one_that_tables_count_is_sent(tmp_path: Path) -> None:
    root, rows = (
        tmp_path / "results",
        [f"epoch,lr,train_loss,{FIGURES}", "1.0,0.1,3", "2.0,0.1,2", "3.0,0.1,1,40.0,3.0,0.06", ""],
    )
    merged = with_history(root, seed=1, history="\n".join(rows))
    copied(merged, "copy")
    older = copied(merged, "old", state="interrupted", epochs=1.0)
    (older / "history.csv").write_text("\n".join([*rows[:2], ""]))
    code, output, errors = said("broadopt-export", "tensorboard", cwd=tmp_path)
    assert (code, output) == (0, "tensorboard: 1 run (1 finished)\n")
    old, counted = older.relative_to(root), (root / "runs/cifar100" / merged.relative_to(root / "runs/cifar100"))
    assert errors == f"broadopt-export: left out: {old}: interrupted, and finished in {counted.relative_to(root)}\n"
    held = held_by("tensorboard", root)
    losses = [(step, value) for step, name, value in held.values if name == "train/loss"]
    assert losses == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_of_unfinished_copies_the_one_with_the_most_epochs_is_sent_and_of_different_results_none(
    tmp_path: Path,
) -> None:
    root = tmp_path / "results"
    folder = with_history(root, seed=1, history="epoch,lr\n1.0,0.1\n2.0,0.2\n")
    died = copied(folder, "died")
    recorded = json.loads((died / "result.json").read_text())["config"]
    (died / "result.json").unlink()
    beat = {"schema": 1, "identity": TrackedRun.of(recorded).identity, "config": recorded, "host": "there"}
    beat |= {"machine": machine(), "pid": 1, "device": "CPU", "time": 1.0, "epoch": 1.0, "epochs": 3.0}
    (died / "progress.json").write_text(json.dumps(beat | {"images_per_epoch": 100}))
    results.write(folder, json.loads((folder / "result.json").read_text()) | {"state": "failed", "epochs": 2.0})
    runs, left_out = stored_runs(root)
    assert [(run.state, len(run.history)) for run in runs] == [("failed", 2)]
    names = [one.relative_to(root).as_posix() for one in (died, folder)]
    assert left_out == [f"{names[0]}: interrupted after 1 epochs, and failed after 2 epochs in {names[1]}"]
    with FileLock(died / ".lock"):  # it goes on: so far it has come less far
        runs, left_out = stored_runs(root)
        assert [run.state for run in runs] == ["running"]
        assert left_out == [f"{names[1]}: failed after 2 epochs, and running after 1 epochs in {names[0]}"]
    for place, epochs in ((folder, 3.0), (copied(folder, "other"), 4.0)):
        stored = json.loads((place / "result.json").read_text())
        results.write(place, stored | {"state": "finished", "epochs": epochs})
    runs, left_out = stored_runs(root)
    assert list(runs) == []
    assert len(left_out) == 3
    assert all("its identity is also that of " in line for line in left_out)


def test_offline_files_of_a_running_run_are_left_to_it(tmp_path: Path) -> None:
    """Its own tracker may be writing them."""
    root = tmp_path / "results"
    folder = with_history(root, seed=1, history="epoch,lr,train_loss\n1.0,0.1,2.5\n")
    recorded = json.loads((folder / "result.json").read_text())["config"]
    (folder / "result.json").unlink()
    left = root / "wandb" / f"offline-run-20260101_000000-{TrackedRun.of(recorded).identity}"
    left.mkdir(parents=True)
    with FileLock(folder / ".lock"), Heartbeat(folder, recorded, device="CPU", size={}):
        code, output, errors = said("broadopt-export", "wandb", cwd=tmp_path, WANDB_MODE="offline", WANDB_DIR="")
    assert (code, output) == (0, "wandb: 0 runs\n")
    assert "it is running, and W&B cannot go on with its offline files; export it later" in errors
    assert left.is_dir()


def test_nothing_to_export_is_said(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert said("broadopt-export", "tensorboard", cwd=tmp_path) == (0, "tensorboard: 0 runs\n", "")


def test_a_run_folder_and_a_file_to_send_to_are_bad_input(tmp_path: Path) -> None:
    folder = with_history(tmp_path / "results", seed=1, history="epoch,lr\n1.0,0.1\n")
    (folder / "config.yaml").touch()
    line = f"broadopt-export: {folder}: that is the folder of a run; expected the results folder, which holds runs/\n"
    assert said("broadopt-export", "tensorboard", str(folder), cwd=tmp_path) == (2, "", line)
    (tmp_path / "file").touch()
    line = "broadopt-export: --output file: expected a folder, found a file\n"
    assert said("broadopt-export", "tensorboard", "--output", "file", cwd=tmp_path) == (2, "", line)


def test_a_tracker_that_fails_ends_the_export(tmp_path: Path) -> None:
    folder = with_history(tmp_path / "results", seed=1, history=f"epoch,lr,{FIGURES}\n1.0,0.1,40.0,3.0,0.06\n")
    (tmp_path / "results/tensorboard").write_text("no folder")
    code, output, errors = said("broadopt-export", "tensorboard", cwd=tmp_path)
    name = folder.relative_to(tmp_path / "results/runs")
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"broadopt-export: tensorboard: {name} could not be sent: ")


# What was there before


def test_a_config_from_before_there_were_trackers_is_repeated(tmp_path: Path) -> None:
    values = run_config(compose(["experiment=quickstart"])).values()
    assert values.pop("tracker") == []
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(values))
    assert repeated([f"repeat={tmp_path}"]).run.execution.tracker == []
    assert repeated([f"repeat={tmp_path}", "tracker=wandb"]).run.execution.tracker == ["wandb"]
    assert repeated([f"repeat={tmp_path}", "tracker=[mlflow, wandb]"]).run.execution.tracker == ["mlflow", "wandb"]
