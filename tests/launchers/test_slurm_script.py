"""The job that hydra/launcher=slurm writes, carried out by bash in the place of Slurm."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import PATIENCE, until

from broadopt.errors import InputError, RunFailed, Stopped
from broadopt.launchers.ended import Ended, what_became
from broadopt.launchers.slurm import queue
from broadopt.launchers.slurm.launcher import SlurmLauncher
from broadopt.launchers.slurm.queue import Task
from broadopt.launchers.sweep import Planned

SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("partition", "account", "qos")),
    **{"gpus": 1, "cpus": 8, "memory": "32G", "hours": 24, "parallel": 100, "signal_seconds": 120, "setup": []},
    **{"prefix": "", "extra": [], "processes": 1, "per_gpu": 1, "wait": True, "poll": 10},
}


def script(root: Path, runs: int, **settings: Any) -> str:
    return SlurmLauncher(**{**SETTINGS, **settings})._script(root, runs)


def job(root: Path, commands: list[str], **settings: Any) -> Path:
    """The folder of a job, as it stands when Slurm starts a task of it; `scontrol` writes down what it is asked."""
    folder = root / "slurm" / "7"
    folder.mkdir(parents=True)
    (folder / "commands.txt").write_text("".join(f"{command}\n" for command in commands))
    (folder / "job.sh").write_text(script(root, len(commands), **settings))
    (root / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {root}/asked\n')
    (root / "scontrol").chmod(0o755)
    return folder


def task(folder: Path, number: int, **environment: str) -> "subprocess.Popen[bytes]":
    root = folder.parent.parent
    slurm = {"SLURM_ARRAY_JOB_ID": folder.name, "SLURM_ARRAY_TASK_ID": str(number), **environment}
    environment = os.environ | slurm | {"PATH": f"{root}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", folder / "job.sh"], env=environment, stdout=subprocess.PIPE)


def test_a_task_asks_for_what_its_runs_need_together(tmp_path: Path) -> None:
    one, three = (script(tmp_path, 7, per_gpu=count).splitlines() for count in (1, 3))
    assert {"#SBATCH --array=0-6%100", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=32G"} <= set(one)
    assert {"#SBATCH --array=0-2%33", "#SBATCH --cpus-per-task=24", "#SBATCH --mem=96G"} <= set(three)
    assert "#SBATCH --gres=gpu:1" in one
    assert "#SBATCH --gres=gpu:1" in three
    for lines, output in ((one, "%a.out"), (three, "task-%a.out")):
        assert f"#SBATCH --output={tmp_path}/slurm/%A/{output}" in lines
        assert "export OMP_NUM_THREADS=8" in lines
    assert "export BROADOPT_PER_GPU=3" in three
    assert not any("PER_GPU" in line for line in one)


def test_the_runs_of_a_task_go_on_together_and_each_leaves_its_output_and_code(tmp_path: Path) -> None:
    wait = f"touch {tmp_path}/there-$0; until test -e {tmp_path}/there-$1; do sleep 0.1; done"
    meet = f"sh -c '{wait}; echo run $0; exit $2'"
    folder = job(tmp_path, [*["false"] * 2, f"{meet} a b 0", f"{meet} b a 1", "true"], per_gpu=2)
    process = task(folder, 1)
    assert process.communicate() == (b"", None)
    assert process.returncode == 1
    assert sorted(path.name for path in folder.glob("[0-9].*")) == ["2.exit", "2.out", "3.exit", "3.out"]
    assert [(folder / f"{number}.exit").read_text() for number in (2, 3)] == ["0\n", "1\n"]
    assert [(folder / f"{number}.out").read_text() for number in (2, 3)] == ["run a\n", "run b\n"]
    last = task(folder, 2)  # an odd number of runs: the last task has one
    last.communicate()
    assert (last.returncode, (folder / "4.exit").read_text()) == (0, "0\n")


def test_a_signal_reaches_all_runs_and_only_what_was_not_finished_is_done_again(tmp_path: Path) -> None:
    waiting = f"""bash -c 'trap "exit 75" USR2; touch {tmp_path}/$0; while true; do sleep 0.1; done'"""
    folder = job(tmp_path, ["true", f"{waiting} a", f"{waiting} b"], per_gpu=3)
    process = task(folder, 0)
    until(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate()
    assert (process.returncode, output) == (0, b"USR2: the runs save their states\n")
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"
    assert [path.name for path in folder.glob("*.exit")] == ["0.exit"]
    (folder / "commands.txt").write_text("echo again\ntrue\ntrue\n")
    again = task(folder, 0)
    again.communicate()
    assert sorted(path.name for path in folder.glob("*.exit")) == ["0.exit", "1.exit", "2.exit"]
    assert (folder / "0.out").read_text() == ""


def test_a_run_that_another_process_holds_is_tried_again_where_that_may_be_its_own_of_a_lost_node(
    tmp_path: Path,
) -> None:
    folder = job(tmp_path, ["bash -c 'exit 3'"])
    again = task(folder, 0, SLURM_RESTART_COUNT="1")
    again.communicate()
    assert (again.returncode, (tmp_path / "asked").read_text()) == (0, "requeue 7_0\n")
    assert not (folder / "0.exit").exists()
    first = task(folder, 0)
    first.communicate()
    assert (first.returncode, (folder / "0.exit").read_text()) == (3, "3\n")
    assert (tmp_path / "asked").read_text() == "requeue 7_0\n"


def test_a_run_that_crashed_has_ended(tmp_path: Path) -> None:
    folder = job(tmp_path, ["bash -c 'kill -ABRT $$'", "bash -c 'kill -KILL $$'"], per_gpu=2)
    process = task(folder, 0)
    process.communicate()
    assert [path.name for path in folder.glob("*.exit")] == ["0.exit"]  # a run that was killed goes on
    assert (folder / "0.exit").read_text() == "1\n"


@pytest.mark.parametrize("per_gpu", [1, 2])
def test_a_node_on_which_a_command_cannot_be_started_leaves_its_code(per_gpu: int, tmp_path: Path) -> None:
    folder = job(tmp_path, ["true"], prefix="no-such-container exec", per_gpu=per_gpu)
    process = task(folder, 0)
    process.communicate()
    assert (process.returncode, (folder / "0.exit").read_text()) == (127, "127\n")


@pytest.mark.parametrize("per_gpu", [1, 2])
def test_a_folder_that_is_not_on_the_node_fails_the_runs_of_the_task(
    per_gpu: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    folder = job(tmp_path, ["true"] * 3, per_gpu=per_gpu)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").rmdir()
    process = task(folder, 1)
    process.communicate()
    assert process.returncode == 1
    ended = [1] if per_gpu == 1 else [2]  # the last task has one run
    assert {path.name: path.read_text() for path in folder.glob("*.exit")} == {f"{n}.exit": "1\n" for n in ended}
    if per_gpu == 2:
        assert (folder / "2.out").read_text() == f"the job ended ahead of its runs: see {folder}/task-1.out\n"


def stands_still(file: Path) -> list[str]:
    """A setup that makes the file and goes on when it is removed."""
    return [f"touch {file}", f"while test -e {file}; do sleep 0.05; done"]


def test_a_setup_that_ends_the_script_fails_the_run_unless_it_was_ended_from_outside(tmp_path: Path) -> None:
    folder = job(tmp_path, ["true"], setup=["false || exit 4"])
    task(folder, 0).communicate()
    assert (folder / "0.exit").read_text() == "4\n"
    killed = job(tmp_path / "killed", ["true"], setup=stands_still(tmp_path / "there"))
    process = task(killed, 0)
    until(lambda: (tmp_path / "there").exists())
    process.terminate()
    (tmp_path / "there").unlink()
    process.communicate()
    assert process.returncode == 143
    assert not (killed / "0.exit").exists()


def test_a_signal_that_comes_during_the_setup_sends_the_job_back_into_the_queue(tmp_path: Path) -> None:
    folder = job(tmp_path, ["true"], setup=stands_still(tmp_path / "there"))
    process = task(folder, 0)
    until(lambda: (tmp_path / "there").exists())
    process.send_signal(signal.SIGUSR2)
    (tmp_path / "there").unlink()
    process.communicate()
    assert (process.returncode, (tmp_path / "asked").read_text()) == (0, "requeue 7_0\n")
    assert not (folder / "0.exit").exists()


def test_several_processes_have_until_the_time_limit_to_save(tmp_path: Path) -> None:
    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    line = f"export {name}=${{{name}:-%d}}"
    two, brief, one = (
        script(tmp_path, 1, gpus=count, processes=count, signal_seconds=seconds).splitlines()
        for count, seconds in ((2, 300), (2, 10), (1, 300))
    )
    assert line % 300 in two
    assert line % 30 in brief  # never less than what torchrun gives by itself
    assert not any(name in word for word in one)


def test_torchrun_waits_for_its_processes_as_long_as_the_script_says(tmp_path: Path) -> None:
    """Measured from the signal to the last sign of life of a process that does not heed it."""
    told, alive = tmp_path / "told", tmp_path / "alive"
    deaf = f"trap 'touch {told}' TERM; while true; do touch {alive}; sleep 0.1; done"
    torchrun = [sys.executable, "-m", "broadopt.devices.torchrun", "--standalone", "--nproc-per-node=1"]
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    process = subprocess.Popen([*torchrun, "--no-python", "bash", "-c", deaf], env=environment, stderr=subprocess.PIPE)
    until(alive.exists, process)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert 0.5 < alive.stat().st_mtime - told.stat().st_mtime < 15  # 30 seconds, but for the variable


def test_a_crash_is_a_failure_and_what_was_killed_goes_on(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("Aborted\n")
    planned = Planned((), "", "auto", {}, "results")
    crashed, killed, empty = (what_became(Ended(planned, code, tmp_path / "out")) for code in (-6, -9, 0))
    assert isinstance(crashed, RunFailed)
    assert str(crashed) == f"ended by SIGABRT: Aborted (see {tmp_path}/out)"
    assert isinstance(killed, Stopped)
    assert isinstance(empty, RunFailed)
    assert str(empty).startswith("it has ended well, but the results folder of the sweep has no result of it: ")


OWN_LINE = "broadopt-run: lr=x: expected a number"
"""What a process says of its end."""
FAILED = "E1127 08:02:51.665000 20192 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 2)"
SENT = "W1127 08:02:44.806000 20041 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 20086"


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ([OWN_LINE], OWN_LINE),
        (["epoch 1/3", OWN_LINE, SENT, "", FAILED], OWN_LINE),
        ([OWN_LINE, "epoch 1/3: lr 0.1", FAILED], FAILED),  # killed in its second start
        ([SENT, FAILED], FAILED),
        (["Killed"], "Killed"),
        ([], ""),
    ],
)
def test_why_a_run_has_ended_is_its_own_last_line(output: list[str], line: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("".join(f"{one}\n" for one in output))
    assert Ended(Planned((), "", "auto", {}, "results"), 1, tmp_path / "out").last_line() == line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"per_gpu": 0}, "hydra.launcher.per_gpu=0: expected a whole number from 1 to 64"),
        ({"per_gpu": 2, "gpus": 0}, "hydra.launcher.per_gpu=2: runs share one GPU; expected gpus=1, found gpus=0"),
        (
            {"per_gpu": 2, "processes": 2},
            "hydra.launcher.per_gpu=2: runs share one GPU; expected processes=1, found processes=2",
        ),
        (
            {"processes": 4},
            "hydra.launcher.processes=4: each has a GPU of its own; "
            "expected hydra.launcher.gpus=4 (or 0 without GPUs), found 1",
        ),
        (
            {"hours": 0.1, "signal_seconds": 360},
            "hydra.launcher.signal_seconds=360: a run is told to save so long before its time limit; "
            "expected less than the 360 seconds of hydra.launcher.hours=0.1",
        ),
        (
            {"per_gpu": 2, "memory": "a lot"},
            "hydra.launcher.memory=a lot: expected a whole number and K, M, G or T, as 32G",
        ),
    ],
)
def test_numbers_that_do_not_go_together_are_refused_in_a_line(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        SlurmLauncher(**{**SETTINGS, **settings})
    assert str(raised.value) == line


@pytest.mark.parametrize(
    ("text", "code"), [(None, None), ("", None), ("7", None), ("0\n", 0), ("3\n", 3), ("x\n", None), ("\0" * 99, None)]
)
def test_an_exit_code_is_there_once_it_is_written_to_its_end(
    text: str | None, code: int | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "4.exit").write_text(text)
    assert Task(tmp_path, 4).code() == code


@pytest.mark.parametrize(
    "content", ["7", "{}", '{"runs": ["a"], "together": 0}', '{"runs": [["a"]], "together": 1}', '{"runs": 3}', "[7]"]
)
def test_what_is_no_list_of_a_jobs_runs_is_named_and_passed_over(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for job, text in (("7", content), ("8", '{"runs": ["a", "b"], "together": 1}')):
        (tmp_path / "slurm" / job).mkdir(parents=True)
        (tmp_path / "slurm" / job / "runs.json").write_text(text)
    monkeypatch.setattr(queue, "queue", lambda: {"7_0": "RUNNING", "8_1": "PENDING"})
    assert list(queue.in_queue(tmp_path)) == ["b"]
    assert caplog.messages == [
        f"{tmp_path}/slurm/7/runs.json: no list of a job's runs; its runs are taken for none of this sweep"
    ]
