"""Labels that are not the true ones. The oracles: counts worked out by hand, the superclasses in CIFAR-100's own files,
numpy's and torch's own writers.
"""

import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_process import said

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import Recipe
from broadopt.data.augment import Augmentation
from broadopt.data.batches import Data
from broadopt.data.datasets import Dataset, Images, cifar, read
from broadopt.data.label_noise import SUPERCLASSES, asymmetric, read_labels
from broadopt.errors import InputError

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FLIPS = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
AS_IT_IS = Augmentation(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255), pad=0, flip=False)
LABELS = [3, 1, 2, 0, 3, 9]
CIFAR100 = Path(os.environ.get("BROADOPT_DATA", ""), "cifar-100-python")


def flipped(labels: torch.Tensor, fraction: float, classes: tuple[str, ...], seed: int = 1) -> torch.Tensor:
    return asymmetric(labels, fraction, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("fraction", "each"), [(0.0, 0), (0.4, 20), (0.33, 16), (1.0, 50)])
def test_the_asked_share_of_each_confused_class_gets_the_label_of_its_counterpart(fraction: float, each: int) -> None:
    labels = torch.arange(500) % 10
    noisy = flipped(labels, fraction, CIFAR10)
    changed: dict[tuple[str, str], int] = defaultdict(int)
    for true, label in zip(labels.tolist(), noisy.tolist(), strict=True):
        changed[CIFAR10[true], CIFAR10[label]] += true != label
    assert {pair: count for pair, count in changed.items() if count} == {pair: each for pair in FLIPS.items() if each}


def test_the_flipped_images_are_drawn_by_the_seed() -> None:
    labels = torch.arange(500) % 10
    assert torch.equal(flipped(labels, 0.4, CIFAR10), flipped(labels, 0.4, CIFAR10))
    assert not torch.equal(flipped(labels, 0.4, CIFAR10), flipped(labels, 0.4, CIFAR10, seed=2))


def test_classes_of_cifar100_go_round_within_their_superclass() -> None:
    classes = tuple(sorted(name for names in SUPERCLASSES for name in names.split()))
    labels = torch.arange(100)
    noisy = flipped(labels, 1.0, classes)
    next_of = {classes[true]: classes[label] for true, label in zip(labels.tolist(), noisy.tolist(), strict=True)}
    assert (next_of["beaver"], next_of["whale"], next_of["tractor"]) == ("dolphin", "beaver", "lawn_mower")
    powers = [noisy]
    while len(powers) < 5:
        powers.append(noisy[powers[-1]])
    assert [torch.equal(power, labels) for power in powers] == [False] * 4 + [True]


@pytest.mark.skipif(not CIFAR100.is_dir(), reason="no cifar-100-python in the folder BROADOPT_DATA")
def test_the_superclasses_are_those_of_the_files() -> None:
    meta, train = (pickle.loads((CIFAR100 / name).read_bytes(), encoding="latin1") for name in ("meta", "train"))
    members = defaultdict(set)
    for fine, coarse in zip(train["fine_labels"], train["coarse_labels"], strict=True):
        members[coarse].add(fine)
    found = [" ".join(meta["fine_label_names"][fine] for fine in sorted(members[coarse])) for coarse in range(20)]
    assert tuple(found) == SUPERCLASSES


def test_other_classes_have_no_asymmetric_noise() -> None:
    with pytest.raises(InputError, match=r"dataset\.noise=asymmetric: expected the classes of CIFAR-10 or the hundred"):
        flipped(torch.arange(10), 0.4, tuple("0123456789"))


def written(folder: Path, suffix: str) -> Path:
    path = folder / f"labels{suffix}"
    if suffix == ".npy":
        np.save(path, np.array(LABELS))
    elif suffix == ".csv":
        path.write_text("file,worse_label\n" + "".join(f"{k}.png,{label}\n" for k, label in enumerate(LABELS)))
    elif suffix == ".pt":
        torch.save({"worse_label": np.array(LABELS)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".pt"])
def test_labels_are_read_from_each_kind_of_file(tmp_path: Path, suffix: str) -> None:
    labels = read_labels(str(written(tmp_path, suffix)), images=6, classes=10)
    assert (labels.tolist(), labels.dtype) == (LABELS, torch.int64)


