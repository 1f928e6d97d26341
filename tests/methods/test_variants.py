"""LookSAM, GSAM, friendly SAM, MSAM and SAM's exact gradient, over SGD and AdamW.

The oracle: each paper's formula in float64, written here with formulas.py; torch.func.grad of L(w + eps(w)).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from formulas import (
    CLOSE,
    SmallNet,
    Tensors,
    adamw_update,
    batches,
    flat,
    gradients,
    loss,
    ones,
    part_orthogonal,
    perturbation,
    sgd_update,
    weights_of,
)
from handed_batches import batch_of
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.asam import asam
from broadopt.methods.batch import Batch
from broadopt.methods.sam import sam
from broadopt.methods.step import Step
from broadopt.methods.steps.friendly import FriendlySAM
from broadopt.methods.steps.gsam import gsam
from broadopt.methods.steps.looksam import LookSAM
from broadopt.methods.steps.msam import MSAM
from broadopt.methods.steps.optimizers import adamw, sgd

Make = Callable[..., Step]
Update = Callable[[Tensors, Tensors], None]
Slopes = Callable[[int, Tensors, tuple[Tensor, Tensor]], Tensors]

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
ADAMW = {"lr": 0.01, "weight_decay": 0.05}
RHO = 0.3


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two, of very different gradients."""
    return [{"params": list(model.linear.parameters())}, {"params": [*model.conv.parameters(), *model.bn.parameters()]}]


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    return sgd(groups_of(model), **SGD) if name == "sgd" else adamw(groups_of(model), **ADAMW)


def update_of(name: str) -> Update:
    momenta: Tensors = {}
    means, squares, done = {}, {}, []

    def adam(weights: Tensors, slopes: Tensors) -> None:
        done.append(1)
        adamw_update(weights, slopes, means, squares, len(done), **ADAMW)

    update = (lambda weights, slopes: sgd_update(weights, slopes, momenta, **SGD)) if name == "sgd" else adam
    update.momenta = momenta if name == "sgd" else means
    return update


def trained(make: Make, optimizer: str, steps: int) -> tuple[nn.Module, Step, list[Batch]]:
    model = SmallNet()
    step = make(model, optimizer_of(optimizer, model))
    data = [batch_of(model, batch, number) for number, batch in enumerate(batches(steps))]
    for batch in data:
        step(batch)
    return model, step, data


def expected(slopes_of: Slopes, update: Update, steps: int) -> Tensors:
    weights = weights_of(SmallNet())
    for number, batch in enumerate(batches(steps)):
        update(weights, slopes_of(number, weights, batch))
    return weights


def at(weights: Tensors, move: Tensors) -> Tensors:
    return {name: weights[name] + move[name] for name in weights}


def sam_gradient(weights: Tensors, batch: tuple[Tensor, Tensor], direction: Tensors | None = None) -> Tensors:
    slopes = gradients(weights, *batch) if direction is None else direction
    return gradients(at(weights, perturbation(weights, slopes, rho=RHO, p=2, scales=ones(weights))), *batch)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("first", [0, 2])
def test_looksam_reuses_the_orthogonal_part_with_the_norms_of_all_groups(optimizer: str, first: int) -> None:
    direction: Tensors = {}
    seen: list[Tensors] = []

    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        slopes = gradients(weights, *batch)
        seen.append(slopes)
        if number >= first and number % 3 == 0:
            sharp = sam_gradient(weights, batch)
            direction.update(part_orthogonal(sharp, slopes))
            return sharp
        if not direction:
            return slopes
        size = 0.7 * flat(slopes).norm() / flat(direction).norm()
        return {name: slopes[name] + size * direction[name] for name in slopes}

    make = partial(LookSAM, rho=RHO, alpha=0.7, every=3, from_=first / 10)
    model, step, data = trained(make, optimizer, 8)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of(optimizer), 8), **CLOSE)
    ascents = [number for number in (0, 3, 6) if number >= first]
    assert [batch.passes for batch in data] == [2 if number in ascents else 1 for number in range(8)]
    kept = {name: step.optimizer.state[weight]["looksam_direction"] for name, weight in model.named_parameters()}
    torch.testing.assert_close(kept, direction, **CLOSE)
    by_group = [
        flat({n: t for n, t in seen[-1].items() if n.startswith("linear") == is_linear}).norm()
        / flat({n: t for n, t in direction.items() if n.startswith("linear") == is_linear}).norm()
        for is_linear in (False, True)
    ]
    assert max(by_group) > 1.05 * min(by_group), "norms by groups would give other steps"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gsam_takes_the_part_of_the_gradient_that_the_sharp_one_does_not_see(optimizer: str) -> None:
    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        sharp = sam_gradient(weights, batch)
        vertical = part_orthogonal(gradients(weights, *batch), sharp)
        return {name: sharp[name] - 0.4 * vertical[name] for name in sharp}

    model, _, data = trained(partial(gsam, rho=RHO, alpha=0.4), optimizer, 4)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of(optimizer), 4), **CLOSE)
    assert [batch.passes for batch in data] == [2] * 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("every", [1, 2])
