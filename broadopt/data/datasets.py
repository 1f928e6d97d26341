"""The data sets, read into memory: CIFAR-10 and CIFAR-100, scikit-learn's digits, and image folders."""

import gzip
import hashlib
import importlib.util
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from broadopt.config.identity import public
from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import KINDS_OF_NOISE, DatasetConfig
from broadopt.data.cifar_files import is_there, md5, obtain, published_md5, read_bytes
from broadopt.data.cifar_pickles import text, unpickle
from broadopt.data.label_noise import counterparts, read_labels
from broadopt.errors import InputError, UnreadableData, nearest

log = logging.getLogger("broadopt")

CLASSES = {"cifar10": 10, "cifar100": 100}
COARSE = {"cifar100": 20}
"""Classes of dataset.coarse=true: the superclasses of CIFAR-100."""


@dataclass(frozen=True)
class Images:
    """pixels: uint8 [N, 3, 32, 32], red, green, blue; labels: int64 [N], the classes' positions. Both on the CPU."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Images to train on and to test on; `fingerprint` is None where the data are known to be the published ones."""

    name: str
    classes: tuple[str, ...]
    train: Images
    test: Images
    fingerprint: str | None
    labels_to_train_on: Tensor | None = None
    """int64 [N] in the order of `train`, of a file of labels; None: those of `train`."""


def fingerprint(classes: Sequence[str], train: Images, test: Images) -> str:
    """ "sha256:" and 16 hexadecimal digits over the class names, pixels and labels: other data, another string."""
    digest = hashlib.sha256(json.dumps([list(classes), len(train.labels), len(test.labels)]).encode())
    for images in (train, test):
        digest.update(images.pixels.contiguous().numpy().data)
        digest.update(images.labels.numpy().astype("<i8").data)
    return f"sha256:{digest.hexdigest()[:16]}"


def stratified(labels: Tensor, count: int, order: Tensor) -> Tensor:
    """Positions (int64 [count], ascending) of `count` of the N images, each class in proportion to its size.

    `labels`: int64 [N]; `order`: a random permutation of 0..N-1, which decides within a class. Where the
    proportional shares are no whole numbers, the largest remainders are rounded up, equal ones by class.
    """
    classes, sizes = labels.unique(return_counts=True)
    shares, remainders = count * sizes // len(labels), count * sizes % len(labels)
    shares[remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]] += 1
    ordered_labels = labels[order]
    chosen = [order[ordered_labels == label][:share] for label, share in zip(classes, shares.tolist(), strict=True)]
    return torch.cat(chosen).sort().values


def cifar(*, name: str = "cifar10", data_dir: str | Path, verify: bool = True, coarse: bool = False) -> Dataset:
    """CIFAR-10 or CIFAR-100 (`name`: "cifar10", "cifar100") from torchvision's own folders under `data_dir`; `coarse`
    labels CIFAR-100 with its 20 superclasses.

    Missing files are downloaded. Each file's MD5 is compared with the published one before it is unpickled; with
    `verify=False` other files, also fewer images, are accepted, reported in a warning and known by their fingerprint.
    Raises InputError for anything that is not a whole, valid copy of the data set.
    """
    publisher = _publisher(name)
    if coarse and name not in COARSE:
        raise InputError(f"dataset.coarse=true: expected dataset.name=cifar100 with it, found {name}")
    folder = obtain(publisher, Path(data_dir).expanduser())
    entries, changed = {}, []
    for file, expected in published_md5(publisher).items():
        path = folder / file
        blob = read_bytes(path)
        found = md5(blob)
        if found != expected and verify:
            raise InputError(
                f"{path}: MD5 {found}, expected {expected}: damaged, or not the published file;"
                " remove it to have it downloaded, or accept it by dataset.verify=false"
            )
        if found != expected:
            changed.append(file)
        entries[file] = unpickle(path, blob)
    # CIFAR-10 has "labels"; CIFAR-100 "fine_labels" and "coarse_labels", named by the lists of names beside them.
    key, count = ("coarse_label_names", COARSE[name]) if coarse else (publisher.meta["key"], CLASSES[name])
    classes = _class_names(folder / publisher.meta["filename"], entries, key, count)
    train = _images(folder, [file for file, _ in publisher.train_list], entries, classes, key)
    test = _images(folder, [file for file, _ in publisher.test_list], entries, classes, key)
    if not changed:
        _check_counts(folder, train, test)
        return Dataset(name, classes, train, test, None)
    log.warning("%s: %s: not the published MD5; accepted by dataset.verify=false", folder, ", ".join(changed))
    return Dataset(name, classes, train, test, fingerprint(classes, train, test))


