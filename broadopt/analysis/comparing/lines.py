"""The lines of a table of runs, one a recipe, and the keys that tell them apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from broadopt.analysis.comparing.keys import ABSENT, comparable, completed, distinct, flat, label
from broadopt.analysis.tables.match import Group, Recipes, Result, differing, show
from broadopt.analysis.tables.summary import Summary, longest_key, reading, summarise

OF_THE_METHOD = ("step", "collect", "schedule", "code")
"""Config groups that a method chooses: what is the same in all lines of a method is no column, but said below."""

NAMED = ("seed", "budget", "method", "dataset.name", "model.name")
"""Keys that are the name of a table or of a line already."""

OF_THE_DATA = ("dataset", "model", "precision")
"""Config groups in which two runs have to agree for their accuracies to be compared."""

MOST_KEYS = 200
"""Keys that are looked at: a file of others may have thousands, a recipe has fewer than a hundred."""


@dataclass(frozen=True)
class Line:
    """All runs of one recipe."""

    group: Group
    config: Mapping[str, Any]
    """Flat; with the keys that other lines of the table record, at the value that they have without being recorded."""
    differs: Mapping[str, str] | None
    """From what the protocol prescribes, by key: `0.5 instead of 0.05`; None where no recipe is known."""
    usual_budget: str = ""
    """The recipe's, where the line's own is another."""

    @property
    def method(self) -> str:
        """The name of the method, or of the composition."""
        return self.group.method

    @property
    def finished(self) -> tuple[Result, ...]:
        """The runs that have their final figures."""
        return tuple(run for run in self.group.runs if run["state"] == "finished")

    @property
    def ended(self) -> int:
        """How many of its runs have finished or failed: those that will not go on."""
        return sum(run["state"] in ("finished", "failed") for run in self.group.runs)

    @cached_property
    def settings(self) -> frozenset[tuple[str, Any]]:
        """All of its config that is neither seed nor budget nor chosen by the method."""
        kept = {key: value for key, value in self.config.items() if key not in ("seed", "budget", "method")}
        return frozenset((key, comparable(value)) for key, value in kept.items() if group_of(key) not in OF_THE_METHOD)

    @cached_property
    def data(self) -> frozenset[tuple[str, Any]]:
        """Its settings of data, network and precision."""
        return frozenset((key, value) for key, value in self.settings if group_of(key) in OF_THE_DATA)

    def value(self, key: str) -> Any:
        """The value of a dotted key, ABSENT where the recipe has none."""
        return self.config.get(key, ABSENT)

    def name(self, columns: Sequence[str]) -> str:
        """`sam, step.rho 0.05` among lines with these columns."""
        shown = (f"{key} {label(self.value(key))}" for key in columns if self.value(key) is not ABSENT)
        return ", ".join((self.method, *shown))

    def summary(self, metric: str, key: str | None = None) -> Summary | None:
        """Mean, deviation and count of the test accuracies of its finished runs."""
        return summarise(reading(run, metric=metric, key=key) for run in self.finished)


def group_of(key: str) -> str:
    """The config group of a dotted key, or the key itself."""
    return key.partition(".")[0]


def line_of(group: Group, recipes: Recipes) -> Line:
    """The line of a group of runs, with what differs from its protocol's own recipe, where one is known."""
    expected = recipes.of_protocol(group)
    differs = None if expected is None else differing(expected, group.config)
    usual = show(expected["budget"]) if expected and differs and "budget" in differs else ""
    return Line(group, flat(group.config), differs, usual)


def completed_lines(lines: Sequence[Line]) -> list[Line]:
    """The same lines, each config with the values that keys which another records stand for (`completed`)."""
    configs = completed([line.config for line in lines])
    return [replace(line, config=config) for line, config in zip(lines, configs, strict=True)]


def differing_keys(lines: Sequence[Line]) -> list[str]:
    """The keys in which the lines differ, a key that only follows another left out."""
    keys = dict.fromkeys(key for line in lines for key in line.config if key not in NAMED)
    # What is the same for all methods first; a schedule mostly follows what was given elsewhere.
    places = ("protocol", "precision", "dataset", "model", "augmentation", "step", "collect", "schedule", "code")
    top = {key: places.index(key.split(".")[0]) if key.split(".")[0] in places else 1.5 for key in keys}
    found: list[str] = []
    for key in sorted(keys, key=lambda key: (top[key], key)):
        if len(found) == MOST_KEYS:
            break
        if len(distinct(line.value(key) for line in lines)) > 1 and not _is_copy(key, found, lines):
            found.append(key)
    return found


def _is_copy(key: str, earlier: Sequence[str], lines: Sequence[Line]) -> bool:
    """Whether a key has the value of an earlier one wherever it is there, as schedule.lr has that of lr."""
    having = [line for line in lines if line.value(key) is not ABSENT]
    alike = [
        other for other in earlier if key.startswith("schedule.") or other.rpartition(".")[2] == key.rpartition(".")[2]
    ]
    return any(all(comparable(line.value(key)) == comparable(line.value(other)) for line in having) for other in alike)


def follows(key: str, lines: Sequence[Line], group: Callable[[Line], Any]) -> bool:
    """Whether lines of one group never differ in a key."""
    if key in ("protocol", "precision"):
        return False
    first: dict[Any, Any] = {}
    return all(
        first.setdefault(group(line), comparable(line.value(key))) == comparable(line.value(key)) for line in lines
    )


def is_of_the_method(key: str, lines: Sequence[Line]) -> bool:
    """Whether a key says no more than the name of the method does."""
    part = key.split(".")[0]
    if part == "code":  # a module of one's own that is another for another line tells the two apart
        return len(distinct(line.value(key) for line in lines if line.value(key) is not ABSENT)) < 2
    follows_method = part in OF_THE_METHOD and follows(key, lines, lambda line: (line.method, protocol_of(line)))
    return follows_method and not (part in ("step", "collect") and _was_chosen(key, lines))


def _was_chosen(key: str, lines: Sequence[Line]) -> bool:
    """Whether a line has another value than its recipe, or a number that differs where no recipe tells what is usual:
    whoever compares SAM and ASAM on a network of their own wants to see their rho.
    """
    having = [line for line in lines if line.value(key) is not ABSENT]
    if any(key in (line.differs or {}) for line in having):
        return True
    values = distinct(line.value(key) for line in having)
    are_numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    return are_numbers and len(values) > 1 and any(line.differs is None for line in having)


def protocol_of(line: Line) -> str:
    """The name of a line's protocol."""
    return line.group.protocol


HELD_OUT = (
    "held out: accuracy on the training images that were held out, of what a run reports (collected after the most "
    "budgets, else last); values are to be chosen by it."
)


def held_out(line: Line) -> list[float | None]:
    """Accuracy in percent of each finished run on its held-out images; None for one that has held none out."""
    found: list[float | None] = []
    for run in line.finished:
        key = longest_key([run])
        if key is not None:
            found.append(reading(run, metric="collected", key=key, quantity="validation_accuracy"))
        else:
            last = (run["metrics"].get("validation") or {}).get("last") or {}
            found.append(last.get("validation_accuracy"))
    return found
