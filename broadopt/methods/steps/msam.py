"""Momentum-SAM: Becker, Altrock and Risse 2024, "Momentum-SAM: Sharpness Aware Minimization without Computational
Overhead", Algorithm 1.
"""

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.sam import radius
from broadopt.methods.step import Closure, moved
from broadopt.methods.steps.kept import kept
from broadopt.methods.steps.products import TINY, norm
from broadopt.methods.steps.sharp_steps import SharpSteps


class MSAM:
    """w <- optimizer(w, grad L(w - rho v / ||v||)), v the optimizer's momentum buffer: one gradient a step.

    v, which points up, is subtracted, as in the paper: the gradient is taken beyond where the momentum leads. v is that
    of SGD, or AdamW's running mean of the gradients (exp_avg); the first step, without any, is plain. The loss that it
    returns is that at the moved weights, since no other is known. from_, until and every as SharpnessAware's. Raises
    InputError for rho < 0 and for an optimizer without a momentum.
    """

    passes = 1

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rho: float,
        from_: float = 0.0,
        until: float | None = None,
        every: int = 1,
    ) -> None:
        groups = optimizer.param_groups
        self.buffer = "momentum_buffer" if groups[0].get("momentum") else "exp_avg"
        if self.buffer == "exp_avg" and "betas" not in groups[0]:
            raise InputError("step._target_: MSAM moves the weights along the momentum; expected momentum > 0 or adamw")
        self.optimizer, self.rho = optimizer, radius(rho)
        self.sharp_steps = SharpSteps(start=from_, end=until, every=every)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self._copies: dict[Tensor, Tensor] = {}

    def __call__(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        momenta = kept(self.optimizer, self.buffer, self.parameters) if self.sharp_steps.include(closure) else {}
        if not momenta and self.optimizer.state and self.sharp_steps.include(closure):
            name = type(self.optimizer).__name__
            raise RuntimeError(f"MSAM moves the weights along {self.buffer}, which {name} does not keep in its state")
        with moved(list(momenta), self._perturbation(list(momenta.values())), self._copies):
            loss = closure()
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def _perturbation(self, momenta: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_mul(momenta, -self.rho / norm(momenta).clamp_min(TINY))) if momenta else []
