"""What an epoch shows: which images, with which labels, in which order and form.

The oracles: images that carry their own number, torchvision's normalisation, counts worked out by hand.
"""

import random
from collections.abc import Iterable
from itertools import islice, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from broadopt.data.augment import Augmentation
from broadopt.data.batches import Batches, Data
from broadopt.data.datasets import Dataset, Images
from broadopt.errors import InputError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
AS_IT_IS = Augmentation(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255), pad=0, flip=False)
AUGMENTED = Augmentation(mean=MEAN, std=STD)

Batch = tuple[Tensor, Tensor]


def numbered(count: int, labels: Tensor) -> Images:
    """Images whose number can be read off their red and green; the rest is random."""
    pixels = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels[:, 0] = (torch.arange(count) // 256).to(torch.uint8)[:, None, None]
    pixels[:, 1] = (torch.arange(count) % 256).to(torch.uint8)[:, None, None]
    return Images(pixels, labels)


def dataset(train: int = 100, test: int = 25, classes: int = 5, labels: Tensor | None = None) -> Dataset:
    names = tuple(map(str, range(classes)))
    train_labels = torch.arange(train) % classes if labels is None else labels
    return Dataset("numbered", names, numbered(train, train_labels), numbered(test, torch.arange(test) % classes), None)


def data(source: Dataset | None = None, **options: object) -> Data:
    arguments = {"batch_size": 16, "augmentation": AUGMENTED, "seed": 1, "device": "cpu", **options}
    return Data(source or dataset(), **arguments)  # type: ignore[arg-type]


def numbers(images: Tensor) -> list[int]:
    """The numbers of images that were not augmented."""
    return (images[:, 0, 0, 0].round() * 256 + images[:, 1, 0, 0].round()).long().tolist()


def shown(batches: Iterable[Batch]) -> tuple[list[int], list[int]]:
    """Numbers and labels of the images of a whole pass without augmentation."""
    pairs = [pair for images, labels in batches for pair in zip(numbers(images), labels.tolist(), strict=True)]
    return [number for number, _ in pairs], [label for _, label in pairs]


def same(first: Iterable[Batch], second: Iterable[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a, b) and torch.equal(la, lb) for (a, la), (b, lb) in pairs)


def split(source: Data, name: str) -> Batches:
    return source.held_out()[name]


def test_an_epoch_shows_each_image_once_with_its_label_and_ends_with_a_smaller_batch() -> None:
    batches = list(data(augmentation=AS_IT_IS).train(0))
    assert [len(labels) for _, labels in batches] == [16] * 6 + [4]
    assert data().steps_per_epoch == 7
    images, labels = shown(batches)
    assert sorted(images) == list(range(100))
    assert images != sorted(images)
    assert labels == [number % 5 for number in images]
    assert {image.dtype for image, _ in batches} == {torch.float32}
    assert {label.dtype for _, label in batches} == {torch.int64}


def test_sizes_are_those_of_the_data_set() -> None:
    held = data(batch_size=20, validation=20)
    assert (held.steps_per_epoch, held.train_size, held.num_classes) == (4, 80, 5)


@pytest.mark.parametrize("first", range(8))
def test_starting_at_any_batch_yields_the_same_bits_as_a_full_epoch_from_there_on(first: int) -> None:
    assert same(data().train(3, first), islice(data().train(3), first, None))
    assert len(list(data().train(3, first))) == 7 - first


@pytest.mark.parametrize("first", [-1, 8])
def test_starting_outside_the_epoch_is_an_error(first: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 7"):
        data().train(0, first)


def test_an_epoch_does_not_depend_on_what_happened_before() -> None:
    fresh = list(data().train(5))
    used = data()
    for _ in used.train(0):
        torch.rand(3)
    list(split(used, "test"))
    started = used.train(5)
    next(iter(used.statistics(0)))
    next(used.train(4))
    assert same(fresh, started)
    assert same(fresh, used.train(5))


def test_global_generators_neither_matter_nor_change() -> None:
    torch.manual_seed(7)
    expected = list(data(validation=10, label_noise=0.3).train(1))
    torch.manual_seed(8)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())
    source = data(validation=10, label_noise=0.3)
    found = [*source.train(1)]
    list(source.statistics(1))
    list(split(source, "test"))
    list(split(source, "validation"))
    assert same(expected, found)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())


def test_seeds_epochs_and_purposes_have_streams_of_their_own() -> None:
    passes = [data(seed=seed, augmentation=AS_IT_IS).train(epoch) for seed, epoch in product((1, 2), (0, 1, 2))]
    passes += [data(seed=seed, augmentation=AS_IT_IS).statistics(key) for seed, key in product((1, 2), (0, 1, 2))]
    orders = {tuple(shown(batches)[0]) for batches in passes}
    assert len(orders) == 12


def test_the_stream_of_a_seed_and_epoch_is_fixed() -> None:
    # Should this ever change, runs of before and after cannot be compared or resumed: their semantics differ.
    images, _ = next(data(augmentation=AS_IT_IS).train(0))
    assert numbers(images)[:8] == [64, 78, 49, 70, 8, 82, 65, 55]


