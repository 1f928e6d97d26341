"""The commands that repeat runs, or that carry on with those that did not finish."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from broadopt.analysis.comparing.keys import flat
from broadopt.analysis.reporting.gathered import Gathered
from broadopt.analysis.status.cells import Cell, Status, commands, place
from broadopt.analysis.status.state import Run
from broadopt.analysis.tables.match import Compose, differing, show, step_and_collect
from broadopt.config.identity import AS_WITHOUT, identity_of
from broadopt.config.shipped import SEVERAL, names_of, options
from broadopt.errors import InputError
from broadopt.runs.repeat import repeat_command, run_command

_WORD = re.compile(r"[\w./+-]{1,100}", re.ASCII)
_KEY = re.compile(r"[a-z_]+(\.[a-z_]+){0,3}", re.ASCII)
"""What can be put on a command line unseen: names and values come from files that anyone may have written."""

LEFT_OPEN = ("seed", "precision", "processes")

MOST = 100
"""Recipes whose overrides are worked out: each takes Hydra some tenths of a second."""

ROUNDS = 3
"""Times that overrides are completed by what they leave different."""


def runs_to_do(cells: Sequence[Cell], found: Gathered) -> Iterator[tuple[Cell, Run, str]]:
    """Each run that is neither finished nor running, with its command, by which it goes on where it was found."""
    for cell in cells:
        for run in cell.runs:
            root, _ = found.place_of(run.record)
            for command in commands(Status((replace(cell, runs=(run,)),), ()), root, ()):
                yield cell, run, command


class Repeats:
    """How runs are repeated: by their folders, or by overrides where these make the same config.

    `compose` is that of `broadopt.analysis.tables.match.Recipes`.
    """

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._known: dict[str, tuple[str, ...] | None] = {}

    def command(self, record: Mapping[str, Any], path: Path, root: Path) -> str:
        """What to type for a run of a recorded config that lies in the folder `path` of the results folder `root`;
        empty where nothing would do.
        """
        if os.path.isfile(path / "config.yaml"):
            # Its config.yaml has the results folder of the first time, which may have been moved since.
            return repeat_command(record, path, [f"results_dir={root}"])
        words = self._overrides(record)
        if words is None:
            return ""
        named = (f"seed={record['seed']}", f"precision={record['precision']}", *place(root))
        return run_command(record, [*words, *named])

    def _overrides(self, record: Mapping[str, Any]) -> tuple[str, ...] | None:
        recipe = _without(record)
        key = identity_of(recipe)
        if key not in self._known and len(self._known) < MOST:
            self._known[key] = self._found(recipe)
        return self._known.get(key)

    def _found(self, recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
        words = _names(recipe)
        # AS_WITHOUT: what is not recorded at its first value has to be given where today's recipe has another.
        values = {**AS_WITHOUT, **flat(recipe)}
        for _ in range(ROUNDS):
            composed = self._composed(words) if words else None
            if words is None or composed is None:
                return None
            if identity_of(_without(composed)) == identity_of(recipe):
                return words
            # Without those that only follow another; what does not follow it after all still differs the next time.
            changed = [key for key in differing(composed, recipe) if key]
            # A key that is none of a recipe's is no override of one: `schedule` chooses a file, `hydra.searchpath` says
            # where files are looked for, and a recorded config may hold both.
            known = {**AS_WITHOUT, **flat(composed)}
            given = [key for key in changed if key in known and not options(key) and _can_be_given(key, values)]
            if not changed or given != changed:
                return None
            words = (*words, *(f"{key}={_given(values[key])}" for key in changed))
        return None

    def _composed(self, words: Sequence[str]) -> dict[str, Any] | None:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        try:
            return self._compose(list(words))
        except (InputError, HydraException, OmegaConfBaseException):
            return None


def _without(record: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded config without what a recipe leaves open, and without the fingerprint of the data."""
    kept = {key: value for key, value in record.items() if key not in LEFT_OPEN}
    return {**kept, "dataset": {**record["dataset"], "fingerprint": None}}


def _names(recipe: Mapping[str, Any]) -> tuple[str, ...] | None:
    groups = {"dataset": recipe["dataset"]["name"], "model": recipe["model"]["name"], "protocol": recipe["protocol"]}
    method = recipe["method"]
    if "+" in method or method not in options("method"):
        step, collect = step_and_collect(method)
        groups |= {"method": step, "collect": collect}
    else:
        groups |= {"method": method}
    # By its name in these alone: any other text, a network called 1 or true, is something else to Hydra.
    chosen = [(group, name) for group, value in groups.items() for name in _choices(group, value)]
    if not all(name in options(group) for group, name in chosen) or "image_folder" in groups.values():
        return None
    return tuple(f"{group}={value}" for group, value in groups.items())


def _choices(group: str, value: str) -> list[str]:
    return names_of(value) if group == SEVERAL else [value]


def _can_be_given(key: str, values: Mapping[str, Any]) -> bool:
    return bool(_KEY.fullmatch(key)) and key in values and _is_plain(values[key])


def _given(value: Any) -> str:
    """A plain value as Hydra's command line takes it."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_given, value))}]"
    return "null" if value is None else show(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float)) or bool(_WORD.fullmatch(str(value)))
