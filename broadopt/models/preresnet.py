"""Pre-activation ResNet of bottlenecks (He et al. 2016, arXiv:1603.05027) as in the SWA repository.

    image ─ conv3x3 16 ─ n blocks of 64 ─ n blocks of 128 ─ n blocks of 256 ─ BN ─ ReLU ─ mean ─ linear     depth 9n + 2

    one block    x ─┬─ BN ─ ReLU ─ conv1x1 ─ BN ─ ReLU ─ conv3x3 (stride) ─ BN ─ ReLU ─ conv1x1 ─ + ─
                    └──────────────────── nothing, or conv1x1 (stride) ───────────────────────────┘

The middle of a block is a quarter of its output: 16, 32, 64. The shortcut's convolution has no BN and sees the raw x
(the paper's own code gives it BN and ReLU first). The paper's ResNet-110 is made of basic blocks; SWA's PreResNet-110
is this network of bottlenecks.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.models.parts import blocks_per_stage, conv1x1, conv3x3, initialise_fan_out, residual_stages


class PreActivationBottleneck(nn.Module):
    """x' + F(x) with F a bottleneck, BN and ReLU before each convolution, and x' the projected x at a new width."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        middle = out_channels // 4
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = conv1x1(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        residual = self.conv1(F.relu(self.bn1(x), inplace=True))  # in place on BN's output; x itself is the shortcut's
        residual = self.conv2(F.relu(self.bn2(residual), inplace=True))
        residual = self.conv3(F.relu(self.bn3(residual), inplace=True))
        return residual + self.shortcut(x)


class PreResNet(nn.Module):
    """PreResNet-`depth`. Raises InputError unless depth = 9n + 2."""

    def __init__(self, *, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks = blocks_per_stage("PreResNet", depth, layers_per_block=3, other_layers=2)
        self.conv = conv3x3(3, 16)
        self.blocks = nn.Sequential(
            *(PreActivationBottleneck(*shape) for shape in residual_stages(16, (64, 128, 256), blocks))
        )
        self.bn = nn.BatchNorm2d(256)
        self.linear = nn.Linear(256, num_classes)
        initialise_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = self.blocks(self.conv(images))
        return self.linear(F.relu(self.bn(x), inplace=True).mean((2, 3)))
