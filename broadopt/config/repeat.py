"""repeat=FOLDER: a run once more, from the config.yaml that it has left in its folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError, safe_load

from broadopt.config.rules import RULES, expanded
from broadopt.config.run_config import EXECUTION, RECIPE, RunConfig
from broadopt.errors import InputError, nearest


def repeated(arguments: Sequence[str]) -> RunConfig:
    """The run that `repeat=FOLDER` names, with the other arguments, KEY=VALUE, in it: the seed, and how a
    run is carried out.

    Raises InputError for a folder that is not a run's, an argument that is not of that form, and any other key.
    """
    (folder, *others), overrides = _parted(arguments)
    if others:
        raise InputError(f"repeat={others[0]}: expected one run folder, found {1 + len(others)}")
    values = _read(folder / "config.yaml")
    for argument in overrides:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            raise InputError(f"{argument}: expected KEY=VALUE, a key of {folder / 'config.yaml'}")
        _set(values, key, value)
    return RunConfig.of(values)


def _parted(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    paths = [argument.partition("=")[2] for argument in arguments if argument.startswith("repeat=")]
    folders = [Path(expanded(path, "repeat")) for path in paths]
    return folders, [argument for argument in arguments if not argument.startswith("repeat=")]


def _read(path: Path) -> dict[str, Any]:
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError as error:
        raise InputError(f"repeat={path.parent}: expected a run folder, one with a config.yaml") from error
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or (missing := sorted({*RECIPE, *EXECUTION} - values.keys())):
        found = f"{missing[0]} is missing" if isinstance(values, dict) else f"found a {type(values).__name__}"
        raise InputError(f"{path}: expected the config of a run; {found}")
    return values


def _set(values: dict[str, Any], key: str, text: str) -> None:
    """Keys of the recipe hang together (a budget and its schedule), so none of them is changed by itself."""
    allowed = ["seed", *(key for key in RULES if key.split(".")[0] in EXECUTION)]
    if key not in allowed:
        hint = nearest(key, allowed) or f"; expected one of {', '.join(allowed)}"
        raise InputError(f"{key}: a repeated run keeps its recipe{hint}")
    group, _, leaf = key.rpartition(".")
    try:
        (values[group] if group else values)[leaf] = safe_load(text)
    except YAMLError as error:
        raise InputError(f"{key}={text}: {' '.join(str(error).split())}") from error
