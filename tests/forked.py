"""Runs in processes that cost nothing to start: forked from this one, which has torch imported and configs composed."""

import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command import OWN

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import RunConfig
from broadopt.data.datasets import digits
from broadopt.signals import Stop
from broadopt.training.execute import execute

SMALL = (
    *(
        "experiment=quickstart",
        "model=resnet20",
        "model.name=small",
        "model._target_=own_network.Small",
        "~model.depth",
    ),
    *("+model.batch_norm=true", "device=cpu", "precision=fp32", "checkpoint.minutes=0"),
)
"""Half a second of training an epoch: 45 steps of 32 digits, each followed by a checkpoint."""


def run_of(*overrides: str) -> RunConfig:
    """The checked config of `broadopt-run OVERRIDES`."""
    digits()  # imports scikit-learn here, and the next line torch.compile, so that no child has to
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    return run_config(compose([*SMALL, *overrides]))


def one_run(run: RunConfig, cwd: Path, *, halt: str = "", file: Path | None = None) -> Callable[[], None]:
    """That run in the folder `cwd`, as the command carries it out; it stands still at the pass `halt` for as long as
    `file`, which it makes, is there.
    """

    def work() -> None:
        os.chdir(cwd)
        os.environ.update({"HALT": halt, "HALT_FILE": str(file)})
        with Stop() as stop:
            execute(run, stop)

    return work


def as_nobody(look: Callable[[], Any]) -> Any:
    """What `look` finds, as JSON, in a process of a user who may read only what all may."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writing, json.dumps(look()).encode())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test sees it
            os.write(writing, json.dumps(f"raised {error!r}").encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    return json.loads(found)


def forked(work: Callable[[], object], output: Path) -> int:
    """Start `work` in a child whose stdout and stderr go to `output`; returns the child's number."""
    output.touch()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    gc.freeze()  # a collection would look through all that the tests' process has, and so copy every page of it
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.path.append(str(OWN))
        sys.modules.pop("own_network", None)  # it counts passes, which may have begun before the fork
        logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the test sees it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int:
    """Wait for a child; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def has_ended(child: int) -> bool:
    """Whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
