"""A whole training against one that is written out by formulas, in float64: chunks that do not divide the batch, a last
batch that is smaller, mixed and smoothed labels, held-out images, SWA's average; weights and every reported figure.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from broadopt.data.augment import Augmentation
from broadopt.data.batches import Data
from broadopt.data.datasets import Dataset, Images
from broadopt.methods.asam import asam
from broadopt.methods.sam import sam
from broadopt.methods.schedule import Schedule
from broadopt.methods.step import Plain
from broadopt.methods.swa import WeightAverage
from broadopt.signals import Stop
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import Silent

CLASSES, BATCH, HELD_OUT, EPOCHS = 5, 16, 8, 3
LR, MOMENTUM, DECAY, SMOOTHING, ETA = 0.05, 0.9, 5e-3, 0.2, 0.01
CLOSE = {"rel": 1e-9, "abs": 1e-11}

Weights = dict[str, Tensor]
Statistics = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Convolution, BN, ReLU, linear; float64 throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.bn = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4 * 8 * 8, CLASSES)
        self.double()

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.bn(self.conv(images.double())).relu().flatten(1))


def convolved(weights: Weights, images: Tensor) -> Tensor:
    return F.conv2d(images.double(), weights["conv.weight"], weights["conv.bias"], stride=4)


def of_batch(inputs: Tensor) -> Statistics:
    """Means and biased variances of a batch, [C] each."""
    means = inputs.mean((0, 2, 3))
    return means, (inputs - means[:, None, None]).square().mean((0, 2, 3))


def outputs(weights: Weights, inputs: Tensor, statistics: Statistics) -> Tensor:
    means, variances = (one[:, None, None] for one in statistics)
    normal = (inputs - means) / (variances + 1e-5).sqrt()
    features = (normal * weights["bn.weight"][:, None, None] + weights["bn.bias"][:, None, None]).clamp_min(0)
    return features.flatten(1) @ weights["linear.weight"].T + weights["linear.bias"]


def shares_of(labels: Tensor) -> Tensor:
    """Labels as shares of the classes; those of mixed images are float32, and so is what becomes of them."""
    return torch.eye(CLASSES, dtype=torch.float64)[labels] if labels.dim() == 1 else labels


class Course:
    """The training by formulas; it counts what the loop is to count."""

    def __init__(self, net: Net, *, rho: float, adaptive: bool, chunk: int | None) -> None:
        self.weights: Weights = {name: weight.detach().clone() for name, weight in net.named_parameters()}
        self.momenta = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        self.running = [torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
        self.rho, self.adaptive, self.chunk = rho, adaptive, chunk
        self.loss = self.hits = 0.0
        self.images = 0

    def gradient(self, weights: Weights, images: Tensor, labels: Tensor) -> tuple[float, int, Weights]:
        """Mean loss, hits and gradient in training mode; counts for the running statistics."""
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        inputs = convolved(leaves, images)
        logits = outputs(leaves, inputs, of_batch(inputs))
        targets = shares_of(labels) * (1 - SMOOTHING) + SMOOTHING / CLASSES
        loss = -(targets * (logits - logits.logsumexp(1, keepdim=True))).sum() / len(images)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        values = inputs.detach().transpose(0, 1).flatten(1)
        for running, new in zip(self.running, (values.mean(1), values.var(1, correction=1)), strict=True):
            running.mul_(0.9).add_(0.1 * new)
        hits = int((logits.argmax(1) == shares_of(labels).argmax(1)).sum())
        return float(loss.detach()), hits, dict(zip(leaves, slopes, strict=True))

    def step(self, images: Tensor, labels: Tensor) -> None:
        total = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        size = self.chunk or len(images)
        for first in range(0, len(images), size):
            own = slice(first, first + size)
            count = len(images[own])
            loss, hits, slopes = self.gradient(self.weights, images[own], labels[own])
            self.loss, self.hits, self.images = self.loss + loss * count, self.hits + hits, self.images + count
            if self.rho:
                slopes = self.gradient(self.perturbed(slopes), images[own], labels[own])[2]
            for name in total:
                total[name] += slopes[name] * count / len(images)
        for name, weight in self.weights.items():
            self.momenta[name] = MOMENTUM * self.momenta[name] + total[name] + DECAY * weight
        self.weights = {name: weight - LR * self.momenta[name] for name, weight in self.weights.items()}

    def perturbed(self, slopes: Weights) -> Weights:
        sizes = {
            name: weight.abs() + ETA if self.adaptive and "weight" in name else torch.ones_like(weight)
            for name, weight in self.weights.items()
        }
        norm = sum(float((sizes[name] * slopes[name]).square().sum()) for name in slopes) ** 0.5
        return {
            name: weight + self.rho * sizes[name] ** 2 * slopes[name] / norm for name, weight in self.weights.items()
        }

    def end_of_epoch(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent of the images of the epoch."""
        found = self.loss / self.images, 100 * self.hits / self.images
        self.loss, self.hits, self.images = 0.0, 0.0, 0
        return found


