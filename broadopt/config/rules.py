"""What each value of a config has to be."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from broadopt.config.habits import about_value
from broadopt.config.identity import AS_WITHOUT, is_of_others
from broadopt.errors import InputError


@dataclass(frozen=True)
class Rule:
    """What a value has to be: a type, a test, and both in words; `optional` where null is allowed as well."""

    kind: type
    test: Callable[[Any], bool]
    words: str
    optional: bool = False
    names: tuple[str, ...] = ()
    """The values, where they can be counted, as they are typed."""
    is_path: bool = False
    is_several: bool = False
    """Whether a name stands for a list of one, and `none` for the empty one."""

    def meant(self, given: Any) -> Any:
        """What a value that is given stands for."""
        if self.is_several and isinstance(given, str):
            return [] if given == "none" else [given]
        if isinstance(given, bool) and self.kind is str and "true" in self.names:
            return str(given).lower()
        if self.kind is float and given == "inf":
            return math.inf  # as `checked` leaves it, and so a config that is kept
        return float(given) if self.kind is float and type(given) is int and _fits(given) else given


def _fits(value: float) -> bool:
    """Whether a number, a whole one of any length too, is one that a float can hold."""
    return -sys.float_info.max <= value <= sys.float_info.max


def _number(low: float, words: str, *, above: bool = False, high: float = math.inf, optional: bool = False) -> Rule:
    def is_within(value: float) -> bool:
        return (value > low if above else value >= low) and value <= high and value < math.inf

    return Rule(float, is_within, words + ", or null" * optional, optional)


def _choice(*names: str) -> Rule:
    return Rule(str, lambda value: value in names, "one of " + ", ".join(names), names=names)


def _numbers(words: str) -> Rule:
    def are_numbers(values: list[Any]) -> bool:
        return all(type(value) in (int, float) and _fits(value) for value in values)

    return Rule(list, are_numbers, words)


def _choices(*names: str) -> Rule:
    def are_names(values: list[Any]) -> bool:
        return all(value in names for value in values) and len(set(values)) == len(values)

    words = f"none, one of {', '.join(names)}, or a list of them"
    return Rule(list, are_names, words, names=("none", *names), is_several=True)


def _name() -> Rule:
    def test(value: str) -> bool:
        return len(value) <= 200 and bool(re.fullmatch(r"\w[\w.+-]*(/\w[\w.+-]*)*", value))

    return Rule(str, test, "a name of at most 200 characters, which makes a folder")


def _folder() -> Rule:
    return Rule(str, bool, "a folder", is_path=True)


def _kind_or_file(*names: str) -> Rule:
    return Rule(str, bool, f"{', '.join(names)}, or a file", names=names, is_path=True)


def _flag() -> Rule:
    return Rule(bool, lambda value: True, "true or false", names=("true", "false"))


RULES = {
    "seed": Rule(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1"),
    "budget": _number(0, "a number of epochs > 0, at most a million", above=True, high=1e6),
    "batch_size": Rule(int, lambda value: value >= 1, "a whole number >= 1"),
    "lr": _number(0, "a number > 0", above=True),
    "momentum": _number(0, "a number from 0 to 1", high=1),
    "nesterov": _flag(),
    "weight_decay": _number(0, "a number >= 0"),
    "label_smoothing": _number(0, "a number from 0 to 1", high=1),
    "clip": _number(0, "a number > 0", above=True, optional=True),
    "evaluate_every": Rule(int, lambda value: value >= 1, "a whole number of epochs >= 1"),
    "precision": _choice("auto", "fp32", "tf32", "bf16"),
    "device": Rule(
        str, lambda value: _is_device(value), "auto, cpu, cuda or cuda:N", names=("auto", "cpu", "cuda", "cuda:0")
    ),
    "memory_format": _choice("auto", "channels_last", "contiguous"),
    "compile": _flag(),
    "graphs": _choice("auto", "true", "false"),
    "deterministic": _flag(),
    "data_dir": _folder(),
    "results_dir": _folder(),
    "force": _flag(),
    "wait": _flag(),
    "plan": _flag(),
    "tracker": _choices("tensorboard", "wandb", "mlflow", "trackio"),
    "objective": _choice("auto", "validation_accuracy", "validation_nll", "test_accuracy", "test_nll"),
    "keep": _choice("none", "snapshots"),
    "trunk": _choice("none", "share"),
    "checkpoint.minutes": _number(0, "a number of minutes >= 0"),
    "checkpoint.predictor": _flag(),
    "dataset.name": _name(),
    "model.name": _name(),
    "method": _name(),
    "dataset.label_noise": _number(0, "a share from 0 to 1", high=1),
    "dataset.noise": _kind_or_file("symmetric", "asymmetric"),
    "dataset.coarse": _flag(),
    "dataset.validation": Rule(int, lambda value: value >= 0, "a whole number of images >= 0"),
    "dataset.verify": _flag(),
    "dataset.path": _folder(),
    "dataset.data_dir": _folder(),
    "augmentation.pad": Rule(int, lambda value: value >= 0, "a whole number of pixels >= 0"),
    "augmentation.border": _choice("black", "mean"),
    "augmentation.flip": _flag(),
    "augmentation.autoaugment": _flag(),
    "augmentation.cutout": Rule(int, lambda value: 0 <= value <= 32, "a whole number of pixels from 0 to 32"),
    "augmentation.cutmix": _number(0, "a probability from 0 to 1", high=1),
    "augmentation.mean": _numbers("a list of three numbers"),
    "augmentation.std": _numbers("a list of three numbers"),
    "optimizer.betas": Rule(
        list,
        lambda values: len(values) == 2 and all(type(one) in (int, float) and 0 <= one < 1 for one in values),
        "a list of two numbers from 0 to below 1",
    ),
    "optimizer.eps": _number(0, "a number > 0", above=True),
    "step.rho": _number(0, "a number >= 0"),
    "step.eta": _number(0, "a number >= 0"),
    "step.p": Rule(float, lambda value: value >= 1, "a number >= 1, or inf"),
    "step.normalisation": _choice("element", "filter"),
    "step.bn": _choice("both", "first"),
    "step.noise": _choice("fresh", "replay"),
    "step.perturbation": _choice("global", "share"),
    "step.chunk": Rule(int, lambda value: value >= 1, "a whole number of images >= 1, or null", optional=True),
    "step.from": _number(0, "a number of budgets >= 0"),
    "step.until": _number(0, "a number of budgets > 0", above=True, optional=True),
    "step.every": Rule(int, lambda value: value >= 1, "a whole number of steps >= 1"),
    "step.ascent": _number(0, "a share of the batch above 0, at most 1", above=True, high=1),
    "step.second_order": _flag(),
    "step.alpha": _number(0, "a number >= 0"),
    "step.sigma": _number(0, "a number >= 0"),
    "step.decay": Rule(float, lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "step.layers": _choice("all", "normalisation"),
    "collect.start": _number(0, "a number of budgets >= 0"),
    "collect.cycle": _number(0, "a number of budgets > 0", above=True, optional=True),
    "collect.budgets": _numbers("a list of numbers of budgets"),
    "collect.decay": Rule(float, lambda value: 0 <= value < 1, "a number from 0 to below 1, or null", optional=True),
    "collect.half_life": _number(0, "a number of epochs > 0", above=True, optional=True),
    "collect.every": Rule(int, lambda value: value >= 1, "a whole number of steps >= 1"),
    "collect.bn": _choice("reestimate", "own"),
    "collect.latest": Rule(int, lambda value: value >= 1, "a whole number of epochs >= 1"),
    "collect.rank": Rule(int, lambda value: value == 0 or value >= 2, "0 (the diagonal alone) or a whole number >= 2"),
    "collect.samples": Rule(int, lambda value: value >= 1, "a whole number of networks >= 1"),
    "schedule.lr": _number(0, "a number > 0", above=True),
    "schedule.budget": _number(0, "a number of epochs > 0, at most a million", above=True, high=1e6),
    "schedule.per_step": _flag(),
    "schedule.count_from": Rule(int, lambda value: value in (0, 1), "0 or 1"),
    "schedule.decay_over": _number(0, "a number of budgets >= 0"),
    "schedule.decay_to": _number(0, "a number >= 0", optional=True),
    "schedule.start": _number(0, "a number of budgets >= 0"),
    "schedule.replay_from": _number(0, "a number of budgets >= 0", optional=True),
    "schedule.high": _number(0, "a number > 0", above=True, optional=True),
    "schedule.low": _number(0, "a number > 0", above=True, optional=True),
    "schedule.warmup": _number(0, "a number of budgets from 0 to 1", high=1),
    "schedule.cycle": _number(0, "a number of budgets > 0", above=True, optional=True),
}

NEEDED_BY_TAIL: Mapping[str, Sequence[str]] = {
    "constant": ("high",),
    "triangle": ("high", "low", "cycle"),
    "sawtooth": ("high", "low", "cycle"),
    "replay": ("replay_from", "cycle"),
}
"""What each tail of a schedule is made from: keys of the schedule."""

TAKEN_BY_SHAPE: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("constant", "linear", "cosine", "steps"), ()),
    **dict.fromkeys(("linear", "cosine"), ("decay_to",)),
}
"""What the decay of each shape takes beside lr and budget."""


OPEN = ("optimizer", "step", "collect", "schedule")
"""Groups of which code of others may be the target; its keys may have the names of broadopt's and other meanings."""


