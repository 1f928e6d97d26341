"""A real training of seconds: broadopt's own loop and data on random pictures; its network has BN and dropout."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.data.augment import Augmentation
from broadopt.data.batches import Data
from broadopt.data.datasets import Dataset, Images
from broadopt.methods.collect import Collector
from broadopt.methods.schedule import Schedule
from broadopt.methods.step import Plain, Step
from broadopt.signals import Stop
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import EpochLines

CPU = torch.device("cpu")
Optimizer = torch.optim.Optimizer

STEPS_PER_EPOCH = 4  # of 16, 16, 16 and 10 images


class TinyNet(nn.Module):
    """float32 [B, 3, 32, 32] -> [B, 3]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.classifier = nn.Linear(4 * 8 * 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).flatten(1))


def sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)


def training(
    collector: Collector,
    *,
    budget: float,
    step: Callable[[nn.Module, Optimizer], Step] = Plain,
    optimizer: Callable[[nn.Module], Optimizer] = sgd,
    also: Mapping[str, Collector] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    device: torch.device = CPU,
    stop: Stop | None = None,
    **other: Any,
) -> Training:
    """58 training and 20 test pictures of 3 classes; every call with the same arguments makes the same training.
    `other`: fields of Parts, in place of the usual ones.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (78, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (78,), generator=generator)
    dataset = Dataset(
        "random", ("a", "b", "c"), Images(pixels[:58], labels[:58]), Images(pixels[58:], labels[58:]), None
    )
    augment = Augmentation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), **(augmentation or {}))
    data = Data(dataset, batch_size=16, augmentation=augment, seed=1, device=device)
    torch.manual_seed(1)
    model = TinyNet().to(device)
    parts = Parts(
        model=model,
        step=step(model, optimizer(model)),
        collector=collector,
        schedule=Schedule(lr=0.05, budget=budget, shape="constant"),
        data=data,
        seed=1,
        budget=budget,
        label_smoothing=0.0,
        evaluate_every=1,
        precision="fp32",
        device=device,
        settings={},
        also=also or {},
    )
    return Training(replace(parts, **other), stop=stop or Stop(), reporter=EpochLines())


def run(collector: Collector, *, budget: float) -> Training:
    """Train to the end."""
    made = training(collector, budget=budget)
    made.run(lambda: None, minutes=60)
    return made


def assert_same_course(one: Training, other: Training) -> None:
    """The same weights, buffers, optimizer states, mode and per-epoch figures, bit for bit."""
    assert one.progress.step == other.progress.step
    assert one.progress.history == other.progress.history
    assert one.parts.model.training == other.parts.model.training
    for ours, theirs in zip(_tensors(one), _tensors(other), strict=True):
        assert torch.equal(ours, theirs)


def _tensors(done: Training) -> list[Tensor]:
    states = [done.parts.step.optimizer.state[weight].values() for weight in done.parts.model.parameters()]
    assert all(states)
    return [*done.parts.model.state_dict().values(), *(one for state in states for one in state)]
