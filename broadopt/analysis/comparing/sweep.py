"""Runs of one data set, network and budget side by side: a line a recipe, a column a key in which the lines differ."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.comparing.keys import ABSENT, distinct, flat, label, order
from broadopt.analysis.comparing.lines import (
    Line,
    completed_lines,
    differing_keys,
    follows,
    group_of,
    is_of_the_method,
    line_of,
    protocol_of,
)
from broadopt.analysis.comparing.selection import check_key
from broadopt.analysis.tables.match import Recipes, Result, groups, rank, show
from broadopt.analysis.tables.summary import longest_key
from broadopt.errors import InputError

OF_A_METHOD = ("step", "collect", "code")

MOST_COLUMNS = 20
"""Columns of keys that a table has; the others are named below it."""


@dataclass(frozen=True)
class Sweep:
    """The lines of one table."""

    dataset: str
    model: str
    budget: float
    lines: tuple[Line, ...]
    columns: tuple[str, ...]
    """The dotted keys that are shown."""
    differing: tuple[str, ...]
    """Those in which the lines differ, shown or not, but for what the method's or the protocol's name says."""
    shared: str
    """In which all lines differ from their recipes."""
    notes: tuple[str, ...]

    @property
    def runs(self) -> list[Result]:
        """The finished runs of all lines."""
        return [run for line in self.lines for run in line.finished]

    @property
    def heading(self) -> str:
        """What all lines have in common: `digits, resnet20, protocol asam2021, budget 5 epochs, fp32`."""
        usual = " or ".join(dict.fromkeys(line.usual_budget for line in self.lines if line.usual_budget))
        budget = f"budget {show(self.budget)} {'epoch' if self.budget == 1 else 'epochs'}"
        budget += f" instead of {usual}" if usual else ""
        first = self.lines[0].group
        protocol = () if "protocol" in self.columns else (f"protocol {first.protocol}",)
        precision = () if "precision" in self.columns else (first.precision,)
        return ", ".join((self.dataset, self.model, *protocol, budget, *precision))


def sweeps(
    results: Iterable[Result], *, recipes: Recipes, columns: Sequence[str] = (), sort: Sequence[str] = ()
) -> list[Sweep]:
    """The tables of some runs, in the order of data sets, networks and budgets.

    `columns`: dotted keys to show instead of those in which the lines differ. `sort`: dotted keys, by which lines
    ascend, and last, best or collected, by which they descend; the method and the columns by default. Raises
    InputError for a key that no run has, and for a column that the runs of one line have different values of.
    """
    together: dict[tuple[str, str, float], list[Line]] = {}
    for group in groups(results):
        place = (group.dataset, group.model, float(group.config["budget"]))
        together.setdefault(place, []).append(line_of(group, recipes))
    found = [
        _sweep(place, completed_lines(lines), columns, sort)
        for place, lines in sorted(together.items(), key=lambda one: one[0])
    ]
    configs = [line.config for sweep in found for line in sweep.lines]
    for option, keys in (("--columns", columns), ("--sort", sort)):
        for key in keys if found else ():
            if key not in DESCENDING or option == "--columns":
                check_key(key, configs, option=option)
    for key in columns:
        _check_is_one(key, found)
    return found


def _check_is_one(key: str, found: Sequence[Sweep]) -> None:
    """Raise InputError for a column whose cells would stand for several runs and be true of one of them."""
    for sweep in found:
        for line in sweep.lines:
            values = distinct(flat(run["config"]).get(key) for run in line.group.runs)
            if len(values) > 1:
                several = f"{label(values[0])} and {label(values[1])} in one line of {line.method}"
                raise InputError(f"--columns {key}: a line is of several runs, with {several}; --per-run: a row a run")


def _sweep(place: tuple[str, str, float], lines: Sequence[Line], columns: Sequence[str], sort: Sequence[str]) -> Sweep:
    differ = differing_keys(lines)
    # What only steps and collectors have is chosen by the method, even where each protocol has methods of its own.
    by_protocol = [key for key in differ if _is_of_the_protocol(key, lines)]
    by_method = [key for key in differ if key not in by_protocol and is_of_the_method(key, lines)]
    shown = [key for key in differ if key not in (*by_protocol, *by_method)]
    chosen = tuple(columns or shown[:MOST_COLUMNS])
    notes = [*_protocols(lines, by_protocol), *_methods(lines, by_method)]
    if not columns and shown[MOST_COLUMNS:]:
        further = ", ".join(shown[MOST_COLUMNS : 2 * MOST_COLUMNS]) + " and more" * (len(shown) > 2 * MOST_COLUMNS)
        notes.append(f"Further keys in which the runs differ: {further} (--columns).")
    return Sweep(
        *place,
        lines=tuple(sorted(lines, key=lambda line: _order(line, chosen, sort))),
        columns=chosen,
        differing=tuple(shown),
        shared=_shared(lines, {*shown, *by_protocol, *by_method}),
        notes=tuple(notes),
    )


def _is_of_the_protocol(key: str, lines: Sequence[Line]) -> bool:
    """Whether a key says no more than the name of the protocol does: not what is other data, another network, or
    another value than the protocol's own.
    """
    if group_of(key) in (*OF_A_METHOD, "dataset", "model"):
        return False
    typed = {name for line in lines for name in line.differs or {} if name}
    return not any(key == name or key.startswith(f"{name}.") for name in typed) and follows(key, lines, protocol_of)


def _protocols(lines: Sequence[Line], keys: Sequence[str]) -> list[str]:
    """The line on a table that mixes protocols."""
    by_protocol: dict[str, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line.group.protocol[-4:], line.group.protocol, rank(line.method))):
        by_protocol.setdefault(line.group.protocol, []).append(line)
    if len(by_protocol) < 2:
        return []
    who = [f"{name} ({', '.join(dict.fromkeys(line.method for line in own))})" for name, own in by_protocol.items()]
    what = [
        f"{key} {' and '.join(label(own[0].value(key)) or 'nothing' for own in by_protocol.values())}"
        for key in keys
        if not key.endswith("_target_")
    ]
    differ = f", which differ in {'; '.join(what)}" if what else ""
    return [f"This table mixes protocols: {' and '.join(who)}{differ}. One protocol= for all is fair."]


def _methods(lines: Sequence[Line], keys: Sequence[str]) -> list[str]:
    """The line on what is particular to each method: options that its lines share."""
    parts = []
    for line in {line.method: line for line in sorted(lines, key=lambda line: rank(line.method))}.values():
        words = [text for key in keys if (text := _particular(key, line, lines))]
        parts += [f"{line.method}: {', '.join(words)}"] if words else []
    return [f"Of the methods: {'; '.join(parts)}."] if parts else []


def _particular(key: str, line: Line, lines: Sequence[Line]) -> str:
    value = line.value(key)
    if value is ABSENT or key.endswith("_target_") or key.startswith("code."):
        return ""
    if line.differs is not None and key in line.differs:
        return line.differs[key]
    if line.differs is not None:
        # On the recipe: what anyone may read in it, but for the numbers by which methods are told apart.
        having = [other.value(key) for other in lines if other.value(key) is not ABSENT]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        methods = {other.method for other in lines if other.value(key) is not ABSENT}
        if key.startswith("schedule.") or not is_number or (len(methods) > 1 and len(distinct(having)) < 2):
            return ""
    return f"{key} {label(value)}"


def _shared(lines: Sequence[Line], told: set[str]) -> str:
    """What no column tells: the keys at which lines that do not differ from each other differ from their recipes."""
    known = [line for line in lines if line.differs is not None]
    texts: dict[str, list[Line]] = {}
    words: dict[str, list[str]] = {"": []}
    for line in known:
        for key, text in (line.differs or {}).items():
            if key != "budget" and not any(name == key or name.startswith(f"{key}.") for name in told):
                texts.setdefault(text, []).append(line)
    for text, own in texts.items():
        words.setdefault("" if len(own) == len(known) else f"{_names(own)}: ", []).append(text)
    unknown = [line for line in lines if line.differs is None]
    if unknown:
        words[""].append(f"no recipe known for {_names(unknown)}" if known else "no recipe known to compare with")
    return "; ".join(f"{who}{', '.join(what) if who else '; '.join(what)}" for who, what in words.items() if what)


def _names(lines: Iterable[Line]) -> str:
    return ", ".join(dict.fromkeys(line.method for line in lines))


DESCENDING = ("last", "best", "collected")
"""Accuracies by which lines can be sorted, the highest first."""


def _order(line: Line, columns: Sequence[str], sort: Sequence[str]) -> tuple[Any, ...]:
    asked = [_height(line, key) if key in DESCENDING else order(line.value(key)) for key in sort]
    return (
        asked,
        rank(line.method),
        [order(line.value(key)) for key in columns],
        sorted(map(str, line.config.items())),
    )


def _height(line: Line, metric: str) -> tuple[int, float]:
    key = longest_key(line.finished) if metric == "collected" else None
    summary = line.summary(metric, key)
    return (1, 0.0) if summary is None else (0, -summary.mean)
