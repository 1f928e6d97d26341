"""The labels that a run trains on where they are not the true ones: drawn by the run's seed, or read from a file."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from broadopt.config.run_config import KINDS_OF_NOISE
from broadopt.errors import InputError, nearest
from broadopt.files import MEBIBYTE, read_bytes, reason

LIMIT = 256 * MEBIBYTE
"""Bytes of a file of labels; CIFAR-N's have about 2 million."""

PAIRS = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
"""CIFAR-10's classes that people take for another, and that other (Patrini et al. 2017)."""

SUPERCLASSES = (
    "beaver dolphin otter seal whale",
    "aquarium_fish flatfish ray shark trout",
    "orchid poppy rose sunflower tulip",
    "bottle bowl can cup plate",
    "apple mushroom orange pear sweet_pepper",
    "clock keyboard lamp telephone television",
    "bed chair couch table wardrobe",
    "bee beetle butterfly caterpillar cockroach",
    "bear leopard lion tiger wolf",
    "bridge castle house road skyscraper",
    "cloud forest mountain plain sea",
    "camel cattle chimpanzee elephant kangaroo",
    "fox porcupine possum raccoon skunk",
    "crab lobster snail spider worm",
    "baby boy girl man woman",
    "crocodile dinosaur lizard snake turtle",
    "hamster mouse rabbit shrew squirrel",
    "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "bicycle bus motorcycle pickup_truck train",
    "lawn_mower rocket streetcar tank tractor",
)
"""CIFAR-100's classes by superclass, each in the order of its numbers."""


def symmetric(labels: Tensor, fraction: float, classes: int, *, generator: torch.Generator) -> Tensor:
    """A copy of `labels` (int64 [N]) in which exactly round(fraction N), drawn without regard to class, are wrong; a
    wrong label is uniform over the other classes.
    """
    wrong = torch.randperm(len(labels), generator=generator)[: round(fraction * len(labels))]
    shift = torch.randint(1, classes, (len(wrong),), generator=generator)
    noisy = labels.clone()
    noisy[wrong] = (labels[wrong] + shift) % classes
    return noisy


def asymmetric(labels: Tensor, fraction: float, classes: Sequence[str], *, generator: torch.Generator) -> Tensor:
    """A copy of `labels` (int64 [N]) in which exactly round(fraction n) of the n images of each class that has a
    counterpart carry the label of that one. Raises InputError where none of the `classes` has one.
    """
    partner = {classes.index(name): classes.index(other) for name, other in counterparts(classes).items()}
    order, noisy = torch.randperm(len(labels), generator=generator), labels.clone()
    shuffled = labels[order]
    for name, other in partner.items():
        members = order[shuffled == name]
        noisy[members[: round(fraction * len(members))]] = other
    return noisy


def counterparts(classes: Sequence[str]) -> Mapping[str, str]:
    """The class that each is taken for, of those that have one. Raises InputError where none of `classes` has."""
    if {*PAIRS, *PAIRS.values()} <= set(classes):
        return PAIRS
    groups = [names.split() for names in SUPERCLASSES]
    if {name for names in groups for name in names} == set(classes):
        return {name: names[(k + 1) % len(names)] for names in groups for k, name in enumerate(names)}
    raise InputError(
        "dataset.noise=asymmetric: expected the classes of CIFAR-10 or the hundred of CIFAR-100, of which it is known "
        "which are taken for each other; other data have dataset.noise=symmetric, or a file of labels"
    )


