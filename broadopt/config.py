"""From a composed Hydra config to the plain, checked dict that a run is made of, and its identity."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from broadopt.errors import InputError, nearest

SEMANTICS = 1
"""Raised whenever the same config would compute other numbers than before; part of every identity."""

EXECUTION = (
    *("device", "memory_format", "compile", "cuda_graphs", "deterministic"),
    *("data_dir", "results_dir", "force", "wait", "plan", "checkpoint"),
)
"""Keys that say how a run is carried out: they are no part of its identity. They change its result by the rounding of
float operations at most, and dropout in feature maps by another draw of the same kind."""

AS_WITHOUT = {"perturbation": "global", "chunk": None}
"""Keys of a step that came later, and the values that leave a run as it was before: so valued they are not recorded."""

LOCATION = ("data_dir", "path", "verify")
"""Keys of a data set that say where it lies; what lies there is told by its fingerprint."""


@dataclass(frozen=True)
class Rule:
    """What a value has to be: a type, a test, and both in words; `optional` where null is allowed as well."""

    kind: type
    test: Callable[[Any], bool]
    words: str
    optional: bool = False


def _number(low: float, words: str, *, above: bool = False, high: float = math.inf, optional: bool = False) -> Rule:
    def is_within(value: float) -> bool:
        return (value > low if above else value >= low) and value <= high and value < math.inf

    return Rule(float, is_within, words + ", or null" * optional, optional)


def _choice(*names: str) -> Rule:
    return Rule(str, lambda value: value in names, "one of " + ", ".join(names))


def _numbers(words: str) -> Rule:
    def are_numbers(values: list[Any]) -> bool:
        return all(type(value) in (int, float) and math.isfinite(value) for value in values)

    return Rule(list, are_numbers, words)


def _name() -> Rule:
    return Rule(
        str, lambda value: bool(re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", value)), "a name, which makes a folder"
    )


def _flag() -> Rule:
    return Rule(bool, lambda value: True, "true or false")


RULES = {
    "seed": Rule(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1"),
    "budget": _number(0, "a number of epochs > 0", above=True),
    "batch_size": Rule(int, lambda value: value >= 1, "a whole number >= 1"),
    "lr": _number(0, "a number > 0", above=True),
    "momentum": _number(0, "a number from 0 to 1", high=1),
    "nesterov": _flag(),
    "weight_decay": _number(0, "a number >= 0"),
    "label_smoothing": _number(0, "a number from 0 to 1", high=1),
    "evaluate_every": Rule(int, lambda value: value >= 1, "a whole number of epochs >= 1"),
    "precision": _choice("auto", "fp32", "tf32", "bf16"),
    "device": Rule(str, lambda value: _is_device(value), "auto, cpu, cuda or cuda:N"),
    "memory_format": _choice("auto", "channels_last", "contiguous"),
    "compile": _flag(),
    "cuda_graphs": _flag(),
    "deterministic": _flag(),
    "data_dir": Rule(str, bool, "a folder"),
    "results_dir": Rule(str, bool, "a folder"),
    "force": _flag(),
    "wait": _flag(),
    "plan": _flag(),
    "checkpoint.minutes": _number(0, "a number of minutes >= 0"),
    "checkpoint.predictor": _flag(),
    "dataset.name": _name(),
    "model.name": _name(),
    "method": _name(),
    "dataset.label_noise": _number(0, "a share from 0 to 1", high=1),
    "dataset.validation": Rule(int, lambda value: value >= 0, "a whole number of images >= 0"),
    "dataset.verify": _flag(),
    "dataset.path": Rule(str, bool, "a folder"),
    "augmentation.pad": Rule(int, lambda value: value >= 0, "a whole number of pixels >= 0"),
    "augmentation.flip": _flag(),
    "augmentation.autoaugment": _flag(),
    "augmentation.cutout": Rule(int, lambda value: 0 <= value <= 32, "a whole number of pixels from 0 to 32"),
    "augmentation.cutmix": _number(0, "a probability from 0 to 1", high=1),
    "augmentation.mean": _numbers("a list of three numbers"),
    "augmentation.std": _numbers("a list of three numbers"),
    "step.rho": _number(0, "a number >= 0"),
    "step.eta": _number(0, "a number >= 0"),
    "step.p": Rule(float, lambda value: value >= 1, "a number >= 1, or inf"),
    "step.normalisation": _choice("element", "filter"),
    "step.bn": _choice("both", "first"),
    "step.noise": _choice("fresh", "replay"),
    "step.perturbation": _choice("global", "share"),
    "step.chunk": Rule(int, lambda value: value >= 1, "a whole number of images >= 1, or null", optional=True),
    "collect.start": _number(0, "a number of budgets >= 0"),
    "collect.cycle": _number(0, "a number of budgets > 0", above=True, optional=True),
    "collect.budgets": _numbers("a list of numbers of budgets"),
    "schedule.lr": _number(0, "a number > 0", above=True),
    "schedule.budget": _number(0, "a number of epochs > 0", above=True),
    "schedule.per_step": _flag(),
    "schedule.decay_over": _number(0, "a number of budgets >= 0"),
    "schedule.decay_to": _number(0, "a number >= 0", optional=True),
    "schedule.start": _number(0, "a number of budgets >= 0"),
    "schedule.high": _number(0, "a number >= 0", optional=True),
    "schedule.low": _number(0, "a number >= 0", optional=True),
    "schedule.cycle": _number(0, "a number of budgets > 0", above=True, optional=True),
}
CLOSED = {
    "checkpoint": ("minutes", "predictor"),
    "method": ("name", "step", "collect"),
    "protocol": ("name", "networks", "recipe"),
}
"""Groups whose keys are these and no others; what the other groups' keys may be is known to their targets."""

