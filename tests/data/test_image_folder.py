"""A data set of a user's own images.

The oracles: the arrays that the files were written from, and the triangle filter of a resize written out here.
"""

import logging
import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import Calls, folder_refusal

from broadopt.data.datasets import Dataset, image_folder


def noise(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """train: 2 cats and 3 dogs, test: 1 and 1, all 32x32."""
    for seed, name in enumerate(
        ("train/dog/a", "train/dog/b", "train/dog/c", "train/cat/z", "train/cat/y", "test/dog/a", "test/cat/a")
    ):
        path = tmp_path / "pets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed)).save(path)
    return tmp_path / "pets"


def equal(first: Dataset, second: Dataset) -> bool:
    return first.fingerprint == second.fingerprint and torch.equal(first.train.pixels, second.train.pixels)


def test_pictures_of_32x32_are_read_as_they_are_sorted_by_class_and_name(root: Path) -> None:
    data = image_folder(path=str(root))
    assert (data.name, data.classes) == ("image_folder", ("cat", "dog"))
    expected = np.stack([noise(seed) for seed in (4, 3, 0, 1, 2)]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.pixels.numpy(), expected)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert np.array_equal(data.test.pixels.numpy(), np.stack([noise(6), noise(5)]).transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.labels.dtype == torch.int64
    assert data.fingerprint is not None


def resizing(length: int, side: int) -> np.ndarray:
    """Weights [32, length] of the middle `side` of a row, resized to 32 by a triangle over the whole area. As if the
    whole row were resized and cut then, pixels just outside that middle count at its ends.
    """
    scale, first = side / 32, (length - side) / 2
    centres = first + (np.arange(32)[:, None] + 0.5) * scale
    distances = np.abs(np.arange(length)[None] + 0.5 - centres) / max(scale, 1.0)
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 76), (100, 75), (20, 48), (8, 8), (32, 40), (1, 300)])
def test_other_sizes_are_resized_bilinearly_over_the_whole_middle_square(root: Path, height: int, width: int) -> None:
    pixels = noise(9, height, width)
    Image.fromarray(pixels).save(root / "test" / "cat" / "a.png")
    found = image_folder(path=root).test.pixels[0].permute(1, 2, 0).double().numpy()
    side = min(height, width)
    rows, columns = resizing(height, side), resizing(width, side)
    expected = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels.astype(np.float64))
    # Pillow rounds to whole levels after each of its two passes, so up to one level lies between the two.
    assert np.abs(found - expected).max() <= 1.0
    if height == width:
        large = torch.from_numpy(pixels).permute(2, 0, 1)[None].double()
        torchs = torch.nn.functional.interpolate(large, (32, 32), mode="bilinear", antialias=True, align_corners=False)
        assert np.abs(torchs[0].permute(1, 2, 0).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_pictures_of_every_8_bit_mode_become_rgb(root: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    path = root / "train" / "cat" / f"m.{suffix}"
    Image.fromarray(noise(9)).convert(mode).save(path)
    with Image.open(path) as picture:
        assert picture.mode == mode
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(image_folder(path=root).train.pixels[0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "bmp", "gif", "tif", "ppm"])
def test_usual_formats_are_read(root: Path, suffix: str) -> None:
    path = root / "train" / "cat" / f"m.{suffix}"
    Image.fromarray(noise(9)).save(path)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(image_folder(path=root).train.pixels[0].permute(1, 2, 0).numpy(), expected)


def test_hidden_files_do_not_count(root: Path) -> None:
    before = image_folder(path=root)
    for place in (root, root / "train", root / "train" / "cat", root / "test" / "dog"):
        (place / ".DS_Store").write_bytes(b"\0")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    assert equal(image_folder(path=root), before)


def test_name_may_be_chosen(root: Path) -> None:
    assert image_folder(path=root, name="pets").name == "pets"


def test_missing_folders_are_refused_and_named(root: Path) -> None:
    for split in ("train", "test"):
        (root / split).rename(root / "away")
        assert folder_refusal(root).startswith(f"{root / split}: cannot be listed (No such file or directory)")
        (root / "away").rename(root / split)
    assert str(root / "none" / "train") in folder_refusal(root / "none")


def test_file_in_place_of_a_folder_is_refused_and_named(root: Path) -> None:
    (root / "train" / "labels.csv").write_text("")
    assert str(root / "train" / "labels.csv") in folder_refusal(root / "train" / "labels.csv")


def test_empty_class_is_refused_and_named(root: Path) -> None:
    (root / "test" / "dog" / "a.png").rename(root / "test" / "dog" / ".hidden")
    assert folder_refusal(root) == f"{root / 'test' / 'dog'}: this class holds no image"


@pytest.mark.parametrize(("has", "lacks"), [("train", "test"), ("test", "train")])
def test_classes_that_only_train_or_test_has_are_refused_and_named(root: Path, has: str, lacks: str) -> None:
    (root / has / "fish").mkdir()
    Image.fromarray(noise(9)).save(root / has / "fish" / "a.png")
    assert folder_refusal(root).startswith(f"{root / lacks}: lacks the classes fish")


def test_a_single_class_is_refused(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "dog").rename(root / f"{split} dog")
    assert "expected at least two folders" in folder_refusal(root)


def broken_pictures() -> dict[str, bytes]:
    """Damaged pictures by what is wrong with them."""
    import io

    def encoded(kind: str) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(noise(1, 40, 40)).save(buffer, kind)
        return buffer.getvalue()

    png = encoded("PNG")
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    bomb = png[:8] + b"\0\0\0\x0d" + header + zlib.crc32(header).to_bytes(4, "big") + png[33:]
    return {
        "empty": b"",
        "text": b"not a picture",
        "page": b"<html></html>",
        "a bomb": bomb,
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n",
        **{f"cut {kind}": encoded(kind)[: len(encoded(kind)) // 2] for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")},
        "png of another sum": png[:60] + bytes([png[60] ^ 255]) + png[61:],
    }


@pytest.mark.parametrize("what", broken_pictures())
def test_picture_that_cannot_be_read_is_refused_and_named(root: Path, cache: Path, what: str) -> None:
    path = root / "train" / "dog" / "b.png"
    path.write_bytes(broken_pictures()[what])
    assert folder_refusal(root).startswith(f"{path}: cannot be read as an image (")
    assert not list(cache.glob("*"))


def test_format_that_is_not_listed_is_refused_though_pillow_knows_it(root: Path) -> None:
    path = root / "train" / "dog" / "b.png"
    Image.fromarray(noise(9)).save(path, "PCX")
    with Image.open(path) as picture:
        assert picture.format == "PCX"
    assert folder_refusal(root).startswith(f"{path}: cannot be read as an image (cannot identify")


def test_picture_of_a_size_pillow_only_warns_of_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)
    assert "decompression bomb" in folder_refusal(root)


def test_folder_and_dangling_link_among_the_pictures_are_refused(root: Path) -> None:
    (root / "train" / "dog" / "more").mkdir()
    assert str(root / "train" / "dog" / "more") in folder_refusal(root)
    (root / "train" / "dog" / "more").rmdir()
    (root / "train" / "dog" / "link.png").symlink_to(root / "nowhere.png")
    assert str(root / "train" / "dog" / "link.png") in folder_refusal(root)


def replace(path: Path, *, later: int = 0) -> None:
    """Overwrite a picture by rubbish of the same size, its time moved by `later` nanoseconds."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later))


def test_pictures_are_decoded_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = image_folder(path=root)
    monkeypatch.delattr("broadopt.data.image_folder.decode")
    assert equal(image_folder(path=root), before)


@pytest.mark.parametrize("later", [0, 1])
def test_picture_written_anew_is_decoded_anew(root: Path, later: int) -> None:
    image_folder(path=root)
    replace(root / "train" / "dog" / "b.png", later=later)
    assert str(root / "train" / "dog" / "b.png") in folder_refusal(root)


def test_picture_of_another_size_or_name_but_the_same_time_is_noticed(root: Path) -> None:
    folder = root / "train" / "dog"
    found = set()
    for seed, (name, side) in enumerate((("x", 32), ("x", 31), ("y", 31))):
        for old in folder.glob("*.bmp"):
            old.unlink()
        Image.fromarray(noise(seed + 20, side, side)).save(folder / f"{name}.bmp")
        os.utime(folder / f"{name}.bmp", ns=(0, 0))
        found.add(image_folder(path=root).fingerprint)
    assert len(found) == 3


def test_renamed_added_and_removed_pictures_are_noticed(root: Path) -> None:
    found = {image_folder(path=root).fingerprint}
    (root / "train" / "cat" / "z.png").rename(root / "train" / "cat" / "a.png")
    found.add(image_folder(path=root).fingerprint)
    Image.fromarray(noise(8)).save(root / "train" / "cat" / "b.png")
    found.add(image_folder(path=root).fingerprint)
    (root / "train" / "dog" / "a.png").unlink()
    found.add(image_folder(path=root).fingerprint)
    assert len(found) == 4


def test_folders_alike_in_names_sizes_and_times_are_told_apart(root: Path, tmp_path: Path) -> None:
    for folder, shift in ((tmp_path / "first", 0), (tmp_path / "second", 50)):
        for seed, name in enumerate(("train/a/1", "train/b/1", "test/a/1", "test/b/1")):
            path = folder / f"{name}.bmp"
            path.parent.mkdir(parents=True)
            Image.fromarray(noise(seed + shift)).save(path)
            os.utime(path, ns=(0, 0))
    first, second = (image_folder(path=tmp_path / name) for name in ("first", "second"))
    assert first.fingerprint != second.fingerprint


def damaged(blob: bytes, tmp_path: Path) -> dict[str, bytes]:
    """Contents of a cache file that cannot be used, by what is wrong with them."""

    def archive(**arrays: np.ndarray) -> bytes:
        np.savez(tmp_path / "made.npz", **arrays)  # type: ignore[arg-type]
        return (tmp_path / "made.npz").read_bytes()

    makes_a_folder = Calls(os.mkdir, str(tmp_path / "mark"))
    middle = len(blob) // 2
    pixels = {"train": np.zeros((5, 3, 32, 32), np.uint8), "test": np.zeros((2, 3, 32, 32), np.uint8)}
    np.save(tmp_path / "one.npy", pixels["train"])
    return {
        "empty": b"",
        "cut": blob[:middle],
        "one bit": blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :],
        "text": b"hello",
        "one array": (tmp_path / "one.npy").read_bytes(),
        "pickle": pickle.dumps({"train": makes_a_folder}),
        "pickle in an archive": archive(train=np.array([makes_a_folder], dtype=object), test=pixels["test"]),
        "too few": archive(**pixels | {"train": pixels["train"][:4]}),
        "other type": archive(**pixels | {"test": pixels["test"].astype(np.float32)}),
        "no test": archive(train=pixels["train"]),
    }


KINDS = (
    "empty",
    "cut",
    "one bit",
    "text",
    "one array",
    "pickle",
    "pickle in an archive",
    "too few",
    "other type",
    "no test",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_cache_is_rebuilt_and_said(
    root: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    before = image_folder(path=root)
    (file,) = cache.iterdir()
    contents = damaged(file.read_bytes(), tmp_path)
    assert tuple(contents) == KINDS
    file.write_bytes(contents[kind])
    with caplog.at_level(logging.WARNING, "broadopt"):
        assert equal(image_folder(path=root), before)
    assert len(caplog.records) == 1
    assert f"{file}: damaged cache" in caplog.text
    assert not (tmp_path / "mark").exists()
    caplog.clear()
    assert equal(image_folder(path=root), before)
    assert not caplog.records


def test_cache_that_cannot_be_written_is_said_and_does_no_harm(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "broadopt"):
        assert len(image_folder(path=root).train.labels) == 5
    assert "cannot be written" in caplog.text


def test_cache_lies_in_the_home_folder_by_default_and_holds_one_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    image_folder(path=root)
    (file,) = (tmp_path / "home" / ".cache" / "broadopt").iterdir()
    assert file.suffix == ".npz"
