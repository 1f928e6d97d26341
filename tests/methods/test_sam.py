"""SAM: the perturbation of equation 2 and the step made of it.

The oracles: formulas.py (the paper's equations in float64, without broadopt), the published two passes written out, and
random directions of the same size, none of which may rise more.
"""

import math

import pytest
import torch
from formulas import (
    CLOSE,
    NORMS,
    SmallNet,
    batches,
    closure,
    feasible_directions,
    flat,
    gradients,
    loss,
    ones,
    perturbation,
    sharpness_aware,
    weights_of,
)
from torch import Tensor, nn
from torch.nn import functional

from broadopt.errors import InputError
from broadopt.methods.sam import sam, sam_perturbation, steepest

PLAIN = {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
HEAVY_BALL = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": False}
NESTEROV = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
OPTIONS = {"bn": "both", "noise": "fresh"}


def gradient_list(*, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((4, 3, 3, 3), (4,), (2, 4), ())]


def perturbed(slopes: list[Tensor], *, rho: float, p: float) -> Tensor:
    return flat(sam_perturbation(slopes, [slope.clone() for slope in slopes], rho=rho, p=p))


def test_formulas_are_those_of_the_network_that_the_tests_train() -> None:
    model, (batch,) = SmallNet(), batches(1)
    state = weights_of(model) | {name: buffer.clone() for name, buffer in model.named_buffers()}
    module_loss = lambda weights: functional.cross_entropy(  # noqa: E731
        torch.func.functional_call(model, state | weights, (batch[0],)), batch[1]
    )
    weights = weights_of(model)
    torch.testing.assert_close(loss(weights, *batch), module_loss(weights), rtol=1e-13, atol=0)
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    expected = torch.autograd.grad(module_loss(leaves), list(leaves.values()))
    for name, slope in zip(weights, expected, strict=True):
        assert slope.abs().max() > 1e-4
        torch.testing.assert_close(gradients(weights, *batch)[name], slope, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("options", [PLAIN, HEAVY_BALL, NESTEROV], ids=["plain", "momentum", "nesterov"])
@pytest.mark.parametrize("p", NORMS)
def test_five_steps_equal_the_papers_formula(p: float, options: dict) -> None:
    model, data, rho = SmallNet(), batches(5), 0.05 if p == math.inf else 0.3
    expected, momenta = sharpness_aware(weights_of(model), data, rho=rho, p=p, scales=ones, **options)
    optimizer = torch.optim.SGD(model.parameters(), fused=True, **options)
    step = sam(model, optimizer, rho=rho, p=p, **OPTIONS)
    for batch in data:
        step(closure(model, batch))
    torch.testing.assert_close(weights_of(model), expected, **CLOSE)
    if options["momentum"]:
        buffers = [optimizer.state[parameter]["momentum_buffer"] for parameter in model.parameters()]
        torch.testing.assert_close(buffers, list(momenta.values()), **CLOSE)


def test_second_gradient_is_taken_at_the_perturbed_weights() -> None:
    model, (batch,) = SmallNet(), batches(1)
    weights, losses = weights_of(model), []
    eps = perturbation(weights, gradients(weights, *batch), rho=0.5, p=2, scales=ones(weights))
    above = {name: weights[name] + eps[name] for name in weights}
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, **OPTIONS)
    returned = step(closure(model, batch, losses))
    assert losses == pytest.approx([float(loss(weights, *batch)), float(loss(above, *batch))], rel=1e-13)
    assert losses[1] > losses[0] + 0.1
    assert returned.item() == losses[0]


def test_p_2_is_the_published_two_pass_optimizer() -> None:
    model, twin, data, rho = SmallNet(), SmallNet(), batches(5), 0.2
    step = sam(model, torch.optim.SGD(model.parameters(), **HEAVY_BALL), rho=rho, **OPTIONS)
    optimizer = torch.optim.SGD(twin.parameters(), **HEAVY_BALL)
    for batch in data:
        step(closure(model, batch))
        optimizer.zero_grad()
        functional.cross_entropy(twin(batch[0]), batch[1]).backward()
        norm = math.sqrt(sum(float((parameter.grad**2).sum()) for parameter in twin.parameters()))
        before = [parameter.detach().clone() for parameter in twin.parameters()]
        for parameter in twin.parameters():
            parameter.data += rho / norm * parameter.grad
        optimizer.zero_grad()
        functional.cross_entropy(twin(batch[0]), batch[1]).backward()
        for parameter, value in zip(twin.parameters(), before, strict=True):
            parameter.data = value
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **CLOSE)


