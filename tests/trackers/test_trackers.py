"""Trackers beside real runs and by broadopt-export, each read back by its own reader."""

import csv
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import BIN, SMALL, folders, go_on, halted, has_died, history, result, run, same_outcome, stopped, until
from in_process import said
from stored import RESNET20, record
from tracked import EACH, INSTALLED, Held, Value, held_by

from broadopt.trackers.record import TrackedRun

RUN = (*SMALL, "method=swa", "budget=2")
"""3 epochs of 45 steps, with evaluation points after 2, 2.5 and 3."""
NAME = "digits/small/swa"
OFFLINE = {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": "", "BROADOPT_TRACKER_SECONDS": "600"}


def export(tracker: str, results: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """broadopt-export from beginning to end."""
    command = [str(BIN / "broadopt-export"), tracker, str(results), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | OFFLINE)


def exported(tracker: str, place: Path, output: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of broadopt-export in this process; of trackio, which reads its folder's name once
    in a process, in one of its own.
    """
    arguments = (tracker, str(place), "--output", str(output))
    if tracker == "trackio":
        done = export(tracker, place, *arguments[2:])
        return done.returncode, done.stdout, done.stderr
    return said("broadopt-export", *arguments, cwd=place.parent, **OFFLINE)


def expected(folder: Path, *, finished: bool = True) -> list[Value]:
    """What a tracker has to hold of a run, worked out from its files."""
    values, step = [], 0
    with (folder / "history.csv").open() as lines:
        for step, row in enumerate(csv.DictReader(lines), start=1):
            for split in ("train", "test"):
                found = [name for name in row if name.startswith(f"{split}_")]
                values += [(step, f"{split}/{name.removeprefix(split + '_')}", float(row[name])) for name in found]
            values += [(step, name, float(row[name])) for name in ("epoch", "lr")]
    if finished:
        metrics = result(folder)["metrics"]
        values += [(step, f"best/{name}", value) for name, value in metrics["best"].items()]
        for budgets, figures in metrics["collected"].items():
            values += [(step, f"collected/{budgets}/{name}", value) for name, value in figures.items()]
    return sorted(values)


def same(held: Held, values: list[Value], tracker: str) -> bool:
    """Whether a tracker holds these values, each once; TensorBoard's have 32 bits."""
    exact = 0 if tracker != "tensorboard" else 1e-6
    found = sorted(held.values)
    return [value[:2] for value in found] == [value[:2] for value in values] and all(
        mine == pytest.approx(its, rel=exact, abs=0) for (*_, mine), (*_, its) in zip(found, values, strict=True)
    )


@dataclass(frozen=True)
class Story:
    """A run without a tracker, and the same with all of them: interrupted, exported as it runs again, and ended."""

    undisturbed: Path
    tracked: Path
    place: Path
    """The results folder of the second."""
    while_running: dict[str, Held]
    rows_while_running: list[Value]
    messages: list[str]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    plain, cwd = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("tracked")
    place, trackers = cwd / "results", f"tracker=[{','.join(INSTALLED)}]"
    ends = [run(*RUN, cwd=plain)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        patch.delenv("TRACKIO_DIR", raising=False)
        ends.append(stopped(*RUN, trackers, cwd=cwd, at="train 60", by=signal.SIGTERM))
        (folder,) = folders(cwd)
        before = expected(folder, finished=False)
        with halted(*RUN, trackers, cwd=cwd, at="train 10") as process:
            for tracker in INSTALLED:
                found = exported(tracker, place, cwd / "elsewhere")
                assert found[1] == f"{tracker}: 1 run (1 running)\n", found
            running = {tracker: held_by(tracker, cwd / "elsewhere") for tracker in INSTALLED}
            go_on(cwd)
            output, errors = process.communicate()
        ends.append(subprocess.CompletedProcess([], process.returncode, output, errors))
    assert [end.returncode for end in ends] == [0, 75, 0], ends
    return Story(folders(plain)[0], folder, place, running, before, [end.stderr for end in ends])


def test_a_tracker_changes_nothing_of_a_run(story: Story) -> None:
    assert same_outcome(story.undisturbed, story.tracked)
    assert not any("tracker" in errors for errors in story.messages)
    assert {path.name for path in story.tracked.iterdir()} == {path.name for path in story.undisturbed.iterdir()}


@pytest.mark.parametrize("tracker", EACH)
def test_a_resumed_run_goes_on_with_its_curves(tracker: str, story: Story) -> None:
    held = held_by(tracker, story.place)
    assert len(history(story.tracked)) == 3
    assert same(held, expected(story.tracked), tracker), held.values
    assert held.state in {"tensorboard": {None}, "wandb": {"0"}, "mlflow": {"FINISHED"}, "trackio": {None}}[tracker]


@pytest.mark.parametrize("tracker", EACH)
def test_a_run_has_its_folders_name_and_its_recipe(tracker: str, story: Story) -> None:
    held = held_by(tracker, story.place)
    config = result(story.tracked)["config"]
    assert held.name == f"{NAME}/{story.tracked.name}"
    for key, value in (
        ("seed", 1),
        ("lr", config["lr"]),
        ("dataset.name", "digits"),
        ("collect.budgets", "[1, 1.25, 1.5]"),
    ):
        found = held.hyperparameters[key]
        assert found == (str(value) if tracker == "mlflow" else value), key
    assert not any(isinstance(value, (dict, list)) for value in held.hyperparameters.values())


@pytest.mark.parametrize("tracker", EACH)
def test_the_history_of_a_running_run_is_exported(tracker: str, story: Story) -> None:
    held = story.while_running[tracker]
    assert {step for step, *_ in story.rows_while_running} == {1}
    assert same(held, story.rows_while_running, tracker), held.values
    assert tracker != "mlflow" or held.state == "RUNNING"


@pytest.mark.parametrize("tracker", EACH)
def test_exported_twice_is_exported_once(tracker: str, story: Story) -> None:
    elsewhere = story.place.parent / "elsewhere"  # where it was exported as it ran
    for _ in range(2):
        assert exported(tracker, story.place, elsewhere) == (0, f"{tracker}: 1 run (1 finished)\n", "")
        held = held_by(tracker, elsewhere)
        assert same(held, expected(story.tracked), tracker), held.values
    assert held.name == f"{NAME}/{story.tracked.name}"


@pytest.mark.parametrize("tracker", ["tensorboard"])
def test_what_was_tracked_live_is_exported_already(tracker: str, story: Story) -> None:
    files = sorted((story.place / "tensorboard").rglob("*tfevents*"))
    assert export(tracker, story.place).returncode == 0
    assert sorted((story.place / "tensorboard").rglob("*tfevents*")) == files
    assert len(files) == 2  # of the interrupted process and of the one that ended the run


def child_of(process: int) -> int:
    """The tracker's process, which is the one child of a run's."""
    (child,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(child)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSTOP, "it has not sent everything in time"),
    ],
)
def test_a_tracker_that_dies_or_hangs_does_not_hurt(number: int, reason: str, story: Story, tmp_path: Path) -> None:
    patience = {"BROADOPT_TRACKER_SECONDS": "600" if number == signal.SIGKILL else "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patience.items():
            patch.setenv(name, value)
        with halted(*RUN, "tracker=tensorboard", cwd=tmp_path, at="train 60") as process:
            child = child_of(process.pid)
            os.kill(child, number)
            go_on(tmp_path)
            _, errors = process.communicate()
    later = "the run is not affected, broadopt-export tensorboard results sends the whole run"
    assert errors == f"tracker=tensorboard: {reason}; {later}\n"
    assert process.returncode == 0
    assert not Path(f"/proc/{child}").exists()
    (folder,) = folders(tmp_path)
    assert same_outcome(story.undisturbed, folder)
    assert export("tensorboard", tmp_path / "results").returncode == 0
    assert same(held_by("tensorboard", tmp_path / "results"), expected(folder), "tensorboard")


def test_a_tracker_that_fails_is_one_line(story: Story, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/tensorboard").write_text("no folder")
    ended = run(*RUN, "tracker=tensorboard", cwd=tmp_path, **OFFLINE)
    assert ended.returncode == 0
    (line,) = ended.stderr.splitlines()
    assert line.startswith("tracker=tensorboard: ")
    assert line.endswith("; the run is not affected, broadopt-export tensorboard results sends the whole run")
    assert same_outcome(story.undisturbed, folders(tmp_path)[0])


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The results folder of a run that was killed with its tracker in the second epoch."""
    with halted(*RUN, "tracker=tensorboard", cwd=tmp_path, at="train 60") as process:
        child = child_of(process.pid)
        until(lambda: any((tmp_path / "results").rglob("*tfevents*")), process)
        own, its = (os.getpriority(os.PRIO_PROCESS, number) for number in (process.pid, child))
        assert its == min(own + 10, 19)  # the run comes first
    until(lambda: has_died(Path(f"/proc/{child}")))
    return tmp_path / "results"


def test_the_process_of_a_tracker_ends_with_its_run(killed: Path) -> None:
    held = held_by("tensorboard", killed)
    assert {step for step, *_ in held.values} == {1}
    assert held.hyperparameters["seed"] == 1


@pytest.mark.skipif("tensorboard" not in INSTALLED, reason="tensorboard is not installed")
def test_a_fifo_among_event_files_is_not_waited_for(tmp_path: Path) -> None:
    from broadopt.trackers.tensorboard_run import opened

    tracked = TrackedRun.of(record(RESNET20))
    folder = tmp_path / "tensorboard" / tracked.name
    folder.mkdir(parents=True)
    os.mkfifo(folder / "events.out.tfevents.1.host.1.0")
    with pytest.raises(ValueError, match=r"/events\.out\.tfevents\.1\.host\.1\.0: a device, a FIFO"):
        opened(tracked, tmp_path)
