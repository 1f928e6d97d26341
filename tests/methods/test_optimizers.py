"""Optimizers below the steps, and the bound on the gradient, over any step.

The oracles: formulas.py in float64; torch's own optimizers on a twin, bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice

import pytest
import torch
from formulas import (
    CLOSE,
    SmallNet,
    adamw_update,
    batches,
    closure,
    flat,
    gradients,
    ones,
    perturbation,
    sgd_update,
    weights_of,
)
from short_training import assert_same_course, sgd, training
from torch import nn
from torch.utils._pytree import tree_map_only

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import Recipe
from broadopt.errors import InputError
from broadopt.methods.sam import sam
from broadopt.methods.step import Plain
from broadopt.methods.steps.optimizers import base_optimizer, recordable, unheeded
from broadopt.methods.steps.optimizers import sgd as sgd_of
from broadopt.methods.swa import WeightAverage
from broadopt.training.loop import Training


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return run_config(compose(["method=sam"])).recipe


def sizes(recipe: Recipe) -> dict[str, float]:
    return {key: getattr(recipe, key) for key in ("lr", "momentum", "nesterov", "weight_decay")}


def test_sgd_is_the_optimizer_of_the_papers_bit_for_bit(recipe: Recipe) -> None:
    assert sizes(recipe) == {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 5e-4}
    model, twin = SmallNet(), SmallNet()
    steps = (
        Plain(model, base_optimizer(recipe, model.parameters())),
        Plain(twin, torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)),
    )
    for batch in batches(3):
        for step, network in zip(steps, (model, twin), strict=True):
            step(closure(network, batch))
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    assert steps[0].optimizer.defaults == steps[1].optimizer.defaults


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_weight_whose_first_gradient_comes_late_is_updated_as_by_torchs_loop(momentum: float) -> None:
    """As of a layer that stochastic depth left out; torch's fused update takes momenta of all weights or of none."""
    own, twin = ([nn.Parameter(torch.ones(3)) for _ in range(3)] for _ in range(2))
    options = {"lr": 0.1, "momentum": momentum, "nesterov": False, "weight_decay": 0.01}
    optimizers = sgd_of(own, **options), torch.optim.SGD(twin, foreach=False, fused=False, **options)
    for present in ((0,), (0, 1), (1,), (0, 1)):
        for optimizer, weights in zip(optimizers, (own, twin), strict=True):
            optimizer.zero_grad()
            for place in present:
                weights[place].grad = torch.full((3,), 0.5 + place)
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(own, twin, strict=True))


def test_adamw_is_the_papers_formula() -> None:
    made, model = run_config(compose(["method=sgd", "optimizer=adamw", "lr=0.01"])).recipe, SmallNet()
    assert sizes(made) == {"lr": 0.01, "momentum": 0.0, "nesterov": False, "weight_decay": 0.01}
    step = Plain(model, base_optimizer(made, model.parameters()))
    weights, means, squares = weights_of(model), {}, {}
    for number, batch in enumerate(batches(4), 1):
        step(closure(model, batch))
        adamw_update(weights, gradients(weights, *batch), means, squares, number, lr=0.01, weight_decay=0.01)
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)


def test_an_update_may_be_recorded_within_and_its_groups_are_as_before_outside(recipe: Recipe) -> None:
    model = SmallNet()
    made = torch.optim.AdamW([{"params": [weight]} for weight in model.parameters()])
    made.param_groups[0]["capturable"] = True
    before = [True, *[False] * (len(made.param_groups) - 1)]
    with recordable(made):
        assert [group["capturable"] for group in made.param_groups] == [True] * len(before)
    assert [group["capturable"] for group in made.param_groups] == before
    sgd = base_optimizer(recipe, model.parameters())
    with recordable(sgd):
        assert "capturable" not in sgd.param_groups[0]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        (("collect=swa",), "high=0.05"),
        (("collect=fge",), "high=0.05"),
        (("collect=swa", "schedule.high=1e-3"), "decay_to=0.05"),
    ],
)
def test_the_learning_rates_of_a_protocol_are_for_sgd(keys: tuple[str, ...], key: str) -> None:
    assert run_config(compose(["method=sgd", *keys])).recipe.schedule["high"] <= 0.05
    with pytest.raises(InputError) as error:
        run_config(compose(["method=sgd", "optimizer=adamw", *keys]))
    assert str(error.value) == (
        f"schedule.{key}: the protocol's is SGD's; expected schedule.high= and schedule.decay_to= of at most lr=0.001 "
        "with another optimizer"
    )


