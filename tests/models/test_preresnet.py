"""PreResNet.

The oracle is pytorchcv's network with the shortcut of the SWA repository: logits, gradients and BN statistics in
float64.
"""

import pytest
import torch
from pytorchcv.models.preresnet_cifar import CIFARPreResNet
from raw_shortcuts import with_raw_shortcuts

from broadopt.errors import InputError
from broadopt.models.preresnet import PreResNet


def pytorchcvs(blocks: int) -> CIFARPreResNet:
    widths = [[64] * blocks, [128] * blocks, [256] * blocks]
    return CIFARPreResNet(widths, init_block_channels=16, bottleneck=True, num_classes=100)


def test_preresnet_equals_pytorchcvs_with_its_shortcut_on_the_raw_input(assert_same_network):
    assert_same_network(PreResNet(num_classes=100, depth=29), with_raw_shortcuts(pytorchcvs(blocks=3)))


def test_pytorchcvs_shortcut_after_bn_and_relu_is_another_network():
    network, reference = PreResNet(num_classes=100, depth=11).eval(), pytorchcvs(blocks=1).eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), network.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    assert (network(images) - reference(images)).abs().max() > 0.1


@pytest.mark.parametrize("depth", [20.0, "164", True, 163])
def test_a_depth_that_no_preresnet_has_is_refused(depth):
    with pytest.raises(InputError, match=rf"^model\.depth={depth}: "):
        PreResNet(num_classes=10, depth=depth)
