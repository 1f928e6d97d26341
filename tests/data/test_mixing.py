"""AutoAugment, Cutout and CutMix in batches, against one image at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode
from torchvision.transforms import functional as reference
from torchvision.transforms.autoaugment import _apply_op

from broadopt.data.augment import Augmentation, cut_mix, cut_out, draw
from broadopt.data.autoaugment import POLICIES, Policies, equalized
from broadopt.data.batches import Data
from broadopt.data.datasets import digits

MEAN, STD = (0.49, 0.48, 0.44), (0.2, 0.2, 0.2)


def random_images(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def test_a_batch_of_autoaugment_has_the_bits_of_torchvisions_one_image_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 400
    images = random_images(count)
    generator = torch.Generator().manual_seed(5)
    policies = torch.arange(count) % POLICIES
    chances, signs = torch.rand(count, 2, generator=generator), torch.rand(count, 2, generator=generator) < 0.5
    reference = AutoAugment(AutoAugmentPolicy.CIFAR10)
    one_by_one = []
    for image, policy, chance, sign in zip(images, policies, chances, signs, strict=True):
        drawn = (int(policy), chance, sign.long())
        monkeypatch.setattr(reference, "get_params", lambda count, drawn=drawn: drawn)
        one_by_one.append(reference(image))

    batch = Policies()(images, policies, chances, signs)

    assert torch.equal(batch, torch.stack(one_by_one))
    assert not torch.equal(batch, images)


def operations() -> list[tuple[str, float]]:
    """Every operation of the policies with its magnitude, either way where it has a sign."""
    entries = {entry for pair in Policies().table for entry in pair}
    found = {(name, sign * size) for name, _, size, signed in entries for sign in ((1, -1) if signed else (1,))}
    return sorted(found)


@pytest.mark.parametrize(("name", "magnitude"), operations())
def test_every_operation_has_torchvisions_bits(name: str, magnitude: float) -> None:
    images = random_images(40)
    images[1], images[2, 0], images[3, 1, :16] = 0, 255, 7
    images[4:20] = images[4:20] // 3 + 50
    expected = _apply_op(images, name, magnitude, InterpolationMode.NEAREST, None)
    assert torch.equal(Policies()._applied(images, name, magnitude), expected)


class Waits(TorchFunctionMode):
    """Notes what would make the host wait for a GPU: values that Python sends there, or asks for, and the places of
    what is true.
    """

    ASKING = ("item", "nonzero", "__bool__", "__float__", "__int__", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(function, "__name__", "")
        indices = args[1] if name in ("__getitem__", "__setitem__") else ()
        indices = indices if isinstance(indices, tuple) else (indices,)
        sends = name in ("tensor", "as_tensor") and kwargs.get("device") is not None
        if sends or name in self.ASKING or any(getattr(one, "dtype", None) is torch.bool for one in indices):
            self.found.append(name)
        return function(*args, **kwargs)


def waits(images: Tensor, policies: Tensor, chances: Tensor, signs: Tensor) -> list[str]:
    augment = Policies()
    augment(images, policies, chances, signs)  # the places that pixels come from are sent once
    with Waits() as seen:
        augment(images, policies, chances, signs)
    return seen.found


def test_nothing_of_autoaugment_makes_the_host_wait() -> None:
    """As torchvision's affine operations and its contrast do; every policy is drawn, with either sign."""
    count = 2 * POLICIES
    signs = (torch.arange(count) < POLICIES)[:, None].expand(-1, 2)
    assert waits(random_images(count), torch.arange(count) % POLICIES, torch.zeros(count, 2), signs) == []
    with Waits() as seen:
        for name in ("Rotate", "AutoContrast"):
            _apply_op(random_images(2), name, 3.0, InterpolationMode.NEAREST, None)
    assert seen.found == ["tensor", "tensor", "__setitem__", "__setitem__"]


