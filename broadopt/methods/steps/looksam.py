"""LookSAM: Liu et al. 2022, "Towards Efficient and Scalable Sharpness-Aware Minimization", Algorithm 1."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.sam import exponent, radius, sam_perturbation
from broadopt.methods.step import Closure, SharpnessAware
from broadopt.methods.steps.kept import keep, kept
from broadopt.methods.steps.products import TINY, norm, orthogonal
from broadopt.methods.steps.sharp_steps import Course, SharpSteps

DIRECTION = "looksam_direction"


class LookSAM:
    """Every k-th step is SAM's, by g_s = grad L(w + eps), and keeps the part g_v of g_s that is orthogonal to
    g = grad L(w). The steps between are w <- optimizer(w, g + alpha ||g|| / ||g_v|| g_v), with the last g_v.

    Norms are those of all parameters together, over all groups of the optimizer. g_v is part of the optimizer's state,
    so a resumed run goes on with it; steps before the first ascent, and those outside of from_ and until, are plain.
    alpha >= 0 (0.7 in the paper); every = k >= 1, 5 in configs/step/looksam.yaml, by default 1 as for other steps, so
    that a record without it means the same for all; rho and p are SAM's, bn, noise and ascent SharpnessAware's. Raises
    InputError for values outside.
    """

    passes = 2

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float,
        p: float | str = 2,
        alpha: float = 0.7,
        every: int = 1,
        bn: str = "both",
        noise: str = "fresh",
        from_: float = 0.0,
        until: float | None = None,
        ascent: float = 1.0,
    ) -> None:
        if not 0 <= float(alpha) < math.inf:
            raise InputError(f"step.alpha={alpha}: expected a number >= 0")
        self.optimizer, self.alpha = optimizer, float(alpha)
        self.ascents = SharpSteps(start=from_, end=until, every=every)
        self.sharp_steps = SharpSteps(start=from_, end=until)  # those between ascents, with the last g_v, included
        perturbation = partial(sam_perturbation, rho=radius(rho), p=exponent(p))
        self.sharp = SharpnessAware(
            model, optimizer, perturbation, bn=bn, noise=noise, ascent=ascent, correction=self._note
        )
        self.one_process = self.sharp.one_process
        self._found: dict[Tensor, Tensor] = {}

    def gradients(self, course: Course) -> float:
        """Gradients of a batch in a whole training."""
        return course.steps + self.ascents.count(course, self.sharp.share)

    def __call__(self, closure: Closure) -> Tensor:
        self._found = {}
        if self.ascents.include(closure):
            loss = self.sharp.gradient(closure)
        else:
            self.optimizer.zero_grad()
            loss = closure()
            if self.sharp_steps.include(closure):
                self._add_direction()
        self.optimizer.step()
        keep(self.optimizer, DIRECTION, self._found)
        return loss

    @torch.no_grad()
    def _note(self, closure: Closure, weights: Sequence[Tensor], gradients: list[Tensor]) -> None:
        before = dict(zip(weights, gradients, strict=True))
        sharp = {weight: weight.grad for weight in weights if weight.grad is not None}
        direction = orthogonal(list(sharp.values()), [before[weight] for weight in sharp])
        self._found = dict(zip(sharp, direction, strict=True))

    @torch.no_grad()
    def _add_direction(self) -> None:
        directions = kept(self.optimizer, DIRECTION, self.sharp.parameters)
        gradients = {weight: weight.grad for weight in self.sharp.parameters if weight.grad is not None}
        both = [weight for weight in gradients if weight in directions]
        if not both:
            return
        size = norm(list(gradients.values())) / norm(list(directions.values())).clamp_min(TINY)
        added = torch._foreach_mul([directions[weight] for weight in both], self.alpha * size)
        torch._foreach_add_([gradients[weight] for weight in both], added)
