"""How far the loss rises close to a network's weights: SAM's sharpness (Foret et al. 2021, section 2) and ASAM's
adaptive sharpness (Kwon et al. 2021, eq. 3).

    max L(w + eps) - L(w)  over  ||T^-1 eps||_p <= rho,      T = 1 (plain), |w| or the norm of w's filter (adaptive)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.methods.asam import size
from broadopt.methods.sam import steepest

Direction = Callable[[Sequence[Tensor], list[Tensor]], list[Tensor]]
"""(weights, gradients) -> one tensor a weight; it may overwrite the gradients."""


@dataclass(frozen=True, kw_only=True)
class Ball:
    """||T^-1 eps||_p <= rho. p: 2 or inf; scale: "one" (plain), "element" or "filter".

    An adaptive T scales all parameters and adds nothing to them, as ASAM's definition has it: only then is the measure
    invariant under rescaling (Theorem 1). Its training leaves biases alone and adds eta.
    """

    rho: float
    p: float = 2
    scale: str = "one"

    def __post_init__(self) -> None:
        if self.p not in (2, math.inf) or self.scale not in ("one", "element", "filter"):
            raise ValueError(f"{self}: expected p 2 or inf, scale one, element or filter")

    @torch.no_grad()
    def scales(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """T, one tensor a weight, which broadcasts to it."""
        if self.scale == "one":
            return [torch.ones_like(weight) for weight in weights]
        return [
            size(weight, "filter" if self.scale == "filter" and weight.dim() > 2 else "element") for weight in weights
        ]

    def project(self, inner: list[Tensor]) -> None:
        """Take inner = T^-1 eps to the nearest point of the ball, in place."""
        if self.p == math.inf:
            torch._foreach_clamp_min_(inner, -self.rho)
            torch._foreach_clamp_max_(inner, self.rho)
        else:
            norm = _norm(inner, 2)
            if norm > self.rho:
                torch._foreach_mul_(inner, self.rho / norm)


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """Rises of the loss (nats), means over chunks of m images.

    first_order: rho ||T g||_q, 1/p + 1/q = 1, what the gradient promises; one_step: the rise at that point, which is
    where SAM and ASAM take their gradient; highest: the highest that the ascent has met, a lower bound of the maximum;
    error: the standard error of `highest` over the chunks, nan for one chunk.
    """

    first_order: float
    one_step: float
    highest: float
    error: float


def sharpness_in(loss: Loss, ball: Ball, *, steps: int, m: int | None = None) -> Sharpness:
    """Sharpness on all images, or m-sharpness: each chunk of m images has a perturbation of its own (SAM, section 4.1).

    Raises InputError where the loss is not finite in the ball.
    """
    parts = list(loss.chunks(m or len(loss)))
    shares = np.array([len(part) / len(loss) for part in parts])  # the last chunk may be smaller
    rises = np.array([ascend(part, ball, steps=steps) for part in parts])
    first_order, one_step, highest = (float(shares @ column) for column in rises.T)
    return Sharpness(
        first_order=first_order, one_step=one_step, highest=highest, error=standard_error(rises[:, 2], shares)
    )


def ascend(loss: Loss, ball: Ball, *, steps: int) -> tuple[float, float, float]:
    """(first_order, one_step, highest) of one set of images, as in Sharpness; leaves the weights as they were.

    Projected ascent along the unit vector of p-norm 1 that rises most, in the coordinates T^-1 eps in which the ball is
    round, with steps of 2 rho / (k + 2), k = 0, 1, ...: the first ends at SAM's point on the ball's surface, and the
    later ones get shorter, so that a maximum inside is met as well.
    """
    weights = loss.parameters
    T = ball.scales(weights)
    inner = [torch.zeros_like(weight) for weight in weights]
    before, gradients = loss.gradient()
    rises = [0.0]
    with kept(weights) as copies:
        for step in range(steps):
            torch._foreach_mul_(gradients, T)
            if step == 0:
                first_order = ball.rho * _norm(gradients, 1 if ball.p == math.inf else 2)
            torch._foreach_add_(inner, steepest(gradients, p=ball.p), alpha=2 * ball.rho / (step + 2))
            ball.project(inner)
            _move(weights, copies, torch._foreach_mul(T, inner))
            # The last point needs no gradient: nothing goes on from it.
            value, gradients = loss.gradient() if step < steps - 1 else (loss.value(), [])
            rises.append(value - before)
    return first_order, rises[1], max(rises)


def rises_along(loss: Loss, direction: Direction, radii: Sequence[float]) -> list[float]:
    """L(w + rho d) - L(w) (nats) for each rho of `radii`, d the direction of the gradient on the same images."""
    before, gradients = loss.gradient()
    rises = []
    with torch.no_grad():
        unit = direction(loss.parameters, gradients)
    with kept(loss.parameters) as copies:
        for rho in radii:
            _move(loss.parameters, copies, torch._foreach_mul(unit, rho))
            rises.append(loss.value() - before)
    return rises


def standard_error(values: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Standard error of the mean of `values` weighted by `shares` (they sum to 1); nan for one value."""
    if len(values) < 2:
        return math.nan
    deviations = shares * (values - shares @ values)
    return float(np.sqrt((deviations**2).sum() * len(values) / (len(values) - 1)))


@contextmanager
def kept(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Copies of the weights, which are put back at the end, bit for bit."""
    copies = [weight.detach().clone() for weight in weights]
    try:
        yield copies
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), copies)


RESCALING = 4.0
"""A power of two: products with it are exact, so that a rescaled network computes the same numbers, not close ones."""


@torch.no_grad()
def rescale(model: nn.Module, images: Tensor) -> list[str]:
    """Multiply layers by RESCALING and divide what reads them by it, in place, wherever the network's function stays
    the same; returns the names of the first layers, none where there is no such pair.

    ReLU(a x) = a ReLU(x) for a > 0 makes that so for a layer, or BN's scale and shift, of which one layer alone reads
    through ReLU. Which those are is not known from the names: each pair is tried on `images`, with the network in
    evaluation mode.
    """
    model.eval()
    logits = model(images)
    tolerance = 1e-5 * logits.abs().max()
    done = []
    layers = [(name, module) for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    for (name, first), (_, second) in pairwise(layers):
        if not isinstance(second, nn.Conv2d | nn.Linear):
            continue
        written = list(first.parameters(recurse=False))
        with kept([*written, second.weight]) as copies:
            torch._foreach_mul_([*written, second.weight], [*[RESCALING] * len(written), 1 / RESCALING])
            same = bool((model(images) - logits).abs().max() <= tolerance)
            if same:  # what is put back is what has been tried
                torch._foreach_copy_(copies, [*written, second.weight])
                done.append(name)
    return done


@torch.no_grad()
def _move(weights: Sequence[Tensor], origin: list[Tensor], perturbation: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), origin)
    torch._foreach_add_(list(weights), list(perturbation))


def _norm(tensors: list[Tensor], order: int) -> float:
    norms = torch._foreach_norm(tensors, order, dtype=torch.float64)
    return float(torch.linalg.vector_norm(torch.stack(norms), order))
