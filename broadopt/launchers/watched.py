"""Every launcher of every sweeper, broadopt's or another's, with an eye on what its runs return.

Whoever writes a sweeper gets his launcher from Hydra's Plugins; those of this process hand out a `WatchedLauncher`.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from broadopt.errors import InputError, Interrupted, RunFailed
from broadopt.launchers.place import Sweep, run_of
from broadopt.launchers.session import Session
from broadopt.runs.objective import Outcome, is_minimised
from broadopt.signals import Stop

log = logging.getLogger("broadopt")

STOPPABLE = (
    "hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_submitit_launcher.submitit_launcher.LocalLauncher",
)
"""Launchers, below hydra_plugins, whose processes may get a signal: all of them carry out runs, or ignore it."""

FULL_ERROR = "HYDRA_FULL_ERROR"

SILENT = "hydra_plugins.hydra_submitit_launcher"
"""Launchers whose runs print into files of their own."""


def watch(plugins: Plugins, session: Session) -> None:
    """From now on `plugins` give watched launchers, which report to `session`."""

    def instantiate_launcher(
        hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> WatchedLauncher:
        made = Plugins.instantiate_launcher(plugins, hydra_context, task_function, config)
        return WatchedLauncher(made, session, config)

    plugins.instantiate_launcher = instantiate_launcher  # type: ignore[method-assign]  # of the one object that there is


class WatchedLauncher(Launcher):
    """Another launcher; the failures of its runs and their outcomes are kept for the summary."""

    def __init__(self, launcher: Launcher, session: Session, config: DictConfig) -> None:
        self.launcher, self.session, self.config = launcher, session, config
        self.is_own = isinstance(launcher, BasicLauncher)  # what broadopt has of its own is derived from it
        choices = config.hydra.runtime.choices
        foreign = {"launcher": not self.is_own, "sweeper": not self.is_grid}
        session.others = ", ".join(f"hydra/{part}={choices[f'hydra/{part}']}" for part in foreign if foreign[part])
        self._checked = False

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As the other launcher, which has been set up already."""
        self.launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    @property
    def is_grid(self) -> bool:
        """Whether the sweeper carries out all combinations, whatever their results are."""
        return str(self.config.hydra.sweeper._target_).endswith((".OnceSweeper", ".BasicSweeper"))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As the other launcher. Raises InputError where its sweeper chooses by what its runs do not return."""
        session = self.session
        if session.sweep is None:
            total = OmegaConf.select(self.config, "hydra.sweeper.n_trials")
            session.sweep = Sweep.of(self.config, total if isinstance(total, int) else None)
        if not self.is_grid and not self._checked and job_overrides:
            self._check(job_overrides[0])
            self._checked = True
        returns = self._launched(job_overrides, initial_job_idx)
        session.runs += len(job_overrides)
        if type(self.launcher).__module__.startswith(SILENT):
            for returned in returns:
                if isinstance(returned._return_value, Outcome):
                    print(returned._return_value.line, flush=True)
        # Of runs that are submitted, and not waited for, nothing is returned.
        stopped = [session.take(*run) for run in zip(job_overrides, returns, strict=False)].count(False)
        session.stop.check()
        if stopped and not session.failed:
            raise Interrupted(f"{stopped} of the sweep's runs not being finished")
        if not self.is_grid and len(returns) < len(job_overrides):
            raise InputError(f"{session.others}: expected a launcher that waits for its runs: there is no result yet")
        return returns

    def _launched(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        stop = self.session.stop
        with as_given(FULL_ERROR, self.session.full_error):
            if self.is_own:
                return self.launcher.launch(job_overrides, initial_job_idx)
            try:
                if not is_stoppable(self.launcher):
                    return self.launcher.launch(job_overrides, initial_job_idx)
                with stopping_workers(stop):
                    return self.launcher.launch(job_overrides, initial_job_idx)
            except (InputError, RunFailed, HydraException, OmegaConfBaseException):
                raise
            except Exception:
                # Raised again, whatever it is: but after a signal the reason is the signal. A worker that it reached
                # ahead of its first run has simply ended, which every launcher reports by an error of its own.
                stop.check()
                raise
            finally:
                sys.stdout.flush()

    def _check(self, overrides: Sequence[str]) -> None:
        """Hold what the first run would return against what the sweeper asks for."""
        loader: Any = self.launcher.hydra_context.config_loader  # type: ignore[attr-defined]  # every launcher has it
        run = run_of(loader.load_sweep_config(self.config, list(overrides)))
        choice, objective = self.config.hydra.runtime.choices["hydra/sweeper"], run.objective
        if run.execution.plan:
            raise InputError(f"plan=true: hydra/sweeper={choice} chooses runs by their results, and these have none")
        self.session.objective = objective
        direction, meant = self._direction(), "minimize" if is_minimised(objective) else "maximize"
        if direction is not None and direction != meant:
            raise InputError(f"hydra.sweeper.direction={direction}: expected {meant} for objective={objective}")
        if objective.startswith("test"):
            log.warning(
                "objective=%s: the sweep chooses by the test set, so its best value is no estimate for new images; "
                "dataset.validation=5000 holds out images to choose by",
                objective,
            )

    def _direction(self) -> str | None:
        """What the sweeper strives for, where it says so in a word."""
        direction = OmegaConf.select(self.config, "hydra.sweeper.direction")
        if OmegaConf.is_list(direction):
            raise InputError(f"hydra.sweeper.direction={direction}: expected one direction, as a run has one objective")
        name = getattr(direction, "name", direction)
        return name if name in ("minimize", "maximize") else None


@contextmanager
def as_given(name: str, value: str | None) -> Iterator[None]:
    """The environment variable as the user has set it, for what is started inside."""
    before = os.environ.get(name)
    _set(name, value)
    try:
        yield
    finally:
        _set(name, before)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def is_stoppable(launcher: object) -> bool:
    """Whether `stopping_workers` has anything to say to the processes of this launcher."""
    kind = type(launcher)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("hydra_plugins.") in STOPPABLE


@contextmanager
def stopping_workers(stop: Stop) -> Iterator[None]:
    """Inside, a signal does not end this process, which would kill its workers: it is passed on to them, and they save
    the states of their runs.
    """
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.wait(0.1):
            if stop.requested:
                for process in descendants(os.getpid()):
                    with suppress(ProcessLookupError):
                        # SIGTERM, whatever arrived: of a second SIGINT, after that of a terminal, they would die.
                        os.kill(process, signal.SIGTERM)
                print(f"{stop.requested}: the runs save their state and end", flush=True)
                return

    watcher = threading.Thread(target=pass_on, daemon=True)
    with stop.deferred():
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def descendants(process: int) -> list[int]:
    """The processes that this one has started, and those that they have; none where there is no /proc."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found
