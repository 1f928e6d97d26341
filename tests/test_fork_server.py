"""A forked command behaves as one in a new process does: the oracle is the same command started by subprocess.Popen."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import (
    OWN,
    SMALL,
    STARTUP,
    finish,
    folders,
    has_died,
    outcome,
    result,
    run,
    same_outcome,
    start,
    stopped,
    until,
)
from fork_server import Forked, environment_of_server, server, takes

import broadopt

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get("FORK_SERVER") == "no", reason="commands are not forked here"
)
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
        until(lambda: "State:\tT" in Path(f"/proc/{process.pid}/status").read_text())
        assert process.poll() is None
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
    assert takes(usual | {"OMP_WAIT_POLICY": "PASSIVE"})
    assert not takes(usual | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"})
    assert not takes(usual | {"FORK_SERVER": "no"})
    assert takes(usual | {"CUDA_VISIBLE_DEVICES": "2"})
    for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND", "PYTHONHASHSEED", "CUDA_LAUNCH_BLOCKING"):
        assert not takes(usual | {name: "2"})


def by_others(*arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """A run as launchers and scripts start it, by a process that knows nothing of the server."""
    path = os.pathsep.join(map(str, (OWN, STARTUP)))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    command = [sys.executable, "-m", "broadopt.run", *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=variables, **streams)


def test_what_scikit_learn_sets_where_it_is_imported_is_read_by_no_process() -> None:
    """It stays in the environment of the tests after the one that has imported it."""
    imported = "import json, os; before = set(os.environ); import sklearn; "
    printed = "print(json.dumps({name: os.environ[name] for name in set(os.environ) - before}))"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KMP_")}
    done = subprocess.run([sys.executable, "-c", imported + printed], env=kept, capture_output=True, check=True)
    added = json.loads(done.stdout)
    assert "KMP_INIT_AT_FORK" in added
    assert takes(kept | added | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ""})


def test_a_run_that_others_start_is_forked_and_ends_as_it_would_by_itself(both: Both) -> None:
    """Finished, refused and stopped by a signal; the run that is forked has another number than what stands for it."""

    def act(place: Path) -> "subprocess.CompletedProcess[str]":
        server()
        refused = finish(by_others("sed=1", cwd=place))
        halt = {"HALT": "train 20", "HALT_UNTIL": "SIGTERM", "HALT_FILE": str(place / "halted-PID")}
        process = by_others(*SMALL, "budget=1", cwd=place, **halt)
        until(lambda: list(place.glob("halted-*")), process)
        (halted,) = place.glob("halted-*")
        forked.append(halted.name != f"halted-{process.pid}")
        process.send_signal(signal.SIGTERM)  # what stands for the run passes it on
        stopped = finish(process)
        again = finish(by_others(*SMALL, "budget=1", cwd=place))
        codes = f"{refused.returncode} {stopped.returncode} {again.returncode}"
        return subprocess.CompletedProcess([], 0, codes, refused.stderr + stopped.stderr + again.stderr)

    forked: list[bool] = []
    (new,), (other,) = map(folders, both(act))
    assert forked == [False, True]
    assert same_outcome(new, other)


def test_a_run_that_others_start_dies_with_what_stands_for_it(tmp_path: Path) -> None:
    server()
    process = by_others(*SMALL, cwd=tmp_path, HALT="train 1", HALT_FILE=str(tmp_path / "halted-PID"))
    until(lambda: list(tmp_path.glob("halted-*")), process)
    (halted,) = tmp_path.glob("halted-*")
    run = Path("/proc", halted.name.removeprefix("halted-"))
    assert run.exists()
    assert run.name != str(process.pid)
    process.kill()
    assert finish(process).returncode == -signal.SIGKILL

    until(lambda: has_died(run))


def test_a_run_from_another_checkout_is_not_forked(tmp_path: Path) -> None:
    (tmp_path / "broadopt").mkdir()
    (tmp_path / "broadopt/__init__.py").write_text("")
    (tmp_path / "broadopt/run.py").write_text("print('another one')")
    server()
    assert finish(by_others(cwd=tmp_path)).stdout == "another one\n"
