"""The batches that a step is handed by the training loop, without the loop."""

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.methods.batch import Batch


def batch_of(model: nn.Module, data: tuple[Tensor, Tensor], step: int | None = None) -> Batch:
    """Images and labels as the batch of step number `step`, of ten a budget."""

    def gradient(images: Tensor, labels: Tensor, first: bool) -> Tensor:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    def curvature(images: Tensor, labels: Tensor, outer: Any, inner: Any, vectors: Any) -> list[Tensor]:
        slopes = torch.autograd.grad(F.cross_entropy(model(images), labels), inner, create_graph=True)
        return list(torch.autograd.grad(slopes, outer, vectors))

    return Batch(*data, gradient, nullcontext, step=step, steps_per_budget=10, curvature=curvature)
