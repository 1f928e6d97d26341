"""What figures of curvature and of perturbations share: the images and the network of each run, and its look."""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from broadopt.analysis.figures.output import seeds
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.sharpness import rescale
from broadopt.analysis.landscape.images import Images, check_same, kind_of_noise
from broadopt.analysis.landscape.networks import reported
from broadopt.analysis.landscape.runs import Run, check_different
from broadopt.analysis.landscape.store import Point, Store, code_fact, device_fact, key_of
from broadopt.config.run_config import KINDS_OF_NOISE
from broadopt.devices.device import autocast, set_flags
from broadopt.training.evaluate import log_probabilities, metrics


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The runs of a request, which may be of different networks but of the same images, and these images."""

    request: Request
    images: Mapping[str, Images]
    """By the run's label; those of runs with the same labels are read once."""

    @classmethod
    def of(cls, request: Request) -> "Scene":
        """Read the images. Raises InputError for runs on different ones, and for a run that is named twice."""
        check_same(request.runs, networks=False)
        check_different(request.runs, request.figure)
        read: dict[tuple[object, ...], Images] = {}
        for run in request.runs:
            kind = _kind(run)
            if kind not in read:
                read[kind] = Images(run, device=request.device, seed=request.seed, data_dir=request.data_dir)
        # Images set torch's switches for the run that they are of, whereas curvature is always taken in float32.
        set_flags("fp32", deterministic=False)
        return cls(request=request, images={run.label: read[_kind(run)] for run in request.runs})

    def train(self, run: Run, count: int | None = None) -> tuple[Tensor, Tensor]:
        """`count` training images of a run, or as many as are asked for, with the labels that it was trained on."""
        return self.images[run.label].train(count or self.request.train_images)

    def placed(self, run: Run, model: nn.Module) -> nn.Module:
        """The network in evaluation mode, where its images are."""
        images = self.images[run.label]
        moved: nn.Module = model.to(images.device, memory_format=images.memory_format)  # type: ignore[call-overload]
        return moved.eval()

    def outcomes(self, run: Run, model: nn.Module) -> dict[str, float]:
        """Error (percent) and NLL (nats) of a placed network on the test images and on as many training images."""
        images, context = self.images[run.label], autocast(run.recipe.precision, self.request.device)
        test = images.test(self.request.images)
        found: dict[str, float] = {}
        for split, (inputs, labels) in {"train": images.train(len(test[1])), "test": test}.items():
            batches = zip(inputs.split(500), labels.split(500), strict=True)
            outputs = log_probabilities(model, batches, autocast=context, before_batch=lambda: None)
            values = metrics(outputs, labels)
            found |= {f"{split}_images": len(labels), f"{split}_error": 100 - values["accuracy"]}
            found |= {f"{split}_nll": values["nll"]}
        return found

    def key(self, facts: Mapping[str, Any]) -> str:
        """Of all that decides the numbers. A run that was trained anew has other metrics."""
        runs = [[run.label, run.result["identity"], run.result["metrics"]] for run in self.request.runs]
        own: dict[str, Any] = {"figure": self.request.figure, "runs": runs, "seed": self.request.seed}
        if any(self.request.train_images >= images.train_size for images in self.images.values()):
            own["order"] = "shuffled"  # earlier versions took all images as they lie, whose rows are not to be kept
        found = device_fact(self.request.device) | code_fact(run.recipe for run in self.request.runs)
        return key_of(own | {"train images": self.request.train_images} | found | dict(facts))

    @property
    def caption(self) -> str:
        """Data, loss, split, number of images, mode and seeds."""
        first = self.request.runs[0]
        images = self.images[first.label]
        datasets = [run.recipe.dataset for run in self.request.runs]
        labels = ", labels with the noise of the training" if any(own.label_noise for own in datasets) else ""
        if any(own.noise not in KINDS_OF_NOISE for own in datasets):
            labels = ", labels of a file, as in the training"
        return (
            f"{first.recipe.dataset.name}. Train loss: cross-entropy, without weight decay or smoothing, on "
            f"{min(self.request.train_images, images.train_size):,} of {images.train_size:,} training images, not "
            f"augmented{labels}; networks in evaluation mode; fp32 on "
            f"{images.device.type}; {seeds(self.request.runs, self.request.seed)}."
        )


class Subject:
    """One run's network, read where it is measured and not where all its rows are known."""

    def __init__(self, run: Run, scene: Scene) -> None:
        self.run, self.scene = run, scene

    def check(self, store: Store, points: Iterable[Point]) -> None:
        """Raise InputError where a network that is needed for `points` cannot be read: before hours go into others."""
        if not all(store.knows(point) for point in points):
            reported(self.run)

    @cached_property
    def loss(self) -> Loss:
        """Of the network that the run reports. Raises InputError where it has kept none."""
        return Loss(self.scene.placed(self.run, reported(self.run).model), *self.scene.train(self.run))

    @cached_property
    def loss_here(self) -> float:
        """The loss at the weights themselves, nats."""
        return self.loss.value()

    @cached_property
    def rescaled(self) -> Loss | None:
        """The same function with other weights; None where no pair of layers can be rescaled."""
        loss, model = self.loss, copy.deepcopy(self.loss.model)
        found = rescale(model, loss.images[:16])
        return Loss(model, loss.images, loss.labels) if found else None

    @cached_property
    def outcomes(self) -> dict[str, float]:
        """Errors and losses on test and training images."""
        return self.scene.outcomes(self.run, self.loss.model)


def _kind(run: Run) -> tuple[object, ...]:
    """What decides a run's images and labels, beside what all runs have in common."""
    dataset = run.recipe.dataset
    seeded = bool(dataset.label_noise or dataset.validation)
    return run.recipe.model.name, dataset.label_noise, kind_of_noise(dataset), run.recipe.seed if seeded else None


def norm_words(p: float) -> str:
    """p as it is written in titles."""
    return "∞" if p == math.inf else f"{p:g}"