def read(config: DatasetConfig) -> Dataset:
    """The data set of a config, as its target reads it, with the labels of a file where the config names one: the
    fingerprint is then one of both. Raises UnreadableData.
    """
    try:
        return _read(config)
    except InputError as error:
        raise UnreadableData(str(error)) from error


def _read(config: DatasetConfig) -> Dataset:
    dataset: Dataset = instantiated("dataset", config.reader)
    _check(config.name, dataset)
    if config.noise in KINDS_OF_NOISE:
        return dataset
    labels = read_labels(config.noise, images=len(dataset.train.labels), classes=len(dataset.classes))
    digest = hashlib.sha256(str(dataset.fingerprint).encode())
    digest.update(labels.numpy().astype("<i8").data)
    return replace(dataset, labels_to_train_on=labels, fingerprint=f"sha256:{digest.hexdigest()[:16]}")


def _check(name: str, dataset: Dataset) -> None:
    """Raise InputError where a data set, which may be of the user's own making, is not what Dataset says: batches take
    pixels from 0 to 255 as bytes, and copies of others would not be made.
    """
    if not isinstance(dataset, Dataset):
        raise InputError(f"dataset {name}: it is a {type(dataset).__name__}; expected broadopt.data.datasets.Dataset")
    if len(dataset.classes) < 2:
        raise InputError(f"dataset {name}: found {len(dataset.classes)} class; expected 2 at least")
    for split, images in (("train", dataset.train), ("test", dataset.test)):
        pixels, labels = images.pixels, images.labels
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1:] != (3, 32, 32) or not len(pixels):
            found, expected = pixels, "uint8 [N, 3, 32, 32], N at least 1"
        elif labels.dtype != torch.int64 or labels.shape != pixels.shape[:1]:
            found, expected = labels, f"int64 [{len(pixels)}]"
        elif labels.min() < 0 or labels.max() >= len(dataset.classes):
            low, high, last = int(labels.min()), int(labels.max()), len(dataset.classes) - 1
            raise InputError(
                f"dataset {name}: its {split} labels lie in {low}..{high}; expected 0..{last}, its classes"
            )
        else:
            continue
        what = "pixels" if found is pixels else "labels"
        given = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
        raise InputError(f"dataset {name}: its {split} {what} are {given}; expected {expected}")


class Size(NamedTuple):
    """How much a data set has of what."""

    classes: int
    train: int
    """Training images, those held out for validation included."""
    test: int


def size(config: DatasetConfig) -> Size:
    """The size of a config's data set; CIFAR need not be there for it, and counts as the published one then. Raises
    InputError, also where its classes have not the noise that is asked for.
    """
    if public(config.target["_target_"]) == "broadopt.datasets.cifar" and _is_published(config):
        coarse = config.name in COARSE and config.target.get("coarse", False)
        if coarse and config.noise == "asymmetric":
            counterparts(())
        return Size((COARSE if coarse else CLASSES)[config.name], 50_000, 10_000)
    dataset = read(config)
    if config.noise == "asymmetric":
        counterparts(dataset.classes)
    return Size(len(dataset.classes), len(dataset.train.labels), len(dataset.test.labels))


def _is_published(config: DatasetConfig) -> bool:
    """Whether a config means the published CIFAR; what is taken unverified may have fewer images."""
    if config.name not in CLASSES or config.target.get("verify", True):
        return config.name in CLASSES
    return not is_there(_publisher(config.name), Path(config.target["data_dir"]).expanduser())


