"""ASAM: Kwon et al. 2021, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
Networks".
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.sam import exponent, radius, steepest
from broadopt.methods.step import SharpnessAware


def asam(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    rho: float,
    eta: float = 0.01,
    p: float | str = 2,
    normalisation: str = "element",
    **options: Any,
) -> SharpnessAware:
    """A step on the gradient at w + eps, eps = argmax of <eps, g> over ||T_w^-1 eps||_p <= rho (eq. 3; Algorithm 1).

    T_w is diagonal and positive: "element" takes |w_k|, "filter" takes ||f_j||_2 on the entries of filter j of a
    convolution and |w_k| elsewhere (eq. 5), plus eta. Biases and BN's beta (every parameter without "weight" in its
    name) are perturbed with T = 1. `options` are SharpnessAware's. Raises InputError for rho < 0, eta < 0, p < 1, an
    unknown normalisation, or a network without such a name.
    """
    if normalisation not in ("element", "filter"):
        raise InputError(f"step.normalisation={normalisation}: expected element or filter")
    if not 0 <= float(eta) < math.inf:
        raise InputError(f"step.eta={eta}: expected a number >= 0")
    scales: dict[Tensor, str] = {
        parameter: scale_of(name, parameter, normalisation) for name, parameter in model.named_parameters()
    }
    if all(scale == "one" for scale in scales.values()):
        raise InputError('no parameter of this network has "weight" in its name, by which ASAM takes what it scales')
    perturbation = partial(asam_perturbation, rho=radius(rho), eta=float(eta), p=exponent(p), scales=scales)
    return SharpnessAware(model, optimizer, perturbation, **options)


def scale_of(name: str, parameter: Tensor, normalisation: str) -> str:
    """Which scale a parameter has: "one", "element" or "filter" (convolutions, one filter an output channel)."""
    if "weight" not in name:  # ASAM code, asam.py:22-26: by the name, so that BN's gamma is scaled and beta is not
        return "one"
    return "filter" if normalisation == "filter" and parameter.dim() > 2 else "element"


def asam_perturbation(
    weights: Sequence[Tensor],
    gradients: list[Tensor],
    *,
    rho: float,
    eta: float,
    p: float,
    scales: Mapping[Tensor, str],
) -> list[Tensor]:
    """eps = rho T u, u the unit p-norm vector along which T g rises most; for p = 2, eps = rho T^2 g / ||T g||_2
    (Algorithm 1).

    Overwrites the gradients.
    """
    # T is applied twice: T g is the gradient in the coordinates T^-1 w, in which the ball is round, and T takes the
    # direction that was found there back to w.
    scaled = [i for i, weight in enumerate(weights) if scales[weight] != "one"]
    T = [size(weights[i], scales[weights[i]]) for i in scaled]
    if T:  # the layers that are perturbed may hold biases alone, and foreach operations take no empty list
        torch._foreach_add_(T, eta)
        torch._foreach_mul_([gradients[i] for i in scaled], T)
    direction = steepest(gradients, p=p)
    if T:
        torch._foreach_mul_([direction[i] for i in scaled], T)
    torch._foreach_mul_(direction, rho)
    return direction


def size(weight: Tensor, scale: str) -> Tensor:
    """|w_k| of each entry ("element"), or ||f_j||_2 of each filter, [out, 1, ...] ("filter")."""
    if scale == "element":
        return weight.abs()
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)
