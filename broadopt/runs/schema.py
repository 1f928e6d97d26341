"""What a result and a heartbeat have to be, so that whatever reads them need not ask again.

Both files may have been made or edited by anyone, a checksum and an identity included. Their fields are held here, and
nowhere else, against types and ranges; those that nothing reads are left as they are.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from broadopt.errors import printable

SCHEMA = 1
STATES = ("finished", "failed", "interrupted")
PRECISIONS = ("fp32", "tf32", "bf16")

Check = Callable[[Any], str | None]
"""What is wrong with a value: `: expected ...`, after the place inside it, `.metrics.last`; None where nothing is."""

LARGEST = 1e15
"""Of any count, duration or rate: products and quotients of a few of them stay finite."""


def check_result(result: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, where a result is not what its readers rely on."""
    _raise(_RESULT(result))
    names = {key: result["config"][key]["name"] for key in ("dataset", "model")}
    names |= {key: result["config"][key] for key in ("method", "protocol", "seed", "budget")}
    precision = result["config"]["precision"]
    for key, value in names.items():
        if result[key] != value:
            raise ValueError(f"{key} {_shown(result[key])} is not that of its config, {_shown(value)}")
    if result["environment"].get("precision", precision) != precision:
        raise ValueError("environment.precision is not that of its config")
    if result["state"] == "finished" and not (result["metrics"]["last"] and result["metrics"]["best"]):
        raise ValueError("finished without metrics.last and metrics.best")


def check_progress(progress: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, where a heartbeat is not what its readers rely on."""
    _raise(_PROGRESS(progress))


def check_trunk(trunk: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the field, where a trunk.json is not what its readers rely on."""
    _raise(_TRUNK_FILE(trunk))


def _raise(wrong: str | None) -> None:
    if wrong is not None:
        raise ValueError(wrong.removeprefix(".").removeprefix(": "))


def _shown(value: Any) -> str:
    """A value in a message: printable, and no longer than a line has room for."""
    text = printable(value[:60] if isinstance(value, str) else reprlib.repr(value))  # of a megabyte only a few words
    return text if len(text) < 60 else f"{text[:57]}..."


def _number(low: float, high: float, words: str = "", *, least: float = 0.0) -> Check:
    """A finite number from `low` to `high`; what is nearer to zero than `least`, zero apart, is none either."""
    words = words or f"a number from {low:g} to {high:g}"

    def check(value: Any) -> str | None:
        is_number = type(value) is float or type(value) is int  # true and false are whole numbers elsewhere
        if is_number and low <= value <= high and math.isfinite(value) and (value == 0 or abs(value) >= least):
            return None
        return f": expected {words}, found {_shown(value)}"

    return check


def _whole(low: int, high: float = LARGEST) -> Check:
    def check(value: Any) -> str | None:
        if type(value) is int and low <= value <= high:
            return None
        return f": expected a whole number from {low} to {high:g}, found {_shown(value)}"

    return check


def _text(test: Callable[[str], Any], words: str) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, str) and test(value) else f": expected {words}, found {_shown(value)}"

    return check


def _one_of(*values: str) -> Check:
    return _text(lambda value: value in values, f"{', '.join(values[:-1])} or {values[-1]}")


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else ": expected true or false"


