"""The runs of a sweep by their overrides: where each stands, in the words that its header begins with, and its seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from broadopt.config.compose import run_config
from broadopt.config.run_config import RunConfig
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


def mixed_protocols(batch: Sequence[Sequence[str]], configs: Sequence[DictConfig]) -> str:
    """A line where runs that differ in their method, step or collector alone are trained by several protocols, which
    nobody has named: empty otherwise.
    """
    compared: dict[tuple[str, ...], dict[str, str]] = {}
    for overrides, config in zip(batch, configs, strict=True):
        if any(override.startswith("protocol=") for override in overrides):
            continue
        alike = tuple(one for one in overrides if one.partition("=")[0] not in ("method", "step", "collect", "seed"))
        name = str(config.hydra.runtime.choices["protocol"])
        method = " ".join(one.partition("=")[2] for one in overrides if one not in alike and seed_of(one) is None)
        compared.setdefault(alike, {})[method] = name
    for methods in compared.values():
        if len(set(methods.values())) > 1:
            by = ", ".join(
                f"{' and '.join(method for method in methods if methods[method] == name)} by {name}"
                for name in dict.fromkeys(methods.values())
            )
            names = " or ".join(f"protocol={name}" for name in dict.fromkeys(methods.values()))
            return f"recipes are compared, not methods alone: {by}; {names} trains all by one"
    return ""


def run_of(config: DictConfig) -> RunConfig:
    """The run of a config of the sweep, which need not be Hydra's current one: that says what was chosen. Raises
    InputError.
    """
    before = HydraConfig.instance().cfg
    try:
        HydraConfig.instance().set_config(config)
        return run_config(config)
    finally:
        HydraConfig.instance().cfg = before


def given_seed(overrides: Iterable[str]) -> int | None:
    """The seed that a run's overrides give as a plain number."""
    return next((seed for seed in map(seed_of, overrides) if seed is not None), None)


def seed_of(override: str) -> int | None:
    """The seed that an override gives as a plain number; None for any other, which is composed by itself."""
    key, _, value = override.partition("=")
    return int(value) if key == "seed" and value.isascii() and value.isdigit() and str(int(value)) == value else None
