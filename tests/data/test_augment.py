"""Padding, crops, flips and normalisation of whole batches.

The oracle is torchvision's functional transforms on one PIL image at a time; draws are held against their
distributions.
"""

from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from broadopt.config.instantiate import instantiated
from broadopt.data.augment import Augmentation, Draws, Normalisation, crop_and_flip, draw, mean_border, padded
from broadopt.errors import InputError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CPU = torch.device("cpu")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_pixels(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=generator(), dtype=torch.uint8)


def picture(pixels: torch.Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def by_torchvision(pixels: torch.Tensor, pad: int, top: int, left: int, flip: bool) -> torch.Tensor:
    image = reference.crop(reference.pad(picture(pixels), [pad]), top, left, 32, 32)
    image = reference.hflip(image) if flip else image
    return reference.normalize(reference.to_tensor(image), MEAN, STD)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4, 9])
def test_batch_equals_torchvisions_pad_crop_flip_and_normalise_exactly(pad: int, channels_last: bool) -> None:
    augmentation = Augmentation(mean=MEAN, std=STD, pad=pad)
    pixels = random_pixels(40)
    draws = draw(augmentation, 40, generator(pad))
    normalise = Normalisation(augmentation, device=CPU, channels_last=channels_last)
    batch = normalise(crop_and_flip(padded(pixels, pad), draws))
    columns = (draws.images, draws.tops, draws.lefts, draws.flips)
    for image, (index, top, left, flip) in zip(batch, zip(*(c.tolist() for c in columns), strict=True), strict=True):
        assert torch.equal(image, by_torchvision(pixels[index], pad, top, left, flip))


@pytest.mark.parametrize(("top", "left", "flip"), list(product((0, 4, 8), (0, 4, 8), (False, True))))
def test_corner_crops_equal_torchvisions(top: int, left: int, flip: bool) -> None:
    pixels = random_pixels(1)
    draws = Draws(torch.tensor([0]), torch.tensor([top]), torch.tensor([left]), torch.tensor([flip]))
    normalise = Normalisation(Augmentation(mean=MEAN, std=STD), device=CPU)
    image = normalise(crop_and_flip(padded(pixels, 4), draws))[0]
    assert torch.equal(image, by_torchvision(pixels[0], 4, top, left, flip))


@pytest.mark.parametrize("left", range(9))
def test_flip_then_crop_is_crop_at_mirrored_offset_then_flip(left: int) -> None:
    pixels = random_pixels(1)
    mirrored = torch.tensor([8 - left])
    draws = Draws(torch.tensor([0]), torch.tensor([3]), mirrored, torch.tensor([True]))
    flipped_first = reference.crop(reference.hflip(reference.pad(picture(pixels[0]), [4])), 3, left, 32, 32)
    assert np.array_equal(np.asarray(flipped_first), crop_and_flip(padded(pixels, 4), draws)[0].numpy())


def test_padding_is_black_not_the_mean_colour() -> None:
    augmentation = Augmentation(mean=MEAN, std=STD)
    draws = Draws(torch.tensor([0]), torch.tensor([0]), torch.tensor([0]), torch.tensor([False]))
    image = Normalisation(augmentation, device=CPU)(crop_and_flip(padded(random_pixels(1), 4), draws))[0]
    black = -torch.tensor(MEAN) / torch.tensor(STD)
    assert torch.equal(image[:, :4, :], black[:, None, None].expand(3, 4, 32))
    assert torch.equal(image[:, :, :4], black[:, None, None].expand(3, 32, 4))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4, 9])
def test_mean_border_is_what_a_code_makes_that_normalises_before_it_pads(pad: int, channels_last: bool) -> None:
    augmentation = Augmentation(mean=MEAN, std=STD, pad=pad, border="mean")
    pixels = random_pixels(40)
    draws = draw(augmentation, 40, generator(pad))
    normalise = Normalisation(augmentation, device=CPU, channels_last=channels_last)
    batch = mean_border(normalise(crop_and_flip(padded(pixels, pad), draws)), draws, pad)
    columns = (draws.images, draws.tops, draws.lefts, draws.flips)
    for image, (index, top, left, flip) in zip(batch, zip(*(c.tolist() for c in columns), strict=True), strict=True):
        normalised = reference.normalize(reference.to_tensor(picture(pixels[index])), MEAN, STD)
        crop = torch.nn.functional.pad(normalised, [pad] * 4)[:, top : top + 32, left : left + 32]
        assert torch.equal(image, crop.flip(2) if flip else crop)
    assert batch.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_mean_border_is_exactly_0_and_the_image_keeps_its_zeros_apart() -> None:
    augmentation = Augmentation(mean=MEAN, std=STD, border="mean")
    draws = Draws(torch.tensor([0]), torch.tensor([0]), torch.tensor([8]), torch.tensor([True]))
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image = mean_border(Normalisation(augmentation, device=CPU)(crop_and_flip(padded(black, 4), draws)), draws, 4)[0]
    assert image[:, :4, :].eq(0).all()  # the crop begins 4 above the image
    assert image[:, :, :4].eq(0).all()  # and ends 4 to the right of it, which mirrored is left
    assert torch.equal(image[:, 4:, 4:], (-torch.tensor(MEAN) / torch.tensor(STD))[:, None, None].expand(3, 28, 28))


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalisation_of_all_256_values_equals_torchvisions_exactly(channels_last: bool) -> None:
    values = torch.arange(3 * 1024).remainder(256).to(torch.uint8).view(1, 32, 32, 3)
    normalise = Normalisation(Augmentation(mean=MEAN, std=STD), device=CPU, channels_last=channels_last)
    expected = reference.normalize(reference.to_tensor(Image.fromarray(values[0].numpy())), MEAN, STD)
    for channel in range(3):
        assert len(values[..., channel].unique()) == 256
    assert torch.equal(normalise(values)[0], expected)


