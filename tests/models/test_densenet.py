"""DenseNet-121.

The oracles: pytorchcv's network, and torchvision's for the ImageNet stem: logits, gradients and BN statistics in
float64.
"""

import pytest
import torch
import torchvision
from pytorchcv.models.densenet import densenet121 as pytorchcv_densenet121
from torch import nn

from broadopt.errors import InputError
from broadopt.models.densenet import densenet121


def pytorchcvs(stem: str) -> nn.Module:
    """pytorchcv's DenseNet-121 with a mean over what is left of a 32x32 image in place of its 7x7 pool."""
    network = pytorchcv_densenet121(num_classes=10)
    network.features.final_pool = nn.AdaptiveAvgPool2d(1)
    if stem == "cifar":
        stem_layers = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        network.features.init_block = nn.Sequential(*stem_layers)
    return network


@pytest.mark.parametrize(("stem", "size"), [("imagenet", 32), ("cifar", 16)])
def test_densenet121_equals_pytorchcvs(assert_same_network, stem, size):
    assert_same_network(densenet121(num_classes=10, stem=stem), pytorchcvs(stem), size=size)


def test_the_imagenet_stem_is_torchvisions_network_itself():
    with torch.device("meta"):
        network, reference = densenet121(num_classes=9, stem="imagenet"), torchvision.models.densenet121(num_classes=9)
    assert type(network) is torchvision.models.DenseNet
    assert str(network) == str(reference)


def test_an_unknown_stem_is_refused():
    with pytest.raises(InputError, match=r'^model\.stem=cifar10: .* imagenet, cifar; did you mean "cifar"\?$'):
        densenet121(num_classes=10, stem="cifar10")
