"""What the nodes of a config stand for."""

from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from broadopt.config.identity import importable
from broadopt.config.messages import instantiation_error
from broadopt.errors import InputError, RunFailed, is_lack_of_memory


def instantiated(group: str, node: Mapping[str, Any], *arguments: Any, **options: Any) -> Any:
    """What a config node with a `_target_` makes. Raises InputError, in one line, where it cannot be
    made, and RunFailed where memory was short.
    """
    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{group}: expected a _target_, the dotted name of what is to be called, among its keys")
    try:
        return instantiate(importable(node), *arguments, _convert_="all", **options)
    except InstantiationException as error:
        if is_lack_of_memory(error.__cause__):
            raise RunFailed(f"{group}._target_={node['_target_']}: {' '.join(str(error.__cause__).split())}") from error
        raise instantiation_error(error, group, node) from error
