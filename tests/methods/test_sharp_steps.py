"""When a step is sharp: late in the training, every k-th time, by a part of the batch.

The oracle: formulas.py in float64, which is told step by step which gradient is to be taken.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from formulas import (
    CLOSE,
    SmallNet,
    Tensors,
    batches,
    closure,
    gradients,
    loss,
    ones,
    perturbation,
    sgd_update,
    weights_of,
)
from handed_batches import batch_of
from torch import nn

from broadopt.errors import InputError
from broadopt.methods.batch import Batch
from broadopt.methods.recorded import share_by
from broadopt.methods.sam import sam
from broadopt.methods.step import Plain
from broadopt.methods.steps.friendly import FriendlySAM
from broadopt.methods.steps.looksam import LookSAM
from broadopt.methods.steps.msam import MSAM
from broadopt.methods.steps.sharp_steps import Course, SharpSteps
from broadopt.methods.steps.sharp_steps import gradients as gradients_of

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
RHO = 0.3


def trained(steps: int, **options: object) -> tuple[nn.Module, list[Batch], list[float]]:
    """SmallNet after `steps` steps of ten a budget, the batches as the steps left them, and the losses."""
    model = SmallNet()
    step = sam(model, torch.optim.SGD(model.parameters(), fused=True, **MOMENTUM), rho=RHO, **options)
    data = [batch_of(model, batch, number) for number, batch in enumerate(batches(steps))]
    return model, data, [step(batch).item() for batch in data]


def expected(steps: int, sharp: Callable[[int], bool], ascent: slice = slice(None)) -> tuple[Tensors, list[float]]:
    """The weights by the papers' formulas, and the losses of the images of the first passes."""
    weights, momenta, losses = weights_of(SmallNet()), {}, []
    for number, (images, labels) in enumerate(batches(steps)):
        part = ascent if sharp(number) else slice(None)
        losses.append(float(loss(weights, images[part], labels[part])))
        slopes = gradients(weights, images[part], labels[part])
        if sharp(number):
            eps = perturbation(weights, slopes, rho=RHO, p=2, scales=ones(weights))
            slopes = gradients({name: weights[name] + eps[name] for name in weights}, images, labels)
        sgd_update(weights, slopes, momenta, **MOMENTUM)
    return weights, losses


@pytest.mark.parametrize(
    ("options", "sharp"),
    [
        ({"from_": 0.43}, [5, 6, 7]),
        ({"from_": 0.4}, [4, 5, 6, 7]),
        ({"until": 0.3}, [0, 1, 2]),
        ({"from_": 0.2, "until": 0.6}, [2, 3, 4, 5]),
        ({"every": 3}, [0, 3, 6]),
        ({"from_": 0.2, "until": 0.6, "every": 2}, [2, 4]),
        ({"from_": 0.25, "every": 4}, [4]),
        ({"from_": 2}, []),
    ],
    ids=str,
)
def test_a_step_is_sharp_in_its_part_of_the_training_and_plain_outside(
    options: dict[str, object], sharp: list[int]
) -> None:
    model, data, losses = trained(8, **options)
    weights, expected_losses = expected(8, sharp.__contains__)
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert losses == pytest.approx(expected_losses, rel=1e-11)
    assert [batch.passes for batch in data] == [2 if number in sharp else 1 for number in range(8)]


def test_a_plain_step_in_between_is_that_of_sgd_bit_for_bit() -> None:
    model, twin = trained(6, from_=3.0)[0], SmallNet()
    plain = Plain(twin, torch.optim.SGD(twin.parameters(), fused=True, **MOMENTUM))
    for batch in batches(6):
        plain(closure(twin, batch))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("share", "images"), [(0.25, 2), (0.5, 4), (0.01, 1), (0.3, 2)])
def test_the_ascent_is_along_the_gradient_of_the_first_images(share: float, images: int) -> None:
    model, data, losses = trained(3, ascent=share)
    weights, expected_losses = expected(3, lambda _: True, slice(images))
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert losses == pytest.approx(expected_losses, rel=1e-11)
    assert [batch.passes for batch in data] == [1 + images / 8] * 3
    assert [batch.images_seen for batch in data] == [images] * 3


def test_each_chunk_ascends_by_its_own_first_images() -> None:
    model, data, _ = trained(
        2, ascent=0.5, chunk=5
    )  # 3 of 5 would be 2.5 images: round takes the even number, 2; of 3, 2
    weights, momenta = weights_of(SmallNet()), {}
    for images, labels in batches(2):
        mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for part, ascent in ((slice(0, 5), slice(0, 2)), (slice(5, 8), slice(5, 7))):
            slopes = gradients(weights, images[ascent], labels[ascent])
            eps = perturbation(weights, slopes, rho=RHO, p=2, scales=ones(weights))
            slopes = gradients({name: weights[name] + eps[name] for name in weights}, images[part], labels[part])
            mean = {name: mean[name] + (part.stop - part.start) / 8 * slopes[name] for name in weights}
        sgd_update(weights, mean, momenta, **MOMENTUM)
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert [batch.passes for batch in data] == [1.5, 1.5]


def by_hand(course: Course, occasions: Sequence[int], part: Callable[[int], int]) -> float:
    total = 0.0
    for step in range(course.steps):
        size = course.last_batch if step % course.steps_per_epoch == course.steps_per_epoch - 1 else course.batch_size
        total += 1 + (part(size) / size if step in occasions else 0)
    return total


