"""From the overrides of a command line to a composed Hydra config, and from that to a typed run."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from broadopt.config.rules import RULES
from broadopt.config.run_config import GROUPS, RunConfig
from broadopt.config.shipped import config_dir, options
from broadopt.errors import InputError, nearest

CLOSED = {
    "checkpoint": GROUPS["checkpoint"],
    "method": ("name", "step", "collect"),
    "protocol": ("name", "networks", "recipe"),
}
"""Groups whose keys are these and no others; what the other groups' keys may be is known to their targets."""

COMPOSED = (*GROUPS, "protocol", "method")
"""Groups of a composed config; of the last two a run keeps the names."""


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


def run_config(config: DictConfig) -> RunConfig:
    """Resolve and check a composed config.

    Raises InputError in one line for a missing or unknown key, a wrong type, or a value out of range.
    """
    try:
        _check_keys(config)
        values = {str(key): _value(config, key) for key in config if key != "hydra"}
    except OmegaConfBaseException as error:
        raise InputError(_reason(error)) from error
    values["method"] = _method_name(values["method"])
    values["protocol"] = values["protocol"]["name"]
    return RunConfig.of(values)


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
    keys = {rule.split(".")[0] for rule in RULES} | set(COMPOSED)
    for key in (str(key) for key in config if key != "hydra"):
        if key == "experiment":
            raise InputError("experiment: the chosen file has to begin with the line # @package _global_")
        if key not in keys:
            raise InputError(f"unknown key {key}{nearest(key, [*keys, *RULES])}")
    for key in sorted(keys):
        if key not in config:
            raise InputError(f"{key} is missing: a key cannot be removed, only given another value")
        if key in COMPOSED and not OmegaConf.is_dict(config[key]):
            raise InputError(f"{key}={config[key]}: expected the group's own keys, {key}.KEY=VALUE")
        for name in map(str, config[key] if key in CLOSED else ()):
            if name not in CLOSED[key]:
                hint = nearest(name, CLOSED[key]).replace('"', f'"{key}.', 1)
                raise InputError(f"unknown key {key}.{name}{hint}")


def recipe_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The recorded config of `broadopt-run OVERRIDES` on the published data, its precision left at `auto`."""
    return dict(_recipe(tuple(overrides)))


@cache
def _recipe(overrides: tuple[str, ...]) -> dict[str, Any]:
    return run_config(compose(overrides)).recipe.record()
