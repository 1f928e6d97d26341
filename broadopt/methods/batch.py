"""A batch as a step sees it: a closure over all its images, which can be taken apart."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

from broadopt.methods.steps.sharp_steps import quotient

Gradient = Callable[[Tensor, Tensor, bool], Tensor]
"""(images, labels, whether these images are seen for the first time) -> mean loss; adds to every `.grad`."""

Curvature = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""(images, labels, outer weights, inner weights, vectors) -> the gradient with respect to the outer weights of
<vectors, grad L with respect to the inner ones>: a product of the Hessian of the mean loss, one tensor an outer weight.
"""


@dataclass
class Batch:
    """images float [B, 3, H, W] and their labels. Calling it makes one forward and backward pass on all of them."""

    images: Tensor
    labels: Tensor
    gradient: Gradient
    local: Callable[[], AbstractContextManager[None]]
    """Inside it, passes leave the gradient of this process's images alone."""
    step: int | None = None
    """Number of this step in its training, from 0; None where nobody says it."""
    steps_per_budget: float = 0.0
    """Steps until a budget is spent."""
    curvature: Curvature | None = None
    evaluated: int = 0
    """Images whose gradient was made, each as often as it was."""
    seen: int = 0
    """Images of the first pass: those whose loss and accuracy count."""
    parts: list["Batch"] = field(default_factory=list)

    def __call__(self) -> Tensor:
        return self.first(len(self.labels))

    def first(self, count: int) -> Tensor:
        """One forward and backward pass on the first `count` images; returns their mean loss."""
        is_first = self.seen == 0
        self.evaluated += count
        if is_first:
            self.seen = count
        if count == len(self.labels):
            return self.gradient(self.images, self.labels, is_first)
        return self.gradient(self.images[:count], self.labels[:count], is_first)

    def hessian_product(
        self, outer: Sequence[Tensor], inner: Sequence[Tensor], vectors: Sequence[Tensor], *, count: int
    ) -> list[Tensor]:
        """`curvature` on the first `count` images; counts as two passes: a gradient, and the gradient of its product
        with the vectors.
        """
        if self.curvature is None:
            raise TypeError("step.second_order needs a batch with its curvature")
        self.evaluated += 2 * count
        return self.curvature(self.images[:count], self.labels[:count], outer, inner, vectors)

    def split(self, size: int) -> list[tuple[float, "Batch"]]:
        """Consecutive parts of `size` images, the last perhaps smaller, each with its share of the images."""
        pieces = zip(self.images.split(size), self.labels.split(size), strict=True)
        self.parts = [
            Batch(images, labels, self.gradient, self.local, curvature=self.curvature) for images, labels in pieces
        ]
        return [(len(part.labels) / len(self.labels), part) for part in self.parts]

    @property
    def images_seen(self) -> int:
        """Images of the first pass, in one piece or in parts."""
        return self.seen + sum(part.seen for part in self.parts)

    @property
    def passes(self) -> float:
        """Gradients of the whole batch that were made, in one piece or in parts; that of a part of its images counts
        by their share. A whole number is an integer.
        """
        evaluated = self.evaluated + sum(part.evaluated for part in self.parts)
        return quotient(evaluated, len(self.labels))