GROUPS = ("dataset", "model", "step", "collect", "schedule", "augmentation", "protocol", "method", "checkpoint")


def _is_device(name: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", name) is not None


def _shipped(inside: str, checkout: str) -> Path:
    """A folder that travels inside the wheel, or stands at the top of a checkout."""
    package = Path(__file__).resolve().parent
    return package / inside if (package / inside).is_dir() else package.parent / checkout


def config_dir() -> Path:
    """The folder of the Hydra groups."""
    return _shipped("configs", "configs")


def options(group: str) -> list[str]:
    """The choices of a config group that broadopt ships, sorted, those in folders as folder/choice."""
    folder = config_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def paper_dir() -> Path:
    """The folder of the published tables."""
    return _shipped("paper", "results/paper")


def _choices() -> Mapping[str, str]:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices


def look_up(key: str, *, _root_: DictConfig) -> Any:
    """The value of `key` in the chosen protocol: the resolver behind `${recipe:KEY}`.

    Maps are descended by network, data set or step, whichever they name, else by `other`. Raises InputError where
    nothing fits.
    """
    protocol = _root_.protocol
    if key not in protocol.recipe:
        raise InputError(f"protocol={protocol.name} has no value for {key}{nearest(key, map(str, protocol.recipe))}")
    value = protocol.recipe[key][0]
    chosen = (_root_.model.name, _root_.dataset.name, _choices()["step"])
    while isinstance(value, DictConfig):
        name = next((name for name in chosen if name in value), "other")
        if name not in value:
            raise InputError(
                f"protocol={protocol.name} has no {key} for {' with '.join(chosen)}: give it on the command line"
            )
        value = value[name]
    return value


def register_resolvers() -> None:
    """Make `${recipe:KEY}` known to OmegaConf; to be called before a config is used."""
    OmegaConf.register_new_resolver("recipe", look_up, replace=True)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the config that `broadopt-run OVERRIDES` would run, without running it.

    Inside a running Hydra application its own search path is used. Raises Hydra's and OmegaConf's errors for bad
    overrides.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    register_resolvers()
    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(config_dir()), version_base="1.3")
    config = hydra_compose("run", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """Resolve and check a composed config.

    Returns nested plain values: `protocol` and `method` as names, everything else as in run.yaml. Raises InputError in
    one line for a missing or unknown key, a wrong type, or a value out of range.
    """
    try:
        _check_keys(config)
        values = {str(key): _value(config, key) for key in config if key != "hydra"}
    except OmegaConfBaseException as error:
        raise InputError(_reason(error)) from error
    values["method"] = _method_name(values["method"])
    values["protocol"] = values["protocol"]["name"]
    check(values)
    return values


def _value(config: DictConfig, key: Any) -> Any:
    value = config[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _reason(error: OmegaConfBaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:  # a resolver's own error lies somewhere below OmegaConf's
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return f"{error.full_key}: {str(error).splitlines()[0]}" if error.full_key else str(error).splitlines()[0]


def _method_name(method: Mapping[str, str]) -> str:
    step, collect = _choices()["step"], _choices()["collect"]
    if (step, collect) == (method["step"], method["collect"]):
        chosen = _choices().get("method")
        if method["name"] != chosen and method["name"] in options("method"):
            raise InputError(f"method.name={method['name']}: that is another method; this run is {chosen}")
        return method["name"]
    if collect == "none":
        return step
    return collect if step == "sgd" else f"{step}+{collect}"


def _check_keys(config: DictConfig) -> None:
    keys = {rule.split(".")[0] for rule in RULES} | set(GROUPS)
    for key in (str(key) for key in config if key != "hydra"):
        if key == "experiment":
            raise InputError("experiment: the chosen file has to begin with the line # @package _global_")
        if key not in keys:
            raise InputError(f"unknown key {key}{nearest(key, [*keys, *RULES])}")
    for key in sorted(keys):
        if key not in config:
            raise InputError(f"{key} is missing: a key cannot be removed, only given another value")
        if key in GROUPS and not OmegaConf.is_dict(config[key]):
            raise InputError(f"{key}={config[key]}: expected the group's own keys, {key}.KEY=VALUE")
        for name in map(str, config[key] if key in CLOSED else ()):
            if name not in CLOSED[key]:
                hint = nearest(name, CLOSED[key]).replace('"', f'"{key}.', 1)
                raise InputError(f"unknown key {key}.{name}{hint}")


def check(values: dict[str, Any]) -> None:
    """Hold every value against its rule; whole numbers become floats in place where a float is meant. Raises
    InputError.
    """
    for key, rule in RULES.items():
        parent, leaf = _find(values, key)
        if parent is None or leaf not in parent:
            continue
        value = parent[leaf]
        if value is None and rule.optional:
            continue
        if rule.kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not rule.kind or not rule.test(value):
            raise InputError(f"{key}={json.dumps(parent[leaf], default=str)}: expected {rule.words}")
        parent[leaf] = "inf" if value == math.inf else value


def _find(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    *groups, leaf = key.split(".")
    node: Any = values
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), leaf


def recorded(
    values: Mapping[str, Any], *, precision: str, fingerprint: str | None, processes: int = 1
) -> dict[str, Any]:
    """What decides a run's result: the config without its execution keys, with the precision, the data and, where it
    is not one, the number of processes that are really used.
    """
    config = {key: value for key, value in values.items() if key not in EXECUTION}
    step = {key: value for key, value in config["step"].items() if (key, value) not in AS_WITHOUT.items()}
    dataset = {key: value for key, value in config["dataset"].items() if key not in LOCATION}
    found = {"step": step, "precision": precision, "dataset": dataset | {"fingerprint": fingerprint}}
    return config | found | ({"processes": processes} if processes > 1 else {})


def recipe(overrides: Sequence[str]) -> dict[str, Any]:
    """The recorded config of `broadopt-run OVERRIDES` on the published data, its precision left at `auto`."""
    return dict(_recipe(tuple(overrides)))


@cache
def _recipe(overrides: tuple[str, ...]) -> dict[str, Any]:
    values = plain(compose(overrides))
    return recorded(values, precision=values["precision"], fingerprint=None)


def identity(config: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of the canonical form of a recorded config and of the semantics version."""
    content = {"semantics": SEMANTICS, "config": _canonical(config)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
