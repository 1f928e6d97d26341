"""The training loss of one network as a function of its weights: its value, its gradient, its Hessian's products."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.errors import InputError

BATCH = 100
"""Images whose graph is held in memory at once: the second backward pass keeps the activations of the first as well."""


class Loss:
    """Mean cross-entropy (nats) of a network in evaluation mode on fixed images, without weight decay or smoothing.

    In evaluation mode BN uses its stored statistics, so that an image's loss does not depend on the others and the
    mean over images is the same however they are batched, but for rounding. The network is put into that mode.
    images: float [N, 3, H, W], as the network takes them; labels: int64 [N]; both on the network's device.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = BATCH) -> None:
        self.model, self.images, self.labels, self.batch_size = model.eval(), images, labels, batch_size
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters)

    def chunks(self, m: int) -> Iterator["Loss"]:
        """The losses of m images each, in their order; the last one takes what is left."""
        for images, labels in zip(self.images.split(m), self.labels.split(m), strict=True):
            yield Loss(self.model, images, labels, batch_size=self.batch_size)

    @torch.no_grad()
    def value(self) -> float:
        """The mean loss. Raises InputError where it is not finite."""
        return _finite(sum(self._parts()))

    def gradient(self) -> tuple[float, list[Tensor]]:
        """The mean loss and its gradient, one tensor a parameter. Raises InputError where the loss is not finite."""
        total = torch.zeros((), dtype=torch.float64, device=self.labels.device)
        gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for part in self._parts():
            torch._foreach_add_(gradients, list(torch.autograd.grad(part, self.parameters, materialize_grads=True)))
            total += part.detach()
        return _finite(total), gradients

    def products(self, vectors: Tensor) -> Tensor:
        """The Hessian times each of k vectors, [k, P] -> [k, P], in the weights' own precision.

        By double backward: H v = grad <grad L, v>. The vectors share a batch's forward and first backward pass.
        """
        output = torch.zeros_like(vectors)
        for part in self._parts():
            gradients = torch.autograd.grad(part, self.parameters, create_graph=True, materialize_grads=True)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            for row, vector in enumerate(vectors):
                if flat.requires_grad:  # a loss that is linear in all weights has no second derivative to ask for
                    products = torch.autograd.grad(
                        flat, self.parameters, vector, retain_graph=row < len(vectors) - 1, materialize_grads=True
                    )
                    output[row] += torch.cat([product.flatten() for product in products])
        return output

    def _parts(self) -> Iterator[Tensor]:
        """The share of each batch in the mean loss; the sum is taken in float64, as differences of losses are small."""
        for images, labels in zip(self.images.split(self.batch_size), self.labels.split(self.batch_size), strict=True):
            logits = self.model(images).double()
            yield F.cross_entropy(logits, labels, reduction="sum") / len(self)


def _finite(total: Tensor | float) -> float:
    value = float(total)  # here alone the device is waited for
    if not math.isfinite(value):
        raise InputError("the loss is not finite at these weights")
    return value
