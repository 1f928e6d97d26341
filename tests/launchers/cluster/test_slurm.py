"""Sweeps on a real Slurm: as array jobs, evicted, cancelled, requeued, with the controller restarted."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from cluster_tasks import SCRIPT, tasks
from command import SMALL, finish, folders, result, run, same_outcome, start, until

pytestmark = pytest.mark.cluster

LAUNCHER = (
    *("hydra/launcher=slurm", "hydra.launcher.cpus=1", "hydra.launcher.memory=500M", "hydra.launcher.poll=0.5"),
    "hydra.launcher.signal_seconds=30",
)


def checkpoints(cwd: Path) -> list[Path]:
    return list(cwd.glob("results/runs/*/*/*/*/checkpoint-*.ckpt"))


def log_of(cwd: Path) -> str:
    return "".join(path.read_text() for path in cwd.glob("results/slurm/*/*.out"))


def test_a_sweep_is_an_array_job_whose_output_is_found_from_each_run(slurm: Path, tmp_path: Path) -> None:
    tmp_path = tmp_path / 'all "100 %"'  # what sbatch, a shell and Slurm's file names could take for theirs
    tmp_path.mkdir()
    command = ("-m", *LAUNCHER, *SMALL, "budget=1", "seed=1,2", "hydra.launcher.setup=['export GREETING=hello']")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"submitted: 2 runs as job \d+", done.stdout)
    found = folders(tmp_path)
    assert [result(folder)["state"] for folder in found] == ["finished"] * 2
    for folder in found:
        assert "finished: " in (folder / "output.txt").read_text()
    (job,) = (tmp_path / "results/slurm").iterdir()
    assert "export GREETING=hello" in (job / "job.sh").read_text()
    assert len((job / "commands.txt").read_text().splitlines()) == 2
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("already finished: ") == 2
    assert "submitted" not in again.stdout


def test_failures_of_jobs_come_back_to_the_command(slurm: Path, tmp_path: Path) -> None:
    command = ("-m", *LAUNCHER, *SMALL, "budget=1", "lr=0.1,1e30")
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's runs failed:" in done.stderr
    assert "is not finite in epoch 1 at lr 1e+30" in done.stderr
    states = sorted(result(folder)["state"] for folder in folders(tmp_path))
    assert states == ["failed", "finished"]
    both = run(
        "-m",
        *LAUNCHER,
        *SMALL,
        "hydra.launcher.processes=2",
        "hydra.launcher.gpus=2",
        "batch_size=1437",
        "seed=3",
        cwd=tmp_path,
    )
    assert both.returncode == 2, both.stderr
    assert "batch_size=1437: the last batch of an epoch has 1 images for 2 processes" in both.stderr


def test_what_cannot_be_started_on_a_node_has_failed_and_says_why(slurm: Path, tmp_path: Path) -> None:
    command = ("-m", *LAUNCHER, *SMALL, "budget=1", "seed=1")
    done = run(*command, "hydra.launcher.prefix=no-such-container exec", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "the command could not be started, exit code 127: " in done.stderr
    assert "no-such-container: command not found (see " in done.stderr
    done = run(*command, "hydra.launcher.setup=['rm -r $folder','false || exit 4']", cwd=tmp_path)  # nor can it say so
    assert done.returncode == 1, done.stderr
    assert "exit code 4: Slurm says FAILED, exit code 4:0: nothing was printed to " in done.stderr


def test_what_an_interrupted_submission_has_left_is_put_right(slurm: Path, tmp_path: Path) -> None:
    command = ("-m", *LAUNCHER, *SMALL, "budget=1", "seed=1")
    (tmp_path / "bin").mkdir()

    def shadowed(name: str, shell: str) -> "subprocess.CompletedProcess[str]":
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{shell.format(real=shutil.which(name))}\n")
        (tmp_path / "bin" / name).chmod(0o755)
        try:
            return run(*command, "hydra.launcher.wait=false", cwd=tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
        finally:
            (tmp_path / "bin" / name).unlink()

    unanswered = shadowed(
        "sbatch", '{real} "$@" > /dev/null; echo "Socket timed out on send/recv operation" >&2; exit 1'
    )
    assert unanswered.returncode == 2
    assert len(tasks("pending")) == 1
    held = shadowed("scontrol", 'if [ "$1" = release ]; then exit 1; fi; exec {real} "$@"')
    assert held.returncode == 0
    assert re.search(r"cancelled: job \d+, held since its submission was interrupted", held.stdout)
    assert "is still held: " in held.stderr
    assert len(tasks("pending")) == 1
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "in the queue already, and left there: 1 runs" in done.stdout
    (job,) = (tmp_path / "results/slurm").iterdir()
    assert not (job / "held").exists()


def test_bad_input_is_told_before_anything_is_submitted(slurm: Path, tmp_path: Path) -> None:
    for arguments, expected in (
        (("seed=1,x",), 'seed="x": expected a whole number'),
        (("hydra.launcher.partition=nowhere", "seed=1,2"), "invalid partition specified"),
        (("hydra.launcher.partitoin=main",), "partitoin"),
    ):
        done = run("-m", *LAUNCHER, *SMALL, *arguments, cwd=tmp_path)
        assert done.returncode == 2, done.stdout
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert not tasks("pending,running")


def test_a_plan_is_made_here(slurm: Path, tmp_path: Path) -> None:
    done = run("-m", *LAUNCHER, *SMALL, "seed=1,2", "plan=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs, " in done.stdout
    assert not (tmp_path / "results/slurm").exists()


def test_the_time_limit_is_no_end(slurm: Path, tmp_path: Path) -> None:
    """Told by the signal that comes ahead of it, the run saves, is requeued, and ends in its second start."""
    command = (*SMALL, "budget=2", "checkpoint.minutes=10")
    halted = {"HALT": "train 60", "HALT_FILE": str(tmp_path / "halted")}
    client = start("-m", *LAUNCHER, *command, cwd=tmp_path, **halted)
    until(lambda: (tmp_path / "halted").exists())
    (task,) = tasks("running")
    subprocess.run(["scancel", "--batch", "--signal=USR2", task], check=True)  # what Slurm does at the limit
    until(lambda: "USR2: the run saves its state" in log_of(tmp_path))
    (tmp_path / "halted").unlink()
    done = finish(client)
    assert done.returncode == 0, done.stderr
    assert log_of(tmp_path).count("checkpoint-0000000060.ckpt") == 1
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "finished"


def test_a_sweep_that_is_disturbed_in_every_way_ends_as_a_serial_one(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = (*SMALL, "method=sgd,swa,asam", "budget=30", "seed=1,2,3,4", "checkpoint.minutes=0.01")
    first = start("-m", *LAUNCHER, *sweep, cwd=tmp_path)
    until(lambda: len(tasks("running")) == 2)
    first.send_signal(signal.SIGKILL)  # the terminal is closed
    first.communicate()
    second = start("-m", *LAUNCHER, *sweep, cwd=tmp_path)
    assert second.stdout is not None
    while not re.match(r"in the queue already, and left there: \d+ runs", line := second.stdout.readline()):
        assert line.startswith("already finished: ")
    (tmp_path / "serial").mkdir()
    serial = start("-m", *sweep, cwd=tmp_path / "serial")

    counts = {"evictions": 0, "cancelled": 0, "requeued": 0, "restarts of the controller": 0}
    for _ in range(2):
        until(lambda: len(tasks("running")) == 2 and len({path.parent for path in checkpoints(tmp_path)}) >= 2)
        counts["evictions"] += len(tasks("running"))
        urgent = ["sbatch", "--partition=urgent", "--gres=gpu:2", "--output=/dev/null", "--wait", "--wrap=sleep 1"]
        subprocess.run(urgent, check=True, capture_output=True)
    until(lambda: tasks("running") and checkpoints(tmp_path))
    subprocess.run(["scancel", tasks("running")[0]], check=True)
    counts["cancelled"] += 1
    until(lambda: tasks("running") and checkpoints(tmp_path))
    subprocess.run(["scontrol", "requeue", tasks("running")[0]], check=True)
    counts["requeued"] += 1
    subprocess.run([SCRIPT, "restart-controller", slurm], check=True)
    counts["restarts of the controller"] += 1

    output, errors = second.communicate(timeout=600)
    assert second.returncode == 75, (output, errors)
    assert "1 of the sweep's runs not being finished" in errors
    third = run("-m", *LAUNCHER, *sweep, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    assert third.stdout.count("already finished: ") == 11
    assert "submitted: 1 runs" in third.stdout

    serial.communicate(timeout=600)
    assert serial.returncode == 0
    pairs = list(zip(folders(tmp_path), folders(tmp_path / "serial"), strict=True))
    assert len(pairs) == 12
    assert all(same_outcome(disturbed, undisturbed) for disturbed, undisturbed in pairs)
    counts["resumed from a checkpoint"] = log_of(tmp_path).count("going on from")
    assert counts["resumed from a checkpoint"] >= 2
    with capsys.disabled():
        print(f"\n12 runs on Slurm: {json.dumps(counts)}; all as in the serial sweep, bit for bit")
