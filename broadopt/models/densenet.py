"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993) from torchvision, in the two readings of ASAM's Table 3.

    image ─ stem ─ dense 6 ─ halve ─ dense 12 ─ halve ─ dense 24 ─ halve ─ dense 16 ─ BN ─ ReLU ─ mean ─ linear

    one of the layers of "dense n", growth 32   x ─┬─ BN ─ ReLU ─ conv1x1 128 ─ BN ─ ReLU ─ conv3x3 32 ─ concatenate ─
                                                   └────────────────────────────────────────────────────┘
    halve    BN ─ ReLU ─ conv1x1 to half the channels ─ 2x2 average pool

    stem      layers                                                     last dense part   multiply-adds, 100 classes
    imagenet  conv7x7 stride 2 ─ BN ─ ReLU ─ 3x3 max pool stride 2       1 x 1             57.9 M
    cifar     conv3x3 ─ BN ─ ReLU                                        4 x 4             888.4 M

"imagenet" is torchvision's network, unchanged; ASAM's requirements and its low DenseNet row speak for it. At one pixel
its BN has one value an image, so that a training batch needs at least two images.
"""

from torch import nn

from broadopt.models.parts import conv3x3, require_choice

STEMS = ("imagenet", "cifar")


def densenet121(*, num_classes: int, stem: str) -> nn.Module:
    """DenseNet-121: float images [B, 3, 32, 32] -> logits [B, num_classes]. Raises InputError for an unknown stem."""
    require_choice("stem", stem, STEMS)
    from torchvision.models import densenet121 as torchvision_densenet121  # costs a second: only where it is used

    network = torchvision_densenet121(num_classes=num_classes)
    if stem == "cifar":
        network.features.conv0 = conv3x3(3, 64)
        nn.init.kaiming_normal_(network.features.conv0.weight)  # as torchvision draws every other convolution
        del network.features.pool0
    return network