@pytest.mark.parametrize("p", NORMS)
def test_perturbation_has_the_p_norm_rho_and_no_feasible_direction_rises_more(p: float) -> None:
    for seed in range(5):
        slopes, rho = gradient_list(seed=seed), 0.7
        eps, slope = perturbed(slopes, rho=rho, p=p), flat(slopes)
        assert torch.linalg.vector_norm(eps, p).item() == pytest.approx(rho, rel=1e-13)
        dual = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
        assert (eps @ slope).item() == pytest.approx(rho * torch.linalg.vector_norm(slope, dual).item(), rel=1e-13)
        rises = feasible_directions(eps, rho=rho, p=p) @ slope
        assert (rises <= eps @ slope + 1e-12).all()
        assert rises.max() > 0.5 * (eps @ slope)


def test_p_2_is_along_the_gradient_p_inf_its_sign_and_p_1_its_largest_entry() -> None:
    slopes = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor(-4.0, dtype=torch.float64)]
    assert perturbed(slopes, rho=0.5, p=2).tolist() == pytest.approx([0.3, 0, -0.4], rel=1e-15)
    assert perturbed(slopes, rho=0.5, p=math.inf).tolist() == [0.5, 0, -0.5]
    assert perturbed(slopes, rho=0.5, p=1).tolist() == [0, 0, -0.5]


def test_p_1_shares_rho_between_equally_large_entries() -> None:
    slopes = [torch.tensor([2.0, 1.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)]
    assert perturbed(slopes, rho=1.0, p=1).tolist() == [0.5, 0, -0.5]


@pytest.mark.parametrize("p", NORMS)
def test_zero_gradients_give_zero_perturbation(p: float) -> None:
    eps = perturbed([torch.zeros(3, 2), torch.zeros(())], rho=1.0, p=p)
    assert torch.equal(eps, torch.zeros(7))


@pytest.mark.parametrize("p", NORMS)
def test_step_at_a_stationary_point_stays_there(p: float) -> None:
    model = SmallNet()
    nn.init.zeros_(model.linear.weight)
    nn.init.zeros_(model.linear.bias)
    before = weights_of(model)
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, p=p, **OPTIONS)

    def flat_loss() -> Tensor:
        value = model(torch.ones(4, 3, 6, 6, dtype=torch.float64)).square().sum()
        value.backward()
        return value.detach()

    assert step(flat_loss).item() == 0
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e-12, 1e-4, 1.0, 1e4, 1e12])
@pytest.mark.parametrize("p", [1, 1.05, 1.25, 2, 3, 100, math.inf])
def test_direction_does_not_depend_on_the_size_of_float32_gradients(p: float, scale: float) -> None:
    slopes = gradient_list(dtype=torch.float32)
    expected = flat(steepest([slope.double() for slope in slopes], p=p))
    direction = flat(steepest([slope * scale for slope in slopes], p=p)).double()
    if p == 2 and scale < 1e-16:  # the published guard: nothing to climb, and never further than rho
        assert torch.linalg.vector_norm(direction) < 1
    else:
        torch.testing.assert_close(direction, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("p", ["inf", math.inf])
def test_p_may_be_written_inf(p: float | str) -> None:
    model, (batch,) = SmallNet(), batches(1)
    losses: list[float] = []
    sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.01, p=p, **OPTIONS)(closure(model, batch, losses))
    start = weights_of(SmallNet())
    above = {name: start[name] + 0.01 * slope.sign() for name, slope in gradients(start, *batch).items()}
    assert losses[1] == pytest.approx(float(loss(above, *batch)), rel=1e-13)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": -0.1}, "step.rho=-0.1: expected a number >= 0"),
        ({"rho": math.nan}, "step.rho=nan: expected a number >= 0"),
        ({"rho": math.inf}, "step.rho=inf: expected a number >= 0"),
        ({"rho": 0.1, "p": 0.99}, "step.p=0.99: expected a number >= 1, or inf"),
        ({"rho": 0.1, "p": math.nan}, "step.p=nan: expected a number >= 1, or inf"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(values: dict, message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        sam(model, torch.optim.SGD(model.parameters(), lr=0.1), **values, **OPTIONS)
    assert str(error.value) == message
