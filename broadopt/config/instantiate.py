"""What the nodes of a config stand for."""

import keyword
import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from broadopt.config.identity import importable
from broadopt.config.messages import instantiation_error
from broadopt.config.own_code import refuse_interpolation
from broadopt.errors import InputError, RunFailed, is_lack_of_memory


def instantiated(group: str, node: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    """What a config node with a `_target_` makes. Raises InputError, in one line, where it cannot be
    made, and RunFailed where memory was short.
    """
    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{group}: expected a _target_, the dotted name of what is to be called, among its keys")
    # What was composed is resolved by now: an interpolation comes from a file, and Hydra would carry it out.
    refuse_interpolation(dict(node), place=group)
    try:
        return instantiate(_with_arguments(importable(node)), *arguments, _convert_="all", **options)
    except InstantiationException as error:
        if is_lack_of_memory(error.__cause__):
            raise RunFailed(f"{group}._target_={node['_target_']}: {' '.join(str(error.__cause__).split())}") from error
        raise instantiation_error(error, group, node, given=(len(arguments), options)) from error


def collectors_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """The collectors of a config's `collect` node: the run's own under the empty name, and those that are evaluated
    beside it, which stand under `also`, under theirs. Raises InputError.
    """
    also = node.get("also", {})
    found = {"": instantiated("collect", {key: value for key, value in node.items() if key != "also"})}
    for name, other in also.items():
        try:
            found[name] = instantiated("collect", other)
        except InputError as error:  # a collector does not know where in a config it stands
            raise InputError(re.sub(r"(?<![\w.])collect(?=[.:])", f"collect.also.{name}", str(error))) from error
    return found


def _with_arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node whose keys are names of arguments: `from`, which Python keeps for itself, is the argument `from_`."""
    return {f"{key}_" if keyword.iskeyword(key) else key: value for key, value in node.items()}
