"""What figures of surfaces share: the runs' images, the network that is evaluated, and their caption."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from broadopt.analysis.figures.output import seeds
from broadopt.analysis.figures.request import Request
from broadopt.analysis.landscape.grid import Landscape, Penalty
from broadopt.analysis.landscape.images import Images, check_same
from broadopt.analysis.landscape.networks import Mark
from broadopt.analysis.landscape.store import Row, Store, code_fact, device_fact, key_of
from broadopt.config.run_config import KINDS_OF_NOISE


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured on what."""

    request: Request
    images: Images
    landscape: Landscape
    penalty: Penalty

    @classmethod
    def of(cls, request: Request) -> "Setting":
        """Read the images and put the first run's network on the device. Raises InputError."""
        check_same(request.runs)
        first = request.runs[0]
        images = Images(first, device=request.device, seed=request.seed, data_dir=request.data_dir)
        penalty = Penalty.of(request.runs)
        landscape = Landscape.of(
            first,
            images,
            weight_decay=penalty.weight_decay,
            test_images=request.images,
            train_images=request.train_images,
        )
        return cls(request=request, images=images, landscape=landscape, penalty=penalty)

    def take_buffers(self, marks: Sequence[Mark]) -> None:
        """Evaluate everywhere with the buffers of the first network that has a name; BN's are re-estimated anyway."""
        named = next((mark.network for mark in marks if mark.network is not None), None)
        if named is not None:
            self.landscape.take_buffers(named)

    def key(self, facts: Mapping[str, Any], vectors: Sequence[Tensor]) -> str:
        """Of all that decides the numbers. `vectors`: the weights, with their own BN statistics where rows are measured
        with these; where they are re-estimated at each point they decide nothing.
        """
        first = self.request.runs[0]
        own = {
            "figure": self.request.figure,
            "data": first.recipe.dataset.values() | {"fingerprint": first.recipe.dataset.fingerprint},
            "seeds": [self.request.seed, first.recipe.seed],
            "images": [len(self.landscape.test[1]), len(self.landscape.train[1])],
            "statistics": [len(self.landscape.statistics), "augmented"],
            "network": first.recipe.model.values(),
            "computation": [self.landscape.weight_decay, self.landscape.batch_size, first.recipe.precision],
        }
        found = device_fact(self.images.device) | code_fact([first.recipe])
        return key_of(own | found | dict(facts), vectors)

    @property
    def panels(self) -> Mapping[str, str]:
        """The columns that are drawn, with their axes' words."""
        loss = "train loss, nats" if self.penalty.left_out else "train loss with L2, nats"
        return {"test_error": "test error, %", "train_objective": loss}

    @property
    def caption(self) -> str:
        """Split, number of images, BN policy, precision and seeds."""
        land, images, run = self.landscape, self.images, self.request.runs[0]
        tested, trained = (f"{len(split[1]):,} of {size:,}" for split, size in (
            (land.test, images.test_size), (land.train, images.train_size)))  # fmt: skip
        alike = all(other.recipe.augmentation == run.recipe.augmentation for other in self.request.runs)
        bn = (
            f"BN statistics re-estimated at each point on the same {len(land.statistics):,} augmented training images"
            f"{'' if alike else f' (as {run.label} augments them)'} in batches of {land.batch_size}"
        )
        own = run.recipe.dataset
        noise = f", with {own.label_noise:g} label noise" if own.label_noise else ""
        if own.noise not in KINDS_OF_NOISE:
            noise = ", with the labels of a file"
        return (
            f"{own.name}, {run.recipe.model.name}; test error on {tested} test images; train loss: "
            f"cross-entropy without label smoothing on {trained} training images, not augmented{noise}, "
            f"{self.penalty.words}; "
            f"{bn if land.has_bn else 'a network without BN'}; {run.recipe.precision} on {images.device.type}; "
            f"{seeds(self.request.runs, self.request.seed)}."
        )


def measure_marks(
    setting: Setting, marks: Sequence[Mark], places: Sequence[Mapping[str, float]], store: Store
) -> list[Row]:
    """Two rows a mark: "mark", with BN re-estimated as everywhere, and "stored", with BN statistics of its own, beside
    the error that its result has.
    """
    rows: list[Row] = []
    setting.take_buffers(marks)
    for mark, place in zip(marks, places, strict=True):
        vector = mark.vector.to(setting.images.device)
        named = {"label": mark.label}
        rows.append({**store.row({"kind": "mark", **place}, partial(setting.landscape.at, vector)), **named})
        if mark.network is not None:
            found = store.row({"kind": "stored", **place}, partial(setting.landscape.as_stored, mark.network))
            rows.append({**found, **named, "recorded_error": math.nan if mark.recorded is None else mark.recorded})
    return rows
