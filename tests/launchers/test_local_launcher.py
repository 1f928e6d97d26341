"""hydra/launcher=local: several runs at a time on one machine."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import SMALL, finish, folders, result, run, same_outcome, start, until
from PIL import Image

from broadopt.launchers.local import claim

LOCAL = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2")
SWEEP = (*SMALL, "method=sgd,swa,asam", "budget=1", "seed=1")


def test_runs_side_by_side_give_what_they_give_one_after_the_other(tmp_path: Path) -> None:
    """With as many threads: the order in which a CPU sums depends on their number."""
    (tmp_path / "serial").mkdir()
    assert run("-m", *SWEEP, cwd=tmp_path / "serial").returncode == 0
    done = run(*LOCAL, *SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nfinished: ") == 3
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"3 runs, 2 at a time, {threads} CPU threads each" in done.stdout
    found = folders(tmp_path)
    assert [result(folder)["environment"]["threads"] for folder in found] == [threads] * 3
    assert all("finished: " in (folder / "output.txt").read_text() for folder in found)
    if threads == 1:
        pairs = zip(found, folders(tmp_path / "serial"), strict=True)
        assert all(same_outcome(one, other) for one, other in pairs)


def test_failed_runs_are_named_and_the_others_finish(tmp_path: Path) -> None:
    done = run(*LOCAL, *SMALL, "budget=1", "lr=0.1,1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's runs failed:" in done.stderr
    assert "features.0.weight is not finite" in done.stderr
    assert sorted(result(folder)["state"] for folder in folders(tmp_path)) == ["failed", "finished"]


@pytest.mark.parametrize(
    ("signal_", "to_all"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGUSR2, False)],
    ids=["SIGINT of a terminal", "SIGTERM to the command", "SIGUSR2 to the command"],
)
def test_a_signal_stops_all_with_their_state_saved_and_the_command_goes_on(
    signal_: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    """A terminal's SIGINT reaches the runs as well, what is sent to the command alone does not.

    What is left is the same for all signals: the launcher goes on from it once, a command without it twice.
    """
    sweep = (*SMALL, "budget=2", "seed=1,2,3")
    command = (*LOCAL, *sweep)
    halt = {"HALT": "train 60", "HALT_FILE": str(tmp_path / "halted-PID")}
    process = start(*command, cwd=tmp_path, session=True, **halt)
    until(lambda: len(list(tmp_path.glob("halted-*"))) == 2, process)
    os.kill(-process.pid if to_all else process.pid, signal_)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("3 runs, 2 at a time")
    assert process.stdout.readline() == f"{signal_.name}: the runs save their state and end\n"
    for file in tmp_path.glob("halted-*"):
        file.unlink()
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert done.stdout.count("interrupted: ") == 2
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["interrupted"] * 2
    again = run(*(command if to_all else ("-m", *sweep)), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    printed = [(folder / "output.txt").read_text() for folder in folders(tmp_path)] if to_all else [again.stderr]
    assert "".join(printed).count("going on from") == 2
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 3


def test_a_signal_ends_the_waiting_for_a_gpu(tmp_path: Path) -> None:
    held = claim([0], folder=tmp_path)
    assert held is not None
    command = (*LOCAL, "hydra.launcher.gpus=[0]", *SMALL, "seed=1,2")
    process = start(*command, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert process.stdout is not None
    assert "1 GPU;" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    os.close(held[1])
    assert folders(tmp_path) == []


def test_a_gpu_is_claimed_by_one_run_and_free_again_when_it_has_died(tmp_path: Path) -> None:
    first, descriptor = claimed(tmp_path)
    second, other = claimed(tmp_path)
    assert (first, second) == (0, 1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    os.close(descriptor)
    os.close(other)
    third, descriptor = claimed(tmp_path)  # the child still has GPU 0
    assert third == 1
    os.close(descriptor)
    child.kill()
    child.wait()
    again, descriptor = claimed(tmp_path)
    assert again == 0
    os.close(descriptor)


def claimed(folder: Path) -> tuple[int | str, int]:
    found = claim([0, 1], folder=folder)
    assert found is not None
    return found


def test_each_run_sees_the_gpu_that_it_has_claimed(tmp_path: Path) -> None:
    """Without a GPU here, what a run is told is seen in its environment."""
    from broadopt.launchers import local
    from broadopt.launchers.sweep import Planned

    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planned, "command", lambda self: show)
        assert local.run(Planned((), "", "auto", {}), tmp_path / "out", [3], 5, local.Children()) == 0
    assert (tmp_path / "out").read_text() == "3 5\n"


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    for option in ("jobs=2", "n_jobs=0", "n_jobs=many", "gpus=1"):
        argument = f"hydra.launcher.{option}"
        done = run("-m", "hydra/launcher=local", argument, *SMALL, "seed=1,2", cwd=tmp_path)
        assert done.returncode == 2, argument
        (line,) = done.stderr.splitlines()
        assert argument.split("=")[0].rpartition(".")[2] in line


def test_what_is_finished_in_the_precision_that_is_asked_for_is_not_made_again(tmp_path: Path) -> None:
    sweep = (*SMALL, "budget=0.2", "seed=1")  # SMALL says precision=fp32
    assert run("-m", *sweep, cwd=tmp_path).returncode == 0
    command = (*LOCAL, *sweep)
    again = run(*command, cwd=tmp_path)
    assert again.stdout.count("already finished: ") == 1
    automatic = run(*command, "precision=auto", cwd=tmp_path)
    assert automatic.stdout.count("already finished: ") == 1
    forced = run(*command, "force=true", cwd=tmp_path)
    assert forced.stdout.count("\nfinished: ") == 1
    other = run(*command, "precision=bf16", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert other.stdout.count("\nfinished: ") == 1
    assert len(folders(tmp_path)) == 2


def test_runs_on_other_pictures_are_other_runs(tmp_path: Path) -> None:
    for shade, name in enumerate("ab"):
        for split in ("train", "test"):
            for label in range(2):
                folder = tmp_path / name / split / f"class{label}"
                folder.mkdir(parents=True)
                for image in range(8):
                    Image.new("RGB", (32, 32), (shade * 100, label * 100, image)).save(folder / f"{image}.png")
    command = (*SMALL, "dataset=image_folder", "budget=1", "batch_size=4")
    first = run("-m", *command, "seed=1,2", f"dataset.path={tmp_path}/a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    both = run(*LOCAL, *command, "seed=1", f"dataset.path={tmp_path}/a,{tmp_path}/b", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("already finished: ") == 1
    assert both.stdout.count("\nfinished: ") == 1
    assert len(folders(tmp_path)) == 3
