"""Parameters, BN layers and multiply-adds of every network of both tables, to the unit.

The rounded multiply-adds are those of the reference sources for one 32x32 image and 100 classes.
"""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
HOMURA, SWA2018 = {"variant": "homura", "gamma": "ones"}, {"variant": "swa2018", "gamma": "uniform"}

#    file, options                            10 classes   100 classes   BN  multiply-adds   rounded in the source
COUNTS = [
    ("vgg16", {}, 15_245_130, 15_291_300, 0, 313_772_032, "313.8M"),
    ("vgg16", {"batch_norm": True}, 15_253_578, 15_299_748, 13, 313_772_032, "313.8M"),
    ("preresnet164", {}, 1_703_258, 1_726_388, 163, 247_669_760, "247.7M"),
    ("preresnet110", {}, 1_146_842, 1_169_972, 109, 167_453_696, None),
    ("wrn28_10", SWA2018, 36_489_290, 36_546_980, 25, 5_951_175_168, "5.951G"),
    ("wrn28_10", HOMURA, 36_479_194, 36_536_884, 25, 5_243_386_368, "5.243G"),
    ("wrn28_2", HOMURA, 1_467_610, 1_479_220, 25, 214_364_672, "214.4M"),
    ("wrn28_2", SWA2018, 1_469_642, 1_481_252, 25, 242_676_224, None),
    ("wrn16_8", HOMURA, 10_961_370, 11_007_540, 13, 1_548_191_744, "1.548G"),
    ("wrn16_8", SWA2018, 10_965_866, 11_012_036, 13, 2_001_176_576, None),
    ("pyramidnet272", {}, 26_210_842, 26_288_692, 362, 4_488_855_936, "4.489G"),
    ("pyramidnet272", {"rounding": "floor"}, 26_049_562, 26_127_412, 362, 4_446_930_176, None),
    ("pyramidnet272_shakedrop", {}, 26_210_842, 26_288_692, 362, 4_488_855_936, "4.489G"),
    ("shakeshake26_2x64d", {}, 11_653_978, 11_677_108, 52, 1_685_529_600, "1.686G"),
    ("resnet20", {}, 272_474, 278_324, 21, 40_818_944, "40.8M"),
    ("resnet32", {}, 466_906, 472_756, 33, 69_130_496, "69.1M"),
    ("resnet56", {}, 855_770, 861_620, 57, 125_753_600, "125.8M"),
    ("resnext29_32x4d", {}, 4_775_754, 4_868_004, 31, 774_148_096, "774.1M"),
    ("densenet121", {}, 6_964_106, 7_056_356, 121, 57_921_536, "57.9M"),
    ("densenet121", {"stem": "cifar"}, 6_956_426, 7_048_676, 121, 888_442_880, "888.4M"),
    ("vgg19_bn", {"head": "torchvision"}, 139_622_218, 139_990_948, 16, 518_078_464, "518.1M"),
    ("vgg19_bn", {}, 38_958_922, 39_327_652, 16, 417_415_168, "417.4M"),
    ("vgg19_bn", {"head": "hidden512"}, 20_565_834, 20_612_004, 16, 398_706_688, "398.7M"),
    ("vgg19_bn", {"head": "linear"}, 20_040_522, 20_086_692, 16, 398_182_400, "398.2M"),
]


def build(name: str, options: dict, classes: int) -> nn.Module:
    """The network of a config file, on the meta device: shapes without memory."""
    config = OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), options)
    with torch.device("meta"):
        return instantiate(config, num_classes=classes)


def multiply_adds(network: nn.Module) -> int:
    """Multiply-adds of all convolutions and linear layers for one 32x32 image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("name", "options", "ten", "hundred", "normalisations", "macs", "rounded"), COUNTS)
def test_parameters_bn_layers_and_multiply_adds(name, options, ten, hundred, normalisations, macs, rounded):
    network = build(name, options, 100)
    assert sum(parameter.numel() for parameter in build(name, options, 10).parameters()) == ten
    assert sum(parameter.numel() for parameter in network.parameters()) == hundred
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == normalisations
    assert multiply_adds(network) == macs
    if rounded is not None:
        assert rounded == (f"{macs / 1e9:.3f}G" if rounded.endswith("G") else f"{macs / 1e6:.1f}M")


def test_every_model_config_is_counted_above():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {name for name, *_ in COUNTS}


def test_the_wrn_configs_leave_the_variant_to_the_protocol():
    for path in CONFIGS.glob("wrn*.yaml"):
        assert OmegaConf.to_container(OmegaConf.load(path))["variant"] == "${recipe:wrn_variant}"


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_the_flop_counter_counts_grouped_convolutions_by_the_channels_of_a_group(groups):
    with torch.device("meta"):
        convolution = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    with FlopCounterMode(display=False) as counter:
        convolution(torch.empty(1, 8, 10, 10, device="meta"))
    assert counter.get_total_flops() == 2 * (5 * 5) * 16 * (8 // groups) * (3 * 3)
