"""ResNeXt.

The oracle is pytorchcv's network: logits, gradients and BN statistics in float64.
"""

import pytest
from pytorchcv.models.resnext_cifar import CIFARResNeXt
from torch import nn

from broadopt.errors import InputError
from broadopt.models.resnext import ResNeXt


@pytest.mark.parametrize(("groups", "group_width"), [(32, 4), (4, 24)])
def test_resnext_equals_pytorchcvs(assert_same_network, groups, group_width):
    reference = CIFARResNeXt(
        [[256] * 2, [512] * 2, [1024] * 2],
        init_block_channels=64,
        cardinality=groups,
        bottleneck_width=group_width,
        num_classes=10,
    )
    reference.features.final_pool = nn.AdaptiveAvgPool2d(1)  # for images smaller than 32x32
    network = ResNeXt(num_classes=10, depth=20, groups=groups, group_width=group_width)
    assert_same_network(network, reference, batch=2, size=16)


def test_a_depth_that_no_resnext_has_is_refused():
    with pytest.raises(InputError, match=r"^model\.depth=30: a ResNeXt has depth 9n \+ 2 .* nearest: 29$"):
        ResNeXt(num_classes=10, depth=30, groups=32, group_width=4)


@pytest.mark.parametrize("key", ["groups", "group_width"])
def test_a_width_that_is_not_positive_is_refused(key):
    with pytest.raises(InputError, match=rf"^model\.{key}=0: expected an integer of at least 1$"):
        ResNeXt(**{"num_classes": 10, "depth": 11, "groups": 32, "group_width": 4, key: 0})
