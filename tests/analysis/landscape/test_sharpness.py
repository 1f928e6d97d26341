"""Sharpness in closed form on quadratics, the ascent on networks, and ASAM's invariance under rescaling."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from small_networks import Quadratic, Reads, data, network
from torch import Tensor

from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.sharpness import (
    Ball,
    ascend,
    rescale,
    rises_along,
    sharpness_in,
    standard_error,
)
from broadopt.errors import InputError
from broadopt.methods.sam import sam_perturbation
from broadopt.models.resnet import ResNet

BALLS = [Ball(rho=0.3, p=p, scale=scale) for p in (2, math.inf) for scale in ("one", "element", "filter")]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def weights() -> list[Tensor]:
    """A filter bank of 2 x 1 x 2 x 1 and a vector of 3."""
    bank = torch.tensor([3, -4, 0.5, 1.2], dtype=torch.float64).view(2, 1, 2, 1)
    return [bank, torch.tensor([-2, 0.25, 1], dtype=torch.float64)]


def size_of(scale: str) -> Tensor:
    w = torch.cat([weight.flatten() for weight in weights()])
    filters = torch.tensor([5, 5, 1.3, 1.3], dtype=torch.float64)  # the norms of (3, -4) and (0.5, 1.2)
    return {"one": torch.ones(7).double(), "element": w.abs(), "filter": torch.cat([filters, w[4:].abs()])}[scale]


@pytest.mark.parametrize("scale", ["one", "element", "filter"])
def test_a_round_quadratic_is_solved_in_the_first_step(scale: str) -> None:
    # With A = c T^-2 the loss is round in the coordinates u = T^-1 eps: max <T g, u> + c |u|^2 / 2 over |u| <= rho.
    c, rho = 0.7, 0.4
    loss = Quadratic(torch.diag(c / size_of(scale) ** 2), normal(1, 7), weights())
    slope = float((size_of(scale) * torch.cat([part.flatten() for part in loss.gradient()[1]])).norm())
    found = sharpness_in(loss, Ball(rho=rho, scale=scale), steps=3)
    assert found.first_order == pytest.approx(rho * slope, rel=1e-12)
    assert found.one_step == pytest.approx(rho * slope + c * rho**2 / 2, rel=1e-12)
    assert found.highest == pytest.approx(rho * slope + c * rho**2 / 2, rel=1e-12)
    assert math.isnan(found.error)


@pytest.mark.parametrize("scale", ["one", "element", "filter"])
def test_with_infinite_p_a_convex_diagonal_quadratic_is_highest_in_a_corner(scale: str) -> None:
    diagonal, rho = torch.linspace(0.1, 2, 7, dtype=torch.float64), 0.2
    loss = Quadratic(torch.diag(diagonal), normal(1, 7), weights())
    slope = torch.cat([part.flatten() for part in loss.gradient()[1]])
    expected = float((rho * size_of(scale) * slope.abs() + diagonal * (rho * size_of(scale)) ** 2 / 2).sum())
    found = sharpness_in(loss, Ball(rho=rho, p=math.inf, scale=scale), steps=4)
    assert found.first_order == pytest.approx(float((rho * size_of(scale) * slope.abs()).sum()), rel=1e-12)
    assert found.one_step == pytest.approx(expected, rel=1e-12)
    assert found.highest == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", ["one", "element", "filter"])
def test_the_ascent_reaches_the_maximum_that_the_secular_equation_gives(scale: str) -> None:
    B = normal(7, 7, seed=1)
    A, rho = B @ B.T / 7, 0.5
    loss = Quadratic(A, normal(1, 7), weights())
    slope = (size_of(scale) * torch.cat([part.flatten() for part in loss.gradient()[1]])).numpy()
    values, basis = np.linalg.eigh((size_of(scale)[:, None] * A * size_of(scale)).numpy())
    g = basis.T @ slope
    # The maximum lies on the sphere, where (mu - T A T) u = T g with mu above every eigenvalue.
    mu = brentq(lambda m: np.sum((g / (m - values)) ** 2) - rho**2, values[-1] + 1e-9, values[-1] + 1e4, xtol=1e-13)
    u = g / (mu - values)
    expected = float(g @ u + values @ u**2 / 2)
    found = sharpness_in(loss, Ball(rho=rho, scale=scale), steps=200)
    assert found.highest == pytest.approx(expected, rel=1e-8)
    assert found.one_step < found.highest * (1 - 1e-4)  # the first step alone is not there


def test_a_maximum_inside_the_ball_is_met() -> None:
    peak = torch.cat([weight.flatten() for weight in weights()]) + 0.1 * normal(7, seed=3)
    loss = Quadratic(-2 * torch.eye(7).double(), 2 * peak[None], weights())  # -|w - peak|^2 + |peak|^2
    steps, rho = 40, 1.0
    highest = sharpness_in(loss, Ball(rho=rho), steps=steps).highest
    expected = float((0.1 * normal(7, seed=3)).square().sum())
    # The points walk to and fro over the peak on the line of the gradient: the last two enclose it.
    assert expected - (2 * rho / (steps + 1)) ** 2 <= highest <= expected + 1e-12


def test_m_sharpness_is_the_mean_over_chunks_weighted_by_their_size() -> None:
    loss = Quadratic(0.5 * torch.eye(7).double(), normal(7, 7), weights())
    rho, start = 0.3, 0.5 * torch.cat([weight.flatten() for weight in weights()])
    norms = [float((start + loss.b[chunk].mean(0)).norm()) for chunk in (slice(0, 3), slice(3, 6), slice(6, 7))]
    rises = np.array([rho * norm + 0.5 * rho**2 / 2 for norm in norms])
    found = sharpness_in(loss, Ball(rho=rho), steps=2, m=3)
    mean = (3 * rises[0] + 3 * rises[1] + rises[2]) / 7
    assert found.highest == pytest.approx(mean, rel=1e-12)
    shares = np.array([3, 3, 1]) / 7
    assert found.error == pytest.approx(np.sqrt(1.5 * np.sum((shares * (rises - mean)) ** 2)), rel=1e-12)
    assert sharpness_in(loss, Ball(rho=rho), steps=2).highest < found.highest  # one perturbation for all rises less


def test_the_standard_error_of_equal_shares_is_the_usual_one() -> None:
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert standard_error(values, np.full(4, 0.25)) == pytest.approx(values.std(ddof=1) / 2, rel=1e-12)
    assert math.isnan(standard_error(np.array([1.0]), np.array([1.0])))


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"{ball.scale}-{ball.p}")
def test_no_point_of_the_ball_is_higher_on_a_network_and_the_weights_come_back(ball: Ball) -> None:
    model = network()
    loss = Loss(model, *data())
    before = [parameter.detach().clone() for parameter in model.parameters()]
    found = sharpness_in(loss, ball, steps=30)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert 0 < found.one_step <= found.highest
    start, scales = loss.value(), ball.scales(loss.parameters)
    for seed in range(50):
        parts = normal(loss.size, seed=seed).split([weight.numel() for weight in before])
        inner = [part.view_as(weight) * 1e6 for part, weight in zip(parts, before, strict=True)]
        ball.project(inner)
        with torch.no_grad():
            for parameter, weight, t, u in zip(loss.parameters, before, scales, inner, strict=True):
                parameter.copy_(weight + t * u)
        assert loss.value() - start < found.highest


def test_the_gradient_promises_what_a_small_step_does() -> None:
    for ball in BALLS:
        found = sharpness_in(Loss(network(), *data()), Ball(rho=1e-7, p=ball.p, scale=ball.scale), steps=1)
        assert found.one_step == pytest.approx(found.first_order, rel=1e-4)


def test_the_first_step_is_sams() -> None:
    model = network()
    loss = Loss(model, *data())
    start, gradients = loss.gradient()
    with torch.no_grad():
        perturbation = sam_perturbation(loss.parameters, gradients, rho=0.2, p=2)
    moved = network()
    with torch.no_grad():
        torch._foreach_add_(list(moved.parameters()), perturbation)
    expected = Loss(moved, *data()).value() - start
    assert sharpness_in(loss, Ball(rho=0.2), steps=1).one_step == pytest.approx(expected, rel=1e-12)


def test_rises_along_a_direction_are_those_of_the_radii() -> None:
    loss = Quadratic(torch.eye(7).double(), normal(1, 7), weights())
    slope = torch.cat([part.flatten() for part in loss.gradient()[1]]).norm()

    def direction(_: object, gradients: list[Tensor]) -> list[Tensor]:
        return sam_perturbation([], gradients, rho=1, p=2)

    expected = [float(rho * slope + rho**2 / 2) for rho in (0.0, 0.1, 2.0)]
    assert rises_along(loss, direction, [0, 0.1, 2]) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert torch.equal(loss.parameters[1].detach(), weights()[1])


def test_a_rescaled_network_computes_the_same_and_only_its_plain_sharpness_changes() -> None:
    model, (images, labels) = network(), data()
    before = model(images)
    plain, *adaptive = (sharpness_in(Loss(model, images, labels), ball, steps=5) for ball in BALLS)
    assert rescale(model, images) == ["1", "6"]  # BN and the first linear layer; Tanh is not ReLU
    assert torch.equal(model(images), before)
    rescaled = [sharpness_in(Loss(model, images, labels), ball, steps=5) for ball in BALLS]
    assert rescaled[0].highest > 1.2 * plain.highest
    for ball, ours, theirs in zip(BALLS[1:], rescaled[1:], adaptive, strict=True):
        if ball.scale == "one":  # p = inf
            assert ours.highest > 1.2 * theirs.highest
        else:
            assert asdict(ours) == pytest.approx(asdict(theirs), rel=1e-12, nan_ok=True)


def test_in_a_resnet_the_first_bn_of_each_block_is_rescaled() -> None:
    torch.manual_seed(0)
    model = ResNet(num_classes=10, depth=8).eval()
    images = normal(4, 3, 32, 32).float()
    before = model(images)
    assert rescale(model, images) == ["blocks.0.bn1", "blocks.1.bn1", "blocks.2.bn1"]
    assert torch.equal(model(images), before)
    assert torch.equal(model.bn.weight, torch.ones(16))  # what was tried in vain is as it was
    assert torch.equal(model.blocks[0].bn1.weight, torch.full((16,), 4.0))


def test_a_ball_in_which_the_loss_overflows_is_refused() -> None:
    loss = Loss(network(dtype=torch.float32), *data(dtype=torch.float32))
    before = [parameter.detach().clone() for parameter in loss.parameters]
    with pytest.raises(InputError, match=r"^the loss is not finite at these weights$"):
        ascend(loss, Ball(rho=1e30), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, loss.parameters, strict=True))


def test_a_loss_is_read_once_and_is_the_sum_of_its_batches_to_the_bit() -> None:
    images, labels = data()
    model = network()
    loss = Loss(model, images, labels, batch_size=3)
    expected = 0.0
    with torch.no_grad():
        for some, theirs in zip(images.split(3), labels.split(3), strict=True):
            expected += float(torch.nn.functional.cross_entropy(model(some), theirs, reduction="sum") / 20)
    with Reads() as reads:
        assert loss.value() == expected
        assert reads.count == 1
        assert loss.gradient()[0] == expected
        assert reads.count == 2
