"""Norms and inner products over lists of tensors, taken together; every value stays on its device."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

TINY = 1e-16
"""What a norm is at least where it divides: float32 squares below it are zero."""


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors as one vector, 0-d."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def sums_of_norms(tensors: Iterable[Tensor], *, order: float) -> dict[torch.device, Tensor]:
    """By device, the sum of the norms of its tensors, each a vector of its own; float64, 0-d, on that device."""
    # Apart: an optimizer that is not fused counts its steps on the CPU, and a stack is of tensors on one device.
    groups: dict[torch.device, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device].append(tensor)
    return {device: torch.stack(torch._foreach_norm(group, order)).double().sum() for device, group in groups.items()}


def inner(some: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """The inner product of two lists of tensors, each as one vector, 0-d."""
    products = list(torch._foreach_mul(list(some), list(others)))
    # A sum is no foreach operation, a 1-norm is one: sum x = 2 sum max(x, 0) - sum |x|.
    total = torch.stack(torch._foreach_norm(products, 1)).sum()
    torch._foreach_clamp_min_(products, 0)
    return 2 * torch.stack(torch._foreach_norm(products, 1)).sum() - total


def orthogonal(tensors: Sequence[Tensor], to: Sequence[Tensor]) -> list[Tensor]:
    """The part of `tensors` that is orthogonal to `to`, in new tensors: x - <x, y> / ||y||^2 y."""
    unit = list(torch._foreach_div(list(to), norm(to).clamp_min(TINY)))
    torch._foreach_mul_(unit, inner(tensors, unit))
    return list(torch._foreach_sub(list(tensors), unit))
