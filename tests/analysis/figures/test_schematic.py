"""The steps of the schematic against their closed forms."""

import math

import pytest
import torch

from broadopt.analysis.figures.schematic import CURVATURES, LR, MINIMUM, RHO, START, ball, hessian, loss, steps

WEIGHT, AWAY = torch.tensor(START, dtype=torch.float64), torch.tensor(START).double() - torch.tensor(MINIMUM).double()


def test_the_loss_is_the_quadratic_of_its_curvatures() -> None:
    assert torch.linalg.eigvalsh(hessian()).tolist() == pytest.approx(CURVATURES)
    assert float(loss(WEIGHT)) == pytest.approx(float(AWAY @ hessian() @ AWAY) / 2)


def test_steps_are_those_of_the_formulas() -> None:
    """SAM: eps = rho g / |g|; ASAM: eps = rho w^2 g / |w g|; then w - lr H (w + eps - m)."""
    gradient = hessian() @ AWAY
    scaled = WEIGHT.abs() * gradient
    wanted = {
        "SGD": torch.zeros(2, dtype=torch.float64),
        "SAM": RHO["SAM"] * gradient / gradient.norm(),
        "ASAM": RHO["ASAM"] * WEIGHT.abs() * scaled / scaled.norm(),
    }
    found = {step.method: step for step in steps()}
    assert list(found) == list(wanted)
    for method, eps in wanted.items():
        torch.testing.assert_close(found[method].perturbation, eps)
        torch.testing.assert_close(found[method].end, WEIGHT - LR * hessian() @ (AWAY + eps))


@pytest.mark.parametrize("method", ["SAM", "ASAM"])
def test_the_perturbation_is_the_highest_point_of_its_ball_to_first_order(method: str) -> None:
    step = next(step for step in steps() if step.method == method)
    boundary = ball(method, WEIGHT, count=3601) - WEIGHT
    heights = boundary @ step.gradient
    assert float(step.perturbation @ step.gradient) == pytest.approx(float(heights.max()), rel=1e-5)
    assert math.dist(boundary[int(heights.argmax())].tolist(), step.perturbation.tolist()) < 2e-3
