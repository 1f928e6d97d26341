"""From the overrides of a command line to a composed Hydra config, and from that to a typed run."""

import posixpath
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from broadopt.config.habits import about_key
from broadopt.config.identity import public
from broadopt.config.rules import NEEDED_BY_TAIL, RULES, TAKEN_BY_SHAPE, expanded
from broadopt.config.run_config import GROUPS, Recipe, RunConfig
from broadopt.config.shipped import SEVERAL, config_dir, looked_up, options, register_several
from broadopt.errors import InputError, nearest

CLOSED = {
    "checkpoint": GROUPS["checkpoint"],
    "method": ("name", "step", "collect"),
    "protocol": ("name", "networks", "recipe"),
}
"""Groups whose keys are these and no others; what the other groups' keys may be is known to their targets."""

COMPOSED = (*GROUPS, "protocol", "method")
"""Groups of a composed config; of the last two a run keeps the names."""

UNCHOSEN = ("augmentation", "checkpoint")
"""Those of them whose keys stand in run.yaml itself."""

USED_BY: Mapping[str, Mapping[str, Sequence[str]]] = {
    "tail": {tail: (*keys, "start") for tail, keys in NEEDED_BY_TAIL.items()},
    "shape": {shape: keys if shape == "constant" else (*keys, "decay_over") for shape, keys in TAKEN_BY_SHAPE.items()},
}
"""Keys of the schedule that one of its choices, by its name, makes use of."""

NOT_NULL = ("start", "decay_over")
"""Those that have no null."""

NO_PACKAGE = "{}: the chosen file has to begin with the line # @package _global_"


def _choices() -> Mapping[str, str]:
    from hydra.core.hydra_config import HydraConfig

    return HydraConfig.get().runtime.choices


def look_up(key: str, *, _root_: DictConfig) -> Any:
    """The value of `key` in the chosen protocol: the resolver behind `${recipe:KEY}`.

    Maps are descended by network, data set or step, whichever they name, else by `other`. Raises InputError where
    nothing fits, and where what stands there is no value with its source.
    """
    protocol = _root_.protocol
    if key not in protocol.recipe:
        raise InputError(f"protocol={protocol.name} has no value for {key}{nearest(key, map(str, protocol.recipe))}")
    entry = protocol.recipe[key]
    if not OmegaConf.is_list(entry) or len(entry) != 2 or not isinstance(entry[1], str):
        raise InputError(f"protocol={protocol.name}: recipe.{key}: expected [value, source], the source as text")
    value = entry[0]
    while isinstance(value, DictConfig):
        # Worked out for the few values that hang on it: it costs as much as all the rest.
        chosen = (_root_.model.name, _root_.dataset.name, _choices()["step"])
        name = next((name for name in chosen if name in value), "other")
        if name not in value:
            raise InputError(
                f"protocol={protocol.name} has no {key} for {' with '.join(chosen)}: give it on the command line"
            )
        value = value[name]
    return value


def register_resolvers() -> None:
    """Make `${recipe:KEY}`, `${expanded:PATH}` and `${unless:OTHER,VALUE}`, which is VALUE where OTHER is null, known
    to OmegaConf, and the choice `swa+ema` to Hydra; to be called before a config is used.
    """
    OmegaConf.register_new_resolver("recipe", look_up, replace=True)
    OmegaConf.register_new_resolver("expanded", lambda path: expanded(str(path), "results_dir"), replace=True)
    OmegaConf.register_new_resolver("unless", lambda other, value: value if other is None else None, replace=True)
    register_several()


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
        _check_choices()
        _check_keys(config)
        _check_protocol(config)
        values = {str(key): _value(config, key) for key in config if key != "hydra"}
    except OmegaConfBaseException as error:
        raise InputError(_reason(error)) from error
    for part in ("step", "collect"):
        if not isinstance(values["method"].get(part), str):
            raise InputError(f"method.{part}: expected the name of a {part}; keys of the {part} itself are {part}.KEY")
    values["method"] = _method_name(values["method"])
    values["protocol"] = values["protocol"]["name"]
    run = RunConfig.of(values)
    _check_use(config.schedule, run.recipe)
    return run


