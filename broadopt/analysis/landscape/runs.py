"""Which runs are measured: run folders, or what KEY=VALUE selects of results folders; and what tells them apart."""

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.analysis.comparing import selection
from broadopt.analysis.comparing.keys import ABSENT, completed, distinct, flat, label
from broadopt.config.identity import identity_of
from broadopt.config.own_code import refuse_foreign, say_what_has_changed
from broadopt.config.rules import expanded
from broadopt.config.run_config import Recipe
from broadopt.errors import InputError, printable
from broadopt.files import reason
from broadopt.runs import history, repeat, results
from broadopt.runs.objective import longest

MOST_WORDS = 3
"""Keys that a label has beside the method."""

SHORT = {"model.name": "", "dataset.name": "", "dataset.label_noise": "label noise", "weight_decay": "weight decay"}
"""How a key is called in a label, where not by its last part; nothing where its value says it all."""


Found = tuple[dict[str, Any], Recipe]
"""A result with its "path", and its recipe."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, or one that is going on (state "running" or "interrupted")."""

    folder: Path
    result: Mapping[str, Any]
    """As result.json has it."""
    recipe: Recipe
    label: str
    """What tells it from the others: the method, with the keys that differ among runs of the same method."""
    trust: tuple[str, ...] = ()
    """Modules beside broadopt's that its network and data may come from."""

    @property
    def reported(self) -> Mapping[str, float]:
        """The figures in the result of what the run reports: of what its own collector, not one beside it, had at its
        longest, else of its last weights.
        """
        metrics = self.result["metrics"]
        collected = metrics.get("collected") or {}
        key = longest(collected)
        found: Mapping[str, float] = metrics["last"] if key is None else collected[key]
        return found


def check_code(run: Run, node: Mapping[str, Any]) -> None:
    """Raise InputError where a node of a run's recipe names code that is neither broadopt's nor trusted; a line on
    stderr where it is not the code that the run had.
    """
    refuse_foreign(dict(node), trusted=run.trust, place=run.folder)
    say_what_has_changed(dict(node), run.recipe.code, identity=run.recipe.identity, place=run.folder)


def repeat_command(run: Run, option: str) -> str:
    """What to type for a run once more with `option`, which keeps what it has not kept: in the results folder that it
    lies in now, since its config.yaml has that of the first time.
    """
    trusted = [f"trust={module}" for module in run.trust]
    words = [f"results_dir={_root(run)}", *trusted, option, "force=true"]
    return repeat.repeat_command(run.result["config"], run.folder, words)


def _root(run: Run) -> Path:
    """The results folder that a run lies in; where it was copied without runs/, the folder above its data set."""
    own = results.run_folder("", run.result["config"]).parts  # runs/<dataset>/<model>/<method>/<run>
    for folder in (run.folder, Path(os.path.abspath(run.folder))):
        if folder.parts[-len(own) :] == own:
            return Path(*folder.parts[: -len(own)])
    return folder.parents[len(own) - 2]


def check_different(runs: Sequence[Run], figure: str) -> None:
    """Raise InputError where a run is named twice, be it in two results folders."""
    if len({run.result["identity"] for run in runs}) < len(runs):
        raise InputError(f"{figure}: a run was named twice; expected different runs")


def history_of(run: Run) -> list[dict[str, float]]:
    """The rows of its history.csv, empty where there is none. Raises InputError for a file that cannot be used."""
    try:
        return history.rows_of(run.folder, run.result)
    except (OSError, ValueError) as error:
        raise InputError(f"{run.folder / history.NAME}: {reason(error)}") from error


def chosen(
    words: Sequence[str], roots: Sequence[Path], *, unfinished: bool = False, trust: Sequence[str] = ()
) -> tuple[Run, ...]:
    """The runs that `words` name: folders in their order, then those of the results folders `roots` that fit all of the
    words KEY=VALUE[,VALUE], in the order of the values. `unfinished` takes those that are going on as well.

    Result files of `roots` that cannot be used are named on stderr.
    Raises InputError for a folder that is no run's, a run that is not finished, and a selector that nothing fits.
    """
    folders = [word for word in words if "=" not in word or os.path.isdir(word)]
    selectors = [word for word in words if word not in folders]
    found = [_of_folder(Path(expanded(word, "RUN")), unfinished) for word in folders]
    found += _selected(selectors, roots, unfinished) if selectors else []
    names = labels([one["config"] for one, _ in found])
    return tuple(
        Run(folder=Path(one["path"]), result=one, recipe=recipe, label=name, trust=tuple(trust))
        for (one, recipe), name in zip(found, names, strict=True)
    )


