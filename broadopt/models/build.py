"""A network from its config node."""

from typing import Any

from torch import nn

from broadopt.config.instantiate import instantiated, without
from broadopt.errors import InputError


def network(node: dict[str, Any], num_classes: int) -> nn.Module:
    """The network of a config's `model` node. Raises InputError."""
    made = instantiated("model", without(node, "name"), num_classes=num_classes)
    if not isinstance(made, nn.Module):
        raise InputError(f"model._target_={node['_target_']}: expected a torch.nn.Module, found {type(made).__name__}")
    return made
