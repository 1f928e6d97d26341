"""ResNet of basic blocks for 32x32 images (He et al. 2015, arXiv:1512.03385, section 4.2), in homura's version.

    image ─ conv3x3 16 ─ BN ─ ReLU ─ n blocks of 16 ─ n blocks of 32 ─ n blocks of 64 ─ mean ─ linear     depth 6n + 2

    one block    x ─┬─ conv3x3 (stride) ─ BN ─ ReLU ─ conv3x3 ─ BN ─ + ─ ReLU ─
                    └────── nothing, or conv1x1 (stride) ─ BN ───────┘

The paper pads the shortcut with zeros where the width changes; homura, which ASAM's Table 3 was run with, puts a
1x1 convolution and a BN there. ReLU follows the addition ("post-activation").
"""

import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.models.parts import blocks_per_stage, conv1x1, conv3x3, initialise_fan_out, residual_stages


class BasicBlock(nn.Module):
    """ReLU(x' + F(x)) with F two 3x3 convolutions and x' the projected x where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = self.bn2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x), inplace=True)


class ResNet(nn.Module):
    """ResNet-`depth` with widths 16, 32 and 64. Raises InputError unless depth = 6n + 2."""

    def __init__(self, *, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks = blocks_per_stage("ResNet", depth, layers_per_block=2, other_layers=2)
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(BasicBlock(*shape) for shape in residual_stages(16, (16, 32, 64), blocks)))
        self.linear = nn.Linear(64, num_classes)
        initialise_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = F.relu(self.bn(self.conv(images)), inplace=True)
        return self.linear(self.blocks(x).mean((2, 3)))
