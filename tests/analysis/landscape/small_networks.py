"""Networks and losses that are small enough to know everything about them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from broadopt.analysis.landscape.curvature.losses import Loss


def network(*, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    """[B, 3, 6, 6] -> [B, 4]; 217 weights: BN's scale and shift are read through ReLU by one convolution, which two
    layers read through a smooth function.
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, stride=2, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2)),
        *(nn.Tanh(), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.to(dtype).eval()


def data(count: int = 20, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(count, 3, 6, 6, generator=generator).to(dtype)
    return images, torch.randint(4, (count,), generator=generator)


class Reads(TorchDispatchMode):
    """Counts, within the `with` block, the values that are read from tensors: on a GPU each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


class Quadratic(Loss):
    """Mean over its "images" b_i of L_i(w) = w^T A w / 2 + <b_i, w>, around w = `weights`."""

    def __init__(self, A: Tensor, b: Tensor, weights: Sequence[Tensor]) -> None:
        self.A, self.b = A, b
        self.parameters = [nn.Parameter(weight.clone()) for weight in weights]

    def __len__(self) -> int:
        return len(self.b)

    def chunks(self, m: int) -> Iterator["Quadratic"]:
        for b in self.b.split(m):
            part = Quadratic(self.A, b, [])
            part.parameters = self.parameters
            yield part

    def value(self) -> float:
        w = self.flat()
        return float(w @ self.A @ w / 2 + self.b.mean(0) @ w)

    def gradient(self) -> tuple[float, list[Tensor]]:
        slope = self.A @ self.flat() + self.b.mean(0)
        parts = slope.split([parameter.numel() for parameter in self.parameters])
        return self.value(), [part.view_as(p).clone() for part, p in zip(parts, self.parameters, strict=True)]

    def flat(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])
