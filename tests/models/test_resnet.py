"""ResNet.

The oracle is pytorchcv's network: logits, gradients and BN statistics in float64.
"""

import pytest
from pytorchcv.models.resnet_cifar import CIFARResNet

from broadopt.errors import InputError
from broadopt.models.resnet import ResNet


def test_resnet_equals_pytorchcvs(assert_same_network):
    reference = CIFARResNet([[16] * 3, [32] * 3, [64] * 3], init_block_channels=16, bottleneck=False, num_classes=100)
    assert_same_network(ResNet(num_classes=100, depth=20), reference)


@pytest.mark.parametrize(("depth", "closest"), [(21, 20), (24, 26), (2, 8)])
def test_a_depth_that_no_resnet_has_is_refused_with_the_nearest_that_one_has(depth, closest):
    message = rf"^model\.depth={depth}: a ResNet has depth 6n \+ 2 with n >= 1; nearest: {closest}$"
    with pytest.raises(InputError, match=message):
        ResNet(num_classes=10, depth=depth)
