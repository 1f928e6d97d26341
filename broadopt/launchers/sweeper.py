"""Hydra's sweeper without what it does over and over: a sweep of hundreds of runs is composed in seconds.

Hydra composes every run twice, once ahead of all to find mistakes and once to carry it out, and reads twenty files each
time. Here each file is read once, and of runs that differ in their seed alone one is composed: the others are its
copies, in which the seed has no part in what else is chosen. Of those that are only planned one is worked out.
"""

import copy
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra._internal.config_repository import IConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.plugins.config_source import ConfigResult
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from broadopt.config.run_config import RunConfig
from broadopt.errors import InputError, RunFailed
from broadopt.launchers.place import Sweep, given_seed, mixed_protocols, run_of, seed_of
from broadopt.launchers.session import Session

if TYPE_CHECKING:
    from broadopt.training.trunks.sweep import SharedSweep


log = logging.getLogger("broadopt")


class OnceSweeper(BasicSweeper):
    """Hydra's own sweeper, over a `OnceLoader`."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As BasicSweeper; the launcher composes its runs with the same loader."""
        loader: Any = OnceLoader(hydra_context.config_loader)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)
        self.session: Session = getattr(task_function, "__self__", None) or Session()
        self.launcher: Any = PlanningLauncher(self.launcher, config, context, self.session)

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Compose what the runs are copies of. Raises Hydra's error for one that cannot be composed."""
        assert self.hydra_context is not None
        loader: Any = self.hydra_context.config_loader
        originals = [loader.original(self.config, list(overrides)) for overrides in batch]
        if self.session.sweep is None:
            assert self.config is not None
            self.session.sweep = Sweep.of(self.config, sum(map(len, self.overrides or [])))
            if mixed := mixed_protocols(batch, originals):
                log.warning("%s", mixed)


class PlanningLauncher:
    """Another launcher, except that runs which are only planned are worked out here: without folders, logs and copies
    of their config, and those that differ in their seed alone once.
    """

    def __init__(self, launcher: Any, config: DictConfig, context: HydraContext, session: Session) -> None:
        self._launcher, self._config, self._context, self._session = launcher, config, context, session

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As the other launcher, trunks first. Nothing is returned: BasicSweeper would end a sweep by its first
        failure.
        """
        loader: Any = self._context.config_loader
        originals = [loader.original(self._config, list(overrides)) for overrides in job_overrides]
        shared = self._shared(job_overrides, originals)
        if shared is not None:
            job_overrides = [job_overrides[run] for run in shared.order]
            originals = [originals[run] for run in shared.order]
        if all(original.plan is True for original in originals):
            self._show_plans(job_overrides, originals, shared, initial_job_idx)
        else:
            self._launcher.launch(job_overrides, initial_job_idx)
        return []

    def _show_plans(
        self,
        job_overrides: Sequence[Sequence[str]],
        originals: Sequence[DictConfig],
        shared: "SharedSweep | None",
        initial_job_idx: int,
    ) -> None:
        loader: Any = self._context.config_loader
        plans: dict[int, Any] = {}
        begun: set[int] = set()
        for place, (overrides, original) in enumerate(zip(job_overrides, originals, strict=True)):
            seed, plan = given_seed(overrides), plans.get(id(original))
            if plan is not None and seed is not None and seed < 2**63:
                self._session.plan_like(plan, seed)
            else:
                # The first run of an original is the original itself.
                is_first = id(original) not in begun
                begun.add(id(original))
                composed = original if is_first else loader.load_sweep_config(self._config, list(overrides))
                plan = self._plan(composed, initial_job_idx + place)
                if plan is not None and _is_free_of_the_seed(original):
                    plans[id(original)] = plan
            if plan is not None and shared is not None:
                shared.show(place, plan)
        if shared is not None:
            shared.show_total()

    def _shared(self, job_overrides: Sequence[Sequence[str]], originals: Sequence[DictConfig]) -> "SharedSweep | None":
        """The runs as they share trunks; None where none of them does."""
        if not any(OmegaConf.select(original, "trunk") == "share" for original in originals):
            return None
        from broadopt.training.trunks.sweep import SharedSweep  # imports torch

        loader: Any = self._context.config_loader
        alike: dict[int, RunConfig | None] = {}
        runs: list[RunConfig | None] = []
        for overrides, original in zip(job_overrides, originals, strict=True):
            run = alike.get(id(original))
            if run is None:
                run = _checked(loader.load_sweep_config(self._config, list(overrides)))
                if run is not None and _is_free_of_the_seed(original):
                    alike[id(original)] = run
            seed = given_seed(overrides)
            if run is not None and seed is not None:
                run = replace(run, recipe=replace(run.recipe, seed=seed))
            runs.append(run)
        sweep = self._session.sweep
        return SharedSweep(runs, [" ".join(sweep.swept(one) if sweep else one) for one in job_overrides])

    def _plan(self, composed: DictConfig, number: int) -> Any:
        """Show the plan of one run and return it; None where it cannot be planned, which is kept for the summary."""
        with open_dict(composed.hydra.job):
            composed.hydra.job.id = composed.hydra.job.num = number
        HydraConfig.instance().set_config(composed)
        self._session.latest = None
        self._session.runs += 1
        with suppress(InputError, RunFailed):
            self._session.task(composed)
        return self._session.latest


def _checked(config: DictConfig) -> RunConfig | None:
    """The run of a composed config; None where it is not one, which is said where it is to be carried out."""
    try:
        return run_of(config)
    except InputError:
        return None


def _is_free_of_the_seed(config: DictConfig) -> bool:
    """Whether no other value is worked out from the seed."""
    values: Any = OmegaConf.to_container(config, resolve=False)
    del values["hydra"]
    return re.search(r"\$\{[^}]*\bseed\b", str(values)) is None


class OnceLoader:
    """Hydra's config loader, whose configs of a sweep are copies of those that were composed already."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        loader.repository = OnceRepository(loader.repository)
        self._originals: dict[tuple[str, ...], DictConfig] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __getstate__(self) -> dict[str, Any]:
        """For a launcher's own processes: each composes its one run."""
        return {"_loader": self._loader, "_originals": {}}

    def original(self, master_config: DictConfig, overrides: list[str]) -> DictConfig:
        """The config of a run with these overrides or with others that differ from them in the seed."""
        key = tuple("seed" if seed_of(override) is not None else override for override in overrides)
        if key not in self._originals:
            self._originals[key] = self._loader.load_sweep_config(master_config, overrides)
        return self._originals[key]

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """As Hydra's loader: a config that is the caller's alone."""
        config = copy.deepcopy(self.original(master_config, sweep_overrides))
        OmegaConf.set_readonly(config.hydra, None)  # as it is in one that was carried out itself
        given = [override for override in sweep_overrides if seed_of(override) is not None]
        task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        for place, override in enumerate(task):
            if seed_of(override) is not None and override != given[0]:
                config.seed = seed_of(given[0])
                config.hydra.overrides.task[place] = task[place] = given[0]
                _name_anew(config, task)
        return config