def _is_device(name: str) -> bool:
    return re.fullmatch(r"auto|cpu|cuda(:(0|[1-9][0-9]?))?", name) is not None


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of nested config values, each held against its rule, unless it is a key of code of others; whole
    numbers are floats where a float is meant, infinity is "inf", a path begins with no ~. Raises InputError.
    """
    copy = deepcopy(dict(values))
    for key, rule in _rules_for(copy):
        parent, leaf = _find(copy, key)
        if parent is None or leaf not in parent:
            continue
        given = parent[leaf]
        value = rule.meant(given)
        if value is None and rule.optional:
            continue
        if type(value) is not rule.kind or not rule.test(value):
            if key.partition(".")[0] in OPEN and is_of_others(parent.get("_target_")):
                continue
            is_name = rule.kind is not list or (rule.is_several and not isinstance(given, list))
            hint = about_value(key, given, rule.names) if is_name else ""
            raise InputError(f"{key}={json.dumps(given, default=str)}: expected {rule.words}{hint}")
        parent[leaf] = expanded(str(value), key) if rule.is_path else "inf" if value == math.inf else value
    _check_finite(copy)
    return copy


def check_together(values: Mapping[str, Any]) -> None:
    """Raise InputError for values of a run that do not go together: the last of them another optimizer than SGD, which
    would be trained at a protocol's learning rates for SGD.
    """
    if values["trunk"] == "share" and values["keep"] == "snapshots":
        raise InputError(
            "trunk=share: the weights of epochs that another run has trained cannot be kept; expected keep=none "
            "with it, or trunk=none"
        )
    if values["compile"] and values["step"].get("second_order"):
        raise InputError("step.second_order=true: compiled networks have no second derivative; expected compile=false")
    if values["optimizer"] == AS_WITHOUT["optimizer"] or is_of_others(values["schedule"].get("_target_")):
        return
    for key in ("high", "decay_to"):
        given = values["schedule"].get(key)
        if given is not None and given > values["lr"]:
            raise InputError(
                f"schedule.{key}={given:g}: the protocol's is SGD's; expected schedule.high= and schedule.decay_to= "
                f"of at most lr={values['lr']:g} with another optimizer"
            )


def _check_finite(node: Any, place: str = "") -> None:
    """Raise InputError where a value, which may be an argument of a user's own code, is a number that no result can
    hold.
    """
    if isinstance(node, float) and not math.isfinite(node):
        raise InputError(f"{place}={node}: expected a finite number, which a result can hold")
    named = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for key, value in named:
        _check_finite(value, f"{place}[{key}]" if isinstance(node, list) else f"{place}.{key}".lstrip("."))


def _rules_for(values: Mapping[str, Any]) -> Iterator[tuple[str, Rule]]:
    """All rules by the keys that they hold for: those of `collect` hold for each collector under collect.also as well.
    Raises InputError where that is not a mapping of collectors.
    """
    yield from RULES.items()
    collect = values.get("collect")
    also = collect.get("also", {}) if isinstance(collect, Mapping) else {}
    if not isinstance(also, Mapping) or not all(isinstance(node, Mapping) for node in also.values()):
        raise InputError("collect.also: expected collectors by name; they are chosen by collect=swa+ema, for example")
    for name in also:
        for key, rule in RULES.items():
            group, _, leaf = key.partition(".")
            if group == "collect":
                yield f"collect.also.{name}.{leaf}", rule


def expanded(path: str, key: str) -> str:
    """`path` with the home folder in the place of a leading `~`. Raises InputError, which names the `key`, where there
    is none: a folder called ~ is what nobody wants.
    """
    found = os.path.expanduser(path)
    if found.startswith("~"):
        home = path.partition("/")[0]
        raise InputError(f"{key}={path}: there is no home folder {home}; ./{path} for a folder of that name")
    return found


def _find(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    *groups, leaf = key.split(".")
    node: Any = values
    for group in groups:
        node = node.get(group) if isinstance(node, dict) else None
    return (node if isinstance(node, dict) else None), leaf
