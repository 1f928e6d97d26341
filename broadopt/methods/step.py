"""How one batch changes the weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.batchnorm import keep_statistics

Closure = Callable[[], Tensor]
"""One forward and backward pass on the current batch: returns the mean loss, a detached scalar, and adds to every
`.grad`.
"""

Perturbation = Callable[[Sequence[Tensor], list[Tensor]], list[Tensor]]
"""(weights, gradients) -> perturbation, one tensor a weight; it may overwrite the gradients, which are not used again.

"""


class Step(Protocol):
    """One update of the weights. Its whole state is that of `optimizer`."""

    optimizer: torch.optim.Optimizer
    passes: int  # gradients a step

    def __call__(self, closure: Closure) -> Tensor:
        """Update the weights once; returns the loss at the weights before the update."""
        ...


class Plain:
    """w <- optimizer(w, grad L(w)): one gradient a step."""

    passes = 1

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        loss = closure()
        self.optimizer.step()
        return loss


class SharpnessAware:
    """w <- optimizer(w, grad L(w + eps)), eps = perturbation(w, grad L(w)): two gradients of one batch a step.

    The optimizer sees the unperturbed weights, so momentum and weight decay act once and outside the perturbation
    (ASAM, Algorithm 1). The weights are restored from a copy, bit for bit. Parameters without a gradient are neither
    perturbed nor updated.

    bn: which passes move the running statistics of BN, "both" or only the "first" (Google's SAM). noise: dropout and
    the like in the second pass draw anew ("fresh") or repeat the first pass's draw ("replay", Google's SAM).
    """

    passes = 2

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        perturbation: Perturbation,
        *,
        bn: str = "both",
        noise: str = "fresh",
    ) -> None:
        if bn not in ("both", "first"):
            raise InputError(f"step.bn={bn}: expected both or first")
        if noise not in ("fresh", "replay"):
            raise InputError(f"step.noise={noise}: expected fresh or replay")
        self.model, self.optimizer, self.perturbation = model, optimizer, perturbation
        self.bn, self.noise = bn, noise
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._copies: dict[
            Tensor, Tensor
        ] = {}  # the one extra copy of the weights, kept to spare its allocation at every step

    def __call__(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        noise = _generator(self.parameters[0].device)
        drawn_from = noise.get_state() if self.noise == "replay" else None
        loss = closure()
        weights = [parameter for parameter in self.parameters if parameter.grad is not None]
        copies = self._perturb(weights)
        self.optimizer.zero_grad()
        if drawn_from is not None:
            noise.set_state(drawn_from)
        try:
            with keep_statistics(self.model) if self.bn == "first" else nullcontext():
                closure()
        finally:  # also when a signal ends the pass: what is saved then are the weights themselves
            with torch.no_grad():
                torch._foreach_copy_(weights, copies)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def _perturb(self, weights: list[Tensor]) -> list[Tensor]:
        perturbation = self.perturbation(weights, [weight.grad for weight in weights if weight.grad is not None])
        for weight in weights:
            if weight not in self._copies:
                self._copies[weight] = torch.empty_like(weight)
        copies = [self._copies[weight] for weight in weights]
        torch._foreach_copy_(copies, weights)
        torch._foreach_add_(weights, perturbation)
        return copies


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
