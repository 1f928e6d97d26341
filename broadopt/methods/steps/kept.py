"""What a step keeps from batch to batch: in its optimizer's state, which checkpoints hold and the finite check sees."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def keep(optimizer: torch.optim.Optimizer, name: str, tensors: Mapping[Tensor, Tensor]) -> None:
    """Note a tensor of each weight, by the weight. To be called after the optimizer's own step: AdamW takes a state
    that is not empty for one of its own.
    """
    for weight, tensor in tensors.items():
        optimizer.state[weight][name] = tensor


def kept(optimizer: torch.optim.Optimizer, name: str, weights: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """What was noted of these weights, of those that have it."""
    return {weight: optimizer.state[weight][name] for weight in weights if name in optimizer.state.get(weight, {})}
