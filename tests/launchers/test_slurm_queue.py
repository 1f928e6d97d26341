"""Submitting and waiting where Slurm refuses, is silent for a while, or has been left in the middle."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command import SMALL, run
from test_slurm_script import SETTINGS

from broadopt.errors import InputError, RunFailed, Stopped
from broadopt.launchers.ended import Ended, what_became
from broadopt.launchers.slurm import queue, waiting
from broadopt.launchers.slurm.launcher import SlurmLauncher
from broadopt.launchers.slurm.queue import Task
from broadopt.launchers.sweep import Planned

SUBMITTED = 'number=$(cat "$0.number" 2>/dev/null || echo 7); echo $((number + 1)) > "$0.number"; echo "$number"'


class Data:
    """Stands for where the data of a run lie."""

    def values(self) -> dict[str, str]:
        return {}


def planned(count: int) -> list[Planned]:
    data: Any = Data()
    return [Planned((f"seed={number}",), f"key{number}", "auto", data, "results") for number in range(count)]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder ahead in PATH, in which Slurm's commands are the shell scripts that `answer` writes."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "argv", ["broadopt-run"])
    monkeypatch.setattr(waiting, "LATE", 0.0)
    answer(folder, "sbatch", SUBMITTED)
    for name in ("squeue", "scontrol", "scancel"):
        answer(folder, name, "true")
    return folder


def answer(folder: Path, name: str, shell: str) -> None:
    """What a command does, besides writing down how it was called."""
    (folder / name).write_text(f'#!/bin/sh\necho "$@" >> {folder}/{name}.asked\n{shell}\n')
    (folder / name).chmod(0o755)


def asked(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.asked"
    return path.read_text().splitlines() if path.exists() else []


def launcher(**settings: Any) -> SlurmLauncher:
    return SlurmLauncher(**{**SETTINGS, "poll": 0.1, **settings})


def test_a_look_at_the_queue_that_fails_is_said_once_and_the_wait_goes_on(
    commands: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(
        commands,
        "squeue",
        f"looks=$(wc -l < {commands}/squeue.asked)\n"
        'if [ $looks -le 2 ]; then echo "slurm_load_jobs error: Unexpected message received" >&2; exit 1; fi\n'
        'if [ $looks = 3 ]; then echo "7_0 RUNNING None"; exit; fi\n'
        f"echo 0 > {tmp_path}/slurm/7/0.exit",
    )
    (ended,) = launcher().launch_elsewhere(planned(1), tmp_path)
    assert ended.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2] for line in lines[1:]] == [
        "hydra/launcher=slurm: squeue: slurm_load_jobs error: Unexpected message received; "
        "looking again every 0.1 seconds",
        "0 of 1 ended, 1 running",
        "1 of 1 ended",
    ]


def test_what_was_submitted_is_waited_for_where_a_later_job_is_refused(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("broadopt.launchers.slurm.launcher.LARGEST_ARRAY", 2)
    refusal = 'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1'
    answer(commands, "sbatch", f"if [ -e {tmp_path}/slurm/7 ]; then {refusal}; fi; echo 7")
    answer(commands, "squeue", f"for number in 0 1; do echo 0 > {tmp_path}/slurm/7/$number.exit; done")
    ended = launcher().launch_elsewhere(planned(5), tmp_path)
    assert [one.code for one in ended] == [0, 0, None, None, None]
    assert str(what_became(ended[2])) == ""  # said once for all of them, not of each
    line = (
        "not submitted: 3 runs: hydra/launcher=slurm: sbatch: sbatch: error: QOSMaxSubmitJobPerUserLimit; "
        "the same command submits them"
    )
    assert caplog.messages == [line]
    assert [path.name for path in (tmp_path / "slurm").iterdir()] == ["7"]
    answer(commands, "sbatch", f"if [ -e {tmp_path}/other/slurm/7 ]; then {refusal}; fi; echo 7")
    with pytest.raises(InputError, match="not submitted: 3 runs"):
        launcher(wait=False).launch_elsewhere(planned(5), tmp_path / "other")


def test_a_submission_without_an_answer_is_not_made_twice(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    error = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    answer(commands, "sbatch", f'echo "{error}" >&2; exit 1')
    with pytest.raises(InputError, match="Socket timed out"):
        launcher().launch_elsewhere(planned(1), tmp_path)
    assert len(asked(commands, "sbatch")) == 1
    (draft,) = (tmp_path / "slurm").iterdir()
    # The next command, of another process, finds the job that had been accepted.
    other = subprocess.Popen(["true"])
    other.wait()
    left = draft.rename(draft.with_name(draft.name.replace(f"-{os.getpid()}-", f"-{other.pid}-")))
    answer(commands, "squeue", f'case "$*" in *%o) echo "7 {left}/job.sh"; echo "8 /home/me/job.sh";; esac')
    launcher().look(tmp_path)
    assert asked(commands, "scancel") == ["7"]
    assert list((tmp_path / "slurm").iterdir()) == []


def test_the_draft_of_a_command_that_still_submits_is_left_alone(commands: Path, tmp_path: Path) -> None:
    mine = queue.new_draft(tmp_path / "slurm")
    elsewhere, old = (tmp_path / "slurm" / name for name in (".draft-node9-1-2", ".draft-4-5"))
    for draft in (elsewhere, old):
        draft.mkdir()
    os.utime(old, (0, 0))
    launcher().look(tmp_path)
    assert sorted((tmp_path / "slurm").iterdir()) == sorted([mine, elsewhere])


@pytest.mark.parametrize("ours", [True, False])
def test_a_job_that_was_left_held_is_released_and_one_that_its_user_holds_is_not(
    ours: bool, commands: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "slurm" / "7"
    folder.mkdir(parents=True)
    (folder / "runs.json").write_text('{"runs": ["a", "b"], "together": 1}')
    if ours:
        (folder / "held").touch()
    answer(commands, "squeue", 'echo "7_0 PENDING JobHeldUser"; echo "7_1 PENDING JobHeldUser"')
    assert list(launcher().look(tmp_path)) == ["a", "b"]
    assert asked(commands, "scontrol") == ["release 7"] * ours
    assert not (folder / "held").exists()


def test_a_job_that_could_not_be_released_at_first_is_released_while_it_is_waited_for(
    commands: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    count = f"[ $(grep -c release {commands}/scontrol.asked) = 1 ]"
    answer(commands, "scontrol", f'if {count}; then echo "slurm_update error: Invalid" >&2; exit 1; fi')
    answer(
        commands,
        "squeue",
        f"if {count}; then echo 7_0 PENDING JobHeldUser; else echo 0 > {tmp_path}/slurm/7/0.exit; fi",
    )
    (ended,) = launcher().launch_elsewhere(planned(1), tmp_path)
    assert ended.code == 0
    assert asked(commands, "scontrol") == ["release 7"] * 2
    assert caplog.messages == [
        "job 7 is still held: hydra/launcher=slurm: scontrol: slurm_update error: Invalid; the same command releases it"
    ]


def test_an_exit_code_that_a_network_file_system_shows_late_counts(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(waiting, "LATE", 30.0)
    late = f"(sleep 2; echo 1 > {tmp_path}/slurm/7/0.exit) > /dev/null 2>&1 &"
    answer(commands, "scontrol", f'case "$1" in show) {late}\n echo "JobState=FAILED Reason=None ExitCode=9:0";; esac')
    (ended,) = launcher().launch_elsewhere(planned(1), tmp_path)
    assert ended.code == 1
    assert "looking for it for 30 seconds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shown", "kind", "line"),
    [
        (
            "JobState=FAILED Reason=NonZeroExitCode ExitCode=1:0",
            RunFailed,
            "Slurm says FAILED, exit code 1:0: nothing was printed to {output}",
        ),
        (
            "JobState=FAILED Reason=RaisedSignal:53 ExitCode=0:53",
            RunFailed,
            "Slurm says FAILED, exit code 0:53 (its output file could not be opened on the node): "
            "nothing was printed to {output}",
        ),
        (
            "JobState=CANCELLED Reason=None ExitCode=0:15",
            Stopped,
            "Slurm says CANCELLED, exit code 0:15: nothing was printed to {output}",
        ),
        (
            "JobState=FAILED Reason=NonZeroExitCode ExitCode=137:0",
            Stopped,
            "Slurm says FAILED, exit code 137:0: nothing was printed to {output}",
        ),
        ("", Stopped, "it left the queue without an exit code: nothing was printed to {output}"),
    ],
)
def test_what_slurm_says_of_a_task_without_an_exit_code_is_told(
    shown: str, kind: type[Exception], line: str, commands: Path, tmp_path: Path
) -> None:
    answer(commands, "scontrol", f'case "$1" in show) echo "{shown}";; esac')
    (ended,) = launcher().launch_elsewhere(planned(1), tmp_path)
    became = what_became(ended)
    assert isinstance(became, kind)
    assert str(became) == line.format(output=tmp_path / "slurm/7/0.out")


def test_the_exit_code_of_a_task_is_not_laid_to_the_run_beside_the_one_that_failed(
    commands: Path, tmp_path: Path
) -> None:
    answer(commands, "scontrol", "echo JobState=FAILED ExitCode=1:0")
    (tmp_path / "0.exit").write_text("1\n")
    two = [(one, Task(tmp_path, place, together=2)) for place, one in enumerate(planned(2))]
    assert [one.code for one in waiting.ends(two)] == [1, None]


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        (
            127,
            RunFailed,
            "the command could not be started, exit code 127: apptainer: not found (see {output})",
        ),
        (
            126,
            RunFailed,
            "the command could not be started, exit code 126: apptainer: not found (see {output})",
        ),
        (255, RunFailed, "exit code 255: apptainer: not found (see {output})"),
        (75, Stopped, "apptainer: not found (see {output})"),
        (143, Stopped, "apptainer: not found (see {output})"),
    ],
)
def test_a_command_that_cannot_be_started_has_failed(
    code: int, kind: type[Exception], line: str, tmp_path: Path
) -> None:
    output = tmp_path / "0.out"
    output.write_text("apptainer: not found\n")
    became = what_became(Ended(planned(1)[0], code, output))
    assert isinstance(became, kind)
    assert str(became) == line.format(output=output)


def test_each_run_of_a_sweep_that_has_not_finished_is_named_with_what_is_known(commands: Path, tmp_path: Path) -> None:
    job = tmp_path / "results" / "slurm" / "7"
    answer(commands, "scontrol", 'case "$1" in show) echo "JobState=CANCELLED Reason=None ExitCode=0:15";; esac')
    answer(commands, "squeue", f"if [ -e {job} ]; then echo epoch 3 > {job}/0.out; fi")
    arguments = ("-m", "hydra/launcher=slurm", "hydra.launcher.poll=0.1", *SMALL)
    cancelled = run(*arguments, "seed=1,2", cwd=tmp_path)
    assert cancelled.returncode == 75
    first, second, last = cancelled.stderr.splitlines()[-3:]
    slurm_says = "not finished: Slurm says CANCELLED, exit code 0:15"
    assert first.endswith(f"fp32 seed=1: {slurm_says}: epoch 3 (see {job}/0.out)")
    assert second.endswith(f"fp32 seed=2: {slurm_says}: nothing was printed to {job}/1.out")
    assert last == "broadopt-run: stopped by 2 of the sweep's runs not being finished: run the same command to go on"
    job = job.with_name("8")
    answer(commands, "squeue", f"if [ -e {job} ]; then echo no container > {job}/0.out; echo 127 > {job}/0.exit; fi")
    unstarted = run(*arguments, "seed=3", cwd=tmp_path)
    assert unstarted.returncode == 1
    assert f"the command could not be started, exit code 127: no container (see {job}/0.out)" in unstarted.stderr