def _nullable(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _mapping(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """A mapping with these fields, among others."""
    checks, expected = {**required, **(optional or {})}, frozenset(required)

    def check(value: Any) -> str | None:
        if not isinstance(value, dict):
            return f": expected a mapping, found {_shown(value)}"
        if not expected <= value.keys():
            return f": without {', '.join(key for key in required if key not in value)}"
        for key, inner in checks.items():
            if key in value and (wrong := inner(value[key])) is not None:
                return f".{key}{wrong}"
        return None

    return check


def _each(key_test: Callable[[str], Any], inner: Check, words: str) -> Check:
    """A mapping whose keys pass a test."""

    def check(value: Any) -> str | None:
        if not isinstance(value, dict):
            return f": expected a mapping, found {_shown(value)}"
        for key, item in value.items():
            if not key_test(key):
                return f": expected {words} as keys, found {_shown(key)}"
            if (wrong := inner(item)) is not None:
                return f".{key}{wrong}"
        return None

    return check


def _budgets(value: Any) -> str | None:
    if not isinstance(value, list) or not all(_POSITIVE(item) is None for item in value):
        return f": expected a list of numbers of budgets, found {_shown(value)}"
    return None


def _is_name(text: str) -> bool:
    """Whether a name can be a part of a run folder's path, and of that alone."""
    parts = text.split("/")
    return 0 < len(text) <= 200 and text.isprintable() and not any(part in ("", ".", "..") for part in parts)


_ANY: Check = _mapping({})
_LINE = _text(lambda text: len(text) <= 1000, "at most 1000 characters")
_NAME = _text(_is_name, "a name of at most 200 characters, which makes a folder")
_POSITIVE = _number(1e-9, LARGEST)
# Zero or large enough to divide by: a rate, or a duration, that was not measured is zero.
_MEASURED = _number(0, LARGEST, least=1e-9)
_IDENTITY = _text(lambda text: re.fullmatch(r"[0-9a-f]{64}", text), "64 hexadecimal digits")

_SEED = _whole(0, 2**63 - 1)
# What a run's size and price are worked out from; results of earlier versions are without them.
_SIZE = {name: _nullable(_whole(1)) for name in ("parameters", "images_per_epoch")}
_SIZE |= {"macs": _nullable(_whole(0))}  # 0, as null, where they could not be counted: earlier versions wrote it
_SIZE |= {"passes": _nullable(_POSITIVE)}

_ALSO = _each(_is_name, _mapping({}, {"_target_": _LINE, "budgets": _budgets}), "names of collectors")

_CONFIG = _mapping(
    {
        "dataset": _mapping(
            {"name": _NAME, "fingerprint": _nullable(_LINE)}, {"validation": _whole(0), "_target_": _LINE}
        ),
        "model": _mapping({"name": _NAME}, {"_target_": _LINE}),
        "step": _mapping({}, {"_target_": _LINE}),
        "collect": _mapping({}, {"_target_": _LINE, "budgets": _budgets, "also": _ALSO}),
        "method": _NAME,
        "protocol": _NAME,
        "seed": _SEED,
        "budget": _POSITIVE,
        "precision": _one_of(*PRECISIONS),
    },
    {"batch_size": _whole(1), "processes": _whole(1)},
)


def _figures(split: str) -> dict[str, Check]:
    """Percent, nats and a fraction, with room for the rounding of sums."""
    return {
        f"{split}_accuracy": _number(0, 100 + 1e-6, "a number of percent from 0 to 100"),
        f"{split}_nll": _number(-1e-6, 1e100, "a number of nats >= 0"),
        f"{split}_ece": _number(0, 1 + 1e-6, "a fraction from 0 to 1"),
    }


def _split(split: str) -> dict[str, Check]:
    figures = _figures(split)
    best = {f"{split}_accuracy": figures[f"{split}_accuracy"], "epoch": _MEASURED}
    return {"last": _nullable(_mapping(figures)), "best": _nullable(_mapping(best, figures))}


_COLLECTED = _each(
    # Every digit of a float, as Python writes it.
    lambda key: re.fullmatch(r"([\w./-]{1,100} )?[0-9]{1,7}(\.[0-9]{1,21})?(e[+-]?[0-9]{2})?", key),
    _mapping(_figures("test"), {"members": _number(0, LARGEST), "epochs": _MEASURED, **_figures("validation")}),
    "numbers of budgets, behind the name of another collector than the run's own,",
)

_TRUNK = {"identity": _IDENTITY, "epochs": _whole(1), "run": _LINE, "train_seconds": _MEASURED}
_TRUNK_FILE = _mapping(
    {**_TRUNK, "steps": _whole(1), "deterministic": _flag, "config": _ANY}, {"trunk": _mapping(_TRUNK)}
)

_RESULT = _mapping(
    {
        "identity": _IDENTITY,
        "state": _one_of(*STATES),
        **dict.fromkeys(("dataset", "model", "method", "protocol"), _NAME),
        "seed": _SEED,
        "config": _CONFIG,
        "epochs": _MEASURED,
        "budget": _POSITIVE,
        "metrics": _mapping(_split("test") | {"collected": _COLLECTED}, {"validation": _mapping(_split("validation"))}),
        "cost": _mapping(
            {"train_seconds": _MEASURED, "images_per_second": _MEASURED},
            {"gradient_evaluations": _number(0, LARGEST), "peak_memory_bytes": _nullable(_whole(0)), **_SIZE},
        ),
        "environment": _mapping({}, {"precision": _one_of(*PRECISIONS), "device": _nullable(_LINE)}),
    },
    {"failure": _mapping({"reason": _text(lambda text: text.strip(), "why it failed")}), "trunk": _mapping(_TRUNK)},
)

_PROGRESS = _mapping(
    {
        "identity": _IDENTITY,
        "config": _CONFIG,
        "host": _LINE,
        "machine": _LINE,
        "pid": _whole(0),
        "device": _LINE,
        "time": _number(0, LARGEST),
        "epoch": _nullable(_MEASURED),
        "epochs": _nullable(_POSITIVE),
        "images_per_epoch": _SIZE["images_per_epoch"],
    },
    {
        **_SIZE,
        "threads": _whole(1),
        "step": _whole(0),
        "steps": _whole(1),
        "moved": _number(0, LARGEST),
        "images_per_second": _nullable(_MEASURED),
        "seconds_left": _nullable(_number(0, LARGEST)),
        "trunk_epochs": _whole(0),
        "epochs_elsewhere": _MEASURED,
    },
)
