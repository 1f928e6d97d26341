"""hydra/launcher=local: several runs at a time on one machine."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import SMALL, finish, folders, go_on, result, run, same_outcome

from broadopt.launchers.local import claim

LOCAL = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2")
SWEEP = (*SMALL, "method=sgd,asam", "budget=1", "seed=1,2")


def test_runs_side_by_side_give_what_they_give_one_after_the_other(tmp_path: Path) -> None:
    """With as many threads: the order in which a CPU sums depends on their number."""
    (tmp_path / "serial").mkdir()
    assert run("-m", *SWEEP, cwd=tmp_path / "serial").returncode == 0
    done = run(*LOCAL, *SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nfinished: ") == 4
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    assert f"4 runs, 2 at a time, {threads} CPU threads each" in done.stdout
    found = folders(tmp_path)
    assert [result(folder)["environment"]["threads"] for folder in found] == [threads] * 4
    assert all("finished: " in (folder / "output.txt").read_text() for folder in found)
    if threads == 1:
        pairs = zip(found, folders(tmp_path / "serial"), strict=True)
        assert all(same_outcome(one, other) for one, other in pairs)


def test_failed_runs_are_named_and_the_others_finish(tmp_path: Path) -> None:
    done = run(*LOCAL, *SMALL, "budget=1", "lr=0.1,1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's runs failed:" in done.stderr
    assert "the loss or a weight is not finite" in done.stderr
    assert sorted(result(folder)["state"] for folder in folders(tmp_path)) == ["failed", "finished"]


def test_an_interrupt_stops_all_with_their_state_saved_and_the_command_goes_on(tmp_path: Path) -> None:
    command = (*LOCAL, *SMALL, "budget=2", "seed=1,2,3")
    environment = {"HALT": "train 60", "HALT_FILE": str(tmp_path / "halted")}
    process = subprocess.Popen(
        start_in_a_group(command),
        cwd=tmp_path,
        env=variables(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "halted").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    time.sleep(3)  # for the second run to come to its 60th pass
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    go_on(tmp_path)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["interrupted"] * 2
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 3


def start_in_a_group(arguments: tuple[str, ...]) -> list[str]:
    return [str(Path(sys.executable).parent / "broadopt-run"), *arguments]


def variables(more: dict[str, str]) -> dict[str, str]:
    own = str(Path(__file__).parent / "own")
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": own} | more


def test_a_gpu_is_claimed_by_one_run_and_free_again_when_it_has_died(tmp_path: Path) -> None:
    first, descriptor = claim([0, 1], folder=tmp_path)
    second, other = claim([0, 1], folder=tmp_path)
    assert (first, second) == (0, 1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    os.close(descriptor)
    os.close(other)
    third, descriptor = claim([0, 1], folder=tmp_path)  # the child still has GPU 0
    assert third == 1
    os.close(descriptor)
    child.kill()
    child.wait()
    again, descriptor = claim([0, 1], folder=tmp_path)
    assert again == 0
    os.close(descriptor)


def test_each_run_sees_the_gpu_that_it_has_claimed(tmp_path: Path) -> None:
    """Without a GPU here, what a run is told is seen in its environment."""
    from broadopt.launchers import local
    from broadopt.launchers.sweep import Planned

    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planned, "command", lambda self: show)
        assert local.run(Planned((), "", "auto"), tmp_path / "out", [3], 5) == 0
    assert (tmp_path / "out").read_text() == "3 5\n"


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    for argument in ("hydra.launcher.jobs=2", "hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs=many"):
        done = run("-m", "hydra/launcher=local", argument, *SMALL, "seed=1,2", cwd=tmp_path)
        assert done.returncode == 2, argument
        (line,) = done.stderr.splitlines()
        assert argument.split("=")[0].rpartition(".")[2] in line


def test_what_is_finished_in_the_precision_that_is_asked_for_is_not_made_again(tmp_path: Path) -> None:
    command = (*LOCAL, *SMALL, "budget=0.2", "seed=1,2")  # SMALL says precision=fp32
    assert run(*command, cwd=tmp_path).returncode == 0
    again = run(*command, cwd=tmp_path)
    assert again.stdout.count("already finished: ") == 2
    automatic = run(*command, "precision=auto", cwd=tmp_path)
    assert automatic.stdout.count("already finished: ") == 2
    forced = run(*command, "force=true", cwd=tmp_path)
    assert forced.stdout.count("\nfinished: ") == 2
    other = run(*command, "precision=bf16", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert other.stdout.count("\nfinished: ") == 2
    assert len(folders(tmp_path)) == 4