@pytest.mark.parametrize("levels", [1, 2, 3, 17, 256])
def test_channels_are_equalised_together_as_torchvision_does_it_one_by_one(levels: int) -> None:
    """Also those with so few values, or so many pixels of the brightest, that they stay as they are."""
    generator = torch.Generator().manual_seed(levels)
    images = torch.randint(levels, (9, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images[1] = (images[1].float() ** 2 / 255).to(torch.uint8)
    images[2] = 255
    images[3, 0], images[3, 1, :25], images[3, 2, :24] = 7, 255, 255
    images[4, :, 0, 0] = 255
    assert torch.equal(equalized(images), reference.equalize(images))
    odd = images[:, :1, :5, :7]
    assert torch.equal(equalized(odd), reference.equalize(odd))


def test_draws_of_an_option_leave_the_draws_before_it_as_they_are() -> None:
    plain = draw(Augmentation(mean=MEAN, std=STD), 100, torch.Generator().manual_seed(1))
    everything = Augmentation(mean=MEAN, std=STD, autoaugment=True, cutout=16, cutmix=0.5)
    drawn = draw(everything, 100, torch.Generator().manual_seed(1))
    for name in ("images", "tops", "lefts", "flips"):
        assert torch.equal(getattr(plain, name), getattr(drawn, name))


@pytest.mark.parametrize("side", [1, 15, 16])
def test_cutout_clears_a_square_around_each_middle_and_nothing_else(side: int) -> None:
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(2)) + 10
    middles = torch.randint(32, (64, 2), generator=torch.Generator().manual_seed(4))
    expected = images.clone()
    for image, (row, column) in zip(expected, middles.tolist(), strict=True):
        top, left = row - side // 2, column - side // 2
        image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0

    assert torch.equal(cut_out(images.clone(), middles, side), expected)


def test_cutmix_pastes_one_box_of_a_partner_and_shares_labels_by_area() -> None:
    generator = torch.Generator().manual_seed(6)
    images, labels = torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)
    for _ in range(50):
        mixes = torch.rand(8, 5, generator=generator, dtype=torch.float64)
        side = int(32 * (1 - mixes[0, 1].item()) ** 0.5)
        row, column = (int(32 * mixes[0, axis].item()) for axis in (2, 3))
        rows = slice(max(row - side // 2, 0), min(row + side // 2, 32))
        columns = slice(max(column - side // 2, 0), min(column + side // 2, 32))
        partner = mixes[:, 4].argsort()
        expected = images.clone()
        expected[:, :, rows, columns] = images[partner][:, :, rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start) / 32**2

        mixed, shares = cut_mix(images, labels, mixes, probability=1.0, classes=8)

        assert torch.equal(mixed, expected)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
        own = shares[torch.arange(8), labels]
        lone = partner == labels
        torch.testing.assert_close(own[~lone], torch.full_like(own[~lone], 1 - area), rtol=0, atol=1e-6)
        torch.testing.assert_close(own[lone], torch.ones_like(own[lone]))


def test_cutmix_mixes_a_batch_with_its_probability() -> None:
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    mixes = torch.tensor([[0.4, 0.5, 0.5, 0.5, key] for key in (0.3, 0.1, 0.2, 0.0)], dtype=torch.float64)
    unmixed, shares = cut_mix(images, labels, mixes, probability=0.4, classes=4)
    assert torch.equal(unmixed, images)
    assert torch.equal(shares, torch.eye(4))
    assert not torch.equal(cut_mix(images, labels, mixes, probability=0.41, classes=4)[0], images)


def test_the_stream_with_every_option_is_the_same_from_the_middle_on() -> None:
    augmentation = Augmentation(mean=MEAN, std=STD, autoaugment=True, cutout=16, cutmix=0.5)
    data = Data(digits(), batch_size=128, augmentation=augmentation, seed=1, device="cpu", channels_last=True)
    torch.manual_seed(0)
    whole = list(data.train(3))
    torch.manual_seed(1)  # the global generator plays no part
    for (images, shares), (later_images, later_shares) in zip(whole[5:], data.train(3, 5), strict=True):
        assert torch.equal(images, later_images)
        assert torch.equal(shares, later_shares)
    assert any(not torch.equal(shares, shares.round()) for _, shares in whole)
