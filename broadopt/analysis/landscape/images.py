"""The images on which trained networks are measured: unaugmented, normalised as in the training, chosen by a seed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from broadopt.analysis.landscape.runs import Run, check_code
from broadopt.config.identity import AS_WITHOUT
from broadopt.config.run_config import KINDS_OF_NOISE, LOCATION, DatasetConfig
from broadopt.data.batches import Data, stream
from broadopt.data.datasets import read
from broadopt.devices.device import choose_memory_format, set_flags
from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_yaml, reason

SAME = ("name", "fingerprint", "validation")
"""Keys of a data set in which runs that are measured together have to agree."""


class Images:
    """The images of a run on `device`, each as float32 [3, 32, 32]. Which ones, and in which order, depends on `seed`
    and their number alone: the first n of one permutation.
    """

    def __init__(self, run: Run, *, device: torch.device, seed: int = 1, data_dir: str | None = None) -> None:
        """Read the run's data set, from `data_dir` where it is given, else from where the run read it. Raises
        InputError where it is not there, and where these are not the images that the run was trained on.
        """
        recipe, own = run.recipe, run.recipe.dataset
        for node in (own.target, recipe.augmentation):
            check_code(run, node)
        here = replace(
            own,
            noise=own.noise if own.noise in KINDS_OF_NOISE else _file_of_labels(run),
            target={**own.target, **_location(run, data_dir)},
        )
        dataset = read(here)
        if dataset.fingerprint != own.fingerprint:
            raise InputError(
                f"{run.folder}: its images have the fingerprint {own.fingerprint or 'of the published data'}, those "
                f"found here {dataset.fingerprint or 'that of the published data'}; expected the images of the run"
            )
        set_flags(recipe.precision, deterministic=False)  # as the run's own evaluations were made
        self.device, self.seed, self.classes = device, seed, dataset.classes
        self.memory_format = choose_memory_format("auto", recipe.model.name, device)
        self._data = Data.of(replace(recipe, dataset=here), dataset, device=device, memory_format=self.memory_format)
        self.train_size, self.test_size = self._data.train_size, len(self._data.targets()["test"])

    def train(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """`count` training images (all where there are no more), shuffled: float32 [n, 3, 32, 32] and the labels that
        the run was trained on, int64 [n], its own label noise included. Held-out images are none of them. All, in their
        order, where no `count` is given.
        """
        return self._data.unaugmented("train", self._chosen("train", self.train_size, count))

    def augmented(self, count: int | None = None) -> Tensor:
        """`count` training images as the training draws them, cropped, flipped and so on, float32 [n, 3, 32, 32]: those
        on which BN statistics are re-estimated. Statistics of images that are not augmented do not fit the weights:
        crops have borders.
        """
        wanted = min(count or self.train_size, self.train_size)
        batches: list[Tensor] = []
        for images, _ in self._data.statistics(self.seed):
            batches.append(images)
            if sum(map(len, batches)) >= wanted:
                break
        return torch.cat(batches)[:wanted]

    def test(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The same of the test images, with their true labels."""
        return self._data.unaugmented("test", self._chosen("test", self.test_size, count))

    def _chosen(self, split: str, size: int, count: int | None) -> Tensor:
        if count is None:
            return torch.arange(size)
        # Shuffled also where all are taken: many data sets are sorted by class, and chunks of these have one class.
        return torch.randperm(size, generator=stream(self.seed, 0, f"figure {split}"))[:count]


def in_batches(images: Tensor, size: int) -> list[Tensor]:
    """Images in batches of `size` for BN statistics to be re-estimated on. A last one of a single image joins the batch
    before it: of one value a channel, as behind a network's last pooling, BN has no variance and fails.
    """
    batches = list(images.split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def check_same(runs: tuple[Run, ...], *, networks: bool = True) -> None:
    """Raise InputError unless the runs have the same images and normalisation and, with `networks`, the same training
    labels, network and precision: only then can one be evaluated between them.
    """
    first, *others = runs
    for other in others:
        for name, values in _compared(first, other, networks).items():
            if values[0] != values[1]:
                raise InputError(
                    f"{other.folder}: {name} {values[1]}, but {values[0]} in {first.folder}; expected runs on the same "
                    f"images{', labels, network and precision' if networks else ''}"
                )


def _compared(first: Run, other: Run, networks: bool) -> Mapping[str, tuple[Any, Any]]:
    datasets = first.recipe.dataset, other.recipe.dataset
    pairs: dict[str, tuple[Any, Any]] = {
        f"dataset.{key}": (getattr(datasets[0], key), getattr(datasets[1], key)) for key in SAME
    }
    # What its own keys make of a data set, such as the superclasses of CIFAR-100: published data have no fingerprint.
    for key in sorted({*datasets[0].target, *datasets[1].target} - {*LOCATION}):
        absent = AS_WITHOUT.get(f"dataset.{key}")
        pairs[f"dataset.{key}"] = (datasets[0].target.get(key, absent), datasets[1].target.get(key, absent))
    for key in ("mean", "std"):
        values = [list(run.recipe.augmentation.get(key, ())) for run in (first, other)]
        pairs[f"augmentation.{key}"] = (values[0], values[1])
    if networks:
        pairs["model"] = (first.recipe.model.values(), other.recipe.model.values())
        pairs["dataset.label_noise"] = (datasets[0].label_noise, datasets[1].label_noise)
        pairs["dataset.noise"] = (kind_of_noise(datasets[0]), kind_of_noise(datasets[1]))
        if datasets[0].label_noise or datasets[0].validation:
            pairs["seed, which draws wrong labels and held-out images,"] = (first.recipe.seed, other.recipe.seed)
        pairs["precision"] = (first.recipe.precision, other.recipe.precision)
    return pairs


def kind_of_noise(dataset: DatasetConfig) -> str:
    """How the training labels are wrong; the default where none is, whichever kind the config names."""
    is_drawn = dataset.noise in KINDS_OF_NOISE
    return KINDS_OF_NOISE[0] if is_drawn and not dataset.label_noise else dataset.noise


def _file_of_labels(run: Run) -> str:
    """The file that a run took its labels from. Raises InputError where its folder does not say so."""
    place = _written(run).get("noise")
    if not isinstance(place, str):
        raise InputError(f"{run.folder}: its labels are of a file, whose place config.yaml would say; it is not there")
    return place


def _written(run: Run) -> dict[str, Any]:
    """The data set in the config.yaml of a run's folder; empty where there is none."""
    path = run.folder / "config.yaml"
    try:
        values = read_yaml(path, limit=MEBIBYTE)
    except FileNotFoundError:
        return {}  # a copied result: the data may be where --data-dir says
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {reason(error)}") from error
    node = values.get("dataset") if isinstance(values, dict) else None
    return dict(node) if isinstance(node, dict) else {}


def _location(run: Run, data_dir: str | None) -> dict[str, Any]:
    """Where the data set of a run lies: results do not record it, config.yaml does."""
    written = _written(run)
    found = {key: written[key] for key in LOCATION if key in written}
    target = str(run.recipe.dataset.target.get("_target_", ""))
    if data_dir is not None and ("data_dir" in found or target.endswith(".cifar")):
        found["data_dir"] = str(Path(data_dir).expanduser())
    elif target.endswith(".cifar"):
        found.setdefault("data_dir", "data")
    return found
