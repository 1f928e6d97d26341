"""The data sets as they are read.

The oracles: torchvision on the same CIFAR files, scikit-learn's digits, sums of SHA-256 over bytes laid out here. The
real CIFAR is taken from the folder in BROADOPT_DATA; what needs it is skipped, and says so, where it is not there.
"""

import hashlib
import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from PIL import Image
from refusals import Calls, refusal_of
from torchvision import datasets as reference

from broadopt.config.compose import compose, run_config
from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import DatasetConfig
from broadopt.config.shipped import config_dir
from broadopt.data.datasets import Dataset, Images, cifar, digits, fingerprint, read, size, stratified

DATA = os.environ.get("BROADOPT_DATA", "")
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
refusal = partial(refusal_of, cifar)
SMALL = {"cifar10": (20, 4), "cifar100": (4, 4)}


def has_data(name: str) -> pytest.MarkDecorator:
    there = bool(DATA) and (Path(DATA) / FOLDERS[name]).is_dir()
    return pytest.mark.skipif(not there, reason=f"no {FOLDERS[name]} in the folder BROADOPT_DATA={DATA!r}")


def rewrite(path: Path, **entries: object) -> None:
    path.write_bytes(pickle.dumps({**pickle.loads(path.read_bytes()), **entries}, protocol=2))


@has_data("cifar10")
def test_published_cifar10_is_read_as_torchvision_reads_it() -> None:
    data = cifar(name="cifar10", data_dir=DATA)
    assert data.fingerprint is None
    for images, train, count in ((data.train, True, 50_000), (data.test, False, 10_000)):
        expected = reference.CIFAR10(DATA, train=train)
        assert images.pixels.shape == (count, 3, 32, 32)
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected.data)
        assert images.labels.tolist() == expected.targets
        assert list(data.classes) == expected.classes


@has_data("cifar100")
def test_cifar100_is_read_as_torchvision_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        return hashlib.md5((Path(DATA) / FOLDERS["cifar100"] / name).read_bytes()).hexdigest()

    data = cifar(name="cifar100", data_dir=DATA, verify=False)
    is_published = found("train") == "16019d7e3df5f24257cddd939b257f8d"
    assert (data.fingerprint is None) == is_published
    # torchvision itself reads no copy whose files have other sums than it lists.
    monkeypatch.setattr(reference.CIFAR100, "train_list", [["train", found("train")]])
    monkeypatch.setattr(reference.CIFAR100, "test_list", [["test", found("test")]])
    for images, train in ((data.train, True), (data.test, False)):
        expected = reference.CIFAR100(DATA, train=train)
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), expected.data)
        assert images.labels.tolist() == expected.targets
        assert list(data.classes) == expected.classes


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_small_copy_is_read_pixel_for_pixel(small_cifar: Callable[..., Path], name: str, protocol: int) -> None:
    folder = small_cifar(name, protocol=protocol)
    data = cifar(name=name, data_dir=folder.parent, verify=False)
    files = [f"data_batch_{i}" for i in range(1, 6)] if name == "cifar10" else ["train"]
    key = "labels" if name == "cifar10" else "fine_labels"
    entries = [pickle.loads((folder / file).read_bytes()) for file in files]
    assert data.name == name
    assert data.classes == tuple(f"class {i}" for i in range(int(name.removeprefix("cifar"))))
    assert (len(data.train.labels), len(data.test.labels)) == SMALL[name]
    assert data.train.pixels.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert data.train.labels.tolist() == [label for entry in entries for label in entry[key]]
    expected = np.concatenate([entry["data"] for entry in entries])
    red, green, blue = (expected[:, i * 1024 : (i + 1) * 1024].reshape(-1, 32, 32) for i in range(3))
    assert np.array_equal(data.train.pixels.numpy(), np.stack([red, green, blue], axis=1))


def test_what_was_read_may_be_written_to(small_cifar: Callable[..., Path], recwarn: pytest.WarningsRecorder) -> None:
    data = cifar(data_dir=small_cifar("cifar10").parent, verify=False)
    data.train.pixels.zero_()
    data.test.pixels.zero_()
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


def test_data_of_another_sum_are_refused_before_they_are_unpickled(
    small_cifar: Callable[..., Path], tmp_path: Path
) -> None:
    folder = small_cifar("cifar10")
    path = folder / "data_batch_1"
    path.write_bytes(b"not a pickle at all")
    said = refusal(name="cifar10", data_dir=tmp_path)
    found = hashlib.md5(path.read_bytes()).hexdigest()
    for part in (str(path), found, "c99cafc152244af753f735de768cd75f", "dataset.verify=false"):
        assert part in said


