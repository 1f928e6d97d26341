"""Wide ResNet (Zagoruyko & Komodakis 2016, arXiv:1605.07146) as the two papers' repositories have it.

    image ─ conv3x3 16 ─ n blocks of 16k ─ n blocks of 32k ─ n blocks of 64k ─ BN ─ ReLU ─ mean ─ linear    depth 6n + 4

    one block    x ─┬─ BN ─ ReLU ─ conv3x3 ─ BN ─ ReLU ─ conv3x3 ─ + ─
                    └───────── nothing, or conv1x1 (stride) ───────┘

    variant                          homura (ASAM)            swa2018 (SWA)
    bias in the convolutions         no                       yes, also in the shortcut's
    stride 2 on                      the first convolution    the second: the first one works at full size
    multiply-adds of WRN-28-10       5.243 G                  5.951 G
    initialisation                   N(0, 2 / (k² · out))     torch's default
    momentum of the last BN          0.1                      0.9: its statistics follow the last few batches
    gamma of BN at the start         1                        U(0, 1), torch's default up to version 1.1

Both pass the raw x, before BN and ReLU, to the shortcut, and use no dropout in the tables. The SWA repository has an
initialisation of its own for this network, `conv_init`, but never calls it. gamma is a choice of its own, as the other
four differences are fixed by the repositories' files and this one by the torch of the time.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.models.parts import (
    blocks_per_stage,
    conv1x1,
    conv3x3,
    initialise_fan_out,
    require_choice,
    require_positive,
    residual_stages,
)

VARIANTS = ("homura", "swa2018")
GAMMAS = ("ones", "uniform")


class WideBlock(nn.Module):
    """x' + F(x), pre-activation, with x' the projected x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, variant: str) -> None:
        super().__init__()
        bias = variant == "swa2018"
        strides = (1, stride) if variant == "swa2018" else (stride, 1)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels, strides[0], bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, strides[1], bias=bias)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = conv1x1(in_channels, out_channels, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        residual = self.conv1(F.relu(self.bn1(x), inplace=True))
        residual = self.conv2(F.relu(self.bn2(residual), inplace=True))
        return residual + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-`depth`-`widen_factor`. Raises InputError unless depth = 6n + 4, factor >= 1, and variant and gamma are among
    the above.
    """

    def __init__(self, *, num_classes: int, depth: int, widen_factor: int, variant: str, gamma: str = "ones") -> None:
        super().__init__()
        blocks = blocks_per_stage("WideResNet", depth, layers_per_block=2, other_layers=4)
        require_positive("widen_factor", widen_factor)
        require_choice("variant", variant, VARIANTS)
        require_choice("gamma", gamma, GAMMAS)
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv = conv3x3(3, 16, bias=variant == "swa2018")
        self.blocks = nn.Sequential(
            *(WideBlock(*shape, variant=variant) for shape in residual_stages(16, widths, blocks))
        )
        self.bn = nn.BatchNorm2d(widths[-1], momentum=0.9 if variant == "swa2018" else 0.1)
        self.linear = nn.Linear(widths[-1], num_classes)
        if variant == "homura":
            initialise_fan_out(self)
        if gamma == "uniform":
            _draw_gammas(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = self.blocks(self.conv(images))
        return self.linear(F.relu(self.bn(x), inplace=True).mean((2, 3)))


def _draw_gammas(network: nn.Module) -> None:
    """Draw every BN's gamma from U(0, 1); last of all, so that the other weights are those of gamma = 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
