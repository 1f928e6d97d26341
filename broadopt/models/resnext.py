"""ResNeXt for 32x32 images (Xie et al. 2017, arXiv:1611.05431, section 5.1), in homura's version.

    image ─ conv3x3 64 ─ BN ─ ReLU ─ n blocks of 256 ─ n blocks of 512 ─ n blocks of 1024 ─ mean ─ linear   depth 9n + 2

    one block    x ─┬─ conv1x1 ─ BN ─ ReLU ─ conv3x3 (stride, grouped) ─ BN ─ ReLU ─ conv1x1 ─ BN ─ + ─ ReLU ─
                    └──────────────────── nothing, or conv1x1 (stride) ─ BN ────────────────────────┘

"32x4d": 32 groups, and 4 channels in each at the planes 64 of the first stage, so that the middle of a block is
groups · ⌊planes · group_width / 64⌋ = 128, 256, 512 wide and its output 4 · planes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.models.parts import (
    blocks_per_stage,
    conv1x1,
    conv3x3,
    initialise_fan_out,
    require_positive,
    residual_stages,
)


class GroupedBottleneck(nn.Module):
    """ReLU(x' + F(x)) with F a bottleneck whose 3x3 convolution is split into `groups` independent ones."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, groups: int, group_width: int) -> None:
        super().__init__()
        middle = groups * (out_channels // 4 * group_width // 64)
        self.conv1 = conv1x1(in_channels, middle)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.shortcut = nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        residual = F.relu(self.bn1(self.conv1(x)), inplace=True)
        residual = F.relu(self.bn2(self.conv2(residual)), inplace=True)
        residual = self.bn3(self.conv3(residual))
        return F.relu(residual + self.shortcut(x), inplace=True)


class ResNeXt(nn.Module):
    """ResNeXt-`depth` (`groups`x`group_width`d). Raises InputError unless depth = 9n + 2 and both are positive."""

    def __init__(self, *, num_classes: int, depth: int, groups: int, group_width: int) -> None:
        super().__init__()
        blocks = blocks_per_stage("ResNeXt", depth, layers_per_block=3, other_layers=2)
        require_positive("groups", groups)
        require_positive("group_width", group_width)
        stages = residual_stages(64, (256, 512, 1024), blocks)
        self.conv = conv3x3(3, 64)
        self.bn = nn.BatchNorm2d(64)
        self.blocks = nn.Sequential(
            *(GroupedBottleneck(*shape, groups=groups, group_width=group_width) for shape in stages)
        )
        self.linear = nn.Linear(1024, num_classes)
        initialise_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = F.relu(self.bn(self.conv(images)), inplace=True)
        return self.linear(self.blocks(x).mean((2, 3)))
