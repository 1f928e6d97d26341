"""What a sweep keeps of its runs that fail."""

import gc
import subprocess
import weakref
from pathlib import Path

import pytest
from command import finish, folders, result, start

from broadopt.errors import RunFailed
from broadopt.launchers.session import let_go


class Held:
    """Stands for the network and the images of a run."""


def failed(references: "list[weakref.ref[Held]]", *, by: type[Exception]) -> None:
    """Fail as a run does: two errors, one of the other, each with frames that hold something."""

    def compute() -> None:
        held = Held()
        references.append(weakref.ref(held))
        raise by("out of memory")

    outer = Held()
    references.append(weakref.ref(outer))
    try:
        compute()
    except by as error:
        raise RunFailed("the run failed") from error


@pytest.mark.parametrize("by", [RuntimeError, ValueError])
def test_an_error_that_is_kept_holds_nothing_of_its_run(by: type[Exception]) -> None:
    references: list[weakref.ref[Held]] = []
    kept = []
    try:
        failed(references, by=by)
    except RunFailed as error:
        kept.append(error)
    gc.collect()
    assert [one() is None for one in references] == [False, False]
    let_go(kept[0])
    gc.collect()
    assert [one() is None for one in references] == [True, True]
    assert str(kept[0]) == "the run failed"
    assert str(kept[0].__cause__) == "out of memory"
    let_go(None)


def carried_out(script: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """A script in a process of its own, from beginning to end."""
    (cwd / "script.py").write_text(script)
    return finish(start(program=str(cwd / "script.py"), cwd=cwd))


SWEEP = """
import gc, sys
from broadopt import run
from broadopt.training.loop import Training

def fail(*_):
    raise RuntimeError("forced")

Training.train_on = fail
sys.argv = ["broadopt-run", "-m", "experiment=quickstart", "method=sgd", "seed=1,2", "budget=0.1"]
try:
    run.main()
except SystemExit as end:
    gc.collect()
    print(end.code, sum(type(one) is Training for one in gc.get_objects()))
"""


def test_no_training_of_a_sweep_is_held_after_it_has_failed(tmp_path: Path) -> None:
    done = carried_out(SWEEP, tmp_path)
    assert done.stdout.splitlines()[-1] == "1 0", done.stderr
    assert done.stderr.count("RuntimeError: forced") >= 2


LOST = """
import sys
from broadopt import run
from broadopt.training import execute
from broadopt.training.loop import Training

class OnTheDevice:
    def __float__(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

def fail(training, *_):
    training.stepper.last_loss = OnTheDevice()
    float(training.stepper.last_loss)

Training.train_on = fail
execute.is_broken = lambda device: True
sys.argv = ["broadopt-run", "-m", "experiment=quickstart", "method=sgd", "seed=1,2", "budget=0.1"]
run.main()
"""
"""A GPU that has failed, as the host sees it: whatever is asked of it raises the same error again."""


def test_a_sweep_whose_gpu_is_lost_leaves_the_runs_after_it_to_the_next_process(tmp_path: Path) -> None:
    done = carried_out(LOST, tmp_path)
    assert done.returncode == 75, done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("broadopt-run: experiment=quickstart method=sgd seed=1 budget=0.1: RuntimeError: CUDA ")
    assert last == (
        "broadopt-run: stopped by a GPU that does nothing more for this process: run the same command to go on"
    )
    (kept,) = map(result, folders(tmp_path))
    assert (kept["seed"], kept["state"], kept["failure"]["last_finite_loss"]) == (1, "failed", None)
