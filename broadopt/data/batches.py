"""What the training loop iterates over: whole data sets on the device, augmented batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import Recipe
from broadopt.data.augment import (
    SIDE,
    Augmentation,
    Draws,
    Normalisation,
    crop_and_flip,
    cut_mix,
    cut_out,
    draw,
    mean_border,
    padded,
)
from broadopt.data.datasets import Dataset, Images, stratified
from broadopt.data.label_noise import asymmetric, symmetric
from broadopt.errors import InputError
from broadopt.seeds import derive

if TYPE_CHECKING:
    from broadopt.data.autoaugment import Policies

Batches = Iterator[tuple[Tensor, Tensor]]


def evaluated_at_once(device: torch.device) -> int:
    """Images in a batch of an evaluation on a device."""
    # On a CPU 1000 take 1.07 to 1.3 times as long as 256 (ResNet-20, WRN-28-2, VGG-16): the activations no longer fit
    # its caches.
    return 250 if device.type == "cpu" else 1000


def stream(seed: int, number: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for each (seed, number, purpose): the same draws on every device and at every time."""
    return torch.Generator().manual_seed(derive(seed, purpose, number))


def check_held_out(count: int, total: int) -> None:
    """Raise InputError where `count` of `total` training images cannot be held out and leave one to train on."""
    if not isinstance(count, int) or not 0 <= count < total:
        raise InputError(
            f"dataset.validation={count}: expected a whole number from 0 to {total - 1}, fewer than the {total} "
            "training images"
        )


def check_batch_size(batch_size: int, train_size: int) -> None:
    """Raise InputError where there are too few images to train on, `train_size`, for one whole batch."""
    if not isinstance(batch_size, int) or not 1 <= batch_size <= train_size:
        raise InputError(
            f"batch_size={batch_size}: expected a whole number from 1 to {train_size}, the number of training images"
        )


