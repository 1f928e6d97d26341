"""Data that someone else has packed: images of every kind, stray and false files, pickles that ask for everything."""

import logging
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import SMALL, folders, result, run
from PIL import Image
from refusals import folder_refusal

from broadopt import files
from broadopt.data import cifar_pickles
from broadopt.data.cifar_files import LARGEST, read_bytes
from broadopt.data.cifar_pickles import unpickle
from broadopt.data.datasets import cifar, image_folder
from broadopt.data.image_folder import statistics
from broadopt.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, four images a split in each, all of one grey."""
    for split in ("train", "test"):
        for name, grey in (("dark", 60), ("light", 190)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (32, 32), (grey, grey, grey)).save(folder / f"{number}.png")
    return tmp_path / "images"


def first(root: Path) -> np.ndarray:
    """The first training image, uint8 [32, 32, 3]."""
    return image_folder(path=root).train.pixels[0].permute(1, 2, 0).numpy()


# ---- the cache


def test_images_replaced_with_equal_names_sizes_and_times_are_trained_on(tmp_path: Path) -> None:
    def write(root: Path, shift: int) -> None:
        for split in ("train", "test"):
            for label, name in enumerate(("a", "b")):
                (root / split / name).mkdir(parents=True, exist_ok=True)
                for number in range(16):
                    value = 40 + 100 * ((label + shift) % 2) + number
                    path = root / split / name / f"{number}.bmp"
                    Image.new("RGB", (32, 32), (value, value, value)).save(path)
                    os.utime(path, ns=(0, 0))

    root = tmp_path / "images"
    write(root, 0)
    command = (*SMALL, "dataset=image_folder", f"dataset.path={root}", "budget=2", "batch_size=8")
    assert run(*command, cwd=tmp_path).returncode == 0
    before = {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*.bmp")}
    write(root, 1)
    assert {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*.bmp")} == before
    assert run(*command, cwd=tmp_path).returncode == 0
    fingerprints = {result(folder)["config"]["dataset"]["fingerprint"] for folder in folders(tmp_path)}
    assert len(fingerprints) == 2


def test_a_copy_elsewhere_is_not_decoded_again(root: Path, tmp_path: Path, cache: Path) -> None:
    found = image_folder(path=root)
    root.rename(tmp_path / "elsewhere")
    (kept,) = cache.iterdir()
    assert image_folder(path=tmp_path / "elsewhere").fingerprint == found.fingerprint
    assert list(cache.iterdir()) == [kept]


def test_an_image_that_changes_while_the_folder_is_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "test/light/3.png"

    def changing(file: Path, *, limit: int) -> bytes:
        content = read(file, limit=limit)
        if file == path:
            Image.new("RGB", (32, 32)).save(path)
        return content

    read = files.read_bytes
    monkeypatch.setattr(files, "read_bytes", changing)
    assert folder_refusal(root) == f"{path}: changed while the folder was read; run the command again"


# ---- kinds of images


def test_an_image_is_turned_as_its_exif_says(root: Path) -> None:
    corner = np.full((32, 32, 3), 255, np.uint8)
    corner[:8, :8] = 0  # above and to the left where it is upright
    turns = {1: 0, 3: 2, 6: 1, 8: -1}
    for orientation, quarters in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.rot90(corner, quarters).copy())
        stored.save(root / "train/dark/0.png", exif=exif)
        assert np.array_equal(first(root), corner), orientation


def test_what_is_transparent_lies_over_white(root: Path) -> None:
    path = root / "train/dark/0.png"
    layer = np.zeros((32, 32, 4), np.uint8)
    layer[:, :, 0], layer[:16, :, 3], layer[16:, :, 3] = 255, 0, 51  # red, of which a fifth covers the lower half
    Image.fromarray(layer).save(path)
    pixels = first(root)
    assert (pixels[:16] == 255).all()
    assert (pixels[16:] == (255, 204, 204)).all()
    indexed = Image.new("P", (32, 32), 1)
    indexed.putpalette([10, 20, 30, 200, 0, 0])
    indexed.save(path, transparency=1)
    assert (first(root) == 255).all()
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path, transparency=9)
    assert (first(root) == 255).all()
    Image.merge("LA", [Image.new("L", (32, 32), 0), Image.new("L", (32, 32), 51)]).save(path)
    assert (first(root) == 204).all()


@pytest.mark.parametrize(("suffix", "order"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2"), ("pgm", ">u2")])
def test_16_bits_are_scaled_to_8_and_not_clipped(root: Path, suffix: str, order: str) -> None:
    (root / "train/dark/0.png").unlink()
    levels = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    path = root / f"train/dark/0.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 32 32 65535\n" + levels.astype(">u2").tobytes())
    else:
        mode = "I;16B" if order == ">u2" else "I;16"
        Image.frombytes(mode, (32, 32), levels.astype(order).tobytes()).save(path)
    with Image.open(path) as picture:
        assert picture.mode in ("I", "I;16", "I;16B")
    expected = (levels / 257).round().astype(np.uint8)
    assert np.array_equal(first(root), np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_mode_of_no_known_range_is_refused(root: Path, mode: str) -> None:
    path = root / "train/dark/9.tif"
    Image.new(mode, (32, 32), 3).save(path)
    assert folder_refusal(root).startswith(f"{path}: cannot be read as an image (mode {mode}, whose range is not known")


def test_every_change_is_counted_and_said_once(
    root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "train/dark"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 32)).save(folder / "a.jpg", exif=exif)
    Image.new("RGB", (32, 32)).save(folder / "b.jpg", exif=exif)
    Image.new("CMYK", (32, 32)).save(folder / "c.jpg")
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(folder / "d.png")
    Image.new("P", (40, 32)).save(folder / "e.png")
    Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(folder / "f.png")
    frames = [Image.new("RGB", (32, 32), grey) for grey in ("black", "white")]
    frames[0].save(folder / "g.webp", save_all=True, append_images=frames[1:])
    for name in ("readme.txt", "more.TXT", "Thumbs.db"):
        (folder / name).write_text("not an image")
    (root / "train/labels.csv").write_text("")
    with caplog.at_level(logging.WARNING, "broadopt"):
        image_folder(path=root)
    assert caplog.messages == [
        f"{root}: passed over 4 files that are no images (1 .csv, 1 .db, 2 .txt)",
        f"{root}: of 23 images 2 turned upright as their EXIF says; 1 CMYK; 1 transparent, laid over white; "
        "1 of a palette; 1 resized to 32x32: the shorter side to 32, the middle of the longer; "
        "1 grey of 16 bits, scaled to 8; 1 of several frames, the first taken",
    ]
    assert f"{root}: its 15 training images have 'augmentation.mean=[" in capsys.readouterr().err
    caplog.clear()
    image_folder(path=root)
    assert caplog.messages == [f"{root}: passed over 4 files that are no images (1 .csv, 1 .db, 2 .txt)"]
    assert capsys.readouterr().out == ""


def test_mean_and_deviation_are_offered_as_overrides_that_a_run_takes(root: Path, tmp_path: Path) -> None:
    command = (*SMALL, "dataset=image_folder", f"dataset.path={root}", "budget=1", "batch_size=4")
    process = run(*command, cwd=tmp_path)
    (line,) = [line for line in process.stderr.splitlines() if "training images have" in line]
    # 60 and 190 of 255, as many of each: 125/255 and 65/255
    words = "'augmentation.mean=[0.4902,0.4902,0.4902]' 'augmentation.std=[0.2549,0.2549,0.2549]'"
    assert line == f"{root}: its 8 training images have {words}"
    again = run(*command, *words.replace("'", "").split(), cwd=tmp_path)
    assert again.returncode == 0
    assert sorted(result(folder)["config"]["augmentation"]["mean"][0] for folder in folders(tmp_path)) == [
        0.4902,
        0.4914,
    ]


def test_mean_and_deviation_are_not_offered_by_a_process_that_says_errors_alone(
    root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """As all but the first of torchrun's."""
    with caplog.at_level(logging.ERROR):
        image_folder(path=root)
    assert capsys.readouterr().err == ""