@pytest.mark.parametrize("ascent", [1, 0.25, 0.37])
@pytest.mark.parametrize(
    "options",
    [{}, {"from_": 0.43}, {"until": 0.5}, {"every": 3}, {"from_": 0.3, "until": 0.9, "every": 5}, {"from_": 1.4}],
)
def test_gradients_of_a_whole_training_are_counted_exactly(options: dict[str, float], ascent: float) -> None:
    course = Course.of(images=90, batch_size=32, budget=10, epochs=15)
    assert (course.steps, course.steps_per_epoch, course.last_batch) == (45, 3, 26)
    model = SmallNet()
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, ascent=ascent, **options)
    start, end, every = options.get("from_", 0) * 30, options.get("until", 9) * 30, options.get("every", 1)
    sharp = [number for number in range(45) if start <= number < end and number % every == 0]
    counted = gradients_of(step, course)
    assert counted == pytest.approx(by_hand(course, sharp, lambda size: round(ascent * size)), rel=1e-14)
    if ascent == 1:
        assert type(counted) is int


@pytest.mark.parametrize("make", [sam, FriendlySAM, LookSAM, MSAM])
@pytest.mark.parametrize(
    ("start", "epochs", "message"),
    [
        (86, 200, "step.from=86: it is counted in budgets, and the training ends after 1; 0.43 are 86 of 200 epochs"),
        (1, 200, "step.from=1: it is counted in budgets, and the training ends after 1; 0.005 are 1 of 200 epochs"),
        (
            1.5,
            300,
            "step.from=1.5: it is counted in budgets, and the training ends after 1.5; 0.0075 are 1.5 of 200 epochs",
        ),
        (250, 200, "step.from=250: it is counted in budgets, and the training ends after 1"),
    ],
)
def test_a_start_that_the_training_never_comes_to_is_refused(
    make: Callable[..., Any], start: float, epochs: float, message: str
) -> None:
    model = SmallNet()
    step = make(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=RHO, from_=start)
    with pytest.raises(InputError) as error:
        gradients_of(step, Course.of(images=90, batch_size=32, budget=200, epochs=epochs))
    assert str(error.value) == message


def test_a_step_that_does_not_count_takes_what_it_says_each_time() -> None:
    model = SmallNet()
    course = Course.of(images=90, batch_size=32, budget=10, epochs=10)
    assert gradients_of(Plain(model, torch.optim.SGD(model.parameters(), lr=0.1)), course) == 30


def test_a_budget_that_is_no_whole_number_of_steps_begins_with_the_next_step() -> None:
    assert SharpSteps(start=0.29).among(100)[0] == 29  # 0.29 * 100 is 28.999999999999996
    assert SharpSteps(start=0.07).among(100)[0] == 7  # and 0.07 * 100 is 7.000000000000001
    assert SharpSteps(start=0.291).among(100)[0] == 30
    assert SharpSteps(end=0.291).among(100)[-1] == 29


@pytest.mark.parametrize("options", [{"from_": 0.4}, {"until": 0.4}, {"every": 2}, {"ascent": 0.5}])
def test_what_a_closure_cannot_say_is_asked_for(options: dict[str, float]) -> None:
    model, (batch,) = SmallNet(), batches(1)
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, **options)
    with pytest.raises(TypeError, match=r"a broadopt\.methods\.batch\.Batch"):
        step(closure(model, batch))
    if "ascent" not in options:
        with pytest.raises(TypeError, match="with its step and steps_per_budget"):
            step(batch_of(model, batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_": -0.1}, "step.from=-0.1: expected a number of budgets >= 0"),
        ({"from_": 0.5, "until": 0.5}, "step.until=0.5: expected more budgets than step.from=0.5, or null"),
        ({"every": 0}, "step.every=0: expected a whole number of steps >= 1"),
        ({"ascent": 0}, "step.ascent=0: expected a share of the batch above 0, at most 1"),
        ({"ascent": 1.5}, "step.ascent=1.5: expected a share of the batch above 0, at most 1"),
        (
            {"ascent": 0.5, "noise": "replay"},
            "step.noise=replay: with step.ascent=0.5 it draws for fewer images; expected fresh",
        ),
        ({"layers": "bn"}, "step.layers=bn: expected all or normalisation"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(options: dict[str, object], message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO, **options)
    assert str(error.value) == message


SAM, LOOKSAM, MSAM = (f"broadopt.methods.{name}" for name in ("sam.sam", "steps.looksam.LookSAM", "steps.msam.MSAM"))


@pytest.mark.parametrize(
    ("step", "more"),
    [
        ({"_target_": SAM, "from": 0.43}, 1),
        ({"_target_": SAM, "from": 0.25, "until": 0.6, "every": 3}, 1),
        ({"_target_": SAM, "from": 0.43, "ascent": 0.25}, 0.25),
        ({"_target_": SAM, "until": 0.5, "second_order": True}, 3),
        ({"_target_": SAM, "from": 0.5, "ascent": 0.5, "second_order": True}, 1.5),
        ({"_target_": LOOKSAM, "from": 0.3, "every": 5}, 1),
        ({"_target_": MSAM, "from": 0.5}, 0),
    ],
)
def test_the_share_of_the_gradients_by_an_epoch_is_that_of_a_count_step_by_step(
    step: dict[str, Any], more: float
) -> None:
    """15 epochs of 4 steps with a budget of 10: a collector has the training go on."""
    sharp = [
        step.get("from", 0) <= number / 40 < step.get("until", math.inf) and number % step.get("every", 1) == 0
        for number in range(60)
    ]
    share = share_by({"step": step, "budget": 10.0, "batch_size": 16}, epochs=15.0, images=64)
    assert share is not None
    for epoch in range(1, 16):
        counted = [1 + more * one for one in sharp]
        assert share(float(epoch)) == pytest.approx(sum(counted[: 4 * epoch]) / sum(counted), rel=1e-12)
