"""AutoAugment's CIFAR-10 policy (Cubuk et al. 2019) on whole batches, by torchvision's own policy and operations.

An image meets two operations, one after the other, of a sub-policy drawn for it. The operations treat each image by
itself, so images that share an operation and its magnitude go through it together: the same bits as one by one, at a
fraction of the calls.
"""

from collections import defaultdict

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import autoaugment as reference

POLICIES = 25


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
            for (name, magnitude), images in groups.items():
                chosen = torch.tensor(images).to(pixels.device, non_blocking=True)
                changed = reference._apply_op(pixels[chosen], name, magnitude, InterpolationMode.NEAREST, None)
                pixels[chosen] = changed
        return pixels


def _magnitude(levels: Tensor, level: int | None) -> float:
    return 0.0 if level is None else float(levels[level])
