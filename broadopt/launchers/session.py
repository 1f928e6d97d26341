"""The runs of one command line: each is carried out here, or in a process that somebody's launcher has made."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from broadopt.config.compose import run_config
from broadopt.config.run_config import DatasetConfig, RunConfig
from broadopt.errors import (
    ClosedPipe,
    DeviceLost,
    InputError,
    Interrupted,
    LeftToAnother,
    RunFailed,
    Stopped,
    UnreadableData,
    printable,
)
from broadopt.launchers.ended import in_a_sweep, in_step, is_shared, speaks
from broadopt.launchers.place import PLACE, Sweep
from broadopt.runs import results
from broadopt.runs.objective import Outcome, value
from broadopt.runs.repeat import repeated
from broadopt.signals import Stop, hand_on
from broadopt.trackers.live import Trackers

if TYPE_CHECKING:
    from broadopt.training.planning.price import Price
    from broadopt.training.planning.show import Plan

stopped_by: str | None = None
"""The signal that has ended a run of this worker process: it begins no other."""


@dataclass
class Session:
    """The runs of one command line: what failed and what was only planned. A failed run does not stop the others of a
    sweep.

    A launcher may send a copy to another process, whose runs then answer by what they return or raise: what the copy
    keeps is lost.
    """

    stop: Stop = field(default_factory=Stop)
    trackers: Trackers = field(default_factory=Trackers)
    first_environment: Mapping[str, Any] = field(default_factory=dict)
    """Of a run that is repeated."""
    runs: int = 0
    elsewhere: int = 0
    """Runs that another process is on."""
    failed: list[tuple[str, Exception]] = field(default_factory=list)
    """Overrides, empty outside a sweep, and the InputError or RunFailed of each run that failed."""
    unreadable: dict[str, UnreadableData] = field(default_factory=dict)
    """Why data cannot be used, by what reads them."""
    planned: "list[Price]" = field(default_factory=list)
    latest: "Plan | None" = None
    """Of the last planned run."""
    sweep: Sweep | None = None
    finished: list[tuple[str, Outcome]] = field(default_factory=list)
    """Swept overrides and outcome of each run of a sweep that is finished."""
    objective: str = ""
    """What a sweeper that chooses its runs chooses them by."""
    full_error: str | None = None
    """HYDRA_FULL_ERROR as the user has set it."""
    others: str = ""
    """The launcher and the sweeper that are not broadopt's own, as they were chosen."""
    process: int = field(default_factory=os.getpid)

    @property
    def show_traces(self) -> bool:
        """Whether errors are shown with their tracebacks."""
        return self.full_error == "1"

    def task(self, composed: DictConfig) -> Outcome | None:
        """One run; Hydra calls it with a composed config. Returns its objective, or raises why there is none."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        config = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(config.overrides.task, resolve=False)
        sweep = config.mode == RunMode.MULTIRUN
        for group, use in (("launcher", "distributes"), ("sweeper", "chooses")):
            if not sweep and any(given.startswith(f"hydra/{group}=") for given in config.overrides.hydra):
                error = InputError(f"hydra/{group} {use} the runs of a sweep: expected -m as well")
                raise self.note(error, [], sweep=False)
        if not sweep:
            self.runs += 1
        place = self.sweep.place(config.job.num, overrides) if sweep and self.sweep else os.environ.get(PLACE, "")

        def carry_out() -> Outcome | None:
            with in_step(sweep=sweep):
                return self.carry_out(
                    lambda: run_config(composed), overrides, sweep=sweep, composed=composed, place=place
                )

        return carry_out() if os.getpid() == self.process else self._as_worker(carry_out)

    def _as_worker(self, carry_out: Callable[[], Outcome | None]) -> Outcome | None:
        """In a process of a launcher: signals are heeded as in the command itself, and passed on to the handler that
        the launcher has for them, which may put the job back into a queue.
        """
        global stopped_by
        logging.basicConfig(format="%(message)s", stream=sys.stderr)  # at the level that hydra.verbose has set
        self.stop, self.trackers = Stop(), Trackers()
        try:
            if stopped_by is not None:
                raise Interrupted(stopped_by)
            with self.stop:
                return carry_out()
        except Interrupted as signal:
            stopped_by = str(signal)
            self.stop = Stop()  # a job that goes back into a queue takes this object along, without its handlers
            hand_on(stopped_by)
            # An Exception is kept by Hydra as what became of this run; any other would have its siblings killed.
            raise Stopped(stopped_by) from signal
        finally:
            self.trackers.wait()

    def repeat(self, arguments: list[str]) -> None:
        """The run of a folder once more."""

        def checked() -> RunConfig:
            once_more = repeated(arguments)
            self.first_environment = once_more.environment
            return once_more.run

        self.runs += 1
        with suppress(InputError, RunFailed, LeftToAnother):  # they are kept
            self.carry_out(checked, [], sweep=False)

    def carry_out(
        self,
        checked: Callable[[], RunConfig],
        overrides: list[str],
        *,
        sweep: bool,
        composed: DictConfig | None = None,
        place: str = "",
    ) -> Outcome | None:
        """Carry out, or plan where it was `composed`, the run that `checked` gives; returns its outcome, None of one
        that is planned.

        Raises InputError, RunFailed or LeftToAnother, which is kept already, and Interrupted.
        """
        outcome = None
        try:
            run = checked()
            with self._reading(run.recipe.dataset):
                if run.execution.plan and composed is not None:
                    self._plan(run, composed, overrides, brief=sweep)
                else:
                    outcome = self._executed(run, place)
        except LeftToAnother as left:
            print(left, flush=True)
            self.elsewhere += not sweep  # of a sweep's run it is counted where it arrives
            raise
        except (InputError, RunFailed) as error:
            self.note(error, overrides, sweep=sweep)
            if sweep and isinstance(error, DeviceLost):  # the runs after it would all fail, each with a result
                self.stop.requested = self.stop.requested or "a GPU that does nothing more for this process"
            raise
        except BrokenPipeError as error:
            raise ClosedPipe from error
        except OSError as error:  # the disk is full, or the folder has gone, or it cannot have such a name
            line = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            kind = InputError if error.errno == errno.ENAMETOOLONG else RunFailed
            raise self.note(kind(line), overrides, sweep=sweep) from error
        except Exception as error:
            raise self.note(unforeseen(error), overrides, sweep=sweep) from error
        finally:
            self.stop.check()  # a signal after the last batch of a run still ends a sweep
        return outcome

    def _plan(self, run: RunConfig, composed: DictConfig, overrides: list[str], *, brief: bool) -> None:
        from broadopt.training.planning.show import show  # imports torch: --help answers without it

        self.latest = show(composed, run, overrides, brief=brief)
        self.planned.append(self.latest[2])

    @contextmanager
    def _reading(self, data: DatasetConfig) -> Iterator[None]:
        """Within the block a run's data are read. Raises what another run with the same data has failed by."""
        if data.source in self.unreadable:
            raise self.unreadable[data.source]
        try:
            yield
        except UnreadableData as error:
            self.unreadable[data.source] = error
            raise

    def _executed(self, run: RunConfig, place: str) -> Outcome | None:
        from broadopt.training.execute import execute  # imports torch: --help answers without it

        found = execute(run, self.stop, first=self.first_environment, trackers=self.trackers, place=place)
        if found is None:
            return None
        folder, result = found
        line = f"{place}{results.line(result)}"
        if place:
            print(line, flush=True)
        return Outcome(value(result["metrics"], run.objective), run.execution.results_dir, folder, line)

    def plan_like(self, planned: "Plan", seed: int) -> None:
        """Show the plan of a run that differs from one that is `planned` in its seed alone, and so costs the same."""
        from broadopt.training.planning.page import line

        recipe, cost, price = planned
        self.runs += 1
        self.planned.append(price)
        print(line(replace(recipe, seed=seed), cost, price.time), flush=True)

    def note(self, error: InputError | RunFailed, overrides: list[str], *, sweep: bool) -> InputError | RunFailed:
        """Keep a failure for the summary; a sweep, which goes on, reports it at once as well, and once where its runs
        share it. Returns `error`.
        """
        where = (printable(" ".join(overrides)) or "-m") if sweep else ""
        if any(is_shared(error, known) for _, known in self.failed):
            self.failed.append((where, error))
            return error
        if self.show_traces and sys.exc_info()[0] is not None:  # what a worker raises has left its traceback there
            traceback.print_exc()
        if sweep and os.getpid() == self.process:  # what a worker raises is said where it arrives
            line = f"{where}: {in_a_sweep(error)}"
            if speaks(line):
                print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
        self.failed.append((where, error))
        # Hydra and the summary keep the error to the end of the sweep, and its frames would keep the network, the
        # images and all that the run had on the device.
        let_go(error)
        let_go(sys.exc_info()[1])
        return error

    def take(self, overrides: Sequence[str], returned: JobReturn) -> bool:
        """Keep what a run of a sweep has returned to its launcher, in this process or in another; False where it has
        been stopped and can go on, which is said with what is known of it unless the whole command is to stop.
        """
        error = returned._return_value if returned.status == JobStatus.FAILED else None
        if error is None:
            outcome = returned.return_value
            if isinstance(outcome, Outcome):
                self.finished.append((" ".join(self.sweep.swept(overrides) if self.sweep else overrides), outcome))
        elif isinstance(error, LeftToAnother):
            self.elsewhere += 1
        elif isinstance(error, Stopped):
            if str(error) and self.stop.requested is None:
                where = printable(" ".join(returned.overrides or overrides)) or "-m"
                print(f"broadopt-run: {where}: not finished: {printable(str(error))}", file=sys.stderr, flush=True)
        elif not any(error is known for _, known in self.failed):
            reason = error if isinstance(error, InputError | RunFailed) else unforeseen(error)
            self.note(reason, list(returned.overrides or overrides), sweep=True)
        return not isinstance(error, Stopped)


def let_go(error: BaseException | None) -> None:
    """Empty the frames of an error, and of those that it came from, which have ended."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            waiting += [one.__cause__, one.__context__]


def unforeseen(error: BaseException) -> RunFailed:
    """The failure, in a line, that an error of a kind which nobody foresaw amounts to."""
    return RunFailed(f"{type(error).__name__}: {' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)")
