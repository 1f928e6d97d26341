"""A network from its config node."""

from torch import nn

from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import ModelConfig
from broadopt.errors import InputError


def network(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a config: float images [B, 3, 32, 32] to logits [B, num_classes]. Raises InputError."""
    made = instantiated("model", config.target, num_classes=num_classes)
    if not isinstance(made, nn.Module):
        target, found = config.target["_target_"], type(made).__name__
        raise InputError(f"model._target_={target}: expected a torch.nn.Module, found {found}")
    return made
