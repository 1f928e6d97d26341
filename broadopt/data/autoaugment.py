"""AutoAugment's CIFAR-10 policy (Cubuk et al. 2019) on whole batches, by torchvision's own policy and operations.

An image meets two operations, one after the other, of a sub-policy drawn for it. The operations treat each image by
itself, so images that share an operation and its magnitude go through it together: the same bits as one by one, at a
fraction of the calls. Those of torchvision's operations that make the host wait for a GPU have others in their place,
with the same bits.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as reference

from broadopt.data.augment import SIDE, to_device

POLICIES = 25
VALUES = 256
"""That a pixel may have."""
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
"""Operations that take each pixel from another place, the same one in every image."""


class Policies:
    """The 25 sub-policies for images of 32x32: (operation, probability, magnitude, signed) at each of two stages."""

    def __init__(self) -> None:
        policy = reference.AutoAugment(reference.AutoAugmentPolicy.CIFAR10)
        space = policy._augmentation_space(10, (32, 32))
        self.table = [
            [
                (name, probability, _magnitude(space[name][0], level), space[name][1])
                for name, probability, level in pair
            ]
            for pair in policy.policies
        ]
        self._sources: dict[tuple[str, float, torch.device], Tensor] = {}

    def __call__(self, pixels: Tensor, policies: Tensor, chances: Tensor, signs: Tensor) -> Tensor:
        """uint8 [B, 3, 32, 32] after the drawn operations, as torchvision's AutoAugment with the same draws.

        policies: int64 [B] in 0..24; chances: float [B, 2] in [0, 1), an operation is applied where its chance is at
        most its probability; signs: bool [B, 2], false turns a signed magnitude round. The draws lie on the CPU,
        `pixels` anywhere.
        """
        pixels = pixels.clone()
        drawn = zip(policies.tolist(), chances.tolist(), signs.tolist(), strict=True)
        stages: tuple[dict[tuple[str, float], list[int]], ...] = (defaultdict(list), defaultdict(list))
        for image, (policy, chance, sign) in enumerate(drawn):
            for stage, (name, probability, magnitude, signed) in enumerate(self.table[policy]):
                if chance[stage] <= probability:
                    stages[stage][name, -magnitude if signed and not sign[stage] else magnitude].append(image)
        for groups in stages:
            order = torch.tensor([image for images in groups.values() for image in images], dtype=torch.int64)
            parts = to_device(order, pixels.device).split([len(images) for images in groups.values()])
            for (name, magnitude), chosen in zip(groups, parts, strict=True):
                pixels[chosen] = self._applied(pixels[chosen], name, magnitude)
        return pixels

    def _applied(self, pixels: Tensor, name: str, magnitude: float) -> Tensor:
        if name in MOVES:
            key = (name, magnitude, pixels.device)
            if key not in self._sources:
                self._sources[key] = to_device(sources(name, magnitude), pixels.device)
            return moved(pixels, self._sources[key])
        if name == "AutoContrast":
            return contrasted(pixels)
        if name == "Equalize":
            return equalized(pixels)
        return reference._apply_op(pixels, name, magnitude, InterpolationMode.NEAREST, None)


def sources(name: str, magnitude: float) -> Tensor:
    """int64 [32 * 32]: the place that each pixel comes from in an operation of `MOVES`; 32 * 32 where it is outside.

    torchvision moves an image of the places themselves: on a GPU it would send the matrix there in every call, and the
    host waits for that.
    """
    places = torch.arange(1, SIDE * SIDE + 1, dtype=torch.float32).view(1, 1, SIDE, SIDE)
    came = reference._apply_op(places, name, magnitude, InterpolationMode.NEAREST, None).long().flatten()
    return torch.where(came == 0, SIDE * SIDE, came - 1)


def moved(pixels: Tensor, sources: Tensor) -> Tensor:
    """uint8 [B, C, 32, 32] whose pixels come from `sources`; from outside they are black."""
    with_black = torch.nn.functional.pad(pixels.flatten(2), (0, 1))
    return with_black.index_select(2, sources).view_as(pixels)


def contrasted(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] with each channel of each image stretched to 0..255, as torchvision's `autocontrast`, which
    looks for channels of one value by their indices: the host waits for these.
    """
    low, high = (extreme(dim=(-2, -1), keepdim=True).float() for extreme in (pixels.amin, pixels.amax))
    scale = (VALUES - 1) / (high - low)
    is_flat = torch.isfinite(scale).logical_not()
    low, scale = low.masked_fill(is_flat, 0.0), scale.masked_fill(is_flat, 1.0)
    return ((pixels - low) * scale).clamp(0, VALUES - 1).to(torch.uint8)


def equalized(pixels: Tensor) -> Tensor:
    """uint8 [B, C, H, W] with the values of each channel of each image spread evenly, as torchvision's `equalize`.

    That goes through the channels one by one, and on a GPU counts their values by an operation that deterministic=true
    refuses. Here they are counted together, as whole numbers, whose sums have no order.
    """
    channels = pixels.flatten(2).flatten(0, 1).long()  # [BC, HW]
    counts = torch.zeros(len(channels) * VALUES, dtype=torch.int64, device=pixels.device)
    rows = torch.arange(len(channels), device=pixels.device)[:, None] * VALUES
    counts.scatter_add_(0, (rows + channels).flatten(), torch.ones_like(channels).flatten())
    counts = counts.view(-1, VALUES)
    of_brightest = counts.gather(1, channels.amax(dim=1, keepdim=True))
    step = (channels.shape[1] - of_brightest) // (VALUES - 1)  # [BC, 1]; 0: too few values, which stay
    darker = counts.cumsum(dim=1) - counts  # [BC, VALUES]: how many are darker than each value
    same = torch.arange(VALUES, device=pixels.device)
    table = torch.where(step == 0, same, (darker + step // 2) // step.clamp(min=1))
    return table.clamp(max=VALUES - 1).gather(1, channels).to(torch.uint8).view_as(pixels)


def _magnitude(levels: Tensor, level: int | None) -> float:
    return 0.0 if level is None else float(levels[level])