def read_labels(place: str, *, images: int, classes: int) -> Tensor:
    """The labels, int64 [images] from 0 to classes - 1, in a file: FILE.npy, FILE.csv or FILE.pt, or FILE:NAME where
    it holds several sets of labels by name. No code in it is run. Raises InputError.
    """
    path, name = _located(place)
    try:
        read = {".npy": _npy, ".csv": _csv, ".pt": _pt}[path.suffix]
        sets = read(read_bytes(path, limit=LIMIT))
    except KeyError as error:
        kinds = ", ".join(KINDS_OF_NOISE)
        raise InputError(
            f"dataset.noise={place}: expected {kinds}, or a file of labels that ends with .pt, .npy or .csv"
            f"{nearest(place, KINDS_OF_NOISE)}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"dataset.noise={place}: {path} cannot be read: {reason(error)}") from error
    labels = _chosen(place, sets, name)
    is_whole = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels) == images
    if not is_whole or not (labels.min() >= 0 and labels.max() < classes):
        span = f", {labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "iuf" else ""
        raise InputError(
            f"dataset.noise={place}: expected a label of each of the {images} training images in their order, whole "
            f"numbers from 0 to {classes - 1}, found {labels.dtype} {list(labels.shape)}{span}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _located(place: str) -> tuple[Path, str]:
    """The file and the name of the set of labels; a file whose own name has a colon is taken as it is."""
    before, colon, name = place.rpartition(":")
    split = bool(colon) and not Path(place).exists()
    return (Path(before), name) if split else (Path(place), "")


def _chosen(place: str, sets: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name and name not in sets:
        listed = ", ".join(filter(None, sets)) or "one set of labels without a name"
        raise InputError(f"dataset.noise={place}: no {name} in it; it has {listed}{nearest(name, list(sets))}")
    if not name and len(sets) != 1:
        listed = " or ".join(f"{place}:{key}" for key in sets) or "none"
        raise InputError(f"dataset.noise={place}: expected one set of labels in it; it has {listed}")
    return sets[name] if name else next(iter(sets.values()))


def _npy(content: bytes) -> dict[str, np.ndarray]:
    try:
        return {"": np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)}
    except (EOFError, SyntaxError, MemoryError, OverflowError) as error:
        raise ValueError("not an array of numbers") from error


def _csv(content: bytes) -> dict[str, np.ndarray]:
    """Columns of numbers, by the names in the first line where it has any."""
    lines = [line.split(",") for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    if not lines:
        raise ValueError("it is empty")
    is_number = [re.fullmatch(r"\s*\d+\s*", cell) is not None for cell in lines[0]]
    names = [str(k) for k in range(len(lines[0]))] if all(is_number) else [cell.strip() for cell in lines.pop(0)]
    if len({*names}) < len(names):
        raise ValueError("two of its columns have the same name")
    if any(len(line) != len(names) for line in lines):
        raise ValueError("its lines have different numbers of columns")
    columns = dict(zip(names, zip(*lines, strict=True), strict=True)) if lines else {}
    # A column of something else, as names of files, stands beside the labels in many a table.
    return {
        name: np.array([int(cell) for cell in cells])
        for name, cells in columns.items()
        if all(re.fullmatch(r"\s*\d{1,9}\s*", cell) for cell in cells)
    }


def _pt(content: bytes) -> dict[str, np.ndarray]:
    """A tensor or an array, or a dictionary of them, as torch.save writes it."""
    import pickle

    import numpy.dtypes as kinds

    # CIFAR-N's files hold numpy's arrays. torch's restricted unpickler makes these, and nothing that runs code.
    rebuild = np.empty(0).__reduce__()[0]  # numpy's _reconstruct, whose module has changed its name
    allowed: list[Any] = [
        *((rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
        *(np.ndarray, np.dtype, _bytes, (_bytes, "_codecs.encode")),
        *(getattr(kinds, f"{sign}Int{bits}DType") for sign in ("", "U") for bits in (8, 16, 32, 64)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        words = "it holds more than labels, or is none of torch.save's files; no code in it is run"
        raise ValueError(words) from error
    sets = found if isinstance(found, dict) else {"": found}
    arrays = {str(key): _array(value) for key, value in sets.items()}
    return {key: array for key, array in arrays.items() if array is not None}


def _array(value: Any) -> np.ndarray | None:
    """A set of labels as torch.save keeps it; None for anything else that a file may hold beside them."""
    if isinstance(value, Tensor):
        try:
            return np.array(value.detach().numpy())
        except (RuntimeError, TypeError):  # sparse, quantized, or of a type that numpy lacks, as bfloat16
            return None
    is_listed = isinstance(value, list) and all(type(one) is int for one in value)
    return np.array(value) if is_listed or isinstance(value, np.ndarray) else None


def _bytes(characters: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, the way in which Python 3 writes bytes into pickles of protocol 2."""
    if encoding != "latin1":
        raise ValueError("it asks for another encoding than latin1")
    return characters.encode("latin1")