def _check_use(schedule: DictConfig, recipe: Recipe) -> None:
    """Raise InputError for a value that changes nothing and would be recorded as another run. What stands in a protocol
    for another tail or shape than the chosen one was not given for this run, and stays; what is stored is not checked.
    """
    if "num_classes" in recipe.model.target:
        raise InputError("model.num_classes: the number of classes is that of the data set; expected no such key")
    if public(str(schedule.get("_target_"))) != "broadopt.schedule.Schedule":
        return
    for decided_by, users in USED_BY.items():
        chosen = recipe.schedule.get(decided_by)
        if chosen is not None and (not isinstance(chosen, str) or chosen not in users):
            continue  # the schedule says which there are
        for key in dict.fromkeys(key for keys in users.values() for key in keys):
            given, has_use = recipe.schedule.get(key), chosen is not None and key in users[chosen]
            if given is not None and not has_use and not OmegaConf.is_interpolation(schedule, key):
                having = " or ".join(name for name, keys in users.items() if key in keys)
                without = "it left out" if key in NOT_NULL else f"schedule.{key}=null"
                raise InputError(
                    f"schedule.{key}={given:g}: schedule.{decided_by}={chosen or 'null'} has no use for it; expected "
                    f"{without}, or schedule.{decided_by}={having} with it"
                )