def test_statistics_are_those_of_numpy() -> None:
    pixels = np.random.RandomState(0).randint(0, 200, (5, 3, 8, 8)).astype(np.uint8)
    mean, std = statistics(pixels)
    assert mean == pytest.approx((pixels / 255).mean(axis=(0, 2, 3)), abs=5e-5)
    assert std == pytest.approx((pixels / 255).std(axis=(0, 2, 3)), abs=5e-5)


# ---- false files


def test_images_are_known_by_content_where_their_names_do_not_say_it(root: Path) -> None:
    before = image_folder(path=root)
    (root / "train/dark/0.png").rename(root / "train/dark/0")
    (root / "train/dark/1.png").rename(root / "train/dark/1.image")
    assert image_folder(path=root).fingerprint == before.fingerprint


def test_a_class_of_stray_files_alone_is_refused(root: Path) -> None:
    for path in (root / "test/dark").iterdir():
        path.write_text("not an image")
        path.rename(path.with_suffix(".txt"))
    assert folder_refusal(root) == f"{root / 'test/dark'}: this class holds no image among its 4 files"


@pytest.mark.parametrize("name", ["x.png", "x"])
def test_a_fifo_among_the_images_is_refused_and_not_waited_for(root: Path, name: str) -> None:
    os.mkfifo(root / "train/dark" / name)
    assert "a device, a FIFO or a socket, not a regular file" in folder_refusal(root)


def test_a_file_too_large_for_an_image_is_refused_by_its_name_and_else_passed_over(root: Path) -> None:
    for name in ("x.zip", "x.png"):
        with (root / "train/dark" / name).open("wb") as file:
            file.truncate(2**33)
        if name == "x.zip":
            assert len(image_folder(path=root).train.labels) == 8
    assert f"{root / 'train/dark/x.png'}: cannot be read: 8,589,934,592 bytes, expected 268,435,456" in folder_refusal(
        root
    )