def test_accepted_data_are_told_once_and_by_their_fingerprint(
    small_cifar: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = small_cifar("cifar10")
    with caplog.at_level(logging.WARNING, "broadopt"):
        data = cifar(name="cifar10", data_dir=folder.parent, verify=False)
    assert len(caplog.records) == 1
    assert "data_batch_3" in caplog.text
    assert "dataset.verify=false" in caplog.text
    assert data.fingerprint is not None
    assert re.fullmatch(r"sha256:[0-9a-f]{16}", data.fingerprint)
    assert cifar(name="cifar10", data_dir=folder.parent, verify=False).fingerprint == data.fingerprint


def publish(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the sums that torchvision lists for CIFAR-10 be those of the files in `folder`."""

    def listed(name: str) -> list[str]:
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    monkeypatch.setattr(reference.CIFAR10, "train_list", [listed(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(reference.CIFAR10, "test_list", [listed("test_batch")])
    meta = reference.CIFAR10.meta | {"md5": listed("batches.meta")[1]}
    monkeypatch.setattr(reference.CIFAR10, "meta", meta)


def test_files_of_the_published_sums_and_counts_have_no_fingerprint(
    small_cifar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_cifar("cifar10", per_file=10_000, protocol=4)
    publish(monkeypatch, folder)
    for verify in (True, False):
        data = cifar(data_dir=folder.parent, verify=verify)
        assert data.fingerprint is None
        assert (len(data.train.labels), len(data.test.labels)) == (50_000, 10_000)


def test_published_data_of_other_counts_are_refused(
    small_cifar: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_cifar("cifar10")
    publish(monkeypatch, folder)
    assert "expected 50000" in refusal(data_dir=folder.parent)


BAD_ENTRIES: dict[str, dict[str, object]] = {
    "no data": {"data": None},
    "one dimension": {"data": np.zeros(4 * 3072, np.uint8)},
    "other width": {"data": np.zeros((4, 3071), np.uint8)},
    "no images": {"data": np.zeros((0, 3072), np.uint8), "labels": []},
    "other type": {"data": np.zeros((4, 3072), np.float32)},
    "no labels": {"labels": None},
    "too few labels": {"labels": [1, 2, 3]},
    "label too large": {"labels": [0, 1, 2, 10]},
    "label below zero": {"labels": [0, 1, 2, -1]},
    "label no number": {"labels": [0, 1, 2, "3"]},
    "label a fraction": {"labels": [0, 1, 2, 0.5]},
    "label far too large": {"labels": [0, 1, 2, 2**70]},
    "label a list": {"labels": [0, 1, 2, [3]]},
}


@pytest.mark.parametrize("bad", BAD_ENTRIES)
@pytest.mark.parametrize("file", ["data_batch_2", "test_batch"])
def test_malformed_entries_are_refused_and_the_file_is_named(
    small_cifar: Callable[..., Path], file: str, bad: str
) -> None:
    folder = small_cifar("cifar10")
    rewrite(folder / file, **BAD_ENTRIES[bad])
    assert str(folder / file) in refusal(data_dir=folder.parent, verify=False)


@pytest.mark.parametrize("names", [None, [], ["a"] * 10, [str(i) for i in range(9)], list(range(10)), [["a"]] * 10])
def test_malformed_class_names_are_refused(small_cifar: Callable[..., Path], names: object) -> None:
    folder = small_cifar("cifar10")
    rewrite(folder / "batches.meta", label_names=names)
    said = refusal(data_dir=folder.parent, verify=False)
    assert f"{folder / 'batches.meta'}: expected 10 different class names under label_names" in said


def test_truncated_file_is_refused_and_named(small_cifar: Callable[..., Path]) -> None:
    folder = small_cifar("cifar100")
    blob = (folder / "test").read_bytes()
    (folder / "test").write_bytes(blob[: len(blob) // 2])
    assert f"{folder / 'test'}: truncated" in refusal(name="cifar100", data_dir=folder.parent, verify=False)


def test_malicious_file_is_refused_and_executes_nothing(small_cifar: Callable[..., Path], tmp_path: Path) -> None:
    folder = small_cifar("cifar10")
    rewrite(folder / "data_batch_5", filenames=[Calls(os.mkdir, str(tmp_path / "mark"))])
    assert "mkdir" in refusal(data_dir=folder.parent, verify=False)
    assert not (tmp_path / "mark").exists()


def test_folder_in_place_of_a_file_is_refused(small_cifar: Callable[..., Path]) -> None:
    folder = small_cifar("cifar10")
    (folder / "data_batch_4").unlink()
    (folder / "data_batch_4").mkdir()
    assert f"{folder / 'data_batch_4'}: cannot be read" in refusal(data_dir=folder.parent, verify=False)


def test_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    assert refusal(name="cifar11", data_dir=tmp_path).endswith('expected cifar10 or cifar100; did you mean "cifar10"?')


def test_home_folder_may_be_written_as_a_tilde(
    small_cifar: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar("cifar10")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(cifar(data_dir="~", verify=False).train.labels) == 20


def images(count: int = 4) -> Images:
    return Images(torch.arange(count * 3072).to(torch.uint8).view(count, 3, 32, 32), torch.arange(count))


def test_fingerprint_is_a_hash_of_names_counts_pixels_and_labels() -> None:
    digest = hashlib.sha256(b'[["a", "b"], 4, 2]')
    for part in (images(4), images(2)):
        digest.update(part.pixels.numpy().tobytes() + part.labels.numpy().astype("<i8").tobytes())
    assert fingerprint(("a", "b"), images(4), images(2)) == "sha256:" + digest.hexdigest()[:16]


def test_any_change_of_the_data_changes_the_fingerprint() -> None:
    other_pixel, other_label = images(), images()
    other_pixel.pixels[3, 2, 31, 31] += 1
    other_label.labels[3] = 0
    found = [
        fingerprint(("a", "b"), images(), images()),
        fingerprint(("a", "c"), images(), images()),
        fingerprint(("a", "b"), other_pixel, images()),
        fingerprint(("a", "b"), images(), other_pixel),
        fingerprint(("a", "b"), other_label, images()),
        fingerprint(("a", "b"), images(), other_label),
        fingerprint(("a", "b"), images(5), images(3)),
        fingerprint(("a", "b"), images(3), images(5)),
    ]
    assert len(set(found)) == len(found)


def test_fingerprint_does_not_depend_on_the_memory_layout() -> None:
    rows = Images(images().pixels.contiguous(memory_format=torch.channels_last), images().labels)
    assert fingerprint(("a",), rows, rows) == fingerprint(("a",), images(), images())


def test_digits_are_scikit_learns_enlarged_bilinearly() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    data = digits()
    found = {(label, image.tobytes()) for part in (data.train, data.test) for image, label in rows_of(part)}
    expected = set()
    for values, label in zip(source.images, source.target, strict=True):
        large = Image.fromarray(values.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR)
        grey = np.rint(np.asarray(large) * (255 / 16)).astype(np.uint8)
        expected.add((int(label), np.stack([grey] * 3).tobytes()))
    assert len(expected) == 1797
    assert found == expected
    assert data.train.pixels.max() == 255
    assert data.train.pixels.min() == 0


def rows_of(part: Images) -> list[tuple[np.ndarray, int]]:
    return list(zip(part.pixels.numpy(), part.labels.tolist(), strict=True))


def test_digits_are_split_80_to_20_in_each_class_always_alike() -> None:
    data = digits()
    train, test = data.train.labels.bincount(), data.test.labels.bincount()
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    assert (test - (train + test) / 5).abs().max() < 1
    assert data.classes == tuple("0123456789")
    assert data.fingerprint is None
    # No fingerprint tells these data from others, so they must never change: not the pixels, not the split.
    assert fingerprint(data.classes, data.train, data.test) == "sha256:c48e58d9dd84c033"
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(digits().test.pixels, data.test.pixels)


def test_digits_come_without_importing_scikit_learn_or_torchvision() -> None:
    code = (
        "import sys; from broadopt.data.datasets import digits; digits();"
        "print([name for name in sys.modules if name in ('sklearn', 'torchvision', 'scipy')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_stratified_takes_shares_by_largest_remainder_from_the_front_of_the_order() -> None:
    labels = torch.tensor([2, 0, 0, 1, 0, 2, 0, 1, 0, 0])  # six, two, two
    order = torch.tensor([9, 7, 8, 0, 1, 2, 3, 4, 5, 6])
    # A share of 3 in 10: 1.8, 0.6 and 0.6, so 1 + 0 + 0, and one more each for class 0 and, of equals, class 1.
    assert stratified(labels, 3, order).tolist() == [7, 8, 9]
    assert stratified(labels, 10, order).tolist() == list(range(10))
    assert stratified(labels, 0, order).tolist() == []


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits", "image_folder"])
def test_every_data_set_has_a_config_that_names_its_reader_and_itself(name: str) -> None:
    config = OmegaConf.load(config_dir() / "dataset" / f"{name}.yaml")
    assert config._target_ == f"broadopt.datasets.{name if name in ('digits', 'image_folder') else 'cifar'}"
    assert config.name == name


def test_config_of_the_digits_instantiates_them() -> None:
    node = yaml.safe_load((config_dir() / "dataset" / "digits.yaml").read_text())
    assert len(instantiated("dataset", node).train.labels) == 1438


def test_config_of_cifar_reads_the_folder_of_data_dir(small_cifar: Callable[..., Path], tmp_path: Path) -> None:
    small_cifar("cifar100")
    overrides = ["dataset=cifar100", f"data_dir={tmp_path}", "dataset.verify=false"]
    config = run_config(compose(overrides)).recipe.dataset
    assert (config.label_noise, config.validation) == (0.0, 0)
    assert read(config).name == "cifar100"


def test_config_of_a_folder_of_pictures_wants_its_path() -> None:
    config = OmegaConf.load(config_dir() / "dataset" / "image_folder.yaml")
    with pytest.raises(MissingMandatoryValue, match="path"):
        OmegaConf.to_container(config, throw_on_missing=True)


def blank(count: int, *, side: int = 32) -> torch.Tensor:
    return torch.zeros(count, 3, side, side, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (torch.zeros(4, 3, 32, 32), torch.arange(4), "train pixels are float32 [4, 3, 32, 32]; expected uint8 [N, 3,"),
        (blank(4, side=28), torch.arange(4), "train pixels are uint8 [4, 3, 28, 28]; expected uint8 [N, 3, 32, 32], N"),
        (blank(0), torch.arange(0), "train pixels are uint8 [0, 3, 32, 32]; expected uint8 [N, 3, 32, 32], N at least"),
        (blank(4), torch.zeros(4), "train labels are float32 [4]; expected int64 [4]"),
        (blank(4), torch.arange(5), "train labels are int64 [5]; expected int64 [4]"),
        (blank(5), torch.arange(5), "train labels lie in 0..4; expected 0..3, its classes"),
    ],
)
def test_a_data_set_of_ones_own_is_what_it_is_to_be(
    monkeypatch: pytest.MonkeyPatch, pixels: torch.Tensor, labels: torch.Tensor, words: str
) -> None:
    """Pixels that were no bytes would be normalised in place, and so anew by each evaluation."""
    images = Images(pixels, labels)
    monkeypatch.setattr(
        "broadopt.data.datasets.instantiated", lambda *_: Dataset("own", tuple("abcd"), images, images, None)
    )
    config = DatasetConfig(name="own", label_noise=0.0, validation=0, target={"_target_": "own.images"})
    assert refusal_of(read, config).startswith(f"dataset own: its {words}")


def test_a_data_set_of_ones_own_has_two_classes_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(blank(4), torch.zeros(4, dtype=torch.int64))
    monkeypatch.setattr("broadopt.data.datasets.instantiated", lambda *_: Dataset("own", ("a",), images, images, None))
    config = DatasetConfig(name="own", label_noise=0.0, validation=0, target={"_target_": "own.images"})
    assert refusal_of(read, config) == "dataset own: found 1 class; expected 2 at least"


def test_the_size_of_an_unverified_copy_is_its_own(small_cifar: Callable[..., Path], tmp_path: Path) -> None:
    for name, folder in (("cifar10", small_cifar("cifar10").parent), ("cifar100", small_cifar("cifar100").parent)):
        target = {"_target_": "broadopt.datasets.cifar", "data_dir": str(folder), "verify": False}
        config = DatasetConfig(name=name, label_noise=0.0, validation=0, target=target)
        assert size(config)[1:] == SMALL[name]
        assert size(replace(config, target=target | {"verify": True}))[1:] == (50_000, 10_000)
        assert size(replace(config, target=target | {"data_dir": str(tmp_path / "none")}))[1:] == (50_000, 10_000)
