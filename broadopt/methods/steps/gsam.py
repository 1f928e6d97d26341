"""GSAM: Zhuang et al. 2022, "Surrogate Gap Minimization Improves Sharpness-Aware Training", Algorithm 1."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.sam import exponent, radius, sam_perturbation
from broadopt.methods.step import Closure, SharpnessAware
from broadopt.methods.steps.products import orthogonal


def gsam(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rho: float,
    p: float | str = 2,
    alpha: float = 0.4,
    **options: Any,
) -> SharpnessAware:
    """w <- optimizer(w, g_s - alpha g_v): g_s = grad L(w + eps), eps SAM's, and g_v the part of g = grad L(w) that is
    orthogonal to g_s. It lowers L(w + eps) and, without changing that, raises L(w): their gap is the sharpness.

    rho is constant; the paper may let it follow the lr. alpha >= 0; `options` are SharpnessAware's, but for
    perturbation. Raises InputError for values outside, and for layers other than all: the whole g is needed.
    """
    if not 0 <= float(alpha) < math.inf:
        raise InputError(f"step.alpha={alpha}: expected a number >= 0")
    if options.get("layers", "all") != "all":
        raise InputError(f"step.layers={options['layers']}: GSAM needs the gradient of all parameters; expected all")
    if options.get("perturbation", "global") != "global":
        raise InputError("step.perturbation=share: GSAM compares the gradients of the whole batch; expected global")
    perturbation = partial(sam_perturbation, rho=radius(rho), p=exponent(p))
    return SharpnessAware(model, optimizer, perturbation, correction=partial(lowered, alpha=float(alpha)), **options)


@torch.no_grad()
def lowered(closure: Closure, weights: Sequence[Tensor], gradients: list[Tensor], *, alpha: float) -> None:
    """Subtract alpha g_v from the `.grad` of the weights; `gradients` are those at w."""
    both = [(weight.grad, before) for weight, before in zip(weights, gradients, strict=True) if weight.grad is not None]
    sharp, before = [one for one, _ in both], [other for _, other in both]
    torch._foreach_sub_(sharp, orthogonal(before, sharp), alpha=alpha)