def test_each_training_image_is_one_of_its_own_162_crops() -> None:
    source = dataset(train=12)
    images, labels = next(data(source, batch_size=12).train(0))
    order, _ = next(data(source, batch_size=12, augmentation=AS_IT_IS).train(0))
    seen = set()
    for image, number in zip(images, numbers(order), strict=True):
        framed = reference.pad(source.train.pixels[number], [4])
        crops = {
            (top, left, flip): reference.normalize(view.float().div(255), MEAN, STD)
            for top, left in product(range(9), range(9))
            for flip, view in enumerate(
                (framed[:, top:, left:][:, :32, :32], framed[:, top:, left:][:, :32, :32].flip(2))
            )
        }
        matches = [key for key, crop in crops.items() if torch.equal(crop, image)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 6
    assert labels.tolist() == [number % 5 for number in numbers(order)]


@pytest.mark.parametrize("channels_last", [False, True])
def test_training_images_have_a_border_of_the_mean_colour_where_asked_and_are_otherwise_the_same(
    channels_last: bool,
) -> None:
    light = Images(torch.full((100, 3, 32, 32), 255, dtype=torch.uint8), torch.arange(100) % 5)
    source = Dataset("light", tuple("01234"), light, light, None)
    black, mean = (
        data(source, augmentation=Augmentation(mean=MEAN, std=STD, border=border), channels_last=channels_last)
        for border in ("black", "mean")
    )
    bordered = 0
    for (dark, _), (images, _) in zip(black.train(2), mean.train(2), strict=True):
        is_border = dark < 0  # of these images nothing but black is below the mean
        assert torch.equal(images, torch.where(is_border, 0.0, dark))
        bordered += int(is_border.any(dim=(1, 2, 3)).sum())
    assert bordered > 90  # one crop in 81 has no border
    assert same(split(black, "test"), split(mean, "test"))


def test_crops_and_flips_change_from_epoch_to_epoch() -> None:
    source = dataset(train=1)
    first, second = (next(data(source, batch_size=1).train(epoch))[0] for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_statistics_pass_shows_the_whole_training_set_augmented() -> None:
    images, labels = shown(data(augmentation=AS_IT_IS, validation=20).statistics(4))
    assert len(images) == len(set(images)) == 80
    assert labels == [number % 5 for number in images]
    assert same(data().statistics(4), data().statistics(4))
    source = dataset(train=1)
    shapes = [next(data(source, batch_size=1).statistics(key))[0] for key in range(4)]
    assert not all(torch.equal(shapes[0], other) for other in shapes[1:])


def test_test_images_come_in_order_normalised_and_not_augmented() -> None:
    source = dataset()
    ((images, labels),) = split(data(source), "test")
    assert torch.equal(images, reference.normalize(source.test.pixels.float().div(255), MEAN, STD))
    assert torch.equal(labels, source.test.labels)
    many = list(split(data(dataset(test=620)), "test"))
    assert [len(labels) for _, labels in many] == [250, 250, 120]  # 250 at once on a CPU


@pytest.mark.parametrize("channels_last", [False, True])
def test_every_pass_has_the_memory_format_asked_for(channels_last: bool) -> None:
    source = data(channels_last=channels_last, validation=10)
    asked = torch.channels_last if channels_last else torch.contiguous_format
    for images, _ in (*source.train(0), *source.statistics(0), *split(source, "test"), *split(source, "validation")):
        assert images.is_contiguous(memory_format=asked)


def test_memory_format_does_not_change_a_bit() -> None:
    assert same(data(channels_last=True).train(2), data().train(2))


def test_held_out_images_and_training_images_are_the_whole_set_class_by_class() -> None:
    source = data(augmentation=AS_IT_IS, validation=20)
    held_out, labels = shown(split(source, "validation"))
    kept, _ = shown(source.train(0))
    assert sorted(held_out + kept) == list(range(100))
    assert held_out == sorted(held_out)
    assert labels == [number % 5 for number in held_out]
    assert np.bincount(labels).tolist() == [4] * 5


def test_held_out_images_are_drawn_by_the_seed_alone() -> None:
    drawn = [shown(split(data(augmentation=AS_IT_IS, validation=20, seed=seed), "validation"))[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    noisy = data(augmentation=AS_IT_IS, validation=20, seed=1, label_noise=0.5, batch_size=7)
    assert shown(split(noisy, "validation"))[0] == drawn[0]


def test_unequal_classes_are_held_out_in_proportion_by_largest_remainder() -> None:
    labels = torch.tensor([0] * 50 + [1] * 31 + [2] * 19)
    source = data(dataset(classes=3, labels=labels), augmentation=AS_IT_IS, validation=15)
    _, drawn = shown(split(source, "validation"))
    # 15 % of 50, 31 and 19 is 7.5, 4.65 and 2.85: the two images above 7 + 4 + 2 go to .85 and .65.
    assert np.bincount(drawn).tolist() == [7, 5, 3]


def test_validation_images_are_normalised_not_augmented() -> None:
    source = dataset()
    held = data(source, validation=10)
    images, _ = next(split(held, "validation"))
    chosen, _ = shown(split(data(source, validation=10, augmentation=AS_IT_IS), "validation"))
    assert torch.equal(images, reference.normalize(source.train.pixels[chosen].float().div(255), MEAN, STD))


def test_without_held_out_images_there_is_the_test_set_alone() -> None:
    assert list(data().held_out()) == list(data().targets()) == ["test"]


@pytest.mark.parametrize(("fraction", "wrong"), [(0.0, 0), (0.4, 36), (0.333, 30), (1.0, 90)])
def test_exactly_the_asked_fraction_of_the_remaining_labels_is_wrong(fraction: float, wrong: int) -> None:
    source = data(augmentation=AS_IT_IS, validation=10, label_noise=fraction)
    images, labels = shown(source.train(0))
    assert sum(label != number % 5 for number, label in zip(images, labels, strict=True)) == wrong
    assert set(labels) <= set(range(5))
    for clean in (split(source, "validation"), split(source, "test")):
        numbers_, labels_ = shown(clean)
        assert labels_ == [number % 5 for number in numbers_]


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    images, labels = shown(data(dataset(train=20_000), augmentation=AS_IT_IS, label_noise=0.6, batch_size=500).train(0))
    true = torch.tensor(images) % 5
    pairs = (true * 5 + torch.tensor(labels)).bincount(minlength=25).view(5, 5)
    off_diagonal = pairs[~torch.eye(5, dtype=torch.bool)].float()
    assert off_diagonal.sum() == 12_000
    # 20 equally likely pairs, 600 each, 19 degrees of freedom: 99.9 % of chi-square's values are below 43.8.
    assert ((off_diagonal - 600) ** 2 / 600).sum() < 43.8


def test_noise_is_drawn_by_the_seed_and_stays_for_all_epochs() -> None:
    noisy = [data(augmentation=AS_IT_IS, label_noise=0.4, seed=seed) for seed in (1, 1, 2)]
    labels = [dict(zip(*shown(source.train(0)), strict=True)) for source in noisy]
    assert labels[0] == labels[1] != labels[2]
    assert dict(zip(*shown(noisy[0].train(9)), strict=True)) == labels[0]
    assert dict(zip(*shown(noisy[0].statistics(0)), strict=True)) == labels[0]


def test_noise_changes_labels_and_nothing_else() -> None:
    clean, noisy = data().train(0), data(label_noise=0.5).train(0)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(clean, noisy, strict=True))


def test_the_data_set_itself_is_left_as_it_is() -> None:
    source = dataset()
    before = source.train.pixels.clone(), source.train.labels.clone()
    list(data(source, label_noise=1.0).train(0))
    assert torch.equal(source.train.pixels, before[0])
    assert torch.equal(source.train.labels, before[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0: expected a whole number from 1 to 100"),
        ({"batch_size": 101}, "batch_size=101: expected a whole number from 1 to 100"),
        ({"batch_size": 91, "validation": 10}, "batch_size=91: expected a whole number from 1 to 90"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"validation": -1}, "dataset.validation=-1: expected a whole number from 0 to 99"),
        ({"validation": 100}, "dataset.validation=100: expected a whole number from 0 to 99"),
        ({"validation": 0.1}, "dataset.validation=0.1"),
        ({"label_noise": -0.1}, "dataset.label_noise=-0.1: expected a fraction from 0 to 1"),
        ({"label_noise": 1.1}, "dataset.label_noise=1.1"),
        ({"label_noise": float("nan")}, "dataset.label_noise=nan"),
    ],
)
def test_options_out_of_range_are_refused_in_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        data(**options)
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("batch_size", [1, 100])
def test_smallest_and_largest_batch_size_are_allowed(batch_size: int) -> None:
    assert len(list(data(batch_size=batch_size).train(0))) == 100 // batch_size


def test_no_value_is_read_back_from_the_device() -> None:
    # The meta device holds no values: any operation that waits for one, on the host, fails there.
    source = data(device="meta", validation=10, label_noise=0.2)
    for images, labels in (
        *source.train(0),
        *source.statistics(0),
        *split(source, "test"),
        *split(source, "validation"),
    ):
        assert images.device.type == labels.device.type == "meta"
        assert images.shape[1:] == (3, 32, 32)
    with pytest.raises((RuntimeError, NotImplementedError)):
        images.sum().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_is_given_the_same_images_without_waiting() -> None:
    on_device = data(device="cuda", channels_last=True, label_noise=0.2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [*on_device.train(1), *split(on_device, "test")]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_host = data(label_noise=0.2)
    for (images, labels), (expected, true) in zip(batches, [*on_host.train(1), *split(on_host, "test")], strict=True):
        # CUDA divides by 255 by multiplying with its reciprocal: two roundings of float32 apart at most.
        torch.testing.assert_close(images.cpu(), expected, rtol=3e-7, atol=1e-6)
        assert torch.equal(labels.cpu(), true)