def test_an_average_of_adamw_is_trained_at_learning_rates_of_its_own() -> None:
    keys = ("optimizer=adamw", "collect=swa", "schedule.high=1e-3", "schedule.decay_to=5e-4")
    schedule = run_config(compose(["method=sgd", *keys])).recipe.schedule
    assert (schedule["lr"], schedule["high"], schedule["decay_to"]) == (1e-3, 1e-3, 5e-4)


def test_an_optimizer_of_ones_own_is_given_what_it_takes(recipe: Recipe) -> None:
    node = {"_target_": "torch.optim.RMSprop", "alpha": 0.5}
    made = base_optimizer(replace(recipe, optimizer=node), SmallNet().parameters())
    assert isinstance(made, torch.optim.RMSprop)
    found = {key: made.defaults.get(key) for key in ("lr", "momentum", "weight_decay", "alpha")}
    assert found == {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "alpha": 0.5}


def test_what_an_optimizer_has_no_argument_for_is_named(recipe: Recipe) -> None:
    own = replace(recipe, optimizer={"_target_": "torch.optim.Rprop"})
    assert unheeded(own) == ["momentum=0.9", "weight_decay=0.0005"]
    assert unheeded(replace(own, momentum=0.0, weight_decay=0.0)) == []
    assert unheeded(recipe) == []


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "torch.nn.ParameterList"}, "expected what makes a torch.optim.Optimizer"),
        ({"_target_": "torch.optim.SGDD"}, "cannot be loaded"),
        ({"_target_": "torch.optim.SGD", "alpha": 0.5}, "unknown key optimizer.alpha"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_one_line(recipe: Recipe, node: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        base_optimizer(replace(recipe, optimizer=node), SmallNet().parameters())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bound", [0.2, 1e6])
@pytest.mark.parametrize("make", [Plain, partial(sam, rho=0.3)], ids=["sgd", "sam"])
def test_the_gradient_of_an_update_is_bounded_in_its_norm_over_all_parameters(
    recipe: Recipe, make: type[Plain], bound: float
) -> None:
    model: nn.Module = SmallNet()
    step = make(model, base_optimizer(replace(recipe, clip=bound), model.parameters()))
    weights, momenta, bounded = weights_of(model), {}, []
    for batch in batches(3):
        step(closure(model, batch))
        slopes = gradients(weights, *batch)
        if make is not Plain:
            eps = perturbation(weights, slopes, rho=0.3, p=2, scales=ones(weights))
            slopes = gradients({name: weights[name] + eps[name] for name in weights}, *batch)
        factor = min(1.0, bound / (float(flat(slopes).norm()) + 1e-6))  # torch's own guard against a zero norm
        bounded.append(factor < 1)
        sgd_update(weights, {name: factor * slope for name, slope in slopes.items()}, momenta, **sizes(recipe))
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert bounded == [bound < 1] * 3


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


@pytest.mark.parametrize("optimizer", [sgd, adamw], ids=["sgd", "adamw"])
def test_a_state_that_was_saved_in_another_memory_format_goes_on_as_in_ones_own(
    optimizer: Callable[[nn.Module], torch.optim.Optimizer],
) -> None:
    """The oracle is the same state, copied into contiguous tensors ahead of loading, bit for bit."""

    def begun() -> Training:
        return training(WeightAverage(start=0.25, budgets=(2,)), budget=2, optimizer=optimizer)

    saving, taking, twin = begun(), begun(), begun()
    saving.parts.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for inputs in islice(saving.parts.data.inputs(0, 0), 3):
        saving.train_on(*inputs)
    state = saving.state_dict()
    kept = [one for each in state["optimizer"]["state"].values() for one in each.values() if one.dim() == 4]
    assert kept
    assert not any(one.is_contiguous() for one in kept)
    same = tree_map_only(torch.Tensor, lambda one: one.clone(memory_format=torch.contiguous_format), state)
    for one, start in ((taking, state), (twin, same)):
        one.load_state_dict(start)
        for inputs in islice(one.parts.data.inputs(1, 0), 2):
            one.train_on(*inputs)
    assert_same_course(taking, twin)
