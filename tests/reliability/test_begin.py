"""A run that fails before its first step: what lies in its folder, and in another's, stays what it is."""

import fcntl
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import processes
import pytest
import short_run
import torch
from forked import run_of
from short_run import Kind

from broadopt.config.run_config import Recipe, RunConfig
from broadopt.devices.device import set_flags
from broadopt.devices.processes import Processes
from broadopt.errors import InputError, Interrupted, LeftToAnother, RunFailed
from broadopt.runs import checkpoint, heartbeat
from broadopt.runs.begun import precision_of
from broadopt.runs.folders import run_folder
from broadopt.signals import Stop
from broadopt.training import begin, execute
from broadopt.training.loop import Training
from broadopt.training.progress import Silent

assert processes.SMALL, "it puts tests/own, where the network is, on the path"
QUICK = ("method=sgd", "budget=1", "checkpoint.minutes=10")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def carry_out(*overrides: str) -> Path:
    found = execute.execute(run_of(*QUICK, *overrides), Stop())
    assert found is not None
    return found[0]


def stopped(*overrides: str, step: int = 8) -> Path:
    """The folder of a run that a signal has stopped after so many steps."""
    stop = Stop()
    hook = short_run.at_pass(Kind.TRAIN, step, lambda: setattr(stop, "requested", "SIGTERM"))
    try:
        with pytest.raises(Interrupted):
            execute.execute(run_of(*QUICK, *overrides), stop)
    finally:
        hook.remove()
    (path,) = Path("results").rglob("result.json")
    return path.parent


def content(folder: Path) -> dict[str, bytes]:
    """What a run has left, but for what says why it failed."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("error.txt", "config.yaml", "code.diff")
    }


def state_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def no_memory(*arguments: Any, **options: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), OSError(116, "Stale file handle")])
def test_a_checkpoint_that_could_not_be_read_this_time_is_kept(error: Exception, monkeypatch: Any) -> None:
    folder = stopped()
    before = content(folder)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(RunFailed, match=r"^checkpoint results/.*0008\.ckpt could not be read: .*; it is kept$"):
            carry_out()
    assert content(folder) == before
    assert carry_out() == folder
    assert state_of(folder)["state"] == "finished"


def test_too_little_memory_for_a_checkpoint_says_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()
    before = content(folder)
    for owner, name, words in ((torch, "load", "could not be read: "), (Training, "load_state_dict", "could not be ")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, no_memory)
            with pytest.raises(RunFailed) as failed:
                carry_out()
        assert words in str(failed.value)
        assert "CUDA out of memory" in str(failed.value)
        assert "it is kept" in str(failed.value)
        assert "begins anew" not in str(failed.value)
        assert content(folder) == before


def test_a_state_that_does_not_fit_replaces_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped()
    before = content(folder)

    def misfit(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Error(s) in loading state_dict")

    with monkeypatch.context() as patch:
        patch.setattr(Training, "load_state_dict", misfit)
        with pytest.raises(RunFailed, match="does not fit this network"):
            carry_out()
    assert content(folder) == before


def failed(folder: Path) -> None:
    """As of a run that failed in its training."""
    path = folder / "result.json"
    found = state_of(folder) | {"state": "failed", "failure": {"reason": "a reason"}}
    found["checksum"] = execute.results.checksum(found)
    path.write_text(json.dumps(found))


def killed(folder: Path) -> None:
    (folder / "result.json").unlink()


@pytest.mark.parametrize("happened", [failed, killed, lambda folder: None])
def test_a_failure_at_building_replaces_no_record_of_a_training(
    happened: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    happened(folder)
    before = content(folder)
    with monkeypatch.context() as patch:
        patch.setattr(execute, "build", no_memory)
        with pytest.raises(RunFailed, match="CUDA out of memory"):
            carry_out()
    assert content(folder) == before
    assert "CUDA out of memory" in (folder / "error.txt").read_text()


def test_a_failure_at_building_is_the_result_where_nothing_says_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for reason in ("one", "another"):

        def fail(*arguments: Any, reason: str = reason) -> Any:
            raise ValueError(reason)

        monkeypatch.setattr(execute, "build", fail)
        with pytest.raises(RunFailed):
            carry_out()
        (path,) = Path("results").rglob("result.json")
        assert state_of(path.parent)["failure"]["reason"].startswith(f"ValueError: {reason}")


def test_a_forced_run_that_is_not_built_leaves_what_was_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = carry_out("keep=snapshots")
    before = content(folder)
    assert {"predictor.safetensors", "snapshots/step-0000000000.safetensors"} <= before.keys()
    with monkeypatch.context() as patch:
        patch.setattr(execute, "build", no_memory)
        with pytest.raises(RunFailed, match="CUDA out of memory"):
            carry_out("force=true")
    assert content(folder) == before


def test_weights_do_not_outlive_the_result_that_they_belong_to() -> None:
    folder = carry_out("keep=snapshots")
    (folder / "result.json").write_text("{}")
    carry_out("checkpoint.predictor=false")
    assert state_of(folder)["state"] == "finished"
    assert not list(folder.rglob("*.safetensors"))


@pytest.fixture
def taken() -> Any:
    """Holds the lock of a folder."""
    descriptors = []

    def take(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        descriptors.append(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT))
        fcntl.flock(descriptors[-1], fcntl.LOCK_EX)

    yield take
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_run_that_another_process_is_on_is_not_built(
    taken: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    taken(folder)
    before = content(folder)
    monkeypatch.setattr(execute, "build", no_memory)
    with pytest.raises(LeftToAnother, match=r"^another process is on results/"):
        carry_out()
    assert content(folder) == before
    assert not (folder / "error.txt").exists()


def test_a_failure_at_building_leaves_no_word_in_a_folder_that_another_has_taken(
    taken: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began in the same moment."""

    def overtaken(run: RunConfig, *others: Any) -> Any:
        folder = execute.results.run_folder("results", run.recipe.record())
        taken(folder)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execute, "build", overtaken)
    with pytest.raises(LeftToAnother):
        carry_out()
    assert [path.name for path in Path("results").rglob("*") if path.is_file()] == [".lock"]


