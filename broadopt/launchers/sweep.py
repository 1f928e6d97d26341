"""What both launchers share: which runs of a sweep are left to do, as commands, and how their outcomes are reported."""

import shlex
import sys
from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn, JobStatus

from broadopt.config.identity import identity_of
from broadopt.config.messages import quoted as literal
from broadopt.config.run_config import DatasetConfig, RunConfig
from broadopt.errors import InputError, LeftToAnother
from broadopt.launchers.ended import Ended, what_became
from broadopt.launchers.known import Runs, fingerprint, key, known, variant
from broadopt.launchers.place import run_of
from broadopt.runs import results
from broadopt.runs.objective import Outcome, value


@dataclass(frozen=True)
class Planned:
    """One run of a sweep."""

    overrides: tuple[str, ...]
    key: str
    """The same for runs of one recipe and seed, whatever the precision and the data."""
    precision: str
    """As it was asked for: auto is any."""
    dataset: DatasetConfig
    """Where the data lie."""
    results_dir: str
    """As the sweep has resolved it: a process of its own could find another time, or another environment."""
    place: str = ""
    """Which run of the sweep it is, in words."""
    force: bool = False
    """Whether it is made anew where it is finished."""
    objective: str = ""
    """What it returns to the sweeper."""

    @classmethod
    def of(cls, overrides: Sequence[str], run: RunConfig, *, processes: int, place: str) -> "Planned":
        """The run that a sweep's `overrides` compose, on as many `processes`."""
        recipe, execution = run.recipe, run.execution
        return cls(
            overrides=tuple(overrides),
            key=key(recipe.decided(precision="", fingerprint=None, processes=processes).record()),
            precision=recipe.precision,
            dataset=recipe.dataset,
            results_dir=str(execution.results_dir),
            place=place,
            force=execution.force,
            objective=run.objective,
        )

    @property
    def name(self) -> str:
        """A name that no other run of the sweep has."""
        return identity_of({"key": self.key, "precision": self.precision, "dataset": self.dataset.values()})

    def is_among(self, runs: Runs) -> bool:
        """Whether one of `runs` is this one."""
        found = {data for precision, data in runs.get(self.key, set()) if self.precision in ("auto", precision)}
        return bool(found) and fingerprint(self.dataset) in found

    def command(self, *, processes: int = 1) -> list[str]:
        """The words that carry it out alone, on `processes` devices of one machine."""
        torchrun = ["-m", "broadopt.devices.torchrun", "--standalone", f"--nproc-per-node={processes}"]
        starter = torchrun if processes > 1 else []
        own = [one for one in self.overrides if one.lstrip("+").partition("=")[0] != "results_dir"]
        place = f"results_dir={literal(self.results_dir)}"
        return [sys.executable, *starter, *program(), *for_each_run(sys.argv[1:]), *own, place]


def program() -> list[str]:
    """This command as an interpreter takes it. Its script where there is one: -m would put the current folder ahead of
    PYTHONPATH, and so import other code of the same name.
    """
    script = Path(sys.argv[0])
    return [str(script.absolute())] if script.name == "broadopt-run" and script.is_file() else ["-m", "broadopt.run"]