def test_friendly_sam_climbs_along_the_gradient_less_its_running_mean(optimizer: str, every: int) -> None:
    mean: Tensors = {}

    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        slopes = gradients(weights, *batch)
        if number % every:
            return slopes
        own = {name: slopes[name] - 0.8 * mean[name] for name in mean} if mean else slopes
        mean.update({name: 0.9 * mean[name] + 0.1 * slopes[name] if mean else slopes[name] for name in slopes})
        return sam_gradient(weights, batch, own)

    model, step, data = trained(partial(FriendlySAM, rho=RHO, sigma=0.8, decay=0.9, every=every), optimizer, 5)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of(optimizer), 5), **CLOSE)
    kept = {name: step.optimizer.state[weight]["friendly_mean"] for name, weight in model.named_parameters()}
    torch.testing.assert_close(kept, mean, **CLOSE)
    assert [batch.passes for batch in data] == [1 if number % every else 2 for number in range(5)]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_msam_takes_the_gradient_beyond_where_the_momentum_leads(optimizer: str) -> None:
    update = update_of(optimizer)

    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        momenta = update.momenta
        if not momenta or number < 1:
            return gradients(weights, *batch)
        size = RHO / flat(momenta).norm()
        return gradients({name: weights[name] - size * momenta[name] for name in weights}, *batch)

    model, _, data = trained(partial(MSAM, rho=RHO), optimizer, 5)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update, 5), **CLOSE)
    assert [batch.passes for batch in data] == [1] * 5


def objective(weights: Tensors, images: Tensor, labels: Tensor, names: tuple[str, ...], ascent: int) -> Tensor:
    """L(w + eps(w)) as a function of w, eps along the gradient of the first `ascent` images, by names."""
    slopes = {n: slope for n, slope in gradients(weights, images[:ascent], labels[:ascent]).items() if n in names}
    size = RHO / flat(slopes).norm()
    moved = {name: weight + size * slopes[name] if name in names else weight for name, weight in weights.items()}
    return loss(moved, images, labels)


ALL = tuple(weights_of(SmallNet()))


@pytest.mark.parametrize(
    ("options", "names", "ascent"),
    [({}, ALL, 8), ({"layers": "normalisation"}, ("bn.weight", "bn.bias"), 8), ({"ascent": 0.5}, ALL, 4)],
    ids=["all", "normalisation", "half"],
)
def test_the_second_order_step_is_the_gradient_of_the_perturbed_loss(
    options: dict[str, Any], names: tuple[str, ...], ascent: int
) -> None:
    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        return torch.func.grad(objective)(weights, *batch, names, ascent)

    model, step, data = trained(partial(sam, rho=RHO, second_order=True, bn="first", **options), "sgd", 3)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of("sgd"), 3), **CLOSE)
    first = trained(partial(sam, rho=RHO, bn="first", **options), "sgd", 3)[0]
    assert (model.conv.weight - first.conv.weight).abs().max() > 1e-3, "the term matters"
    assert [batch.passes for batch in data] == [1 + 3 * ascent / 8] * 3
    assert step.passes == 4
    assert model.bn.num_batches_tracked == 3
    assert all(parameter.grad is not None and parameter.grad.grad_fn is None for parameter in model.parameters())


def test_each_chunk_has_its_own_second_order_term() -> None:
    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for part in (slice(0, 5), slice(5, 8)):
            images, labels = batch[0][part], batch[1][part]
            slopes = torch.func.grad(objective)(weights, images, labels, ALL, len(labels))
            mean = {name: mean[name] + len(labels) / 8 * slopes[name] for name in mean}
        return mean

    model, _, data = trained(partial(sam, rho=RHO, second_order=True, chunk=5), "sgd", 2)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of("sgd"), 2), **CLOSE)
    assert [batch.passes for batch in data] == [4, 4]


def test_the_second_order_term_is_of_the_noise_that_gave_the_perturbation() -> None:
    masks: list[Tensor] = []
    model = SmallNet(dropout=0.5)
    model.dropout.register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    step = sam(model, optimizer_of("sgd", model), rho=RHO, second_order=True)
    (data,) = batches(1)
    torch.manual_seed(0)
    step(batch_of(model, data, 0))
    first, second, third = masks
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    after, twin = torch.get_rng_state(), SmallNet(dropout=0.5)
    torch.manual_seed(0)
    sam(twin, optimizer_of("sgd", twin), rho=RHO)(batch_of(twin, data, 0))
    assert torch.equal(torch.get_rng_state(), after), "what is drawn next is what it would be without the term"


