"""The exact gradient of SAM's objective L(w + eps(w)), whose usual gradient takes eps for a constant."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from broadopt.methods.batch import Batch
from broadopt.methods.batchnorm import keep_statistics
from broadopt.methods.step import Closure
from broadopt.methods.steps.products import TINY, norm, orthogonal


class SecondOrder:
    """A correction of SharpnessAware: grad of L(w + eps(w)), eps = rho g / ||g||, g = grad L(w) (SAM, section 2,
    before the second-order terms are dropped).

    d eps / dw = rho / ||g|| (1 - u u^T) H, u = g / ||g||, H the Hessian of L at w, so with g_s = grad L(w + eps)

        grad = g_s + rho / ||g|| H (g_s - <g_s, u> u)

    by one double backward pass on the images and with the noise that gave g.
    """

    passes = 2
    """What the product with the Hessian counts for: a gradient, and the gradient of its product with a vector."""
    one_process = "step.second_order=true: second derivatives are those of one device; expected false"

    def __init__(self, model: nn.Module, *, rho: float) -> None:
        self.model, self.rho = model, rho

    def __call__(self, closure: Closure, weights: Sequence[Tensor], gradients: list[Tensor]) -> None:
        if not isinstance(closure, Batch):
            raise TypeError("step.second_order needs a broadopt.methods.batch.Batch with its curvature")
        with torch.no_grad():
            sharp = [weight.grad if weight.grad is not None else torch.zeros_like(weight) for weight in weights]
            vectors = orthogonal(sharp, gradients)
            torch._foreach_mul_(vectors, self.rho / norm(gradients).clamp_min(TINY))
        moving = [weight for weight in self.model.parameters() if weight.grad is not None]
        with keep_statistics(self.model):  # the first pass has counted for BN, on the same images
            terms = closure.hessian_product(moving, weights, vectors, count=closure.seen)
        with torch.no_grad():
            torch._foreach_add_([weight.grad for weight in moving if weight.grad is not None], terms)
