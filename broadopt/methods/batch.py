"""A batch as a step sees it: a closure over all its images, which can be taken apart."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from torch import Tensor

Gradient = Callable[[Tensor, Tensor, bool], Tensor]
"""(images, labels, whether these images are seen for the first time) -> mean loss; adds to every `.grad`."""


@dataclass
class Batch:
    """images float [B, 3, H, W] and their labels. Calling it makes one forward and backward pass on all of them."""

    images: Tensor
    labels: Tensor
    gradient: Gradient
    local: Callable[[], AbstractContextManager[None]]
    """Inside it, passes leave the gradient of this process's images alone."""
    calls: int = 0
    parts: list["Batch"] = field(default_factory=list)

    def __call__(self) -> Tensor:
        self.calls += 1
        return self.gradient(self.images, self.labels, self.calls == 1)

    def split(self, size: int) -> list[tuple[float, "Batch"]]:
        """Consecutive parts of `size` images, the last perhaps smaller, each with its share of the images."""
        pieces = zip(self.images.split(size), self.labels.split(size), strict=True)
        self.parts = [Batch(images, labels, self.gradient, self.local) for images, labels in pieces]
        return [(len(part.labels) / len(self.labels), part) for part in self.parts]

    @property
    def passes(self) -> int:
        """Gradients of the whole batch that were made, in one piece or in parts."""
        # Every part makes as many passes as the last one, together as many as the whole batch would.
        return self.calls + (self.parts[-1].calls if self.parts else 0)
