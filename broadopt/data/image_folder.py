"""An image folder: its images decoded to 32x32 RGB once and kept in a cache, which knows them by their content."""

import hashlib
import logging
import os
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from broadopt import files
from broadopt.data.decode import FORMATS, SIDE, SUFFIXES, UnreadableImage, decode, is_image
from broadopt.errors import InputError, printable

log = logging.getLogger("broadopt")

SPLITS = ("train", "test")
DECODER = 2
"""Raised whenever the same files would give other pixels than before."""

LARGEST = 1 << 28
"""Bytes of an image file."""

READERS = 8


@dataclass(frozen=True)
class Image:
    """An image file and the SHA-256 of its content."""

    path: Path
    digest: bytes


def read_image_folder(root: Path) -> tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The class names (sorted) and, for "train" and "test", pixels (uint8 [N, 3, 32, 32]) and labels (int64 [N]).

    Files that are no images are passed over, which is said. Raises InputError, naming the file or folder, for a folder
    that is missing or a class without images, for classes that differ between train and test, and for an image that
    cannot be read.
    """
    others: Counter[str] = Counter()
    listing = {split: _classes(root / split, others) for split in SPLITS}
    classes = tuple(listing["train"])
    _check_classes(root, set(classes), set(listing["test"]))
    images: dict[str, list[Image]] = {split: [] for split in SPLITS}
    labels: dict[str, list[int]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for label, name in enumerate(classes):
            found = _images(root / split / name, listing[split][name], others)
            images[split] += found
            labels[split] += [label] * len(found)
    if others:
        kinds = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in sorted(others.items()))
        number = "1 file that is no image" if others.total() == 1 else f"{others.total()} files that are no images"
        log.warning("%s: passed over %s (%s)", root, number, printable(kinds))
    pixels = _cached_pixels(root, images)
    return classes, {split: (pixels[split], np.array(labels[split], dtype=np.int64)) for split in SPLITS}


def _classes(folder: Path, others: Counter[str]) -> dict[str, list[Path]]:
    """Class name -> what its folder holds, both sorted, but for hidden files, such as .DS_Store; `others` counts the
    files beside the classes' folders by suffix.
    """
    visible = _visible(folder)
    names = [name for name in visible if os.path.isdir(folder / name)]
    others.update(Path(name).suffix.lower() for name in visible if not os.path.isdir(folder / name))
    if len(names) < 2:
        raise InputError(f"{folder}: expected at least two folders, one a class, found {len(names)}")
    return {name: [folder / name / file for file in _visible(folder / name)] for name in names}


def _visible(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"{folder}: cannot be listed ({reason}); expected train/<class>/* and test/<class>/*"
        ) from error


def _check_classes(root: Path, train: set[str], test: set[str]) -> None:
    for split, others in (("train", test - train), ("test", train - test)):
        if others:
            names = ", ".join(sorted(others))
            raise InputError(f"{root / split}: lacks the classes {names}; train and test must hold the same classes")


def _images(folder: Path, paths: Sequence[Path], others: Counter[str]) -> list[Image]:
    """The images among the files of a class; `others` counts the rest by suffix."""
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(_image, paths))
    others.update(path.suffix.lower() for path, image in zip(paths, found, strict=True) if image is None)
    if not any(found):
        raise InputError(f"{folder}: this class holds no image" + (f" among its {len(paths)} files" if paths else ""))
    return [image for image in found if image is not None]


def _image(path: Path) -> Image | None:
    """A file of a class's folder, None where it is no image. Raises InputError for one that cannot be read."""
    is_named_so = path.suffix.lower() in SUFFIXES
    try:
        content = files.read_bytes(path, limit=LARGEST)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) and path.is_file() and not is_named_so:
            return None  # an archive, perhaps, that is too large to be an image
        raise InputError(f"{path}: cannot be read: {files.reason(error)}; expected an image") from error
    # By its name an image, it is refused later on where it cannot be decoded: no image gets lost without a word.
    return Image(path, hashlib.sha256(content).digest()) if is_named_so or is_image(content) else None


