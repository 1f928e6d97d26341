"""WideResNet in both variants.

The oracles: pytorchcv's network for the one, a second implementation over a flat list of tensors for the other.
"""

import pytest
import torch.nn.functional as F
from pytorchcv.models.wrn_cifar import CIFARWRN
from raw_shortcuts import with_raw_shortcuts

from broadopt.errors import InputError
from broadopt.models.wrn import WideResNet


def test_the_homura_variant_equals_pytorchcvs_with_its_shortcut_on_the_raw_input(assert_same_network):
    reference = with_raw_shortcuts(CIFARWRN([[32] * 2, [64] * 2, [128] * 2], init_block_channels=16, num_classes=10))
    assert_same_network(WideResNet(num_classes=10, depth=16, widen_factor=2, variant="homura"), reference)


def swa2018(state, images, training):
    """The SWA repository's WRN-16-2 over a flat list of tensors: every convolution has a bias, the second strides."""
    tensors = iter(state)

    def convolution(x, stride=1, padding=1):
        return F.conv2d(x, next(tensors), next(tensors), stride=stride, padding=padding)

    def activation(x, momentum=0.1):
        scale, shift, mean, variance, batches = (next(tensors) for _ in range(5))
        batches += training
        return F.relu(F.batch_norm(x, mean, variance, scale, shift, training, momentum))

    x = convolution(images)
    for stage, width in enumerate((32, 64, 128)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            y = convolution(activation(x))
            y = convolution(activation(y), stride=stride)
            x = y + (convolution(x, stride=stride, padding=0) if x.shape[1] != width else x)
    pooled = F.avg_pool2d(activation(x, momentum=0.9), 8).flatten(1)
    return F.linear(pooled, next(tensors), next(tensors))


def test_the_swa2018_variant_equals_a_second_implementation(assert_same_network):
    network = WideResNet(num_classes=10, depth=16, widen_factor=2, variant="swa2018")
    assert_same_network(network, swa2018, zero_gradient="conv1.bias")  # a BN follows and takes the bias out again


def test_bad_options_are_refused_with_the_nearest_valid_name():
    good = {"num_classes": 10, "depth": 10, "widen_factor": 1, "variant": "homura"}
    with pytest.raises(InputError, match=r"^model\.depth=26: a WideResNet has depth 6n \+ 4 .* nearest: 28$"):
        WideResNet(**good | {"depth": 26})
    with pytest.raises(InputError, match=r"^model\.widen_factor=2\.5: expected an integer of at least 1$"):
        WideResNet(**good | {"widen_factor": 2.5})
    with pytest.raises(InputError, match=r'^model\.gamma=one: expected one of ones, uniform; did you mean "ones"\?$'):
        WideResNet(**good | {"gamma": "one"})
    with pytest.raises(InputError, match=r'^model\.variant=swa: .* homura, swa2018; did you mean "swa2018"\?$'):
        WideResNet(**good | {"variant": "swa"})
