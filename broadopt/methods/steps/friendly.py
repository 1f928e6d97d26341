"""Friendly SAM: Li et al. 2024, "Friendly Sharpness-Aware Minimization" (CVPR)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.sam import exponent, radius, sam_perturbation
from broadopt.methods.step import Closure, SharpnessAware
from broadopt.methods.steps.kept import keep, kept
from broadopt.methods.steps.sharp_steps import Course

MEAN = "friendly_mean"


class FriendlySAM:
    """w <- optimizer(w, grad L(w + eps)), eps = rho d / ||d||, d = g - sigma m, g = grad L(w): SAM along the part of
    the batch's gradient that is its own, m being an estimate of that of all data.

    m is the running mean of the g of former ascents, m <- decay m + (1 - decay) g. It begins as the first g, whose d
    is g itself, as in the authors' code, and is part of the optimizer's state. sigma >= 0, 0 <= decay < 1; rho and p
    are SAM's, the others SharpnessAware's. Raises InputError for values outside.
    """

    passes = 2

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float,
        p: float | str = 2,
        sigma: float = 1.0,
        decay: float = 0.9,
        bn: str = "both",
        noise: str = "fresh",
        from_: float = 0.0,
        until: float | None = None,
        every: int = 1,
        ascent: float = 1.0,
        layers: str = "all",
    ) -> None:
        if not 0 <= float(sigma) < float("inf"):
            raise InputError(f"step.sigma={sigma}: expected a number >= 0")
        if not 0 <= float(decay) < 1:
            raise InputError(f"step.decay={decay}: expected a number from 0 to below 1")
        self.optimizer, self.rho, self.p = optimizer, radius(rho), exponent(p)
        self.sigma, self.decay = float(sigma), float(decay)
        self.sharp = SharpnessAware(
            model,
            optimizer,
            self._perturbation,
            bn=bn,
            noise=noise,
            from_=from_,
            until=until,
            every=every,
            ascent=ascent,
            layers=layers,
        )
        self.sharp_steps = self.sharp.sharp_steps
        self.one_process = self.sharp.one_process
        if layers != "all":
            self.one_process = f"step.layers={layers}: its first pass averages no gradients; expected all"
        self._means: dict[Tensor, Tensor] = {}

    def gradients(self, course: Course) -> float:
        """Gradients of a batch in a whole training."""
        return self.sharp.gradients(course)

    def __call__(self, closure: Closure) -> Tensor:
        self._means = {}
        loss = self.sharp(closure)
        keep(self.optimizer, MEAN, self._means)
        return loss

    def _perturbation(self, weights: Sequence[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        means = kept(self.optimizer, MEAN, weights)
        slopes = dict(zip(weights, gradients, strict=True))
        old = [weight for weight in weights if weight in means]
        # New tensors: where a signal ends the second pass, the state is still that of the step before.
        self._means = {weight: slope.clone() for weight, slope in slopes.items() if weight not in means}
        if old:
            former, current = [means[weight] for weight in old], [slopes[weight] for weight in old]
            self._means |= zip(old, torch._foreach_lerp(former, current, 1 - self.decay), strict=True)
            torch._foreach_sub_(current, former, alpha=self.sigma)
        return sam_perturbation(weights, gradients, rho=self.rho, p=self.p)
