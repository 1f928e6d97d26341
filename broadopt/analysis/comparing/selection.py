"""Which runs are compared: those of the results folders, and the keys of their configs that select them."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.analysis.comparing.keys import ABSENT, ALIASES, completed, distinct, flat, label
from broadopt.analysis.tables.match import Result
from broadopt.errors import InputError, nearest, printable
from broadopt.runs import heartbeat, history
from broadopt.runs.folders import located, scan
from broadopt.runs.results import read_several

WORDS = {"true": True, "false": False, "none": None, "null": None}

MOST_VALUES = 20
"""Values of a key that a message lists."""


def read(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The results of all `folders`, each run once and with its "path", and a line on each file that cannot be used.
    Raises InputError.
    """
    roots = list(dict.fromkeys(map(located, folders)))
    found, left_out = read_several(roots)
    # Of several folders the names of run folders begin with theirs already.
    return [
        {**one, "path": one["folder"] if len(roots) > 1 else str(roots[0] / one["folder"])} for one in found
    ], left_out


def with_going_on(folders: Sequence[Path], results: Sequence[Result]) -> list[Result]:
    """The `results` of `folders`, and the runs there that are going on. Of several copies of one run that is not
    finished, one counts: that with the most epochs behind it.
    """
    found = {result["identity"]: result for result in results}
    finished = {identity for identity, result in found.items() if result["state"] == "finished"}
    for one in going_on(folders, finished):
        known = found.get(one["identity"])
        # An interrupted run that goes on has no new epoch for a while.
        goes_on = known is not None and one["state"] == "running" and one["path"] == known.get("path")
        if known is None or goes_on or one["epochs"] > known["epochs"]:
            found[one["identity"]] = one
    return list(found.values())


def going_on(folders: Sequence[Path], known: Collection[str]) -> list[Result]:
    """The runs that have a heartbeat and epochs behind them, shaped as results: those that are "running", and those of
    processes that died ("interrupted"); of several copies of one run that with the most epochs. `known`: identities
    that are left out.

    A heartbeat or history that cannot be used is passed over: the status of the folder names it.
    """
    roots = list(dict.fromkeys(map(located, folders)))
    found: dict[str, Result] = {}
    for root in roots:
        for path in scan(root, heartbeat.NAME)[0]:
            folder = path.parent
            with suppress(OSError, ValueError):
                progress, rows = heartbeat.read(folder), history.read(folder)
                if progress is None or not rows or progress["identity"] in known:
                    continue
                farthest = found.get(progress["identity"])
                if farthest is None or rows[-1]["epoch"] > farthest["epochs"]:
                    name = folder.relative_to(root).as_posix()
                    found[progress["identity"]] = {
                        **_of_a_heartbeat(progress, rows),
                        "state": "running" if heartbeat.is_alive(folder, progress) else "interrupted",
                        "folder": f"{root}/{name}" if len(roots) > 1 else name,
                        "path": str(folder),
                    }
    return list(found.values())


def _of_a_heartbeat(progress: Mapping[str, Any], rows: Sequence[Mapping[str, float]]) -> Result:
    config = progress["config"]
    names = {name: config[name] for name in ("method", "protocol", "seed", "budget")}
    figures = ("epoch", "test_accuracy", "test_nll", "test_ece")
    # The history of a result is held to what the result says; of this one a row may lack any figure.
    whole = [{name: row[name] for name in figures} for row in rows if all(name in row for name in figures)]
    return {
        **names,
        "identity": progress["identity"],
        "dataset": config["dataset"]["name"],
        "model": config["model"]["name"],
        "config": config,
        "epochs": rows[-1]["epoch"],
        "metrics": history.metrics(whole, {}),
        "cost": {},
        "environment": {"device": progress["device"], "precision": config["precision"]},
    }


