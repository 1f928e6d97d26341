"""Folders of pictures, decoded to 32x32 RGB once and kept in a cache."""

import hashlib
import logging
import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from broadopt.errors import InputError

log = logging.getLogger("broadopt")

SIDE = 32
SPLITS = ("train", "test")
# Not all that Pillow knows: some of its formats, such as EPS, start other programs to be decoded.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def read_pictures(root: Path) -> tuple[tuple[str, ...], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The class names (sorted) and, for "train" and "test", pixels (uint8 [N, 3, 32, 32]) and labels (int64 [N]).

    Raises InputError, naming the file or folder, for a folder that is missing or empty, for classes that differ
    between train and test, and for a picture that cannot be read.
    """
    listing = {split: _classes(root / split) for split in SPLITS}
    classes = tuple(listing["train"])
    _check_classes(root, set(classes), set(listing["test"]))
    files = {split: [file for name in classes for file in listing[split][name]] for split in SPLITS}
    pixels = _cached_pixels(root, files)
    labels = {
        split: np.repeat(np.arange(len(classes)), [len(listing[split][name]) for name in classes]) for split in SPLITS
    }
    return classes, {split: (pixels[split], labels[split]) for split in SPLITS}


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its pictures, both sorted; hidden files, such as .DS_Store, do not count."""
    names = _visible(folder)
    for name in names:
        if not (folder / name).is_dir():
            raise InputError(f"{folder / name}: expected only folders here, one a class with its pictures")
    if len(names) < 2:
        raise InputError(f"{folder}: expected at least two folders, one a class, found {len(names)}")
    listing = {name: [folder / name / file for file in _visible(folder / name)] for name in names}
    for name, files in listing.items():
        if not files:
            raise InputError(f"{folder / name}: this class holds no picture")
    return listing


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


def _cached_pixels(root: Path, files: dict[str, list[Path]]) -> dict[str, np.ndarray]:
    cache = _cache_file(root, files)
    counts = {split: len(files[split]) for split in SPLITS}
    pixels = _load(cache, counts)
    if pixels is None:
        pixels = {split: _decode_all(files[split], f"{split} pictures") for split in SPLITS}
        _store(cache, pixels)
    return pixels


def _cache_file(root: Path, files: dict[str, list[Path]]) -> Path:
    """Where the decoded pixels are kept; the name changes with any file's name, size or time, and with the decoder."""
    from PIL import __version__ as pillow_version

    key = hashlib.sha256(f"{pillow_version}\n".encode())
    # The folder's own path too: archives with fixed times make equal sizes and times common in different folders.
    key.update(os.fsencode(root.resolve()))
    for split in SPLITS:
        for file in files[split]:
            try:
                status = file.stat()
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror or error}") from error
            key.update(b"\n" + os.fsencode(file.relative_to(root)) + b"\0")
            key.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "broadopt" / f"pictures-{key.hexdigest()[:32]}.npz"


# What numpy and zipfile raise on damaged archives; TypeError is for a file of one array, which is no archive at all.
_CACHE_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)


def _load(cache: Path, counts: dict[str, int]) -> dict[str, np.ndarray] | None:
    """The cached pixels, or None where there are none or, which is said, none that can be used."""
    if not cache.exists():
        return None
    try:
        with np.load(cache, allow_pickle=False) as archive:
            pixels = {split: archive[split] for split in SPLITS}
        for split in SPLITS:
            if pixels[split].dtype != np.uint8 or pixels[split].shape != (counts[split], 3, SIDE, SIDE):
                raise ValueError(f"{split} holds {pixels[split].dtype} {pixels[split].shape}")
    except _CACHE_ERRORS as error:
        log.warning("%s: damaged cache (%s); the pictures are decoded again", cache, " ".join(str(error).split()))
        return None
    return pixels


def _store(cache: Path, pixels: dict[str, np.ndarray]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent, prefix=".") as scratch:
            np.savez(Path(scratch) / "pixels.npz", train=pixels["train"], test=pixels["test"])
            os.replace(Path(scratch) / "pixels.npz", cache)
    except OSError as error:
        log.warning("%s: cannot be written (%s); the pictures will be decoded again next time", cache, error)


def _decode_all(files: list[Path], what: str) -> np.ndarray:
    pixels = np.empty((len(files), 3, SIDE, SIDE), dtype=np.uint8)
    for index, file in enumerate(tqdm(files, desc=what, disable=None, leave=False)):
        pixels[index] = _decode(file).transpose(2, 0, 1)
    return pixels


def _decode(file: Path) -> np.ndarray:
    """One picture as uint8 [32, 32, 3]; bilinear, which in Pillow averages over the whole area when it shrinks."""
    from PIL import Image

    # What Pillow raises on damaged files of these formats; SyntaxError is its way to reject a PNG or TIFF.
    broken = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as picture:
                if picture.mode.startswith(("I", "F")):
                    raise ValueError(f"mode {picture.mode}, expected 8 bits a channel")
                return np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    except broken as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: cannot be read as a picture ({reason}); expected {', '.join(FORMATS)}") from error
