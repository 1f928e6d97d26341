"""A forked command behaves as one in a new process does: the oracle is the same command started by subprocess.Popen."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command import OWN, SMALL, finish, folders, outcome, result, run, same_outcome, start, stopped, until
from fork_server import Forked, environment_of_server, takes

import broadopt

Both = Callable[[Callable[[Path], "subprocess.CompletedProcess[str]"]], list[Path]]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Both:
    """Do something in a new process, then in a forked one: exit code and both streams are the same."""

    def do(act: Callable[[Path], "subprocess.CompletedProcess[str]"]) -> list[Path]:
        places, done = [tmp_path / "new", tmp_path / "forked"], []
        for place, choice in zip(places, ("no", "yes"), strict=True):
            monkeypatch.setenv("FORK_SERVER", choice)
            assert takes(environment_of_server()) == (choice == "yes")
            place.mkdir()
            done.append(act(place))
        first, second = ((one.returncode, one.stdout, one.stderr) for one in done)
        assert first == second
        return places

    return do


@pytest.mark.parametrize("arguments", [("--help",), ("sed=1",), ("-m", "seed=1,2", "plan=true"), ("step.rho=-1",)])
def test_what_is_only_shown_or_refused_is_the_same(both: Both, arguments: tuple[str, ...]) -> None:
    both(lambda place: run("experiment=quickstart", "method=sam", *arguments, cwd=place))


def test_a_run_that_is_stopped_and_goes_on_leaves_the_same(both: Both) -> None:
    """Without the lines of epochs, in which a speed is."""
    command = (*SMALL, "budget=2")

    def act(place: Path) -> "subprocess.CompletedProcess[str]":
        ended = stopped(*command, cwd=place, at="train 20", by=signal.SIGTERM)
        again = run(*command, cwd=place)
        return subprocess.CompletedProcess([], ended.returncode, str(again.returncode), ended.stderr + again.stderr)

    (new,), (forked,) = map(folders, both(act))
    assert outcome(result(new)) == outcome(result(forked))
    assert result(new)["environment"] == result(forked)["environment"]
    assert same_outcome(new, forked)
    assert sorted(path.name for path in new.iterdir()) == sorted(path.name for path in forked.iterdir())


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
def test_a_signal_ends_or_holds_a_forked_process(by: signal.Signals, tmp_path: Path) -> None:
    process = start(*SMALL, cwd=tmp_path, HALT="train 1", HALT_FILE=str(tmp_path / "halted"))
    assert isinstance(process, Forked)
    until((tmp_path / "halted").exists, process)
    os.kill(process.pid, by)
    if by == signal.SIGSTOP:
        os.kill(process.pid, signal.SIGCONT)
        (tmp_path / "halted").unlink()
    assert finish(process).returncode == (0 if by == signal.SIGSTOP else -by)


def test_a_forked_process_that_does_not_end_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    process = start(*SMALL, cwd=tmp_path, HALT="train 1", HALT_FILE=str(tmp_path / "halted"))
    for wait in (process.wait, process.communicate):
        with pytest.raises(subprocess.TimeoutExpired):
            wait(timeout=0.1)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL


def test_what_is_read_at_the_start_of_a_process_gets_a_new_one() -> None:
    usual = environment_of_server()
    assert takes(usual | {"HALT": "train 1"})
    assert takes(usual | {"PYTHONPATH": str(OWN)})
    assert not takes(usual | {"PYTHONPATH": str(Path(broadopt.__file__).parents[1])})
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PYTHONHASHSEED", "CUDA_VISIBLE_DEVICES"):
        assert not takes(usual | {name: "2"})
