"""broadopt-run: the command line, its runs one after the other, and what becomes of their failures."""

import errno
import gc
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from broadopt import __version__, launchers, streams
from broadopt.completion import completion
from broadopt.config.arguments import is_sweep, prepared
from broadopt.config.compose import register_resolvers, run_config
from broadopt.config.messages import one_line
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.config.shipped import config_dir
from broadopt.errors import ClosedPipe, InputError, Interrupted, LeftToAnother, RunFailed, printable
from broadopt.runs.repeat import repeated
from broadopt.signals import Stop
from broadopt.trackers.live import Trackers

if TYPE_CHECKING:
    from broadopt.training.plan import Cost


def main() -> None:
    """The entry point of broadopt-run. Exit codes: 0 finished, 1 failed, 2 bad input, 3 left to another process, 75
    interrupted with the state saved.
    """
    streams.prepare()
    with streams.complete_output("broadopt-run", closed_pipe=75):
        _main()


def _main() -> None:
    level = logging.WARNING if is_first() else logging.ERROR
    logging.basicConfig(format="%(message)s", level=level, stream=sys.stderr)
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # Composing makes a million small objects that stay: to look through them at every 700 is a quarter of its time.
    gc.set_threshold(200_000, 20, 20)
    session = Session(show_traces=os.environ.get("HYDRA_FULL_ERROR") == "1")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here whole and leave as one line
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait spin for some microseconds and then sleep. Without the first a free machine is half as fast,
        # without the second a shared one up to ten times slower.
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    register_resolvers()
    try:
        with session.stop:
            try:
                command(session)
            finally:
                session.trackers.wait()
    except Interrupted as signal:
        leave(f"stopped by {signal}: run the same command to go on", 75)
    except BrokenPipeError:
        raise
    except Exception as error:
        line = one_line(error, sys.argv[1:])
        if line is None:
            raise
        leave(line, 2)
    session.conclude()


def command(session: "Session") -> None:
    """Carry out what the command line asks for."""
    if "--version" in sys.argv[1:]:
        return print(f"broadopt {__version__}")
    if any(argument.startswith("repeat=") for argument in sys.argv[1:]):
        return session.repeat(sys.argv[1:])
    sys.argv[1:] = prepared(sys.argv[1:])
    if (offered := completion(sys.argv[1:], os.environ.get("COMP_LINE", ""))) is not None:
        return print(offered)
    launchers.register()
    hydra.main(config_path=str(config_dir()), config_name="run", version_base="1.3")(session.task)()
    if session.runs == 0 and is_sweep(sys.argv[1:]):
        raise InputError("-m: the sweep has no runs; expected one value at least of each key")


def is_first() -> bool:
    """Whether this process, of those that torchrun may have started, is the one that speaks."""
    return os.environ.get("TORCHELASTIC_RUN_ID") is None or os.environ.get("RANK", "0") == "0"


def leave(line: str, code: int) -> None:
    """Say one line on stderr and exit; of several processes the first speaks, the others of what is theirs alone."""
    if is_first() or code == 1:
        print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
    sys.exit(code)