def _of_folder(folder: Path, unfinished: bool) -> Found:
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a run folder, or KEY=VALUE, which selects runs; there is no such folder")
    try:
        result = results.read(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / results.NAME}: {reason(error)}") from error
    if result is None and unfinished:
        above = folder.absolute().parents[4:5]  # <results>/runs/<dataset>/<model>/<method>/<run>
        going = selection.going_on(above, ()) if above and (above[0] / "runs").is_dir() else []
        result = next((one for one in going if Path(one["path"]).resolve() == folder.resolve()), None)
    if result is None:
        hint = "has not finished yet" if (folder / "config.yaml").exists() else f"holds no {results.NAME}"
        raise InputError(f"{folder}: {hint}; expected the folder of a finished run")
    _check_state(result, folder, unfinished)
    try:
        return {**result, "path": str(folder)}, Recipe.of_record(result["config"])
    except ValueError as error:
        raise InputError(f"{folder}: {error}") from error


def _check_state(result: Mapping[str, Any], folder: Path, unfinished: bool) -> None:
    allowed = _states(unfinished)
    if result["state"] not in allowed:
        raise InputError(f"{folder}: this run is {result['state']}; expected one that is {' or '.join(allowed)}")


def _states(unfinished: bool) -> tuple[str, ...]:
    """Those of the runs that are taken."""
    return ("finished", "running", "interrupted") if unfinished else ("finished",)


def _selected(words: Sequence[str], roots: Sequence[Path], unfinished: bool) -> list[Found]:
    wanted = selection.conditions(words, option="")
    found, left_out = selection.read(roots)
    _say_left_out(left_out)
    if unfinished:
        found = selection.with_going_on(roots, found)
    kept = selection.select([one for one in found if one["state"] in _states(unfinished)], wanted, option="")
    measurable = list(_with_recipes(kept))
    if not measurable:
        where = " ".join(map(str, roots))
        state = "run" if unfinished else "finished run"
        raise InputError(f"{' '.join(words)}: no {state} below {where} fits (--results names the folder)")
    return sorted(measurable, key=lambda one: (_places(one[0]["config"], wanted), one[0]["path"]))


def _with_recipes(results: Sequence[Mapping[str, Any]]) -> Iterator[Found]:
    """Those results whose configs are recipes; a line on stderr on each of the others."""
    for one in results:
        try:
            yield dict(one), Recipe.of_record(one["config"])
        except ValueError as error:
            _say_left_out([f"{one['folder']}: {error}"])


def _say_left_out(lines: Iterable[str]) -> None:
    for line in lines:
        print(f"broadopt-figure: left out: {printable(line)}", file=sys.stderr)


def _places(config: Mapping[str, Any], wanted: Sequence[selection.Condition]) -> list[int]:
    """By which value of each condition a run was selected: method=sgd,swa puts SGD ahead of SWA."""
    values = flat(config)
    return [
        next(
            (place for place, value in enumerate(one.values) if selection.Condition(one.key, (value,)).fits(values)),
            len(one.values),
        )
        for one in wanted
    ]


def labels(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells runs of these recorded configs apart: the methods, each with the first keys in which runs of the same
    method differ, or with all of them where the first do not tell. Different configs have different labels.
    """
    filled = completed([flat(config) for config in configs])
    differing = [_differing(config, filled) for config in filled]
    # A schedule's values follow from the budget and the lr, which say the same in fewer words.
    own = [[key for key in keys if not key.startswith("schedule.")] or keys for keys in differing]
    named = [_label(config, keys[:MOST_WORDS]) for config, keys in zip(filled, own, strict=True)]
    counts = Counter(named)
    named = [
        _label(config, keys) if counts[short] > 1 else short
        for short, config, keys in zip(named, filled, differing, strict=True)
    ]
    counts = Counter(
        named
    )  # what is left differs in code, in keys that only some have, or in digits that are not shown
    return [
        f"{name}, {identity_of(dict(config))[:8]}" if counts[name] > 1 else name
        for name, config in zip(named, configs, strict=True)
    ]


def _differing(config: Mapping[str, Any], all_: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys of a flat config in which those of the same method differ."""
    same = [other for other in all_ if other["method"] == config["method"]]
    return [
        key
        for key in config
        if not key.endswith("_target_") and len(distinct(other.get(key, ABSENT) for other in same)) > 1
    ]


def _label(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    words = [f"{SHORT.get(key, key.rpartition('.')[2])} {label(config[key])}".strip() for key in keys]
    return ", ".join([_name(config["method"]), *words])


def _name(method: str) -> str:
    """A method as the papers write it: SGD, SAM+SWA; a method of one's own as it is called."""
    known = ("sgd", "swa", "fge", "sam", "asam")
    return "+".join(part.upper() if part in known else part for part in method.split("+"))