# ---- pickles


def refused(blob: bytes) -> str:
    with pytest.raises(InputError) as caught:
        unpickle(Path("data_batch_1"), blob)
    assert str(caught.value).isprintable()
    return str(caught.value)


def doubled(levels: int) -> bytes:
    """A list of two lists, the same, of two lists, the same, ...: 2^levels of them for whoever looks at each."""
    return b"]" + b"".join(b"q\x00](h\x00h\x00e" for _ in range(levels))


def nested(levels: int) -> bytes:
    """The same of tuples, which are hashed anew each time."""
    return b")" + b"".join(b"q\x00h\x00\x86" for _ in range(levels))


SEVENTEEN = 17 * 2**30
BOMBS: dict[str, Callable[[], bytes]] = {
    "17 GB of bytes": lambda: b"\x80\x04}U\x04data\x8e" + struct.pack("<Q", SEVENTEEN) + b"xs.",
    "17 GB of a bytearray": lambda: b"\x80\x05}U\x04data\x96" + struct.pack("<Q", SEVENTEEN) + b"xs.",
    "17 GB of text": lambda: b"\x80\x04}U\x04data\x8d" + struct.pack("<Q", SEVENTEEN) + b"xs.",
    "a frame of 17 GB": lambda: b"\x80\x04\x95" + struct.pack("<Q", SEVENTEEN) + b"}",
    "a number of 2 GB": lambda: b"\x80\x02}U\x01a\x8b" + struct.pack("<i", 2**31 - 1) + b"xs.",
    "text of a list of lists": lambda: b"\x80\x02}U\x04datac_codecs\nencode\n" + doubled(60) + b"U\x06latin1\x86Rs.",
    "a key of tuples of tuples": lambda: b"\x80\x02}" + nested(60) + b"U\x01xs.",
    "keys of tuples of tuples": lambda: b"\x80\x02}(" + nested(60) + b"U\x01xu.",
    "keys of tuples in a dictionary": lambda: b"\x80\x02(" + nested(60) + b"U\x01xd.",
    "a set of tuples of tuples": lambda: b"\x80\x04(" + nested(60) + b"\x91.",
    "a key a million deep": lambda: b"\x80\x02})" + b"\x85" * 1_000_000 + b"U\x01xs.",
    "a list a million deep": lambda: b"\x80\x02" + b"(" * 1_000_000 + b"l" * 1_000_000 + b".",
    "a shape of lists of lists": lambda: array(doubled(60)),
    "a negative shape": lambda: array(b"J\xff\xff\xff\xff\x85", ending=b"."),
    "a shape of 17 GB": lambda: array(b"\x8a\x05" + struct.pack("<q", SEVENTEEN)[:5] + b"\x85"),
}


def array(shape: bytes, *, ending: bytes = b"s.") -> bytes:
    """A pickled uint8 array of eight bytes with this shape."""
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return b"\x80\x02}U\x04data" + made + b"(K\x01" + shape + kind + b"K\x00U\x08abcdefghtb" + ending


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_more_than_it_holds_is_refused(name: str) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as pages:
        used = int(pages.read().split()[0]) * resource.getpagesize()
    # 4 GB more than now is room for anything that is in proportion to these blobs of at most 5 MB.
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * 2**30, before[1]))
    try:
        said = refused(BOMBS[name]())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert said.startswith("data_batch_1: ")


def test_a_pickle_of_more_operations_than_any_file_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_pickles._Operations, "left", 1000)  # five million take ten seconds
    blob = b"\x80\x04}" + b"\x94" * 1001 + b"."
    assert "(refused: its pickle has more than 5,000,000 operations)" in refused(blob)


def test_a_pickle_of_as_many_images_as_a_file_may_have_is_read() -> None:
    labels, names = list(range(100)) * 1000, [f"image_{number:06}.png" for number in range(100_000)]
    blob = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": labels, "filenames": names}, protocol=2)
    assert unpickle(Path("file"), blob)["labels"] == labels


@pytest.mark.parametrize("kind", ["fifo", "sparse", "folder", "device", "loop"])
def test_what_is_no_file_of_cifar_is_refused_and_named(
    tmp_path: Path, small_cifar: Callable[..., Path], kind: str
) -> None:
    path = small_cifar("cifar10") / "data_batch_2"
    path.unlink()
    if kind == "sparse":
        with path.open("wb") as file:
            file.truncate(LARGEST + 1)
    else:
        {"fifo": os.mkfifo, "folder": os.mkdir, "device": to_zero, "loop": to_itself}[kind](path)
    # A link to itself is a file that is not there: it would be downloaded.
    with pytest.raises(InputError, match="data_batch_2") as caught:
        read_bytes(path) if kind == "loop" else cifar(name="cifar10", data_dir=tmp_path, verify=False)
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)
