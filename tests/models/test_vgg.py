"""VGG with and without BN, with each head.

The oracles: torchvision's features, with the heads written out here, and torchvision's whole network.
"""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from broadopt.errors import InputError
from broadopt.models.vgg import VGG, repeated, vgg19_bn


def head(name: str, classes: int) -> nn.Sequential:
    if name == "linear":
        return nn.Sequential(nn.Linear(512, classes))
    if name == "hidden4096":
        widths = [nn.Linear(512, 4096), nn.Linear(4096, 4096), nn.Linear(4096, classes)]
        return nn.Sequential(widths[0], nn.ReLU(), nn.Dropout(), widths[1], nn.ReLU(), nn.Dropout(), widths[2])
    widths = [nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, classes)]
    return nn.Sequential(nn.Dropout(), widths[0], nn.ReLU(), nn.Dropout(), widths[1], nn.ReLU(), widths[2])


def test_vgg16_equals_torchvisions_features_with_the_swa_head(assert_same_network):
    reference = nn.Sequential(make_layers(cfgs["D"]), nn.Flatten(), head("hidden512", 100))
    assert_same_network(VGG(num_classes=100, depth=16, batch_norm=False, head="hidden512"), reference, batch=2)


def test_vgg19_bn_equals_torchvisions_features_with_the_swa_head(assert_same_network):
    reference = nn.Sequential(make_layers(cfgs["E"], batch_norm=True), nn.Flatten(), head("hidden512", 10))
    network = vgg19_bn(num_classes=10, head="hidden512")
    assert_same_network(network, reference, batch=2, zero_gradient="bias")  # a BN takes each bias out again


@pytest.mark.parametrize("name", ["hidden512", "hidden4096", "linear"])
def test_each_small_head_equals_its_layers_written_out(assert_same_network, name):
    ours, theirs = (nn.Sequential(nn.Conv2d(3, 512, 32), nn.Flatten(), head(name, 10)) for _ in range(2))
    ours[2] = vgg19_bn(num_classes=10, head=name).head
    assert_same_network(ours, theirs, batch=2)


def test_the_torchvision_head_is_torchvisions_network_itself():
    with torch.device("meta"):
        network, reference = vgg19_bn(num_classes=100, head="torchvision"), torchvision.models.vgg19_bn(num_classes=100)
    assert type(network) is torchvision.models.VGG
    assert str(network).replace("_Spread(", "AdaptiveAvgPool2d(") == str(reference)


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"^model\.depth=17: a VGG has depth 16 or 19$"):
        VGG(num_classes=10, depth=17, batch_norm=False, head="linear")
    with pytest.raises(InputError, match=r"^model\.batch_norm=no: expected true or false$"):
        VGG(num_classes=10, depth=16, batch_norm="no", head="linear")
    with pytest.raises(InputError, match=r'^model\.head=torchvison: .*; did you mean "torchvision"\?$'):
        vgg19_bn(num_classes=10, head="torchvison")


def test_the_pixel_that_a_deterministic_gpu_repeats_has_the_values_and_the_gradient_of_torchvisions_pool() -> None:
    images = torch.randn(3, 5, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(3, 5, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = []
    for layer in (repeated, nn.AdaptiveAvgPool2d((7, 7))):
        inputs = images.clone().requires_grad_()
        outputs = layer(inputs)
        found.append((outputs, *torch.autograd.grad((outputs * weights).sum(), inputs)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-14, atol=1e-14)
    pool = vgg19_bn(num_classes=10, head="torchvision").avgpool
    assert torch.equal(pool(images), found[0][0])
