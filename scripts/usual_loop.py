"""The training loop as the field writes it, to measure broadopt's against: torch's DataLoader, PIL images, fp32."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from measure import random_dataset, seconds
from PIL import Image
from torch.nn.functional import cross_entropy
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


def epoch(
    network: torch.nn.Module, device: torch.device, *, steps: int, batch: int, workers: int, rho: float | None = None
) -> Callable[[], float]:
    """Seconds of `steps` steps in the contiguous format, a loss read at each; with `rho`, of ASAM's."""
    options: dict[str, Any] = {"num_workers": workers, "persistent_workers": workers > 0}
    loader = torch.utils.data.DataLoader(Pictures(batch * steps), batch, shuffle=True, **options)
    model = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)

    def backward(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = cross_entropy(model(images), labels)
        loss.backward()
        return loss

    def once() -> None:
        total = 0.0
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            total += backward(images, labels).item()
            if rho is not None:
                moves = ascend(model, rho)
                backward(images, labels)
                descend(moves)
            optimizer.step()
            optimizer.zero_grad()

    return lambda: seconds(once, device)


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