@dataclass(frozen=True)
class Condition:
    """A key of the recorded config, and the values of which a run has to have one."""

    key: str
    values: tuple[Any, ...]

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a flat config has one of the values; none, which is null too, also fits a key that it lacks."""
        value = config.get(self.key, ABSENT)
        value = None if value is ABSENT else value
        return any(_equal(value, wanted) for wanted in self.values)


def conditions(words: Sequence[str], *, option: str = "--where ") -> tuple[Condition, ...]:
    """`KEY=VALUE[,VALUE]...` each. Raises InputError; `option` is what is typed ahead of them."""
    found = []
    for word in words:
        key, equals, values = word.partition("=")
        if not (key and equals and values):
            ahead = "; the table is named ahead of it" if option else ""
            raise InputError(f"{option}{word}: expected KEY=VALUE or KEY=VALUE,VALUE{ahead}")
        found.append(Condition(ALIASES.get(key, key), tuple(map(_typed, _split(values)))))
    return tuple(found)


def given(where: Mapping[str, Any] | Sequence[str] | None) -> tuple[Condition, ...]:
    """The same from Python: words as above, or `{"step.rho": [0.05, 0.5], "method": "sam"}`, in which a list, or an
    array of numpy or pandas, names several values.
    """
    if where is None:
        return ()
    if isinstance(where, str):
        return conditions(where.split())
    if not isinstance(where, Mapping):
        return conditions(where)
    return tuple(Condition(ALIASES.get(key, key), _several(value)) for key, value in where.items())


def _several(value: Any) -> tuple[Any, ...]:
    """The values that a value from Python names; a number of numpy or torch is one, an array of theirs several."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, (list, set, tuple, range)) else (value,)


def select(results: Sequence[Result], wanted: Sequence[Condition], *, option: str = "--where ") -> list[Result]:
    """The results that fit every condition.

    Raises InputError for a key that none of them has, naming the nearest, and for a value that none of them has.
    """
    if not wanted or not results:
        return list(results)
    configs = completed([flat(result["config"]) for result in results])
    for condition in wanted:
        check_key(condition.key, configs, option=option.strip())
        if not any(map(condition.fits, configs)):
            found = distinct(config[condition.key] for config in configs if condition.key in config)
            shown = ", ".join(map(label, found[:MOST_VALUES])) + (", ..." if len(found) > MOST_VALUES else "")
            asked = ",".join(label(_as_typed(value)) for value in condition.values)
            raise InputError(f"{option}{condition.key}={asked}: no run has this value; they have {printable(shown)}")
    return [
        result
        for result, config in zip(results, configs, strict=True)
        if all(condition.fits(config) for condition in wanted)
    ]


def fits(wanted: Sequence[Condition], config: Mapping[str, Any]) -> bool:
    """Whether a recorded config fits every condition."""
    return all(condition.fits(flat(config)) for condition in wanted)


def check_key(key: str, configs: Iterable[Mapping[str, Any]], *, option: str) -> None:
    """Raise InputError, naming the nearest, for a key that none of some flat configs has."""
    known = {name for config in configs for name in config}
    if key not in known:
        hint = nearest(key, (name for name in known if not name.endswith("_target_")))
        raise InputError(f"{option}{' ' * bool(option)}{key}: no run has a key of this name{hint}")


def _split(text: str) -> list[str]:
    """At the commas outside brackets."""
    return [part for part in re.findall(r"(?:\[[^\]]*\]|[^,\[])+", text) if part]


@dataclass(frozen=True)
class _Typed:
    """A value of a command line: a config may hold what it means or the text itself, as of step.p=inf and model=18."""

    text: str
    value: Any


def _typed(text: str) -> Any:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return tuple(_typed(part) for part in text[1:-1].split(",") if part.strip())
    return _Typed(text.strip("'\""), _value(text))


def _as_typed(value: Any) -> Any:
    """The text of a value of a command line; one from Python stays as it is."""
    if isinstance(value, tuple):
        return tuple(map(_as_typed, value))
    return value.text if isinstance(value, _Typed) else value


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def _equal(value: Any, wanted: Any) -> bool:
    """By value: 200 is 200.0; but true is not 1. A text is equal to what was typed, whatever else that means."""
    if isinstance(wanted, _Typed):
        return value == wanted.text if isinstance(value, str) else _equal(value, wanted.value)
    if isinstance(value, (list, tuple)) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(map(_equal, value, wanted))
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)
