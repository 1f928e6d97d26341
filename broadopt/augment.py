"""Random crops and flips of whole batches of uint8 images, and their normalisation, on any device.

One pass over the training images goes through four steps: everything random is drawn (`draw`), then each batch is
cropped and flipped (`crop_and_flip`) and normalised (`Normalisation`). A further option that draws takes more columns
in `Draws`, drawn after the present ones so that those stay what they are; one on raw pixels (AutoAugment) comes
between cropping and normalising, one on normalised batches (Cutout, CutMix) after it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from broadopt.errors import InputError

SIDE = 32


@dataclass(frozen=True)
class Augmentation:
    """What a protocol fixes: zeros added on each side before a random crop, flips with probability 1/2, normalisation.

    `mean` and `std` are of red, green and blue on a scale from 0 to 1. Raises InputError for values out of range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.pad, int) or self.pad < 0:
            raise InputError(f"augmentation.pad={self.pad}: expected a whole number of pixels, 0 or more")
        for key, values in (("mean", tuple(self.mean)), ("std", tuple(self.std))):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"augmentation.{key}={list(values)}: expected three numbers, for red, green and blue")
            object.__setattr__(self, key, values)  # a plain tuple, also where a configuration passed its own list type
        if min(self.std) <= 0:
            raise InputError(f"augmentation.std={list(self.std)}: expected three numbers above 0")


@dataclass(frozen=True)
class Draws:
    """All that is random in one pass over n images, in the order in which they are shown.

    images: int64 [n], a permutation; tops and lefts: int64 [n], the crop's corner in the padded image, 0..2 pad;
    flips: bool [n].
    """

    images: Tensor
    tops: Tensor
    lefts: Tensor
    flips: Tensor

    def part(self, batch: slice) -> "Draws":
        """Views of the entries of one batch."""
        return Draws(self.images[batch], self.tops[batch], self.lefts[batch], self.flips[batch])

    def to(self, device: torch.device) -> "Draws":
        """Copies on `device`; the host does not wait for a CUDA device to receive them."""
        if device.type != "cuda":
            return Draws(*(drawn.to(device) for drawn in (self.images, self.tops, self.lefts, self.flips)))
        pinned = (drawn.pin_memory() for drawn in (self.images, self.tops, self.lefts, self.flips))
        return Draws(*(drawn.to(device, non_blocking=True) for drawn in pinned))


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
    """A random order of `count` images, and a crop and a flip for each, from a CPU `generator`."""
    images = torch.randperm(count, generator=generator)
    tops, lefts = torch.randint(2 * augmentation.pad + 1, (2, count), generator=generator)
    flips = torch.randint(2, (count,), generator=generator).bool()
    return Draws(images, tops, lefts, flips if augmentation.flip else torch.zeros_like(flips))


def padded(pixels: Tensor, pad: int) -> Tensor:
    """uint8 [N, 3, 32, 32] with `pad` zeros on each side, stored as rows of pixels: [N, 32 + 2 pad, 32 + 2 pad, 3].

    Zero here is black. Padding after the normalisation would put the mean colour there, which is another recipe.
    """
    width = SIDE + 2 * pad
    frame = pixels.new_zeros(len(pixels), width, width, 3)
    frame[:, pad : pad + SIDE, pad : pad + SIDE] = pixels.permute(0, 2, 3, 1)
    return frame


def crop_and_flip(frames: Tensor, draws: Draws) -> Tensor:
    """The drawn crops (uint8 [B, 32, 32, 3]) of `frames` (uint8 [N, W, W, 3]), mirrored left to right where drawn.

    Flipping first would be the same: the crop at `left` of the mirrored frame is the mirrored crop at 2 pad - left,
    and both are uniform on 0..2 pad. So one order serves the recipes that crop first and those that flip first.
    """
    width = frames.shape[1]
    steps = torch.arange(SIDE, device=frames.device)
    rows = draws.tops[:, None] + steps
    columns = draws.lefts[:, None] + torch.where(draws.flips[:, None], SIDE - 1 - steps, steps)
    corners = draws.images * (width * width)
    # One gather of 3-byte pixels: several times faster on a CPU than indexing by image, row and column.
    positions = (corners[:, None] + rows * width)[:, :, None] + columns[:, None, :]
    return frames.view(-1, 3).index_select(0, positions.view(-1)).view(-1, SIDE, SIDE, 3)


class Normalisation:
    """(pixels / 255 - mean) / std in float32, by the operations of torchvision's ToTensor and Normalize."""

    def __init__(self, augmentation: Augmentation, *, device: torch.device, channels_last: bool = False) -> None:
        """The result's memory is laid out as [B, 32, 32, 3] where `channels_last`, else as [B, 3, 32, 32]."""
        self.channels_last = channels_last
        statistics = torch.tensor([augmentation.mean, augmentation.std], device=device)
        # Long innermost rows vectorise, rows of three channels do not: the channels are repeated along the row.
        self.mean, self.std = statistics.repeat(1, SIDE) if channels_last else statistics[:, :, None, None]

    def __call__(self, pixels: Tensor) -> Tensor:
        """float32 [B, 3, 32, 32] of uint8 [B, 32, 32, 3]."""
        if self.channels_last:
            rows = pixels.view(-1, SIDE, SIDE * 3).to(torch.float32)
            return self._normalised(rows).view(-1, SIDE, SIDE, 3).permute(0, 3, 1, 2)
        planes = pixels.permute(0, 3, 1, 2)
        return self._normalised(planes.to(torch.float32, memory_format=torch.contiguous_format))

    def _normalised(self, values: Tensor) -> Tensor:
        return values.div_(255).sub_(self.mean).div_(self.std)
