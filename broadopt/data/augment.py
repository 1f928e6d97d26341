"""Random crops and flips of whole batches of uint8 images, and their normalisation, on any device.

One pass over the training images draws everything random at once (`draw`); then each batch is cropped and flipped
(`crop_and_flip`), goes through AutoAugment where asked, is normalised (`Normalisation`), and where asked gets a border
of the mean colour (`mean_border`) and loses or exchanges a square (`cut_out`, `cut_mix`). An option's draws come after
those of the options before it, which so stay what they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broadopt.errors import InputError, nearest

SIDE = 32
BORDERS = ("black", "mean")


@dataclass(frozen=True)
class Augmentation:
    """What a protocol fixes: `pad` pixels added on each side before a random crop, flips with probability 1/2,
    normalisation.

    `mean` and `std` are of red, green and blue on a scale from 0 to 1. `border` is the colour of the added pixels:
    black where a code pads before it normalises, the mean colour, which is 0 then, where it pads after. `autoaugment`
    applies AutoAugment's CIFAR-10 policy to the cropped and flipped image, `cutout` sets a square of that side to the
    mean colour (0: none), `cutmix` is the probability that a batch is mixed. Raises InputError for values out of range.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad: int = 4
    border: str = "black"
    flip: bool = True
    autoaugment: bool = False
    cutout: int = 0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.cutout, int) or not 0 <= self.cutout <= SIDE:
            raise InputError(f"augmentation.cutout={self.cutout}: expected a whole number of pixels from 0 to {SIDE}")
        if not 0 <= self.cutmix <= 1:
            raise InputError(f"augmentation.cutmix={self.cutmix}: expected a probability from 0 to 1")
        if not isinstance(self.pad, int) or self.pad < 0:
            raise InputError(f"augmentation.pad={self.pad}: expected a whole number of pixels, 0 or more")
        if self.border not in BORDERS:
            hint = nearest(str(self.border), BORDERS)
            raise InputError(f"augmentation.border={self.border}: expected one of {', '.join(BORDERS)}{hint}")
        if self.border == "mean" and self.autoaugment:  # its operations move the border, which then is not known
            raise InputError("augmentation.border=mean: expected black with augmentation.autoaugment=true")
        for key, values in (("mean", tuple(self.mean)), ("std", tuple(self.std))):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise InputError(f"augmentation.{key}={list(values)}: expected three numbers, for red, green and blue")
            object.__setattr__(self, key, values)  # a plain tuple, also where a configuration passed its own list type
        if min(self.std) <= 0:
            raise InputError(f"augmentation.std={list(self.std)}: expected three numbers above 0")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if min(values) < 0 or max(values) > 1:  # as of pixels from 0 to 255, by which others normalise
                of_bytes = [round(value / 255, 4) for value in values]
                hint = f"; of pixels from 0 to 255 that is {of_bytes}" if 0 <= min(values) <= max(values) <= 255 else ""
                raise InputError(f"augmentation.{key}={list(values)}: expected three numbers from 0 to 1{hint}")