def _cached_pixels(root: Path, images: dict[str, list[Image]]) -> dict[str, np.ndarray]:
    cache = _cache_file(images)
    pixels = _load(cache, {split: len(images[split]) for split in SPLITS})
    if pixels is None:
        changes: Counter[str] = Counter()
        pixels = {split: _decode_all(images[split], f"{split} images", changes) for split in SPLITS}
        if changes:
            log.warning(
                "%s: of %d images %s",
                root,
                sum(map(len, images.values())),
                "; ".join(f"{count} {words}" for words, count in changes.most_common()),
            )
        _offer_statistics(root, pixels["train"])
        _store(cache, pixels)
    return pixels


def _offer_statistics(root: Path, pixels: np.ndarray) -> None:
    """Print mean and standard deviation of the training images as overrides: a recipe's are those of CIFAR."""
    mean, std = statistics(pixels)
    if min(std) > 0 and log.isEnabledFor(logging.WARNING):  # of several processes the first speaks
        overrides = [
            f"'augmentation.{key}={values}'".replace(" ", "") for key, values in (("mean", mean), ("std", std))
        ]
        print(f"{root}: its {len(pixels)} training images have {' '.join(overrides)}", file=sys.stderr, flush=True)


def statistics(pixels: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, by channel and to four places, of uint8 pixels [N, 3, H, W] taken from 0 to 1."""
    # By the counts of the 256 values: exact, and without a copy of the images as floats.
    counts = np.stack([np.bincount(pixels[:, channel].ravel(), minlength=256) for channel in range(3)])
    values = np.arange(256) / 255
    mean = counts @ values / counts.sum(axis=1)
    variance = counts @ values**2 / counts.sum(axis=1) - mean**2
    return [round(float(value), 4) for value in mean], [round(float(value), 4) for value in variance.clip(0) ** 0.5]


def _cache_file(images: dict[str, list[Image]]) -> Path:
    """Where the decoded pixels are kept; the name changes with the content of any file, with the order and with the
    decoder. Names, sizes and times are no part of it: an archive can set them to those of other images.
    """
    from PIL import __version__ as pillow_version

    key = hashlib.sha256(f"{DECODER} {pillow_version}\n".encode())
    for split in SPLITS:
        key.update(f"{split} {len(images[split])}\n".encode())
        for image in images[split]:
            key.update(image.digest)
    return files.cache_folder() / f"image_folder-{key.hexdigest()[:32]}.npz"


# What numpy and zipfile raise on damaged archives; TypeError is for a file of one array, which is no archive at all.
_CACHE_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, RuntimeError, SyntaxError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


def _load(cache: Path, counts: dict[str, int]) -> dict[str, np.ndarray] | None:
    """The cached pixels, or None where there are none or, which is said, none that can be used."""
    if not cache.exists():
        return None
    try:
        with files.open_regular(cache) as file, np.load(file, allow_pickle=False) as archive:
            pixels = {split: archive[split] for split in SPLITS}
        for split in SPLITS:
            if pixels[split].dtype != np.uint8 or pixels[split].shape != (counts[split], 3, SIDE, SIDE):
                raise ValueError(f"{split} holds {pixels[split].dtype} {pixels[split].shape}")
    except _CACHE_ERRORS as error:
        log.warning("%s: damaged cache (%s); the images are decoded again", cache, " ".join(str(error).split()))
        return None
    return pixels


def _store(cache: Path, pixels: dict[str, np.ndarray]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".") as scratch:
            np.savez(Path(scratch) / "pixels.npz", train=pixels["train"], test=pixels["test"])
            os.replace(Path(scratch) / "pixels.npz", cache)
    except OSError as error:
        log.warning("%s: cannot be written (%s); the images will be decoded again next time", cache, error)


def _decode_all(images: Sequence[Image], what: str, changes: Counter[str]) -> np.ndarray:
    """uint8 [N, 3, 32, 32]; `changes` counts what was done to them."""
    pixels = np.empty((len(images), 3, SIDE, SIDE), dtype=np.uint8)
    for index, image in enumerate(tqdm(images, desc=what, disable=None, leave=False)):
        try:
            content = files.read_bytes(image.path, limit=LARGEST)
            if hashlib.sha256(content).digest() != image.digest:
                raise InputError(f"{image.path}: changed while the folder was read; run the command again")
            square, done = decode(content)
        except UnreadableImage as error:
            why = files.reason(error)
            raise InputError(
                f"{image.path}: cannot be read as an image ({why}); expected {', '.join(FORMATS)}"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"{image.path}: cannot be read: {files.reason(error)}") from error
        changes.update(done)
        pixels[index] = square.transpose(2, 0, 1)
    return pixels