@pytest.mark.parametrize(
    "content",
    [
        torch.tensor(LABELS),
        torch.tensor(LABELS, dtype=torch.uint8),
        np.array(LABELS, dtype=np.int32),
        LABELS,
        {"noisy_label": LABELS},
    ],
)
def test_a_pt_file_may_hold_a_tensor_an_array_or_a_list(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "labels.pt")
    assert read_labels(f"{tmp_path}/labels.pt", images=6, classes=10).tolist() == LABELS


def test_a_csv_without_names_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("".join(f"{label}\n" for label in LABELS))
    assert read_labels(f"{tmp_path}/labels.csv", images=6, classes=10).tolist() == LABELS


def test_of_several_sets_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "CIFAR-10_human.pt"
    torch.save({"clean_label": np.array(LABELS), "worse_label": np.array(LABELS[::-1])}, path)
    assert read_labels(f"{path}:worse_label", images=6, classes=10).tolist() == LABELS[::-1]
    with pytest.raises(
        InputError, match=f"expected one set of labels in it; it has {path}:clean_label or {path}:worse"
    ):
        read_labels(str(path), images=6, classes=10)
    with pytest.raises(InputError, match='no worst_label in it; it has clean_label, worse_label; did you mean "worse'):
        read_labels(f"{path}:worst_label", images=6, classes=10)