def test_normalisation_leaves_the_pixels_as_they_are() -> None:
    pixels = padded(random_pixels(2), 0)
    before = pixels.clone()
    Normalisation(Augmentation(mean=MEAN, std=STD), device=CPU)(pixels)
    assert torch.equal(pixels, before)


def test_memory_format_is_the_one_asked_for() -> None:
    augmentation, pixels = Augmentation(mean=MEAN, std=STD), padded(random_pixels(2), 0)
    planes = Normalisation(augmentation, device=CPU)(pixels)
    rows = Normalisation(augmentation, device=CPU, channels_last=True)(pixels)
    assert planes.is_contiguous()
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(planes, rows)


def test_draws_hold_each_image_once_and_offsets_within_the_padding() -> None:
    draws = draw(Augmentation(mean=MEAN, std=STD, pad=4), 1000, generator())
    assert torch.equal(draws.images.sort().values, torch.arange(1000))
    for offsets in (draws.tops, draws.lefts):
        assert offsets.dtype == torch.int64
        assert offsets.unique().tolist() == list(range(9))


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum())


def test_crops_and_flips_are_uniform_and_independent() -> None:
    draws = draw(Augmentation(mean=MEAN, std=STD, pad=4), 50_000, generator(1))
    joint = (draws.tops * 9 + draws.lefts) * 2 + draws.flips
    # 162 equally likely cells, 161 degrees of freedom: 99.99 % of the values lie between 101 and 237.
    assert 101 < chi_square(joint.bincount(minlength=162).float()) < 237
    # Nor do they depend on the image's place in the data set: two halves of it, again 162 cells.
    with_half = (draws.tops * 9 + draws.lefts) * 2 + (draws.images < 25_000)
    assert 101 < chi_square(with_half.bincount(minlength=162).float()) < 237
    # 50,000 fair coins have a standard deviation of 112.
    assert abs(int(draws.flips.sum()) - 25_000) < 4 * 112


def test_without_flip_none_is_flipped_and_all_else_is_drawn_alike() -> None:
    plain, flipping = (draw(Augmentation(mean=MEAN, std=STD, flip=flip), 500, generator(3)) for flip in (False, True))
    assert not plain.flips.any()
    assert flipping.flips.any()
    for name in ("images", "tops", "lefts"):
        assert torch.equal(getattr(plain, name), getattr(flipping, name))


def test_without_padding_every_crop_is_the_whole_image() -> None:
    augmentation, pixels = Augmentation(mean=MEAN, std=STD, pad=0, flip=False), random_pixels(20)
    draws = draw(augmentation, 20, generator())
    assert torch.equal(crop_and_flip(padded(pixels, 0), draws).permute(0, 3, 1, 2), pixels[draws.images])


def test_parts_of_the_draws_are_views() -> None:
    draws = draw(Augmentation(mean=MEAN, std=STD), 100, generator())
    part = draws.part(slice(90, 120))
    assert torch.equal(part.images, draws.images[90:])
    assert len(part.flips) == 10
    assert part.tops.data_ptr() == draws.tops[90:].data_ptr()


def test_values_of_a_hydra_config_become_plain_tuples() -> None:
    config = {"_target_": "broadopt.augment.Augmentation", "pad": 2, "flip": False, "mean": [0, 0, 0], "std": [1, 1, 1]}
    augmentation = instantiated("augmentation", config)
    assert augmentation == Augmentation(mean=(0, 0, 0), std=(1, 1, 1), pad=2, flip=False)
    assert type(augmentation.mean) is type(augmentation.std) is tuple


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pad": -1}, "augmentation.pad=-1"),
        ({"pad": 1.5}, "augmentation.pad=1.5"),
        ({"border": "grey"}, "augmentation.border=grey: expected one of black, mean"),
        ({"border": "meen"}, 'augmentation.border=meen: expected one of black, mean; did you mean "mean"?'),
        (
            {"border": "mean", "autoaugment": True},
            "augmentation.border=mean: expected black with augmentation.autoaugment=true",
        ),
        ({"mean": (0.5, 0.5)}, "augmentation.mean=[0.5, 0.5]"),
        ({"mean": (0.5, float("nan"), 0.5)}, "augmentation.mean=[0.5, nan, 0.5]"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "augmentation.std=[0.5, 0.5, 0.5, 0.5]"),
        ({"std": (0.5, 0.0, 0.5)}, "augmentation.std=[0.5, 0.0, 0.5]"),
        (
            {"mean": (125.3, 123.0, 113.9)},
            "augmentation.mean=[125.3, 123.0, 113.9]: expected three numbers from 0 to 1; of pixels "
            "from 0 to 255 that is [0.4914, 0.4824, 0.4467]",
        ),
        ({"mean": (0.5, -0.1, 0.5)}, "augmentation.mean=[0.5, -0.1, 0.5]: expected three numbers from 0 to 1"),
        (
            {"std": (63.0, 62.1, 66.7)},
            "augmentation.std=[63.0, 62.1, 66.7]: expected three numbers from 0 to 1; of pixels",
        ),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        Augmentation(**{"mean": MEAN, "std": STD, **options})  # type: ignore[arg-type]
    assert str(refusal.value).startswith(said)
    assert "\n" not in str(refusal.value)
