"""A network from its config node, and what one image costs it."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import ModelConfig
from broadopt.devices.modes import mode
from broadopt.errors import InputError


def network(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network of a config: float images [B, 3, 32, 32] to logits [B, num_classes]. Raises InputError."""
    made = instantiated("model", config.target, num_classes=num_classes)
    if not isinstance(made, nn.Module):
        target, found = config.target["_target_"], type(made).__name__
        raise InputError(f"model._target_={target}: expected a torch.nn.Module, found {found}")
    return made


def macs(model: nn.Module, *, num_classes: int | None = None) -> int:
    """Multiply-adds of one forward pass on one 32x32 image, convolutions and linear layers, in evaluation mode; nothing
    of the network is changed.

    Raises InputError where it does not give `num_classes` logits.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    image = torch.zeros(1, 3, 32, 32, device=device)
    # A batch of one comes once: no search for the fastest kernels of its shapes.
    searching, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), mode(model, training=False):
            outputs = model.forward(image)  # not through __call__, which may be a compiled one
    finally:
        torch.backends.cudnn.benchmark = searching
    if num_classes is not None:
        shape = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        if shape != [1, num_classes]:
            raise InputError(
                f"model: for one image the network gives {shape}; expected logits [1, {num_classes}], one a class of "
                "the data set"
            )
    return int(counter.get_total_flops()) // 2