def figures(weights: Weights, statistics: Statistics, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Accuracy (percent), NLL (nats) and ECE (a fraction), image by image, without smoothing."""
    hits, losses, bins = 0, [], {}
    for images, labels in batches:
        logits = outputs(weights, convolved(weights, images), statistics)
        for row, label in zip((logits - logits.logsumexp(1, keepdim=True)).tolist(), labels.tolist(), strict=True):
            right = row.index(max(row)) == label
            hits, losses = hits + right, [*losses, -row[label]]
            confidence = float(torch.tensor(max(row), dtype=torch.float64).exp())
            place = next(k for k in range(15) if confidence <= (k + 1) / 15)
            bins[place] = bins.get(place, 0.0) + right - confidence
    count = len(losses)
    return {"accuracy": 100 * hits / count, "nll": sum(losses) / count, "ece": sum(map(abs, bins.values())) / count}


def made(step: Callable[..., Any], cutmix: float) -> tuple[Training, Net, Data]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (81, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(CLASSES, (81,), generator=generator)
    train, test = Images(pixels[:58], labels[:58]), Images(pixels[58:], labels[58:])
    augmentation = Augmentation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), cutmix=cutmix)
    data = Data(
        Dataset("random", tuple("abcde"), train, test, None),
        batch_size=BATCH, augmentation=augmentation, seed=1, device="cpu", validation=HELD_OUT, label_noise=0.1,
    )  # fmt: skip
    torch.manual_seed(1)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, fused=True)
    parts = Parts(
        model=net,
        step=step(net, optimizer),
        collector=WeightAverage(start=0.5, budgets=(1,)),
        schedule=Schedule(lr=LR, budget=EPOCHS, shape="constant"),
        data=data,
        seed=1,
        budget=EPOCHS,
        label_smoothing=SMOOTHING,
        evaluate_every=1,
        precision="fp32",
        device=torch.device("cpu"),
        settings={},
    )
    return Training(parts, stop=Stop(), reporter=Silent()), net, data


CASES: Mapping[str, tuple[Callable[..., Any], dict[str, Any], float]] = {
    "sgd": (Plain, {"rho": 0.0, "adaptive": False, "chunk": None}, 0.0),
    "sgd, mixed": (Plain, {"rho": 0.0, "adaptive": False, "chunk": None}, 0.8),
    "sam, mixed": (partial(sam, rho=0.3), {"rho": 0.3, "adaptive": False, "chunk": None}, 0.8),
    "sam, chunks": (partial(sam, rho=0.3, chunk=6), {"rho": 0.3, "adaptive": False, "chunk": 6}, 0.0),
    "asam, chunks, mixed": (
        partial(asam, rho=0.5, eta=ETA, chunk=6),
        {"rho": 0.5, "adaptive": True, "chunk": 6},
        0.8,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_training_is_the_one_that_the_formulas_give(case: str) -> None:
    step, options, cutmix = CASES[case]
    training, net, data = made(step, cutmix)
    course, averaged = Course(net, **options), []
    assert data.train_size % BATCH == 2  # 50 images in batches of 16, 16, 16 and 2; chunks of 6, 6, 4 and 2
    expected = []
    for epoch in range(EPOCHS):
        for images, labels in data.train(epoch):
            course.step(images, labels)
        loss, accuracy = course.end_of_epoch()
        row = {"epoch": epoch + 1, "lr": LR, "train_loss": loss, "train_accuracy": accuracy}
        running = (course.running[0], course.running[1])
        for split, batches in data.held_out().items():
            found = figures(course.weights, running, batches)
            row |= {f"{split}_{name}": value for name, value in found.items()}
        expected.append(row)
        if epoch + 1 >= 0.5 * EPOCHS:
            averaged.append(course.weights)

    training.run(lambda: None, minutes=60)

    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.detach(), course.weights[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.bn.running_mean, course.running[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net.bn.running_var, course.running[1], rtol=1e-10, atol=1e-12)
    for ours, row in zip(training.progress.history, expected, strict=True):
        assert ours == pytest.approx(row, **CLOSE)
    last = EPOCHS * data.steps_per_epoch
    mean = {name: sum(one[name] for one in averaged) / len(averaged) for name in course.weights}
    collected = reestimated(mean, data.statistics(last))
    (ours,) = training.progress.collected.values()
    for split, batches in data.held_out().items():
        found = figures(mean, collected, batches)
        assert {name: ours[f"{split}_{name}"] for name in found} == pytest.approx(found, **CLOSE)
    assert (ours["members"], ours["epochs"]) == (len(averaged), EPOCHS) == (2, 3)


def reestimated(weights: Weights, batches: Iterable[tuple[Tensor, Tensor]]) -> Statistics:
    """Means, over the images of all batches, of the batches' means and unbiased variances."""
    means, variances, count = torch.zeros(4).double(), torch.zeros(4).double(), 0
    for images, _ in batches:
        values = convolved(weights, images).detach().transpose(0, 1).flatten(1)
        means += len(images) * values.mean(1)
        variances += len(images) * values.var(1, correction=1)
        count += len(images)
    return means / count, variances / count