@dataclass(frozen=True)
class Draws:
    """All that is random in one pass over n images, in the order in which they are shown.

    images: int64 [n], a permutation; tops and lefts: int64 [n], the crop's corner in the padded image, 0..2 pad; flips:
    bool [n]. None where the option is not asked for: operations, AutoAugment's policies (int64 [n]), chances and signs
    ([n, 2]), which stay on the CPU; holes, the middles of the cut-out squares (int64 [n, 2]); mixes, float64 [n, 5]: a
    chance, CutMix's lambda, the middle of its box on a scale from 0 to 1, and a key that decides the partner. A batch
    is mixed by the draws of its first image.
    """

    images: Tensor
    tops: Tensor
    lefts: Tensor
    flips: Tensor
    operations: tuple[Tensor, ...] | None = None
    holes: Tensor | None = None
    mixes: Tensor | None = None

    def part(self, batch: slice) -> "Draws":
        """Views of the entries of one batch."""
        return self._each(lambda drawn: drawn[batch], lambda drawn: drawn[batch])

    def tensors(self) -> tuple[Tensor, ...]:
        """All that is on the device; `of_tensors` makes the same draws of them, but for operations."""
        every = (self.images, self.tops, self.lefts, self.flips, self.holes, self.mixes)
        return tuple(drawn for drawn in every if drawn is not None)

    @classmethod
    def of_tensors(cls, tensors: Sequence[Tensor], *, holes: bool, mixes: bool) -> "Draws":
        """The draws whose `tensors` these are, with holes and mixes where they are among them."""
        images, tops, lefts, flips, *others = tensors
        return cls(
            images, tops, lefts, flips, holes=others.pop(0) if holes else None, mixes=others.pop() if mixes else None
        )

    def to(self, device: torch.device) -> "Draws":
        """Copies on `device`; the host does not wait for a CUDA device to receive them."""
        return self._each(lambda drawn: to_device(drawn, device), lambda drawn: drawn)

    def _each(self, change: Callable[[Tensor], Tensor], on_cpu: Callable[[Tensor], Tensor]) -> "Draws":
        operations = None if self.operations is None else tuple(map(on_cpu, self.operations))
        holes, mixes = (None if drawn is None else change(drawn) for drawn in (self.holes, self.mixes))
        images, tops, lefts, flips = map(change, (self.images, self.tops, self.lefts, self.flips))
        return Draws(images, tops, lefts, flips, operations, holes, mixes)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`; the host does not wait for a CUDA device to receive it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def draw(augmentation: Augmentation, count: int, generator: torch.Generator) -> Draws:
    """A random order of `count` images and all that is random about each, from a CPU `generator`."""
    images = torch.randperm(count, generator=generator)
    tops, lefts = torch.randint(2 * augmentation.pad + 1, (2, count), generator=generator)
    flips = torch.randint(2, (count,), generator=generator).bool()
    operations = holes = mixes = None
    if augmentation.autoaugment:
        policies = torch.randint(25, (count,), generator=generator)
        chances = torch.rand(count, 2, generator=generator)
        operations = (policies, chances, torch.randint(2, (count, 2), generator=generator).bool())
    if augmentation.cutout:
        holes = torch.randint(SIDE, (count, 2), generator=generator)
    if augmentation.cutmix:
        mixes = torch.rand(count, 5, generator=generator, dtype=torch.float64)
    return Draws(images, tops, lefts, flips if augmentation.flip else torch.zeros_like(flips), operations, holes, mixes)


def padded(pixels: Tensor, pad: int) -> Tensor:
    """uint8 [N, 3, 32, 32] with `pad` zeros on each side, stored as rows of pixels: [N, 32 + 2 pad, 32 + 2 pad, 3].

    Zero here is black. No uint8 value is the mean colour, so `mean_border` puts that there after the normalisation.
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
    rows, columns = _rows_and_columns(draws)
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


def mean_border(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """`images` (normalised, [B, 3, 32, 32]) in which every pixel of the drawn crop that was padded is 0, the mean
    colour, in place.

    They become what a code makes that normalises first and then pads with zeros (fb.resnet.torch, cifar10.lua).
    """
    rows, columns = ((places < pad) | (places >= pad + SIDE) for places in _rows_and_columns(draws))  # bool [B, 32]
    return images.masked_fill_((rows[:, :, None] | columns[:, None, :])[:, None], 0.0)


def cut_out(images: Tensor, holes: Tensor, side: int) -> Tensor:
    """`images` (normalised, [B, 3, 32, 32]) with a square around each of `holes` (int64 [B, 2]: row, column) set to 0,
    in place.

    Squares reach over the border, where they are cut off (DeVries and Taylor 2017).
    """
    inside = (_span(holes[:, 0] - side // 2, side)[:, :, None] & _span(holes[:, 1] - side // 2, side)[:, None, :])[
        :, None
    ]
    return images.masked_fill_(inside, 0.0)


def cut_mix(
    images: Tensor, labels: Tensor, mixes: Tensor, *, probability: float, classes: int
) -> tuple[Tensor, Tensor]:
    """A batch in which, with `probability`, one box of every image is that of another, and its labels as shares [B,
    classes].

    With lambda uniform on [0, 1] (Beta(1, 1)) the box has sides 32 sqrt(1 - lambda) around a uniform middle, cut off at
    the border; a label's share is the area that is left to it (Yun et al. 2019). images: [B, 3, 32, 32], labels: int64
    [B].
    """
    chance, lam, middle = mixes[0, 0], mixes[0, 1], (mixes[0, 2:4] * SIDE).long()
    side = (SIDE * (1 - lam).sqrt()).long()
    ends = torch.stack([middle - side // 2, middle + side // 2]).clamp_(0, SIDE)
    steps = torch.arange(SIDE, device=images.device)
    rows, columns = ((steps >= ends[0, axis]) & (steps < ends[1, axis]) for axis in (0, 1))
    box = rows[:, None] & columns[None, :] & (chance < probability)
    partner = mixes[:, 4].argsort()
    share = 1 - box.float().mean()
    one_hot = torch.nn.functional.one_hot(labels, classes).float()
    return torch.where(box, images[partner], images), share * one_hot + (1 - share) * one_hot[partner]


def _rows_and_columns(draws: Draws) -> tuple[Tensor, Tensor]:
    """The rows and the columns of the padded image that a crop takes, int64 [B, 32] each, the columns mirrored where
    drawn.
    """
    steps = torch.arange(SIDE, device=draws.tops.device)
    mirrored = torch.where(draws.flips[:, None], SIDE - 1 - steps, steps)
    return draws.tops[:, None] + steps, draws.lefts[:, None] + mirrored


def _span(start: Tensor, length: int) -> Tensor:
    """bool [B, 32]: the positions from `start` (int64 [B]) on, `length` of them."""
    offset = torch.arange(SIDE, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < length)
