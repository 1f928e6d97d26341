"""The training loop as the field writes it, to measure broadopt's against: fp32 with torch's own switches, the images
from torch's DataLoader and PIL, or all of them on the device and augmented there.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from measure import random_dataset, seconds
from PIL import Image
from torch.nn.functional import cross_entropy, pad
from torchvision import transforms

CROP_AND_FLIP = (transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip())
TO_TENSOR = (transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
AUTOAUGMENT = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)


def pictures(count: int) -> list[Image.Image]:
    """Noise in CIFAR's shape as PIL images."""
    return [Image.fromarray(pixels.permute(1, 2, 0).numpy()) for pixels in random_dataset(count, 1).train.pixels]


class Pictures(torch.utils.data.Dataset):
    """PIL images, transformed one at a time."""

    def __init__(self, count: int) -> None:
        self.pictures = pictures(count)
        self.pipeline = transforms.Compose([*CROP_AND_FLIP, *TO_TENSOR])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.pipeline(self.pictures[index]), index % 100


class Resident:
    """Batches of noise in CIFAR's shape that lies on the device, cropped and flipped there."""

    def __init__(self, count: int, batch: int, device: torch.device) -> None:
        self.batch = batch
        pixels = random_dataset(count, 1).train.pixels.to(device)
        self.images = pad((pixels / 255 - 0.5) / 0.25, (4, 4, 4, 4), value=-2.0)
        self.labels = torch.arange(count, device=device) % 100

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        device = self.labels.device
        places, channels = torch.arange(32, device=device), torch.arange(3, device=device)[:, None, None]
        for chosen in torch.randperm(len(self.labels), device=device).split(self.batch):
            top, left = torch.randint(9, (2, len(chosen), 1), device=device)
            flipped = torch.rand(len(chosen), 1, device=device) < 0.5
            rows, columns = top + places, left + torch.where(flipped, 31 - places, places)
            index = chosen[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]
            yield self.images[index], self.labels[chosen]


def loader(*, steps: int, batch: int, workers: int) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """As many batches from PIL images, by torch's DataLoader."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    return torch.utils.data.DataLoader(Pictures(batch * steps), batch, shuffle=True, **options)


@contextmanager
def torchs_own_switches() -> Iterator[None]:
    """Convolutions in TF32 and products in IEEE fp32, as torch has them where nobody asks for anything."""
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [one.fp32_precision for one in switches]
    try:
        for one, precision in zip(switches, ("ieee", "tf32"), strict=True):
            one.fp32_precision = precision
        yield
    finally:
        for one, precision in zip(switches, before, strict=True):
            one.fp32_precision = precision


def epoch(
    network: torch.nn.Module,
    device: torch.device,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    *,
    rho: float | None = None,
) -> Callable[[], float]:
    """Seconds of a step on each batch, in the contiguous format, a loss read at each; with `rho`, of ASAM's."""
    model = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def backward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    def once() -> None:
        total = 0.0
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            total += backward(images, labels).item()
            if rho is not None:
                moves = ascend(model, rho)
                backward(images, labels)
                descend(moves)
            optimizer.step()
            optimizer.zero_grad()

    def timed() -> float:
        with torchs_own_switches():
            return seconds(once, device)

    return timed


@torch.no_grad()
def ascend(model: torch.nn.Module, rho: float) -> dict[torch.Tensor, torch.Tensor]:
    """ASAM's perturbation (Kwon et al. 2021, Algorithm 1), one parameter after the other; the gradients are dropped."""
    scales = {weight: weight.abs() + 0.01 for weight in model.parameters()}
    norm = torch.stack([(scale * weight.grad).norm() for weight, scale in scales.items()]).norm()
    moves = {weight: scale**2 * weight.grad * (rho / norm) for weight, scale in scales.items()}
    for weight, move in moves.items():
        weight.add_(move)
    model.zero_grad()
    return moves


@torch.no_grad()
def descend(moves: dict[torch.Tensor, torch.Tensor]) -> None:
    """Back to where the weights were."""
    for weight, move in moves.items():
        weight.sub_(move)
