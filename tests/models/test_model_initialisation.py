"""The initial weights against their distributions: normal by the fan out or in, or torch's uniform default."""

import math
from collections.abc import Callable

import pytest
import scipy.stats
import torch
import torchvision
from torch import Tensor, nn

from broadopt.config.compose import compose, run_config
from broadopt.data.datasets import digits
from broadopt.models.densenet import densenet121
from broadopt.models.preresnet import PreResNet
from broadopt.models.pyramidnet import PyramidNet
from broadopt.models.resnet import ResNet
from broadopt.models.resnext import ResNeXt
from broadopt.models.shakeshake import ShakeShake
from broadopt.models.vgg import VGG, vgg19_bn
from broadopt.models.wrn import WideResNet
from broadopt.seeds import derive
from broadopt.training.build import build

FAN_OUT = {
    "resnet": lambda: ResNet(num_classes=100, depth=20),
    "resnext": lambda: ResNeXt(num_classes=100, depth=11, groups=32, group_width=4),
    "wrn_homura": lambda: WideResNet(num_classes=100, depth=10, widen_factor=2, variant="homura"),
    "preresnet": lambda: PreResNet(num_classes=100, depth=20),
    "pyramidnet": lambda: PyramidNet(num_classes=100, depth=20, alpha=20, rounding="round", shakedrop=True),
    "vgg16": lambda: VGG(num_classes=100, depth=16, batch_norm=False, head="hidden512"),
    "shakeshake": lambda: ShakeShake(num_classes=100, depth=14, width=16),
}
TORCH_DEFAULT = {
    "wrn_swa2018": lambda: WideResNet(num_classes=100, depth=10, widen_factor=2, variant="swa2018"),
    "vgg19_bn_linear": lambda: vgg19_bn(num_classes=100, head="linear"),
}


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def assert_normal(scaled: list[Tensor]) -> None:
    """Each tensor from N(0, 1): its mean and variance to five of their deviations, and the shape of a joint sample."""
    for values in scaled:
        assert abs(values.mean().item()) < 5 / math.sqrt(values.numel())
        assert abs(values.var().item() - 1) < 5 * math.sqrt(2 / values.numel())
    sample = torch.cat([values[:1000] for values in scaled])
    assert scipy.stats.kstest(sample.numpy(), "norm").pvalue > 1e-3


