"""repeat=FOLDER: a run once more, from the config.yaml that it has left in its folder; and what is typed for it."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from broadopt.config.identity import AS_WITHOUT
from broadopt.config.own_code import refuse_foreign
from broadopt.config.rules import RULES, expanded
from broadopt.config.run_config import EXECUTION, KINDS_OF_NOISE, PUBLISHED, RECIPE, Recipe, RunConfig
from broadopt.errors import InputError, nearest
from broadopt.files import MEBIBYTE, read_yaml, reason
from broadopt.runs import results

log = logging.getLogger("broadopt")

FOUND = ("precision", "processes")
"""Keys of a recorded config that the command or the machine decides, so that a repeated run may have others."""

LATER: Mapping[str, Any] = {
    **{"tracker": "none", "objective": "auto", "keep": "none", "trunk": "none", "graphs": "auto"},
    **{"optimizer": AS_WITHOUT["optimizer"], "clip": None},
}
"""Keys that came later than the first config.yaml, and what they were without being there."""

FORMER = ("cuda_graphs",)
"""Keys of the execution that a former config.yaml has and that there are no more: how a run is carried out does not
change its result."""

FRESH: Mapping[str, Any] = {"trunk": "none", "force": False, "wait": False, "plan": False}
"""What a repeated run does not take over from its config.yaml: all its epochs are trained, and whether a finished
result is set aside is for whoever repeats the run to say, not for the file, which may be another's."""

PLACES = ("data_dir", "path")
"""Keys of a data set by which it may lie at another place than the first time."""


@dataclass(frozen=True)
class Repeat:
    """A run to be made again, and the environment of the first one, where its result records it."""

    run: RunConfig
    """With the fingerprint of the first one's data, where it has a result: those of this run are to have it too."""
    environment: Mapping[str, Any]
    """With its precision and the number of its processes."""


def repeated(arguments: Sequence[str]) -> Repeat:
    """The run that `repeat=FOLDER` names, with the other arguments, KEY=VALUE, in it: the seed, how a run is carried
    out, and trust=MODULE for each module outside broadopt that its code may come from.

    Raises InputError for a folder that is not a run's, an argument that is not of that form, and any other key.
    """
    (folder, *others), overrides = _parted(arguments)
    if others:
        raise InputError(f"repeat={others[0]}: expected one run folder, found {1 + len(others)}")
    path = folder / "config.yaml"
    values = {**_read(path), **FRESH}
    if place := os.environ.get("BROADOPT_DATA"):  # of this machine: the place in the file may be another's
        _set(values, "data_dir", place)
    trusted = []
    # data_dir first: it stands for dataset.data_dir too, unless that is typed, wherever.
    for argument in sorted(overrides, key=lambda argument: not argument.startswith("data_dir=")):
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            raise InputError(f"{argument}: expected KEY=VALUE, a key of {path}")
        if key == "trust":
            trusted.append(value)
        else:
            _set(values, key, value)
    if values["trunk"] == "share":
        raise InputError("trunk=share: a repeated run trains all its epochs itself; expected trunk=none with repeat=")
    if values["plan"] is True:  # a plan says of each value where it comes from: here all are the file's
        raise InputError(
            "plan=true: a repeated run has the recipe of its config.yaml; expected plan=false with repeat="
        )
    refuse_foreign(values, trusted=trusted, place=path)
    run = RunConfig.of(values)
    result = _result(folder, run)
    if result is None:
        return Repeat(run, {})
    config = result["config"]
    dataset = replace(run.recipe.dataset, fingerprint=config["dataset"]["fingerprint"] or PUBLISHED)
    decided = {"precision": config["precision"], "processes": config.get("processes", 1)}
    return Repeat(replace(run, recipe=replace(run.recipe, dataset=dataset)), {**result["environment"], **decided})


def say_what_is_decided_otherwise(first: Mapping[str, Any], recipe: Recipe) -> None:
    """A line where a repeated run is another than the `first`, of which this is the environment, by what the command or
    the machine decides.
    """
    for key in FOUND:
        there, here = first.get(key), getattr(recipe, key)
        if there not in (None, here):
            advice = run_command(first, ["repeat=..."]) if key == "processes" else f"{key}={there}"
            log.warning(
                "%s: %s in the repeated run, %s here, which makes another run; expected %s to repeat that one",
                *(key, there, here, advice),
            )