def _value(config: DictConfig, key: Any) -> Any:
    value = config[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def _reason(error: OmegaConfBaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:  # a resolver's own error lies somewhere below OmegaConf's
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    key = re.fullmatch(r"Interpolation key 'collect\.(\w+)' not found", str(error).splitlines()[0])
    if key and str(error.full_key).startswith("schedule."):  # schedule=swa beside a collector without a start
        return (
            f"{error.full_key}: is that of the collector, and this one has no collect.{key[1]}; expected "
            f"{error.full_key}=BUDGETS, or a collector with {key[1]} (collect=swa)"
        )
    return f"{error.full_key}: {str(error).splitlines()[0]}" if error.full_key else str(error).splitlines()[0]


def _method_name(method: Mapping[str, str]) -> str:
    step, collect = _choices()["step"], _choices()["collect"]
    chosen = _choices().get("method")
    if (step, collect) == (method["step"], method["collect"]):
        if method["name"] != chosen and method["name"] in options("method"):
            raise InputError(f"method.name={method['name']}: that is another method; this run is {chosen}")
        return method["name"]
    _check_composition(str(chosen), method)
    if collect == "none":
        return step
    # Of several collectors the first + would be taken for that between the step and its collector.
    return collect if step == "sgd" and "+" not in collect else f"{step}+{collect}"


def _check_composition(chosen: str, method: Mapping[str, str]) -> None:
    """A run with another step or collector than its method's is a composition, where they were chosen after it. A file
    that only names a step and never chooses it would train plain SGD under its own name: raise InputError.
    """
    named, made = _of_the_method_alone(chosen)
    for part in ("step", "collect"):
        if named[part] != made[part]:
            raise InputError(
                f"method={chosen}: its file says {part}: {named[part]}, but its defaults choose {part}: {made[part]}; "
                f"expected the line `- override /{part}: {named[part]}` in them"
            )
        if method[part] != named[part]:
            raise InputError(f"method.{part}={method[part]}: it is chosen by {part}={method[part]}")


def _of_the_method_alone(chosen: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The step and collector that the file of a method names, and those that it chooses."""
    from hydra.core.hydra_config import HydraConfig

    if chosen in options("method"):
        shipped: Any = OmegaConf.load(config_dir() / "method" / f"{chosen}.yaml")
        return shipped.method, shipped.method
    current: Any = HydraConfig.instance().cfg
    try:
        alone = compose([f"method={chosen}"])
        return dict(alone.method), dict(_choices())
    finally:
        HydraConfig.instance().set_config(current)


def _check_choices() -> None:
    """A file can be named in several ways, a choice in one: it is part of a run's name and decides its recipe."""
    from hydra.core.hydra_config import HydraConfig

    for group, choice in _choices().items():
        plain = posixpath.normpath(choice or "").removesuffix(".yaml").removesuffix(".yml")
        if choice and choice != plain:
            raise InputError(f"{group}={choice}: a choice is given by its name alone, {group}={plain}")
    given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    for group in (*COMPOSED, "experiment"):
        if group in _choices():
            continue
        removed = f"~{group}" in {one.partition("=")[0] for one in given}
        if removed and group in ("step", "collect"):
            raise InputError(f"{group} is missing: a key cannot be removed, only given another value")
        # Hydra merges a list of choices, and forgets their names; of these two broadopt ships no choices.
        if not removed and (group not in UNCHOSEN or any(one.lstrip("+").startswith(f"{group}=[") for one in given)):
            raise InputError(f"{group}: expected one choice, found a list; {several(group)}")


def several(group: str) -> str:
    """What is meant by several choices of a group, which are one choice each of several runs."""
    if group == SEVERAL:
        return "several collectors are joined by +, as collect=swa+ema"
    return f"several are the runs of a sweep, -m {group}=A,B"


def _check_keys(config: DictConfig) -> None:
    keys = {rule.split(".")[0] for rule in RULES} | set(COMPOSED)
    for key in (str(key) for key in config if key != "hydra"):
        if key == "experiment":
            raise InputError(NO_PACKAGE.format("experiment"))
        if key not in keys:
            raise InputError(f"unknown key {key}{about_key(key, [*keys, *RULES])}")
    for key in sorted(keys):
        if OmegaConf.is_missing(config, key):
            raise InputError(f"{key}=???: expected {RULES[key].words if key in RULES else 'its own keys'}")
        if key not in config:
            raise InputError(f"{key} is missing: a key cannot be removed, only given another value")
        if key in COMPOSED and not OmegaConf.is_dict(config[key]):
            hint = f"; in a file {key}={config[key]} is `- override /{key}: {config[key]}` among the defaults"
            hint *= config[key] in options(key)
            raise InputError(f"{key}={config[key]}: expected the group's own keys, {key}.KEY=VALUE{hint}")
        for name in map(str, config[key] if key in CLOSED else ()):
            if name in CLOSED[key]:
                continue
            if key == "method" and name in keys:
                raise InputError(NO_PACKAGE.format("method"))
            if key == "method" and name == "_target_":
                raise InputError("method._target_: a file with a _target_ is a step, and lies in the folder step")
            raise InputError(f"unknown key {key}.{name}{nearest(name, CLOSED[key], prefix=f'{key}.')}")


def _check_protocol(config: DictConfig) -> None:
    """Raise InputError for a protocol of the user's by the name of another, and for a value in it that no config looks
    up: by a name that is misspelt that of the protocol which it is laid over would count, under the name of this one.
    """
    from hydra.core.hydra_config import HydraConfig

    protocol, chosen, shipped = config.protocol, _choices().get("protocol"), options("protocol")
    if chosen in shipped or not OmegaConf.is_dict(protocol.get("recipe")):
        return
    if protocol.get("name") in shipped:
        raise InputError(f"protocol={chosen}: its name is {protocol.name}, that of another; expected name: {chosen}")
    sources = HydraConfig.get().runtime.config_sources
    known = sorted(looked_up(tuple(Path(source.path) for source in sources if source.schema == "file")))
    for key in map(str, protocol.recipe):
        if key not in known:
            hint = about_key(key, known) or f"; expected some of {', '.join(known)}"
            raise InputError(f"protocol={chosen}: recipe.{key}: no config has ${{recipe:{key}}}{hint}")


def recipe_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The recorded config of `broadopt-run OVERRIDES` on the published data, its precision left at `auto`."""
    return dict(_recipe(tuple(overrides)))


@cache
def _recipe(overrides: tuple[str, ...]) -> dict[str, Any]:
    return run_config(compose(overrides)).recipe.record()
