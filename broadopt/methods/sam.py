"""SAM: Foret et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization"."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.step import SharpnessAware
from broadopt.methods.steps.second_order import SecondOrder


def sam(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rho: float,
    p: float | str = 2,
    second_order: bool = False,
    **options: Any,
) -> SharpnessAware:
    """A step on the gradient at w + eps, eps = argmax of <eps, g> over ||eps||_p <= rho (eq. 2).

    rho >= 0, 1 <= p <= inf; second_order: the exact gradient of L(w + eps(w)), for p = 2; `options` are
    SharpnessAware's. Raises InputError for values outside.
    """
    rho, p = radius(rho), exponent(p)
    if second_order:
        if p != 2:
            raise InputError(f"step.second_order=true: step.p={p:g} has no such gradient; expected step.p=2")
        options["correction"] = SecondOrder(model, rho=rho)
    return SharpnessAware(model, optimizer, partial(sam_perturbation, rho=rho, p=p), **options)


def sam_perturbation(weights: Sequence[Tensor], gradients: list[Tensor], *, rho: float, p: float) -> list[Tensor]:
    """eps = rho sign(g) |g|^(q-1) / (||g||_q^q)^(1/p), 1/p + 1/q = 1, over all parameters jointly (eq. 2); overwrites
    the gradients.
    """
    direction = steepest(gradients, p=p)
    torch._foreach_mul_(direction, rho)
    return direction


def steepest(gradients: list[Tensor], *, p: float) -> list[Tensor]:
    """The vector of p-norm 1 that has the largest inner product with the gradients, all tensors taken together, in
    their place.

    p = 2 gives g / ||g||_2, p = inf gives sign(g), p = 1 gives sign(g) where |g| is largest. Zero gradients give zeros,
    and for p = 2 gradients of norm < 1e-16 a shorter vector.
    """
    if p == math.inf:
        return [gradient.sign_() for gradient in gradients]
    if p == 1:
        largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
        for gradient in gradients:
            gradient.copy_(gradient.sign() * (gradient.abs() == largest))
        ties = torch.stack([gradient.abs().sum() for gradient in gradients]).sum()
        torch._foreach_div_(gradients, ties.clamp_min(1))  # shared out over ties, the 1-norm is 1; without any, it is 0
        return gradients
    q = p / (p - 1)
    if p != 2:  # sizes do not change the direction, but their q-th powers leave the range of float32: 1e-4 ** 21
        largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max()
        torch._foreach_div_(gradients, torch.where(largest > 0, largest, 1))  # a tensor: no value is read back
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, q)), q)
    torch._foreach_div_(gradients, norm.clamp_min(1e-16))  # ASAM code, asam.py: below, float32 squares round to zero
    # With u = g / ||g||_q, sign(g) |g|^(q-1) / ||g||_q^(q-1) = sign(u) |u|^(q-1), and ||g||_q^(q/p) = ||g||_q^(q-1).
    if p != 2:
        for gradient in gradients:
            gradient.copy_(gradient.sign() * gradient.abs().pow_(q - 1))
    return gradients


def radius(rho: float) -> float:
    """`rho` as a float; InputError unless it is a number >= 0."""
    if not 0 <= float(rho) < math.inf:
        raise InputError(f"step.rho={rho}: expected a number >= 0")
    return float(rho)


def exponent(p: float | str) -> float:
    """`p` as a float ("inf" included); InputError unless 1 <= p <= inf."""
    if not float(p) >= 1:
        raise InputError(f"step.p={p}: expected a number >= 1, or inf")
    return float(p)