@dataclass
class Session:
    """The runs of one command line: what failed and what was only planned. A failed run does not stop the others of a
    sweep.
    """

    show_traces: bool = False
    """Whether an error that nobody foresaw is shown with its traceback."""
    stop: Stop = field(default_factory=Stop)
    trackers: Trackers = field(default_factory=Trackers)
    first_environment: Mapping[str, Any] = field(default_factory=dict)
    """Of a run that is repeated."""
    runs: int = 0
    elsewhere: int = 0
    """Runs that another process is on."""
    failed: list[tuple[str, InputError | RunFailed]] = field(default_factory=list)
    planned: list[float] = field(default_factory=list)
    latest: "tuple[Recipe, Cost] | None" = None
    """Of the last planned run the recipe and its cost."""

    def task(self, composed: DictConfig) -> None:
        """One run; Hydra calls it with a composed config."""
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        if not sweep and any(given.startswith("hydra/launcher=") for given in HydraConfig.get().overrides.hydra):
            error = InputError("hydra/launcher distributes the runs of a sweep: expected -m as well")
            return self.note(error, [], sweep=False)
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        self.carry_out(lambda: run_config(composed), overrides, sweep=sweep, composed=composed)

    def repeat(self, arguments: list[str]) -> None:
        """The run of a folder once more."""

        def checked() -> RunConfig:
            once_more = repeated(arguments)
            self.first_environment = once_more.environment
            return once_more.run

        self.carry_out(checked, [], sweep=False)

    def carry_out(
        self,
        checked: Callable[[], RunConfig],
        overrides: list[str],
        *,
        sweep: bool,
        composed: DictConfig | None = None,
    ) -> None:
        """Carry out, or plan where it was `composed`, the run that `checked` gives; keep its failure."""
        self.runs += 1
        try:
            run = checked()
            if run.execution.plan and composed is not None:
                cost = show_plan(composed, run, overrides, brief=sweep)
                self.planned.append(cost.flops)
                self.latest = run.recipe, cost
            else:
                from broadopt.training.execute import execute  # imports torch: --help answers without it

                execute(run, self.stop, first=self.first_environment, trackers=self.trackers)
        except LeftToAnother as left:
            self.elsewhere += 1
            print(left, flush=True)
        except (InputError, RunFailed) as error:
            self.note(error, overrides, sweep=sweep)
        except BrokenPipeError as error:
            raise ClosedPipe from error
        except OSError as error:  # the disk is full, or the folder has gone, or it cannot have such a name
            line = f"{error.filename}: {error.strerror}" if error.filename else str(error)
            kind = InputError if error.errno == errno.ENAMETOOLONG else RunFailed
            self.note(kind(line), overrides, sweep=sweep)
        except Exception as error:  # noqa: BLE001 - nobody foresaw it; the other runs of a sweep go on all the same
            if self.show_traces:
                traceback.print_exc()
            reason = f"{type(error).__name__}: {' '.join(str(error).split())} (HYDRA_FULL_ERROR=1 shows where)"
            self.note(RunFailed(reason), overrides, sweep=sweep)
        self.stop.check()  # a signal after the last batch of a run still ends a sweep

    def plan_like(self, planned: "tuple[Recipe, Cost]", seed: int) -> None:
        """Show the plan of a run that differs from one that is `planned` in its seed alone, and so costs the same."""
        from broadopt.training.plan import line

        recipe, cost = planned
        self.runs += 1
        self.planned.append(cost.flops)
        print(line(replace(recipe, seed=seed), cost), flush=True)

    def note(self, error: InputError | RunFailed, overrides: list[str], *, sweep: bool) -> None:
        """Keep a failure for the summary; a sweep, which goes on, reports it at once as well."""
        where = printable(" ".join(overrides)) if sweep else ""
        if sweep:
            print(f"broadopt-run: {where}: {printable(str(error))}", file=sys.stderr, flush=True)
        self.failed.append((where, error))

    def conclude(self) -> None:
        """Sum a planned sweep up; exit where a run failed, naming it."""
        if len(self.planned) > 1:
            from broadopt.training.plan import petaflops

            print(f"{len(self.planned)} runs, {petaflops(sum(self.planned))}")
        if not self.failed and self.elsewhere:
            runs = "1 run is" if self.elsewhere == 1 else f"{self.elsewhere} runs are"
            leave(f"{runs} not finished: another process is on it; give the same command later", 3)
        if not self.failed:
            return
        code = 2 if all(isinstance(error, InputError) for _, error in self.failed) else 1
        if self.runs == 1 and self.failed[0][0]:  # a sweep of one: it is said already
            sys.exit(code)
        lines = [f"{where}: " * bool(where) + printable(str(error)) for where, error in self.failed]
        if not self.failed[0][0]:
            leave(lines[0], code)
        leave("\n  ".join([f"{len(lines)} of the sweep's runs failed:", *lines]), code)


def show_plan(composed: DictConfig, run: RunConfig, overrides: list[str], *, brief: bool) -> "Cost":
    """Print what a run would do and cost, in one line where `brief`; returns the cost."""
    from broadopt.config.instantiate import instantiated
    from broadopt.training import plan

    recipe = run.recipe
    cost = plan.price(recipe)
    if brief:
        print(plan.line(recipe, cost), flush=True)
        return cost
    nodes: Any = OmegaConf.to_container(composed, resolve=False)
    origins = plan.origins(nodes, run.values(), protocol=nodes["protocol"]["recipe"], given=overrides)
    schedule, collector = instantiated("schedule", recipe.schedule), instantiated("collect", recipe.collect)
    print(plan.page(recipe, cost, schedule=schedule, collector=collector, origins=origins))
    return cost


if __name__ == "__main__":
    main()
