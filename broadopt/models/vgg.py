"""VGG-16 of the SWA repository and the four readings of ASAM's VGG19-BN (Simonyan & Zisserman 2014, arXiv:1409.1556).

    image ─ [conv3x3 (bias) ─ (BN) ─ ReLU] × 2, 2, m, m, m at 64, 128, 256, 512, 512 ─ head            m = 3 or 4
                                            each of the five groups ends in a 2x2 max pool: 32 -> 1

    head           after the features                                    initialisation              who
    hidden512      drop ─ 512 ─ ReLU ─ drop ─ 512 ─ ReLU ─ classes       conv N(0, 2 / (k² · out))   SWA repository
    hidden4096     4096 ─ ReLU ─ drop ─ 4096 ─ ReLU ─ drop ─ classes     torch's default             weiaicunzai
    linear         classes                                               torch's default             smallest reading
    torchvision    as hidden4096, on the one pixel repeated 7x7          torchvision's own           homura's registry

SWA's VGG-16 has no BN, so SWA has no statistics to compute anew for it. All dropout is at 0.5. ASAM does not say which
VGG19-BN it trained: its requirements suggest torchvision's (140 million parameters, most in the head), whose weights at
lr 0.1 were not finite within an epoch in any run of results/vgg19_heads; the default is hidden4096.
"""

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.models.parts import conv3x3, initialise_fan_out, require_boolean, require_choice

CONVOLUTIONS_PER_GROUP = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
OWN_HEADS = ("hidden512", "hidden4096", "linear")
HEADS = ("torchvision", *OWN_HEADS)


class VGG(nn.Module):
    """VGG-`depth` for 32x32 images. Raises InputError for any other depth or head than those above."""

    def __init__(self, *, num_classes: int, depth: int, batch_norm: bool, head: str) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS_PER_GROUP:
            raise InputError(f"model.depth={depth}: a VGG has depth 16 or 19")
        require_boolean("batch_norm", batch_norm)
        require_choice("head", head, OWN_HEADS)
        self.features = nn.Sequential(*_feature_layers(CONVOLUTIONS_PER_GROUP[depth], batch_norm))
        self.head = nn.Sequential(*_head_layers(head, num_classes))
        if head == "hidden512":
            initialise_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        return self.head(self.features(images).flatten(1))


def vgg19_bn(*, num_classes: int, head: str) -> nn.Module:
    """VGG-19 with BN; `head="torchvision"` is torchvision's own. Raises InputError for an unknown head."""
    require_choice("head", head, HEADS)
    if head != "torchvision":
        return VGG(num_classes=num_classes, depth=19, batch_norm=True, head=head)
    from torchvision.models import vgg19_bn as torchvision_vgg19_bn  # costs a second: only where it is used

    made: nn.Module = torchvision_vgg19_bn(num_classes=num_classes)
    made.avgpool = _Spread()
    return made


class _Spread(nn.AdaptiveAvgPool2d):
    """torchvision's pool from 1x1 to 7x7 pixels, which repeats the one. A GPU has no deterministic gradient of it, but
    one of the repetition: the same values forward, the same sum of 49 backward.
    """

    def __init__(self) -> None:
        super().__init__((7, 7))

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, 1, 1] -> [B, C, 7, 7]."""
        if images.is_cuda and images.shape[2:] == (1, 1) and torch.are_deterministic_algorithms_enabled():
            return repeated(images)
        return super().forward(images)


def repeated(images: Tensor) -> Tensor:
    """[B, C, 1, 1] -> [B, C, 7, 7]."""
    return images.expand(-1, -1, 7, 7)


def _feature_layers(convolutions: tuple[int, ...], batch_norm: bool) -> list[nn.Module]:
    """The convolutional part: [B, 3, 32, 32] -> [B, 512, 1, 1]."""
    layers: list[nn.Module] = []
    channels = 3
    for width, count in zip((64, 128, 256, 512, 512), convolutions, strict=True):
        for _ in range(count):
            normalisation = [nn.BatchNorm2d(width)] if batch_norm else []
            layers += [conv3x3(channels, width, bias=True), *normalisation, nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers


def _head_layers(head: str, num_classes: int) -> list[nn.Module]:
    """The fully connected part: [B, 512] -> [B, num_classes]."""
    if head == "linear":
        return [nn.Linear(512, num_classes)]
    if head == "hidden4096":
        first = [nn.Linear(512, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        second = [nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Dropout(0.5)]
        return [*first, *second, nn.Linear(4096, num_classes)]
    first = [nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(inplace=True)]
    second = [nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(inplace=True)]
    return [*first, *second, nn.Linear(512, num_classes)]
