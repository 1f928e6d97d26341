"""Shake-Shake ResNet (Gastaldi 2017, arXiv:1705.07485) as in the author's Lua code.

    image ─ conv3x3 16 ─ BN ─ n blocks of w ─ n blocks of 2w ─ n blocks of 4w ─ ReLU ─ mean ─ linear        depth 6n + 2

                    ┌─ branch 1 ─ × α ─────┐           branch = ReLU ─ conv3x3 (stride) ─ BN ─ ReLU ─ conv3x3 ─ BN
    one block    x ─┼─ branch 2 ─ × (1 − α)+ ─
                    └─ shortcut ───────────┘           shortcut = x itself, or where the width changes

         ReLU ─┬─ every 2nd pixel ─────────────────────────── conv1x1 to half the channels ─ concatenate ─ BN
               └─ one right, one down ─ every 2nd pixel ───── conv1x1 to half the channels ─┘

In training each image of each block has its own α ~ U(0, 1) in the forward and β ~ U(0, 1) in the backward pass
("Shake-Shake-Image"); in evaluation both branches count 1/2. Depth 26 and w = 64 are the "26 2x64d" of SWA's Table 1.
The first block changes the width too (16 to w) and so has the two-path shortcut at stride 1. The later PyTorch and JAX
versions shift one left and one up instead, the mirror image, and lose no pixel of an even-sized map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.models.parts import (
    blocks_per_stage,
    conv1x1,
    conv3x3,
    initialise_fan_out,
    require_positive,
    residual_stages,
)


class _Mix(torch.autograd.Function):
    """α·a + (1 − α)·b whose gradients are β·g and (1 − β)·g. The state of a call is its own, none is on the module."""

    @staticmethod
    def forward(a: Tensor, b: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.lerp(b, a, alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[3])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (beta,) = ctx.saved_tensors
        share = beta * gradients[0]
        return share, gradients[0] - share, None, None


def shake_shake(a: Tensor, b: Tensor) -> Tensor:
    """Mix two branches [B, C, H, W] by one α an image, and their gradients by one β an image (equation 2).

    Draws B values for α, then B for β, from the global generator of the tensors' device, both now: setting the
    generator back replays the backward pass as well. They are drawn in float32 and cast, so that one seed gives the
    same noise in every precision.
    """
    alpha, beta = torch.rand(2, a.shape[0], 1, 1, 1, device=a.device, dtype=torch.float32).to(a.dtype)
    return _Mix.apply(a, b, alpha, beta)


class Branch(nn.Module):
    """ReLU ─ conv3x3 ─ BN ─ ReLU ─ conv3x3 ─ BN."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, activated: Tensor) -> Tensor:
        """ReLU(x) [B, in, H, W] -> [B, out, H / stride, W / stride]; the block takes the first ReLU once for all."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(activated)), inplace=True)))


class TwoPathShortcut(nn.Module):
    """Half the channels from the pixels at even places, half from those one up and one left of them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv1x1(in_channels, out_channels // 2, stride)
        self.conv2 = conv1x1(in_channels, out_channels // 2, stride)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, activated: Tensor) -> Tensor:
        """ReLU(x) [B, in, H, W] -> [B, out, H / stride, W / stride]."""
        shifted = F.pad(activated, (1, -1, 1, -1))
        return self.bn(torch.cat((self.conv1(activated), self.conv2(shifted)), dim=1))


class ShakeShakeBlock(nn.Module):
    """shortcut(x) + the random mixture of two branches."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.branch1 = Branch(in_channels, out_channels, stride)
        self.branch2 = Branch(in_channels, out_channels, stride)
        self.shortcut = TwoPathShortcut(in_channels, out_channels, stride) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, out, H / stride, W / stride]."""
        activated = F.relu(x)  # not in place: where the width stays, the shortcut is x before its ReLU
        a, b = self.branch1(activated), self.branch2(activated)
        mixture = shake_shake(a, b) if self.training else (a + b) / 2
        return mixture + (x if self.shortcut is None else self.shortcut(activated))


class ShakeShake(nn.Module):
    """Shake-Shake-`depth` 2x`width`d. Raises InputError unless depth = 6n + 2 and width is positive and even."""

    def __init__(self, *, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks = blocks_per_stage("Shake-Shake ResNet", depth, layers_per_block=2, other_layers=2)
        require_positive("width", width)
        if width % 2:
            raise InputError(
                f"model.width={width}: a shortcut's two paths have half of its channels each; expected an even number"
            )
        stages = residual_stages(16, (width, 2 * width, 4 * width), blocks)
        self.conv = conv3x3(3, 16)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(ShakeShakeBlock(*shape) for shape in stages))
        self.linear = nn.Linear(4 * width, num_classes)
        initialise_fan_out(self)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = self.blocks(self.bn(self.conv(images)))  # no ReLU: every block begins with its own
        return self.linear(F.relu(x, inplace=True).mean((2, 3)))