def _parted(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    folders = [
        Path(expanded(argument.partition("=")[2], "repeat")) for argument in arguments if argument.startswith("repeat=")
    ]
    return folders, [argument for argument in arguments if not argument.startswith("repeat=")]


def _read(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path, limit=MEBIBYTE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"repeat={path.parent}: expected a run folder, one with a config.yaml") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {reason(error)}") from error
    if isinstance(values, dict):
        values = {**LATER, **{key: value for key, value in values.items() if key not in FORMER}}
    if not isinstance(values, dict) or (missing := sorted({*RECIPE, *EXECUTION} - values.keys())):
        found = f"{missing[0]} is missing" if isinstance(values, dict) else f"found a {type(values).__name__}"
        raise InputError(f"{path}: expected the config of a run; {found}")
    return values


def _result(folder: Path, run: RunConfig) -> Mapping[str, Any] | None:
    """The result of the run that a folder holds; None without one. Raises InputError where it is another run's."""
    try:
        result = results.read(folder)
    except (OSError, ValueError) as error:
        log.warning("%s: %s; the run is repeated from its config.yaml alone", folder / results.NAME, reason(error))
        return None
    if result is None:
        return None
    record = run.recipe.record()
    for key in record.keys() | result["config"].keys():
        mine, its = (_comparable(key, config.get(key)) for config in (record, result["config"]))
        if key not in ("seed", *FOUND) and mine != its:
            what = "the code that it names has changed" if key == "code" else f"they differ in {key}"
            raise InputError(f"{folder}: its config.yaml is not that of the run in its result.json: {what}")
    return result


def _comparable(key: str, value: Any) -> Any:
    """A value of a recorded config without the fingerprint of the data, which is not known before they are read."""
    return {name: item for name, item in value.items() if name != "fingerprint"} if key == "dataset" else value


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Keys of the recipe hang together (a budget and its schedule), so none of them is changed by itself; a precision
    that was left to the machine is not changed by being given.
    """
    dataset = values["dataset"] if isinstance(values["dataset"], dict) else {}
    allowed = [
        "seed",
        "precision",
        "trust",
        *(key for key in RULES if key.split(".")[0] in EXECUTION),
        *_places(dataset),
    ]
    if key not in allowed:
        hint = nearest(key, allowed) or f"; expected one of {', '.join(allowed)}"
        raise InputError(f"{key}: a repeated run keeps its recipe{hint}")
    value = _read_as_typed(key, text)
    if key == "precision" and values[key] not in ("auto", value):
        raise InputError(f"{key}={text}: a repeated run keeps its recipe; expected {key}={values[key]}")
    if key == "dataset.noise" and value in KINDS_OF_NOISE:
        raise InputError(f"{key}={text}: a repeated run keeps its recipe; expected its file of labels")
    if key == "data_dir" and "data_dir" in dataset:
        dataset["data_dir"] = value
    group, _, leaf = key.rpartition(".")
    if group and not isinstance(values[group], dict):
        raise InputError(f"{key}: the config.yaml of the run has no group {group}, but {group} itself as a value")
    (values[group] if group else values)[leaf] = value


def _places(dataset: Mapping[str, Any]) -> list[str]:
    """The keys of a recorded data set that say where it lies, and where a file of its labels does."""
    names = [name for name in PLACES if name in dataset]
    if dataset.get("noise", KINDS_OF_NOISE[0]) not in KINDS_OF_NOISE:
        names.append("noise")
    return [f"dataset.{name}" for name in names]


def _read_as_typed(key: str, text: str) -> Any:
    """A value as broadopt-run reads it elsewhere: a path is what is typed, any other is in Hydra's grammar (in YAML's
    010 would be 8). Raises InputError.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser  # what only names a command needs no Hydra
    from hydra.errors import HydraException

    if RULES[key].is_path:
        return text
    try:
        parsed = OverridesParser.create().parse_override(f"{key}={text}")
    except (HydraException, ValueError) as error:  # ValueError: an integer of thousands of digits
        raise InputError(f"{key}={text}: expected {RULES[key].words}") from error
    if parsed.is_sweep_override():
        raise InputError(f"{key}={text}: expected {RULES[key].words}; a repeated run is one run")
    return parsed.value()


def repeat_command(record: Mapping[str, Any], folder: Path, words: Sequence[str]) -> str:
    """The command that repeats the run of a recorded config from its `folder`, with more `words`; with what was decided
    for it, since its config.yaml may leave that to the machine.
    """
    return run_command(record, [f"repeat={folder}", f"precision={record['precision']}", *words])


def run_command(record: Mapping[str, Any], words: Sequence[str]) -> str:
    """broadopt-run with `words`, on as many processes as the run of a recorded config has."""
    count = record.get("processes", 1)
    several = ["torchrun", "--nproc-per-node", str(count), "-m", "broadopt.run"]
    return shlex.join([*(several if count > 1 else ["broadopt-run"]), *words])