class SweepLauncher(BasicLauncher):
    """Carries out `launch_elsewhere`; what only shows something (plan=true) is done here, one after the other."""

    processes = 1
    """Of each run, by torchrun."""
    stopped_by: str | None = None
    """The signal that has ended `launch_elsewhere`."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """One run for each of `job_overrides`; those that are finished, or running anywhere, are left out."""
        assert self.config is not None
        assert self.hydra_context is not None
        load = self.hydra_context.config_loader.load_sweep_config
        runs = [run_of(load(self.config, list(overrides))) for overrides in job_overrides]
        if any(run.execution.plan for run in runs):
            return super().launch(job_overrides, initial_job_idx)
        places = {run.execution.results_dir: None for run in runs}
        if len(places) > 1:
            first, second, *_ = places
            raise InputError(
                f"results_dir={second}: the runs of a sweep that a launcher carries out share one results folder, "
                f"another run has {first}; expected one results_dir"
            )
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # sweepers write into it
        session: Any = getattr(self.task_function, "__self__", None)
        root = Path(runs[0].execution.results_dir)
        planned = [
            Planned.of(overrides, run, processes=self.processes, place=session.sweep.place(number, overrides))
            for number, (overrides, run) in enumerate(zip(job_overrides, runs, strict=True), start=initial_job_idx)
        ]
        left, others = self._sorted_out(planned, root)
        ended = {one.planned.name: one for one in (self.launch_elsewhere(left, root) if left else [])}
        # The rest is submitted, and nobody waits for it.
        waited_for = [one for one in planned if one.name in ended or one not in left]
        found: dict[str, Outcome | Exception] = {one.name: what_became(ended.get(one.name)) for one in waited_for}
        # With force=true a finished result may be the one that was there before: only the run's own end says that it
        # is not.
        made = [one for one in waited_for if not one.force or (one.name in ended and ended[one.name].code == 0)]
        found |= outcomes(made, root) | {one.name: LeftToAnother() for one in others}
        if self.stopped_by is not None:  # noted by the launcher, for whoever has called it
            session.stop.requested = self.stopped_by
        return [returned(one, found[one.name]) for one in waited_for]

    def _sorted_out(self, planned: Sequence[Planned], root: Path) -> tuple[list[Planned], list[Planned]]:
        """Those that are left to do, and those that others are on; what is not, and why, is said."""
        under_way = self.look(root)
        finished, running = known(root)
        left, others = [], []
        for one in planned:
            if one.is_among(finished) and not one.force:
                print(f"already finished: {' '.join(one.overrides)}", flush=True)
            elif one.name not in under_way and one.is_among(running):
                print(f"running already: {' '.join(one.overrides)}", flush=True)
                others.append(one)
            else:
                left.append(one)
        return left, others

    def look(self, root: Path) -> Container[str]:
        """Names of the runs that are under way and can be followed; read ahead of the results, so that a run that ends
        in between is among those.
        """
        return ()

    def launch_elsewhere(self, planned: list[Planned], root: Path) -> list[Ended]:
        """Carry out runs whose results go below `root`; returns those that have ended."""
        raise NotImplementedError


def returned(one: Planned, what: Outcome | Exception) -> JobReturn:
    """What Hydra's own launcher returns of a run with this outcome."""
    status = JobStatus.FAILED if isinstance(what, Exception) else JobStatus.COMPLETED
    return JobReturn(overrides=one.overrides, status=status, _return_value=what)


def outcomes(planned: Iterable[Planned], root: Path) -> dict[str, Outcome]:
    """By the runs' names what has become of those that are finished below `root`."""
    by_key = defaultdict(list)
    for result in results.read_all(root)[0]:
        if result["state"] == "finished":
            by_key[key(result["config"])].append(result)
    found = {}
    for one in planned:
        for result in by_key[one.key]:
            if one.is_among({one.key: {variant(result["config"])}}):
                number, line = value(result["metrics"], one.objective), f"{one.place}{results.line(result)}"
                found[one.name] = Outcome(number, root, root / result["folder"], line)
    return found


OF_THE_SWEEP = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep", "hydra.mode")
"""Beginnings of Hydra's own keys that say how a sweep is carried out."""


def for_each_run(arguments: Sequence[str]) -> list[str]:
    """What of the sweep's command line each of its runs needs besides its overrides: the options that name the user's
    own configs, and Hydra's own keys, but for those of the sweep.
    """
    from hydra._internal.utils import get_args_parser

    given = get_args_parser().parse_known_args(list(arguments))[0]
    own = [one for one in given.overrides if one.lstrip("+~").startswith(("hydra.", "hydra/"))]
    named = {"--config-dir": given.config_dir, "--config-path": given.config_path, "--config-name": given.config_name}
    options = [word for name, value in named.items() if value for word in (name, value)]
    return options + [one for one in own if not one.lstrip("+~").startswith(OF_THE_SWEEP)]


def quoted(words: Iterable[str]) -> str:
    """A command as a shell takes it."""
    return " ".join(map(shlex.quote, words))