def _name_anew(config: DictConfig, overrides: list[str]) -> None:
    """Hydra's name of a run by its overrides, for a config whose overrides are others than when it was composed."""
    naming = config.hydra.job.config.override_dirname
    parsed: list[Override] = OverridesParser.create().parse_overrides(overrides)
    config.hydra.job.override_dirname = get_overrides_dirname(
        overrides=parsed, exclude_keys=naming.exclude_keys, item_sep=naming.item_sep, kv_sep=naming.kv_sep
    )


class OnceRepository(IConfigRepository):
    """Hydra's files of configs, each read once. Who composes changes what it has loaded, so everyone gets a copy."""

    def __init__(self, files: IConfigRepository) -> None:
        self._files = files
        self._read: dict[str, ConfigResult | None] = {}
        self._there: dict[tuple[str, str], bool] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnceRepository":
        other = OnceRepository(copy.deepcopy(self._files, memo))
        other._read, other._there = self._read, self._there
        return other

    def initialize_sources(self, config_search_path: Any) -> None:
        """Read from other folders from now on."""
        self._files.initialize_sources(config_search_path)
        self._read, self._there = {}, {}

    def load_config(self, config_path: str) -> ConfigResult | None:
        """As Hydra's."""
        if config_path not in self._read:
            self._read[config_path] = self._files.load_config(config_path)
        return copy.deepcopy(self._read[config_path])

    def group_exists(self, config_path: str) -> bool:
        """As Hydra's."""
        return self._known("group", config_path)

    def config_exists(self, config_path: str) -> bool:
        """As Hydra's."""
        return self._known("config", config_path)

    def _known(self, kind: str, path: str) -> bool:
        if (kind, path) not in self._there:
            found = self._files.group_exists(path) if kind == "group" else self._files.config_exists(path)
            self._there[kind, path] = found
        return self._there[kind, path]

    def get_schema_source(self) -> Any:
        """As Hydra's."""
        return self._files.get_schema_source()

    def get_group_options(self, group_name: str, results_filter: Any = None) -> list[str]:
        """As Hydra's."""
        return list(self._files.get_group_options(group_name, results_filter))

    def get_sources(self) -> list[Any]:
        """As Hydra's."""
        return list(self._files.get_sources())