class Trap:
    """What an unpickler that runs code would call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", [".pt", ".npy"])
def test_no_code_in_a_file_is_run(tmp_path: Path, suffix: str) -> None:
    path, sprung = tmp_path / f"labels{suffix}", tmp_path / "sprung"
    if suffix == ".pt":
        torch.save({"worse_label": [Trap(sprung)]}, path)
    else:
        np.save(path, np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"dataset.noise=.*cannot be read: "):
        read_labels(str(path), images=6, classes=10)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.csv", b"", "it is empty"),
        ("labels.csv", b"1,2\n3\n", "its lines have different numbers of columns"),
        ("labels.csv", b"label,label\n1,2\n", "two of its columns have the same name"),
        ("labels.csv", b"1\n2\n", "expected a label of each of the 6 training images"),
        ("labels.csv", b"0\n1\n2\n3\n4\n10\n", r"whole numbers from 0 to 9, found int64 \[6\], 0 to 10"),
        ("labels.csv", b"a\n0.5\n", "expected one set of labels in it; it has none"),
        ("labels.npy", b"1 2 3", "cannot be read: "),
        ("labels.pt", b"PK\x03\x04", "none of torch.save's files; no code in it is run"),
        ("labels.txt", b"1\n", r"symmetric, asymmetric, or a file of labels that ends with .pt, .npy or .csv"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words) as refusal:
        read_labels(str(tmp_path / name), images=6, classes=10)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "content", [torch.eye(6).to_sparse(), torch.ones(6, dtype=torch.bfloat16), torch.ones(6, requires_grad=True), "x"]
)
def test_a_tensor_that_is_no_array_of_labels_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save({"labels": content}, tmp_path / "labels.pt")
    with pytest.raises(InputError, match=r"expected one set of labels in it; it has none|found float32 \[6\]"):
        read_labels(f"{tmp_path}/labels.pt", images=6, classes=10)
    torch.save({"labels": content, "worse_label": LABELS}, tmp_path / "labels.pt")
    assert read_labels(f"{tmp_path}/labels.pt:worse_label", images=6, classes=10).tolist() == LABELS


def test_fractions_are_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.full(6, 0.5))
    with pytest.raises(InputError, match=r"found float64 \[6\], 0.5 to 0.5"):
        read_labels(f"{tmp_path}/labels.npy", images=6, classes=10)


def numbered(count: int, given: torch.Tensor | None = None) -> Dataset:
    pixels = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    pixels[:, 0] = torch.arange(count, dtype=torch.uint8)[:, None, None]
    images = Images(pixels, torch.arange(count) % 10)
    return Dataset("numbered", CIFAR10, images, images, None, given)


def by_image(batches: Any) -> dict[int, int]:
    pairs = [(images[:, 0, 0, 0].round().long().tolist(), labels.tolist()) for images, labels in batches]
    return {image: label for images, labels in pairs for image, label in zip(images, labels, strict=True)}


def test_labels_of_a_file_are_those_of_the_images_that_are_left_to_train_on() -> None:
    given = torch.arange(99, -1, -1) % 10
    data = Data(numbered(100, given), batch_size=16, augmentation=AS_IT_IS, seed=1, device="cpu", validation=20)
    trained = by_image(data.train(0))
    splits = data.held_out()
    held_out = by_image(splits["validation"])
    assert trained == {image: (99 - image) % 10 for image in range(100) if image not in held_out}
    assert held_out == {image: image % 10 for image in held_out}
    assert len(held_out) == 20
    assert by_image(splits["test"]) == {image: image % 10 for image in range(100)}


def test_asymmetric_noise_reaches_the_batches() -> None:
    options: dict[str, Any] = {"batch_size": 16, "augmentation": AS_IT_IS, "seed": 1, "device": "cpu"}
    labels = by_image(Data(numbered(100), label_noise=0.5, noise="asymmetric", **options).train(0))
    wrong = {image: label for image, label in labels.items() if label != image % 10}
    assert len(wrong) == 25  # half of the ten images of each of the five classes
    assert {(CIFAR10[image % 10], CIFAR10[label]) for image, label in wrong.items()} == set(FLIPS.items())


def recipe_of(*overrides: str) -> Recipe:
    return run_config(compose(["method=sam", "model=resnet20", *overrides])).recipe


def test_symmetric_noise_and_fine_labels_are_not_recorded() -> None:
    record = recipe_of("dataset=cifar100").record()["dataset"]
    assert not {"noise", "coarse"} & set(record)
    plain = recipe_of("dataset=cifar100").identity
    assert recipe_of("dataset=cifar100", "dataset.noise=symmetric", "dataset.coarse=false").identity == plain
    others = ("dataset.noise=asymmetric dataset.label_noise=0.2", "dataset.coarse=true", "dataset.noise=labels.pt")
    found = [recipe_of("dataset=cifar100", *one.split()) for one in others]
    assert len({plain, *(recipe.identity for recipe in found)}) == 4
    for recipe in found:
        assert Recipe.of_record(recipe.record()).identity == recipe.identity


def test_a_file_is_known_by_its_labels_wherever_it_lies(tmp_path: Path) -> None:
    """Digits have 1438 training images."""
    labels, found = np.arange(1438) % 10, []
    for name, values in (("a.npy", labels), ("b.npy", labels), ("c.npy", labels[::-1].copy())):
        np.save(tmp_path / name, values)
        recipe = recipe_of("dataset=digits", "protocol=swa2018", f"dataset.noise={tmp_path / name}")
        dataset = read(recipe.dataset)
        assert dataset.labels_to_train_on is not None
        assert dataset.labels_to_train_on.tolist() == values.tolist()
        found.append(recipe.decided(precision="fp32", fingerprint=dataset.fingerprint))
    assert found[0].identity == found[1].identity != found[2].identity
    assert found[0].record()["dataset"]["noise"] == "file"
    assert str(tmp_path) not in str(found[0].record())


def test_coarse_labels_are_those_of_the_files(small_cifar: Any) -> None:
    folder = small_cifar("cifar100")
    data = cifar(name="cifar100", data_dir=folder.parent, verify=False, coarse=True)
    entry = pickle.loads((folder / "train").read_bytes())
    assert data.train.labels.tolist() == entry["coarse_labels"]
    assert data.classes == tuple(f"class {k}" for k in range(20))
    assert data.fingerprint != cifar(name="cifar100", data_dir=folder.parent, verify=False).fingerprint


def test_only_cifar100_has_coarse_labels(small_cifar: Any) -> None:
    with pytest.raises(InputError, match=r"dataset.coarse=true: expected dataset.name=cifar100 with it, found cifar10"):
        cifar(name="cifar10", data_dir=small_cifar("cifar10").parent, verify=False, coarse=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("dataset.noise=labels.npy", "dataset.label_noise=0.2"),
            "dataset.label_noise=0.2: expected 0 with dataset.noise=labels.npy, a file whose labels are taken as they",
        ),
        (
            ("dataset.noise=assymetric",),
            'or a file of labels that ends with .pt, .npy or .csv; did you mean "asymmetric"?',
        ),
        (
            ("dataset.noise=labels.npy",),
            "dataset.noise=labels.npy: labels.npy cannot be read: No such file or directory",
        ),
        (("dataset.noise=asymmetric", "dataset.label_noise=0.2"), "dataset.noise=asymmetric: expected the classes of"),
        (("dataset.coarse=true",), "unknown key dataset.coarse; dataset=cifar100 has it"),
    ],
)
def test_bad_input_ends_the_command_with_2(tmp_path: Path, overrides: tuple[str, ...], words: str) -> None:
    code, output, errors = said("broadopt-run", "experiment=quickstart", *overrides, cwd=tmp_path)
    assert (code, output, len(errors.strip().splitlines())) == (2, "", 1), errors
    assert words in errors
