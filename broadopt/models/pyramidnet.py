"""PyramidNet of bottlenecks (Han et al. 2017, arXiv:1610.02915), with or without ShakeDrop (Yamada et al. 2019).

    image ─ conv3x3 16 ─ BN ─ N blocks, each a little wider ─ BN ─ ReLU ─ mean ─ linear           depth 3N + 2 = 9n + 2

    one block    x ─┬─ BN ─ conv1x1 ─ BN ─ ReLU ─ conv3x3 (stride) ─ BN ─ ReLU ─ conv1x1 ─ BN ─ (× γ) ─ + ─
                    └──────────── 2x2 average pool at stride 2 ─ zeros as the new channels ─────────────┘

The middle of block k = 1 … N is 16 + k·α/N wide and its output four times as wide; blocks n + 1 and 2n + 1 have
stride 2. A fraction of a channel is rounded (the authors' Lua and PyTorch code and what follows them) or cut off
("floor": the paper's formula, by the account in Google's code).

ShakeDrop (arXiv:1802.02375, equation 6) multiplies the branch of block k by γ = b + (1 − b)·a, b ~ Bernoulli(keep_k),
keep_k = 1 − k/N · final_drop_probability. a ~ U(−1, 1) in the forward pass; in the backward pass the same b comes with
a of its own, U(0, 1). In evaluation γ is its mean, keep_k. `gate: batch` draws one b for all images of a batch
(owruby's PyTorch code and what follows it), `gate: image` one for each (Google's code for AutoAugment and SAM).
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
    require_boolean,
    require_choice,
    require_positive,
)

ROUNDINGS = ("round", "floor")
GATES = ("batch", "image")


class _Scale(torch.autograd.Function):
    """x times one factor, its gradient times another. The state of a call is its own, none is on the module."""

    @staticmethod
    def forward(x: Tensor, forward_factor: Tensor, backward_factor: Tensor) -> Tensor:
        return x * forward_factor

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (backward_factor,) = ctx.saved_tensors
        return gradients[0] * backward_factor, None, None


class ShakeDrop(nn.Module):
    """[B, C, H, W] -> γ · [B, C, H, W] with the γ of the module's docstring; in evaluation keep_probability · x."""

    def __init__(self, *, keep_probability: float, gate: str) -> None:
        super().__init__()
        self.keep_probability = keep_probability
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Training draws the gate (1 or B values), then B values forward, then B backward, all of them now.

        So setting the generator of the device back replays the backward pass as well. They are drawn in float32 and
        cast, so that one seed gives the same noise in every precision.
        """
        if not self.training:
            return x * self.keep_probability
        images = x.shape[0]
        gates = images if self.gate == "image" else 1
        kept = torch.rand(gates, 1, 1, 1, device=x.device, dtype=torch.float32) < self.keep_probability
        forward_noise, backward_noise = torch.rand(2, images, 1, 1, 1, device=x.device, dtype=torch.float32)
        forward_factor = torch.where(kept, 1.0, 2 * forward_noise - 1)
        backward_factor = torch.where(kept, 1.0, backward_noise)
        return _Scale.apply(x, forward_factor.to(x.dtype), backward_factor.to(x.dtype))


class PyramidBottleneck(nn.Module):
    """Zero-padded x + γ · F(x) with F a bottleneck of four BN and no ReLU at either end."""

    def __init__(self, in_channels: int, middle: int, stride: int, noise: nn.Module) -> None:
        super().__init__()
        out_channels = 4 * middle
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv1x1(in_channels, middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv2 = conv3x3(middle, middle, stride)
        self.bn3 = nn.BatchNorm2d(middle)
        self.conv3 = conv1x1(middle, out_channels)
        self.bn4 = nn.BatchNorm2d(out_channels)
        self.noise = noise
        self.pool: nn.Module = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, H, W] -> [B, 4 · middle, H / stride, W / stride]."""
        residual = self.conv1(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(residual), inplace=True))
        residual = self.conv3(F.relu(self.bn3(residual), inplace=True))
        residual = self.noise(self.bn4(residual))  # ShakeDrop scales what is added, after the last BN
        return residual + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(nn.Module):
    """PyramidNet-`depth`, α = `alpha`. Raises InputError unless depth = 9n + 2 and the options are among the above."""

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int,
        alpha: int,
        rounding: str,
        shakedrop: bool,
        final_drop_probability: float = 0.5,
        gate: str = "batch",
    ) -> None:
        super().__init__()
        per_stage = blocks_per_stage("PyramidNet", depth, layers_per_block=3, other_layers=2)
        require_positive("alpha", alpha)
        require_boolean("shakedrop", shakedrop)
        require_choice("rounding", rounding, ROUNDINGS)
        require_choice("gate", gate, GATES)
        if type(final_drop_probability) not in (int, float) or not 0 <= final_drop_probability <= 1:
            raise InputError(f"model.final_drop_probability={final_drop_probability}: expected a number from 0 to 1")
        middles = _middle_widths(3 * per_stage, alpha, rounding)
        blocks = []
        channels = 16
        for index, middle in enumerate(middles):
            keep_probability = 1 - (index + 1) / len(middles) * final_drop_probability
            noise = ShakeDrop(keep_probability=keep_probability, gate=gate) if shakedrop else nn.Identity()
            stride = 2 if index in (per_stage, 2 * per_stage) else 1
            blocks.append(PyramidBottleneck(channels, middle, stride, noise))
            channels = 4 * middle
        self.conv = conv3x3(3, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*blocks)
        self.bn2 = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)
        initialise_fan_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """float images [B, 3, 32, 32] -> logits [B, num_classes]."""
        x = self.blocks(self.bn1(self.conv(images)))
        return self.linear(F.relu(self.bn2(x), inplace=True).mean((2, 3)))


def _middle_widths(blocks: int, alpha: int, rounding: str) -> list[int]:
    """16 + k · alpha / blocks for k = 1 … blocks, in whole channels; integer arithmetic, so no sum of errors."""
    if rounding == "floor":
        return [16 + block * alpha // blocks for block in range(1, blocks + 1)]
    return [16 + (2 * block * alpha + blocks) // (2 * blocks) for block in range(1, blocks + 1)]