@pytest.mark.parametrize("make", [LookSAM, FriendlySAM, partial(sam, second_order=True)])
def test_what_a_step_keeps_is_that_of_the_step_before_where_a_signal_ends_a_pass(make: Make) -> None:
    model, step, _ = trained(partial(make, rho=RHO), "adamw", 6)
    before, weights = state_of(step), weights_of(model)
    batch, calls = batch_of(model, batches(1)[0], 10), []

    def gradient(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*arguments)

    inner, batch.gradient = batch.gradient, gradient
    with pytest.raises(KeyboardInterrupt):
        step(batch)
    torch.testing.assert_close(state_of(step), before, rtol=0, atol=0)
    assert all(torch.equal(value, weights[name]) for name, value in weights_of(model).items())


def state_of(step: Step) -> list[dict[str, Tensor]]:
    return [{key: value.clone() for key, value in state.items()} for state in step.optimizer.state.values()]


def refusals() -> Iterator[tuple[Callable[[nn.Module, torch.optim.Optimizer], Step], str]]:
    yield partial(LookSAM, rho=RHO, alpha=-1), "step.alpha=-1: expected a number >= 0"
    yield partial(LookSAM, rho=RHO, every=0), "step.every=0: expected a whole number of steps >= 1"
    yield partial(gsam, rho=RHO, alpha=math.inf), "step.alpha=inf: expected a number >= 0"
    yield (
        partial(gsam, rho=RHO, layers="normalisation"),
        "step.layers=normalisation: GSAM needs the gradient of all parameters; expected all",
    )
    yield (
        partial(gsam, rho=RHO, perturbation="share"),
        "step.perturbation=share: GSAM compares the gradients of the whole batch; expected global",
    )
    yield partial(FriendlySAM, rho=RHO, sigma=-1), "step.sigma=-1: expected a number >= 0"
    yield partial(FriendlySAM, rho=RHO, decay=1), "step.decay=1: expected a number from 0 to below 1"
    yield partial(MSAM, rho=-1), "step.rho=-1: expected a number >= 0"
    yield (
        partial(sam, rho=RHO, second_order=True, p=3),
        "step.second_order=true: step.p=3 has no such gradient; expected step.p=2",
    )


@pytest.mark.parametrize(("make", "message"), list(refusals()))
def test_values_out_of_range_are_refused_in_one_line(make: Make, message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        make(model, optimizer_of("sgd", model))
    assert str(error.value) == message


def test_msam_needs_a_momentum() -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        MSAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=RHO)
    assert (
        str(error.value) == "step._target_: MSAM moves the weights along the momentum; expected momentum > 0 or adamw"
    )
    step = MSAM(model, torch.optim.Adamax(model.parameters(), lr=0.1), rho=RHO)
    step.buffer = "no such buffer"
    step(batch_of(model, batches(1)[0], 0))
    with pytest.raises(RuntimeError, match="which Adamax does not keep in its state"):
        step(batch_of(model, batches(1)[0], 1))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, ""),
        ({"ascent": 0.5}, "step.ascent=0.5: the first images of a batch are those of one device; expected 1"),
        ({"second_order": True}, "step.second_order=true: second derivatives are those of one device; expected false"),
        (
            {"layers": "normalisation"},
            "step.layers=normalisation: its first pass averages no gradients; expected step.perturbation=share",
        ),
        ({"layers": "normalisation", "perturbation": "share"}, ""),
    ],
)
def test_a_step_says_why_several_processes_cannot_share_its_batches(options: dict[str, Any], reason: str) -> None:
    model = SmallNet()
    assert sam(model, optimizer_of("sgd", model), rho=RHO, **options).one_process == reason


@pytest.mark.parametrize("make", [sam, asam])
def test_sharp_steps_are_the_same_over_adamw(make: Make) -> None:
    def scales(weights: Tensors) -> Tensors:
        return {n: w.abs() + 0.01 if make is asam and "weight" in n else torch.ones_like(w) for n, w in weights.items()}

    def slopes_of(number: int, weights: Tensors, batch: tuple[Tensor, Tensor]) -> Tensors:
        slopes = gradients(weights, *batch)
        return gradients(at(weights, perturbation(weights, slopes, rho=RHO, p=2, scales=scales(weights))), *batch)

    model, _, _ = trained(partial(make, rho=RHO), "adamw", 4)
    torch.testing.assert_close(weights_of(model), expected(slopes_of, update_of("adamw"), 4), **CLOSE)


def test_an_optimizer_that_takes_betas_takes_no_momentum() -> None:
    parameters = list(SmallNet().parameters())
    for options, given in (({"momentum": 0.9}, "momentum=0.9"), ({"nesterov": True}, "nesterov=true")):
        with pytest.raises(InputError) as error:
            adamw(parameters, lr=0.1, weight_decay=0, **options)
        found = f"{given}: AdamW has optimizer.betas in its place; expected momentum=0 nesterov=false"
        assert str(error.value) == found