def assert_uniform(scaled: list[Tensor]) -> None:
    """Each tensor from U(-1, 1): its variance to five deviations, and the shape of a joint sample."""
    for values in scaled:
        assert values.abs().max() <= 1
        assert abs(3 * values.square().mean().item() - 1) < 5 * math.sqrt(4 / 5 / values.numel())
    sample = torch.cat([values[:1000] for values in scaled])
    assert scipy.stats.kstest(sample.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3


def weights(modules: list[nn.Module], scale: Callable[[nn.Module], float]) -> list[Tensor]:
    return [module.weight.detach().flatten() * scale(module) for module in modules]


def by_fan_in(module: nn.Module) -> float:
    """Takes U(-1, 1) / sqrt(fan in) to U(-1, 1)."""
    return math.sqrt(module.weight[0].numel())


def by_fan_out(module: nn.Conv2d) -> float:
    """Takes N(0, 2 / (k² · out channels)) to N(0, 1)."""
    return math.sqrt(module.out_channels * module.kernel_size[0] * module.kernel_size[1] / 2)


@pytest.mark.parametrize("name", FAN_OUT)
def test_convolutions_are_normal_by_their_fan_out_with_zero_biases(name):
    torch.manual_seed(1)
    network = FAN_OUT[name]()
    convolutions = layers(network, nn.Conv2d)
    assert_normal(weights(convolutions, by_fan_out))
    assert not any(module.bias.any() for module in convolutions if module.bias is not None)
    assert_uniform(weights(layers(network, nn.Linear), by_fan_in))


@pytest.mark.parametrize("name", TORCH_DEFAULT)
def test_convolutions_are_at_torchs_default_where_the_source_draws_nothing_itself(name):
    torch.manual_seed(1)
    network = TORCH_DEFAULT[name]()
    convolutions = layers(network, nn.Conv2d)
    assert_uniform(weights(convolutions + layers(network, nn.Linear), by_fan_in))
    assert_uniform([torch.cat([module.bias.detach() * by_fan_in(module) for module in convolutions])])


@pytest.mark.parametrize("name", FAN_OUT | TORCH_DEFAULT)
def test_bn_starts_as_the_identity_on_unit_statistics(name):
    network = (FAN_OUT | TORCH_DEFAULT)[name]()
    for module in layers(network, nn.BatchNorm2d):
        assert (module.weight == 1).all()
        assert (module.running_var == 1).all()
        assert not module.bias.any()
        assert not module.running_mean.any()


def wrn(seed: int, **options: str) -> WideResNet:
    torch.manual_seed(seed)
    return WideResNet(num_classes=10, depth=16, widen_factor=4, **options)


@pytest.mark.parametrize("variant", ["swa2018", "homura"])
def test_gammas_are_uniform_from_the_seed_where_asked_and_all_other_weights_stay_the_same(variant):
    ones, uniform = wrn(7, variant=variant), wrn(7, variant=variant, gamma="uniform")
    gammas = [module.weight.detach() for module in layers(uniform, nn.BatchNorm2d)]
    for values in gammas:
        assert values.min() >= 0
        assert values.max() < 1
    sample = torch.cat(gammas)
    assert sample.numel() > 1000
    assert sample.unique().numel() > 0.999 * sample.numel()  # no two layers share their draws
    assert scipy.stats.kstest(sample.numpy(), "uniform").pvalue > 1e-3
    names = {f"{name}.weight" for name, module in uniform.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, value in ones.state_dict().items():
        assert torch.equal(value, uniform.state_dict()[name]) == (name not in names), name
    again, other = (
        torch.cat([m.weight.detach() for m in layers(wrn(seed, variant=variant, gamma="uniform"), nn.BatchNorm2d)])
        for seed in (7, 8)
    )
    assert torch.equal(again, sample)
    assert not (other == sample).any()


@pytest.mark.parametrize(("protocol", "gamma"), [("swa2018", "uniform"), ("asam2021", "ones")])
def test_a_run_draws_its_gammas_from_its_seed_where_its_protocol_says_so(protocol, gamma):
    overrides = ["dataset=digits", "model=wrn28_2", "model.depth=10", f"protocol={protocol}", "seed=5"]
    made = build(run_config(compose(overrides)), digits(), torch.device("cpu")).model
    torch.manual_seed(derive(5, "weights"))
    variant = "swa2018" if protocol == "swa2018" else "homura"
    expected = WideResNet(num_classes=10, depth=10, widen_factor=2, variant=variant, gamma=gamma)
    for name, value in made.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name]), name
    assert all((module.weight == 1).all() == (gamma == "ones") for module in layers(made, nn.BatchNorm2d))


def test_only_the_last_bn_of_the_swa2018_wrn_has_momentum_0_9():
    for variant, last in (("swa2018", 0.9), ("homura", 0.1)):
        network = WideResNet(num_classes=10, depth=16, widen_factor=1, variant=variant)
        momenta = [module.momentum for module in layers(network, nn.BatchNorm2d)]
        assert momenta == [0.1] * 12 + [last]


def test_the_linear_bias_is_zero_in_shake_shake_and_at_torchs_default_elsewhere():
    torch.manual_seed(1)
    assert not FAN_OUT["shakeshake"]().linear.bias.any()
    others = [FAN_OUT[name]().linear for name in ("resnet", "resnext", "wrn_homura", "preresnet", "pyramidnet")]
    assert_uniform([linear.bias.detach() * by_fan_in(linear) for linear in others])


def test_densenet_with_the_imagenet_stem_starts_as_torchvisions():
    torch.manual_seed(6)
    ours = densenet121(num_classes=10, stem="imagenet").state_dict()
    torch.manual_seed(6)
    theirs = torchvision.models.densenet121(num_classes=10).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_all_convolutions_of_densenet_with_the_cifar_stem_are_normal_by_their_fan_in():
    torch.manual_seed(1)
    convolutions = layers(densenet121(num_classes=10, stem="cifar"), nn.Conv2d)
    assert_normal(weights(convolutions, lambda module: by_fan_in(module) / math.sqrt(2)))