def digits(*, name: str = "digits") -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8x8 in 0..16, enlarged to 32x32 (bilinear) and to 0..255, grey as RGB.

    The split, 80 to 20 in each class, is always the same. Raises InputError where scikit-learn's file is not found.
    """
    table = _digits_table()
    labels = torch.from_numpy(table[:, 64].astype(np.int64))
    values = torch.from_numpy(table[:, :64].astype(np.float32)).view(-1, 1, 8, 8)
    # Enlarged before they are scaled: every step is then exact in float32, so the pixels are the same everywhere.
    enlarged = torch.nn.functional.interpolate(values, scale_factor=4, mode="bilinear", align_corners=False)
    pixels = (enlarged * (255 / 16)).round().to(torch.uint8).expand(-1, 3, -1, -1)
    # RandomState's stream is frozen for good (NEP 19); torch's and numpy's newer ones may change between versions.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[stratified(labels, round(len(labels) / 5), order)] = True
    train, test = (Images(pixels[chosen], labels[chosen]) for chosen in (~is_test, is_test))
    return Dataset(name, tuple("0123456789"), train, test, None)


def image_folder(*, path: str | Path, name: str = "image_folder") -> Dataset:
    """Images in `path`/train/<class>/* and `path`/test/<class>/*: the square in the middle of each as 32x32 RGB.

    They are decoded once and cached. Raises InputError naming the image or folder that cannot be used.
    """
    from broadopt.data.image_folder import read_image_folder

    classes, arrays = read_image_folder(Path(path).expanduser())
    train, test = (Images(*map(torch.from_numpy, arrays[split])) for split in ("train", "test"))
    return Dataset(name, classes, train, test, fingerprint(classes, train, test))


def _publisher(name: str) -> Any:
    """torchvision's class for `name`: it knows the files, their MD5s and where they are published."""
    from torchvision.datasets import CIFAR10, CIFAR100  # here, since importing torchvision takes seconds

    publishers = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    if name not in publishers:
        raise InputError(f"dataset.name={name}: expected cifar10 or cifar100{nearest(name, list(publishers))}")
    return publishers[name]


def _class_names(path: Path, entries: dict[str, dict[str, Any]], key: str, expected: int) -> tuple[str, ...]:
    listed = entries[path.name].get(key)
    names = listed if isinstance(listed, list) and all(isinstance(item, str | bytes) for item in listed) else []
    if not len(names) == len(set(names)) == expected:
        raise InputError(f"{path}: expected {expected} different class names under {key}")
    return tuple(map(text, names))


def _images(
    folder: Path, files: list[str], entries: dict[str, dict[str, Any]], classes: Sequence[str], names: str
) -> Images:
    key = names.replace("label_names", "labels")
    batches = [_batch(folder / file, entries[file], len(classes), key) for file in files]
    # The one copy between file and tensor: what was unpickled is read-only, a tensor's memory must not be.
    pixels = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
    return Images(torch.from_numpy(pixels), torch.from_numpy(np.concatenate([labels for _, labels in batches])))


def _batch(path: Path, entry: dict[str, Any], classes: int, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (uint8 [n, 3072]) and labels (int64 [n]) of one file, checked."""
    pixels = entry.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != 3072 or len(pixels) == 0:
        found = f"uint8 {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise InputError(f"{path}: expected images under data, uint8 [n, 3072], found {found}")
    listed = entry.get(key, [])
    valid = isinstance(listed, list) and all(type(label) is int and 0 <= label < classes for label in listed)
    if not valid or len(listed) != len(pixels):
        raise InputError(f"{path}: expected a list of {len(pixels)} labels, whole numbers from 0 to {classes - 1}")
    return pixels, np.array(listed, dtype=np.int64)


def _check_counts(folder: Path, train: Images, test: Images) -> None:
    counts = (len(train.labels), len(test.labels))
    if counts != (50_000, 10_000):
        raise InputError(
            f"{folder}: expected 50000 and 10000 images to train and to test, found {counts[0]}, {counts[1]}"
        )


def _digits_table() -> np.ndarray:
    """uint8 [1797, 65]: 64 pixels and the label; read beside scikit-learn, whose import takes seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise InputError("dataset=digits: scikit-learn, which carries the digits, is not installed")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt") as lines:
            return np.loadtxt(lines, delimiter=",", dtype=np.uint8).reshape(1797, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: scikit-learn's digits cannot be read: {error}") from error
