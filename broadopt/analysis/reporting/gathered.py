"""What the page is made of: every result, heartbeat and history of one or several results folders, read once."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broadopt.analysis.comparing import selection
from broadopt.analysis.comparing.frame import read_history
from broadopt.analysis.status import state
from broadopt.analysis.status.state import Folder
from broadopt.analysis.tables.match import Result
from broadopt.config.identity import identity_of
from broadopt.errors import InputError
from broadopt.runs.folders import located, run_folder


@dataclass(frozen=True)
class Gathered:
    """The runs of a report."""

    roots: tuple[Path, ...]
    """The results folders."""
    folder: Folder
    """All of them as one, as `broadopt.analysis.status` sees it."""
    results: tuple[Result, ...]
    """Of every state, each with its "path"."""
    left_out: tuple[str, ...]
    """A line on each file that cannot be used."""
    selected: bool = False
    """Whether these are not all runs of the folders."""

    @property
    def finished(self) -> list[Result]:
        """The runs that have their final figures."""
        return [result for result in self.results if result["state"] == "finished"]

    def place_of(self, record: Mapping[str, Any]) -> tuple[Path, Path]:
        """The results folder that a run was found in, where it goes on, and its own folder; of a run that was not
        found, in the first results folder.
        """
        key = identity_of(record)
        result, seen = self.folder.results.get(key), self.folder.progress.get(key)
        if seen and (result is None or result["state"] != "finished"):
            folder = seen[0]
        elif result is not None:
            folder = Path(result["path"])
        else:  # with neither it may have left a checkpoint
            folders = [run_folder(root, record) for root in self.roots]
            folder = next((one for one in folders if os.path.isdir(one)), folders[0])
        roots = (root for root in self.roots if folder.is_relative_to(root / "runs"))
        return next(roots, self.roots[0]), folder


def gather(given: Sequence[Path], where: Sequence[str] = ()) -> Gathered:
    """The runs of the results folders `given` that fit `where`. Raises InputError where there is none."""
    roots = tuple(dict.fromkeys(located(folder, option="") for folder in given))
    # Statuses come first: a run that ends in between then has a result, and no number is missing.
    looked = [state.look(root) for root in roots]
    results, unusable = selection.read(roots)
    ahead = [f"{root}/" if len(roots) > 1 else "" for root in roots]
    seen = [f"{words}{line}" for words, folder in zip(ahead, looked, strict=True) for line in folder.left_out]
    left_out = tuple(dict.fromkeys((*unusable, *seen)))
    folder = _as_one(looked, results)
    if not (results or folder.progress or left_out):
        raise InputError(f"{_names(roots)}: no run to report on; expected a folder that broadopt-run has written to")
    if where:
        results, folder = _selected(results, folder, where)
    return Gathered(roots, folder, tuple(results), left_out, selected=bool(where))


def _names(roots: Sequence[Path]) -> str:
    return f"results folder{'s' * (len(roots) > 1)} {', '.join(map(str, roots))}"


def _as_one(looked: Sequence[Folder], results: Sequence[Result]) -> Folder:
    if len(looked) == 1:
        (one,) = looked
        return state.settled(one.root, results, one.progress.values(), left_out=one.left_out)
    found = [{**result, "folder": result["path"]} for result in results]
    return state.settled(Path(), found, (beat for folder in looked for beat in folder.progress.values()))


def _selected(results: Sequence[Result], folder: Folder, where: Sequence[str]) -> tuple[list[Result], Folder]:
    """The runs that fit, those that have only a heartbeat too."""
    # All together: what is the only run of a value may be running, and a key may be recorded by runs of either kind.
    every = [*results, *(seen for _, seen in folder.progress.values())]
    keys = {run["identity"] for run in selection.select(every, selection.conditions(where))}
    return [result for result in results if result["identity"] in keys], replace(
        folder,
        results={key: value for key, value in folder.results.items() if key in keys},
        progress={key: value for key, value in folder.progress.items() if key in keys},
    )


class Histories:
    """history.csv by result, each read once; `problems` has a line on each that cannot be used."""

    def __init__(self) -> None:
        self._known: dict[str, list[dict[str, float]]] = {}
        self.problems: list[str] = []

    def __call__(self, result: Mapping[str, Any]) -> list[dict[str, float]]:
        """The rows of a result's history, a row an epoch."""
        key = result["identity"]
        if key not in self._known:
            self._known[key], problem = read_history(dict(result))
            self.problems += [problem.removeprefix("left out: ")] if problem else []
        return self._known[key]
