"""The real commands, each in a process of its own, as a user starts them.

Where nothing in the environment speaks against it the process is forked from one that has torch imported already.
"""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import fork_server
import pytest

Process: TypeAlias = "subprocess.Popen[str] | fork_server.Forked"
BIN = Path(sys.executable).parent
OWN = Path(__file__).parent / "own"
STARTUP = Path(__file__).parent / "startup"
SMALL = ("--config-dir", str(OWN), "experiment=quickstart", "model=small", "device=cpu", "precision=fp32")
"""Half a second of training an epoch: 45 steps of 32 digits."""
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full on this system")
PATIENCE = 600
"""Seconds after which a process counts as one that never does what is waited for, on however busy a machine."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep said and left: its folder, its process, its run folders by method."""

    cwd: Path
    process: "subprocess.CompletedProcess[str]"
    folders: Mapping[str, Path]


def start(
    *arguments: str, cwd: Path, program: str = "broadopt-run", session: bool = False, **environment: str
) -> Process:
    """Start broadopt-run, another `program` of broadopt's, or the script of that path, in the folder `cwd`, in a
    `session` of its own where that is asked for.
    """
    path = os.pathsep.join([environment.pop("PYTHONPATH", str(OWN)), str(STARTUP)])
    variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment | {"PYTHONPATH": path}
    command = [str(BIN / program), *arguments]
    if fork_server.takes(variables):
        return fork_server.Forked(command, cwd=cwd, env=variables, start_new_session=session)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
    )


def finish(process: Process) -> "subprocess.CompletedProcess[str]":
    """Wait for a process's end."""
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """broadopt-run from beginning to end."""
    return finish(start(*arguments, cwd=cwd, **environment))


@contextmanager
def halted(*arguments: str, cwd: Path, at: str) -> Iterator[Process]:
    """broadopt-run with the small network, standing still at the pass `at` until `go_on(cwd)`; killed at the end."""
    process = start(*arguments, cwd=cwd, HALT=at, HALT_FILE=str(cwd / "halted"))
    try:
        until((cwd / "halted").exists, process)
        yield process
    finally:
        process.kill()
        process.communicate()


def until(condition: Callable[[], object], *processes: Process) -> None:
    """Wait for what one of `processes`, which have not ended, does; raises AssertionError where one ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        for process in processes:
            assert process.poll() is None or condition(), process.communicate()
        assert time.monotonic() < deadline, f"nothing has happened for {PATIENCE} seconds"
        time.sleep(0.01)


def has_died(process: Path) -> bool:
    """Whether the process of a folder of /proc has: one that nobody has waited for is there still, as a zombie."""
    try:
        return "State:\tZ" in (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def go_on(cwd: Path) -> None:
    """Let the halted process go on."""
    (cwd / "halted").unlink()


def stopped(*arguments: str, cwd: Path, at: str, by: int) -> "subprocess.CompletedProcess[str]":
    """broadopt-run that got the signal `by` in the pass `at`."""
    with halted(*arguments, cwd=cwd, at=at) as process:
        process.send_signal(by)
        go_on(cwd)
        return finish(process)


def folders(cwd: Path) -> list[Path]:
    """The run folders below `cwd`/results."""
    return sorted(path.parent for path in (cwd / "results/runs").glob("*/*/*/*/.lock"))


def result(folder: Path) -> dict[str, Any]:
    """The result.json of a run folder."""
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def history(folder: Path) -> list[dict[str, float]]:
    """The rows of history.csv of a run folder."""
    with (folder / "history.csv").open() as lines:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(lines)]


def same_outcome(first: Path, second: Path) -> bool:
    """Whether two run folders hold the same figures, bit for bit."""
    histories = [(folder / "history.csv").read_bytes() for folder in (first, second)]
    return histories[0] == histories[1] and outcome(result(first)) == outcome(result(second))


def outcome(found: Mapping[str, Any]) -> dict[str, Any]:
    """All of a result but what it cost and where it was made."""
    kept = {key: value for key, value in found.items() if key not in ("cost", "environment", "checksum")}
    return kept | {"gradient_evaluations": found["cost"]["gradient_evaluations"]}