def test_a_folder_that_waits_for_another_builds_nothing_before(
    taken: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stopped()
    taken(folder)
    built, stop = [], Stop()
    monkeypatch.setattr(execute, "build", lambda *arguments: built.append(arguments))
    stop.requested = "SIGTERM"
    with pytest.raises(Interrupted):
        execute.execute(run_of(*QUICK, "wait=true"), stop)
    assert built == []


def test_bad_input_makes_no_folder() -> None:
    with pytest.raises(InputError):
        carry_out("batch_size=100000")
    assert not Path("results").exists()


def test_a_trunk_that_could_not_be_read_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    carry_out("trunk=share", "collect=lawa", "budget=2")
    caplog.set_level(logging.WARNING)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_state", no_memory)
        folder = carry_out("trunk=share", "budget=2")
    assert state_of(folder)["state"] == "finished"
    assert any(" is passed over: checkpoint " in line and "out of memory" in line for line in caplog.messages)


# What a training was carried out by, in part or in the whole


def test_a_training_of_two_parts_is_deterministic_where_both_are() -> None:
    stopped("trunk=share", "collect=lawa", "budget=2")
    try:
        folder = carry_out("trunk=share", "collect=lawa", "budget=2", "deterministic=true")
        whole = carry_out("deterministic=true", "seed=2", "trunk=share", "collect=lawa", "budget=2")
    finally:
        set_flags("fp32", deterministic=False)
    assert [state_of(one)["environment"]["deterministic"] for one in (folder, whole)] == [False, True]
    trunks = [json.loads(path.read_text()) for path in Path("results/trunks").rglob("trunk.json")]
    found = {(trunk["config"]["seed"], trunk["deterministic"]) for trunk in trunks}
    assert found == {(1, False), (2, True)}


def test_a_run_that_has_moved_measures_the_device_that_it_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is resumed there once more; its result has the seconds of all."""
    elsewhere: list[float] = []
    kept = Training.run

    def run(training: Training, *arguments: Any, **options: Any) -> None:
        elsewhere.append(training.elsewhere[0])
        kept(training, *arguments, **options)

    monkeypatch.setattr(Training, "run", run)
    stopped()
    stopped(step=4)
    monkeypatch.setattr(begin, "arithmetic", lambda device: {"device": "NVIDIA H100 80GB HBM3"})
    stopped(step=4)
    folder = carry_out()
    assert elsewhere == [0.0, 0.0, 12 / 45, 16 / 45]
    assert len(state_of(folder)["environment"]["carried_out_on"]) == 2


def of_auto(*overrides: str) -> tuple[Recipe, Callable[[str], Recipe], Callable[[str], Path]]:
    recipe = run_of(*QUICK, "precision=auto", *overrides).recipe

    def decided(name: str) -> Recipe:
        return recipe.decided(precision=name, fingerprint=None)

    return recipe, decided, lambda name: run_folder("results", decided(name).record())


def test_a_run_that_is_going_on_without_a_checkpoint_was_begun(taken: Callable[[Path], None]) -> None:
    _, decided, folder = of_auto()
    assert precision_of(decided, "results", here="fp32", others=["bf16"]) == "fp32"
    taken(folder("bf16"))
    assert precision_of(decided, "results", here="fp32", others=["bf16"]) == "bf16"


def test_a_run_that_is_going_on_elsewhere_was_begun() -> None:
    _, decided, folder = of_auto()
    folder("bf16").mkdir(parents=True)
    with heartbeat.Heartbeat(folder("bf16"), decided("bf16").record(), device="a device"):
        path = folder("bf16") / heartbeat.NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
        assert precision_of(decided, "results", here="fp32", others=["bf16"]) == "bf16"
    assert precision_of(decided, "results", here="fp32", others=["bf16"]) == "fp32"


def test_a_run_that_was_begun_in_what_a_device_lacks_does_not_begin_anew_there(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stopped("precision=bf16")
    before = content(folder)
    monkeypatch.setattr(execute, "automatic_precisions", lambda device: ("fp32",))
    monkeypatch.setattr(execute, "choose_precision", lambda name, *others: "fp32" if name == "auto" else name)
    with pytest.raises(InputError, match=r"^precision=auto: this run was begun in bf16, in results/.*precision=fp32"):
        carry_out("precision=auto")
    assert content(folder) == before
    carry_out("precision=bf16")
    assert carry_out("precision=auto") == folder
    with pytest.raises(InputError, match=r"^precision=auto: this run was finished in bf16, in results/"):
        carry_out("precision=auto", "force=true")


# Which process shows a run


def test_one_of_several_processes_shows_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = []

    def begun(parts: Any, run: Any, recipe: Any, folder: Path, stop: Stop, reporter: Any) -> Any:
        shown.append(reporter)
        raise ZeroDivisionError

    monkeypatch.setattr(execute, "begun", begun)
    parts: Any = SimpleNamespace(processes=Processes(1, 2))
    run = run_of(*QUICK)
    with pytest.raises(ZeroDivisionError):
        execute.train(parts, run, run.recipe, Path("nowhere"), Stop())
    assert [type(one) for one in shown] == [Silent]