class Data:
    """A data set on `device`, its images as uint8, in batches of float32 [B, 3, 32, 32] and int64 [B].

    Nothing is carried from one call to the next and torch's global generators are never drawn from: a batch depends on
    (seed, epoch, its position) alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        device: torch.device | str,
        validation: int = 0,
        label_noise: float = 0.0,
        noise: str = "symmetric",
        channels_last: bool = False,
    ) -> None:
        """Hold `validation` images out of the training set, then replace the fraction `label_noise` of its labels by
        `noise`, symmetric or asymmetric; where the data set brings the labels to train on, these are taken.

        The last batch of a pass may be smaller. `channels_last` is the memory format of the batches. Raises
        InputError for a `batch_size`, `validation` or `label_noise` that the data set does not allow.
        """
        train, held_out, chosen = _hold_out(dataset.train, validation, seed)
        check_batch_size(batch_size, len(train.labels))
        if dataset.labels_to_train_on is None:
            labels = _with_noise(train.labels, label_noise, noise, dataset.classes, seed)
        else:
            labels = dataset.labels_to_train_on[chosen]
        self.classes, self.num_classes = dataset.classes, len(dataset.classes)
        self.train_size = len(labels)
        self.steps_per_epoch = -(-self.train_size // batch_size)
        self.batch_size = batch_size
        self._seed, self._augmentation = seed, augmentation
        self._device = torch.device(device)
        self._normalise = Normalisation(augmentation, device=self._device, channels_last=channels_last)
        self._policies = _policies() if augmentation.autoaugment else None
        self._frames = padded(train.pixels.to(self._device), augmentation.pad)
        self._labels = labels.to(self._device)
        self._held_out = {"test": self._unaugmented(dataset.test)}
        if validation:
            self._held_out["validation"] = self._unaugmented(held_out)

    @classmethod
    def of(
        cls, recipe: Recipe, dataset: Dataset, *, device: torch.device, memory_format: torch.memory_format
    ) -> "Data":
        """The batches of a recipe from its data set. Raises InputError."""
        return cls(
            dataset,
            batch_size=recipe.batch_size,
            augmentation=instantiated("augmentation", recipe.augmentation),
            seed=recipe.seed,
            device=device,
            validation=recipe.dataset.validation,
            label_noise=recipe.dataset.label_noise,
            noise=recipe.dataset.noise,
            channels_last=memory_format == torch.channels_last,
        )

    def train(self, epoch: int, first: int = 0) -> Batches:
        """The batches of an epoch from number `first` on, shuffled and augmented, each the same wherever one starts."""
        return map(self._augment, self._drawn(epoch, "train", first))

    def inputs(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """What `batch` makes the batches of `train` from: tensors on the device, of the same kinds for each batch."""
        for drawn in self._drawn(epoch, "train", first):
            yield self._augment(drawn) if self._policies is not None else drawn.tensors()

    def batch(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Images and labels; nothing of it waits for the device or depends on values that the host would need."""
        if len(inputs) == 2:  # AutoAugment's operations are chosen by the host: they were carried out already
            return inputs[0], inputs[1]
        holes, mixes = bool(self._augmentation.cutout), bool(self._augmentation.cutmix)
        return self._augment(Draws.of_tensors(inputs, holes=holes, mixes=mixes))

    def statistics(self, key: int) -> Batches:
        """One pass over the training images as `train` makes it, drawn from a stream of its own for each `key`."""
        return map(self._augment, self._drawn(key, "statistics", 0))

    def unaugmented(self, split: str, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The images at `positions` (int64 [n]) of a split, "train" or "test", normalised, not augmented, float32
        [n, 3, 32, 32], and their labels, int64 [n]: of the training images those that are trained on.
        """
        chosen = positions.to(self._device)
        if split == "test":
            pixels, labels = self._held_out["test"]
            return self._normalise(pixels[chosen]), labels[chosen]
        inner = slice(self._augmentation.pad, self._augmentation.pad + SIDE)
        return self._normalise(self._frames[chosen, inner, inner].contiguous()), self._labels[chosen]

    def held_out(self, share: Callable[[int], slice] = slice) -> dict[str, Batches]:
        """The batches of every split that is not trained on: "test", and "validation" where training images are held
        out, with their true labels; in their order, normalised, not augmented, as many at once as the device works best
        on. Of each split the images of `share`(their number), all by default.
        """
        return {
            name: self._in_order(pixels[share(len(pixels))], labels[share(len(labels))])
            for name, (pixels, labels) in self._held_out.items()
        }

    def targets(self) -> dict[str, Tensor]:
        """The labels, int64 [N], of the splits of `held_out` in their order."""
        return {name: labels for name, (_, labels) in self._held_out.items()}

    def _drawn(self, number: int, purpose: str, first: int) -> Iterator[Draws]:
        if not 0 <= first <= self.steps_per_epoch:
            raise ValueError(f"first={first}: expected a batch number from 0 to {self.steps_per_epoch}")
        draws = draw(self._augmentation, self.train_size, stream(self._seed, number, purpose)).to(self._device)
        starts = range(first * self.batch_size, self.train_size, self.batch_size)
        return (draws.part(slice(start, start + self.batch_size)) for start in starts)

    def _augment(self, batch: Draws) -> tuple[Tensor, Tensor]:
        pixels, labels = crop_and_flip(self._frames, batch), self._labels[batch.images]
        if self._policies is not None and batch.operations is not None:
            planes = self._policies(pixels.permute(0, 3, 1, 2).contiguous(), *batch.operations)
            pixels = planes.permute(0, 2, 3, 1).contiguous()
        images = self._normalise(pixels)
        if self._augmentation.border == "mean":
            images = mean_border(images, batch, self._augmentation.pad)
        if batch.holes is not None:
            images = cut_out(images, batch.holes, self._augmentation.cutout)
        if batch.mixes is not None:
            mix = self._augmentation.cutmix
            return cut_mix(images, labels, batch.mixes, probability=mix, classes=self.num_classes)
        return images, labels

    def _in_order(self, pixels: Tensor, labels: Tensor) -> Batches:
        at_once = evaluated_at_once(self._device)
        for some, their_labels in zip(pixels.split(at_once), labels.split(at_once), strict=True):
            yield self._normalise(some), their_labels

    def _unaugmented(self, images: Images) -> tuple[Tensor, Tensor]:
        return padded(images.pixels.to(self._device), 0), images.labels.to(self._device)


def _policies() -> "Policies":
    from broadopt.data.autoaugment import Policies  # here, since it imports torchvision, which takes seconds

    return Policies()


def _hold_out(images: Images, count: int, seed: int) -> tuple[Images, Images, Tensor]:
    """The images left to train on, and `count` drawn from them, class by class in proportion; both in their order. Last
    which are left (bool [N]).
    """
    total = len(images.labels)
    check_held_out(count, total)
    is_held_out = torch.zeros(total, dtype=torch.bool)
    if count == 0:
        return images, Images(images.pixels[:0], images.labels[:0]), ~is_held_out
    order = torch.randperm(total, generator=stream(seed, 0, "validation"))
    is_held_out[stratified(images.labels, count, order)] = True
    kept, held_out = (Images(images.pixels[chosen], images.labels[chosen]) for chosen in (~is_held_out, is_held_out))
    return kept, held_out, ~is_held_out


def _with_noise(labels: Tensor, fraction: float, kind: str, classes: Sequence[str], seed: int) -> Tensor:
    if not 0 <= fraction <= 1:
        raise InputError(f"dataset.label_noise={fraction}: expected a fraction from 0 to 1")
    generator = stream(seed, 0, "label noise")
    if kind == "asymmetric":
        return asymmetric(labels, fraction, classes, generator=generator)
    return symmetric(labels, fraction, len(classes), generator=generator)
