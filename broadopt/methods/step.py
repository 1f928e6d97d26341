"""How one batch changes the weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.batch import Batch
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
    is_repeatable = True  # each step is the same work on the device: it may be recorded once and replayed

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

    perturbation: where several processes share a batch, eps is that of the whole batch ("global") or each process's
    own, of its share ("share"). chunk: the same for parts of m images on one device, w <- optimizer(w, sum of n_c / n
    grad L_c(w + eps_c)): m-sharpness (SAM, section 4.1). It takes a second copy of the weights' size, for the sum, and
    each chunk is normalised by its own BN statistics.
    """

    passes = 2

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epsilon: Perturbation,
        *,
        bn: str = "both",
        noise: str = "fresh",
        perturbation: str = "global",
        chunk: int | None = None,
    ) -> None:
        if bn not in ("both", "first"):
            raise InputError(f"step.bn={bn}: expected both or first")
        if noise not in ("fresh", "replay"):
            raise InputError(f"step.noise={noise}: expected fresh or replay")
        if perturbation not in ("global", "share"):
            raise InputError(f"step.perturbation={perturbation}: expected global or share")
        if chunk is not None and chunk < 1:
            raise InputError(f"step.chunk={chunk}: expected a whole number of images >= 1, or null")
        self.model, self.optimizer, self.epsilon = model, optimizer, epsilon
        self.bn, self.noise, self.perturbation, self.chunk = bn, noise, perturbation, chunk
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # The generator's state cannot be taken and set back by what is recorded.
        self.is_repeatable = noise == "fresh"
        # The one extra copy of the weights, kept to spare its allocation at every step.
        self._copies: dict[Tensor, Tensor] = {}

    def __call__(self, closure: Closure) -> Tensor:
        loss = self._gradient(closure) if self.chunk is None else self._mean_over_chunks(closure, self.chunk)
        self.optimizer.step()
        return loss

    def _gradient(self, closure: Closure) -> Tensor:
        """Leave grad L(w + eps) in every `.grad`; returns L(w)."""
        self.optimizer.zero_grad()
        noise = _generator(self.parameters[0].device)
        drawn_from = noise.get_state() if self.noise == "replay" else None
        with closure.local() if isinstance(closure, Batch) and self.perturbation == "share" else nullcontext():
            loss = closure()
        weights = [parameter for parameter in self.parameters if parameter.grad is not None]
        copies = self._perturb(weights)
        self.optimizer.zero_grad()  # the descent step is on grad L(w + eps) alone
        if drawn_from is not None:  # networks draw their backward noise in the forward pass: both are replayed
            noise.set_state(drawn_from)
        try:
            with keep_statistics(self.model) if self.bn == "first" else nullcontext():
                closure()
        finally:  # also when a signal ends the pass: what is saved then are the weights themselves
            with torch.no_grad():
                torch._foreach_copy_(weights, copies)
        return loss

    def _mean_over_chunks(self, closure: Closure, chunk: int) -> Tensor:
        if not isinstance(closure, Batch):
            raise TypeError("step.chunk needs a closure that can be taken apart: a broadopt.methods.batch.Batch")
        losses, total = [], dict[Tensor, Tensor]()
        for share, part in closure.split(chunk):
            losses.append(share * self._gradient(part))  # shares: the last chunk may be smaller
            gradients = {weight: weight.grad for weight in self.parameters if weight.grad is not None}
            if total:
                torch._foreach_add_(list(total.values()), [gradients[weight] for weight in total], alpha=share)
            else:
                total = gradients  # the tensors themselves: zero_grad lets go of them
                torch._foreach_mul_(list(total.values()), share)
        for weight, gradient in total.items():
            weight.grad = gradient
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _perturb(self, weights: list[Tensor]) -> list[Tensor]:
        perturbation = self.epsilon(weights, [weight.grad for weight in weights if weight.grad is not None])
        for weight in weights:
            if weight not in self._copies:
                self._copies[weight] = torch.empty_like(weight)
        # Restored from a copy: w + eps - eps is not w in floating point, and the error would grow step by step.
        copies = [self._copies[weight] for weight in weights]
        torch._foreach_copy_(copies, weights)
        torch._foreach_add_(weights, perturbation)
        return copies


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
