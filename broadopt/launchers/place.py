"""Where a run stands in its sweep, in the words that its header begins with."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from broadopt.errors import printable

PLACE = "BROADOPT_PLACE"
"""The environment variable by which a launcher tells a command of its own where its run stands in the sweep."""


@dataclass(frozen=True)
class Sweep:
    """What each run of a sweep says of it."""

    keys: tuple[str, ...]
    """Keys that have more than one value."""
    total: int | None
    """Runs; None where the sweeper decides it on its way."""

    @classmethod
    def of(cls, config: DictConfig, total: int | None) -> "Sweep":
        """The sweep of a composed config. What a sweeper's own `params` list is swept as well."""
        given: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
        params: Any = OmegaConf.select(config, "hydra.sweeper.params") or {}
        parsed = OverridesParser.create().parse_overrides([*given, *(f"{key}={params[key]}" for key in params)])
        return cls(tuple(one.get_key_element().lstrip("+") for one in parsed if one.is_sweep_override()), total)

    def swept(self, overrides: Iterable[str]) -> list[str]:
        """Those of a run's overrides that are not the same for all runs."""
        return [override for override in overrides if override.partition("=")[0].lstrip("+") in self.keys]

    def place(self, number: int, overrides: Sequence[str]) -> str:
        """`2 of 6 (method=sam seed=2): ` for run number 1, counted from 0."""
        swept = printable(" ".join(self.swept(overrides)))
        return f"{number + 1}{f' of {self.total}' * (self.total is not None)}{f' ({swept})' * bool(swept)}: "
