"""ASAM: Algorithm 1 of the paper, its perturbation and its invariance.

The oracles: formulas.py (the paper's equations in float64, without broadopt), the authors' two passes written out, and
random directions of the same size, none of which may rise more.
"""

import math

import pytest
import torch
from formulas import (
    CLOSE,
    NORMS,
    Batch,
    SmallNet,
    Tensors,
    batches,
    closure,
    feasible_directions,
    flat,
    sharpness_aware,
    weights_of,
)
from torch import Tensor, nn
from torch.nn import functional

from broadopt.errors import InputError
from broadopt.methods.asam import asam, asam_perturbation, scale_of
from broadopt.methods.sam import sam, sam_perturbation
from broadopt.methods.step import SharpnessAware

OPTIMIZERS = {
    "plain": {"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "nesterov": False},
    "momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": False},
    "nesterov": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True},
}
OPTIONS = {"bn": "both", "noise": "fresh"}
NORMALISATIONS = ("element", "filter")
RADII = {1: 1.0, 1.25: 1.0, 2: 1.0, 3: 0.5, math.inf: 0.1}


def scales_of(weights: Tensors, *, eta: float, normalisation: str) -> Tensors:
    """T_w + eta I of SmallNet, name by name (eq. 5; biases and BN's beta: 1)."""
    filters = weights["conv.weight"].square().sum((1, 2, 3)).sqrt()
    return {
        "conv.weight": (
            weights["conv.weight"].abs()
            if normalisation == "element"
            else filters[:, None, None, None].repeat(1, 3, 3, 3)
        )
        + eta,
        "conv.bias": torch.ones(4, dtype=torch.float64),
        "bn.weight": weights["bn.weight"].abs() + eta,
        "bn.bias": torch.ones(4, dtype=torch.float64),
        "linear.weight": weights["linear.weight"].abs() + eta,
        "linear.bias": torch.ones(5, dtype=torch.float64),
    }


def slopes_like(model: nn.Module, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(weight.shape, generator=generator, dtype=torch.float64) for weight in model.parameters()]


def perturbed(model: nn.Module, slopes: list[Tensor], *, normalisation: str, **options: float) -> list[Tensor]:
    scales = {weight: scale_of(name, weight, normalisation) for name, weight in model.named_parameters()}
    with torch.no_grad():
        return asam_perturbation(
            list(model.parameters()), [slope.clone() for slope in slopes], scales=scales, **options
        )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("eta", [0.0, 0.01])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("p", NORMS)
def test_five_steps_equal_algorithm_1(p: float, normalisation: str, eta: float, optimizer: str) -> None:
    model, data, options = SmallNet(), batches(5), OPTIMIZERS[optimizer]
    expected, _ = sharpness_aware(
        weights_of(model),
        data,
        rho=RADII[p],
        p=p,
        scales=lambda weights: scales_of(weights, eta=eta, normalisation=normalisation),
        **options,
    )
    sgd = torch.optim.SGD(model.parameters(), fused=True, **options)
    step = asam(model, sgd, rho=RADII[p], eta=eta, p=p, normalisation=normalisation, **OPTIONS)
    for batch in data:
        step(closure(model, batch))
    torch.testing.assert_close(weights_of(model), expected, **CLOSE)


def test_p_2_is_the_published_ascent_and_descent() -> None:
    model, twin, data, rho, eta = SmallNet(), SmallNet(), batches(5), 0.8, 0.01
    step = asam(model, torch.optim.SGD(model.parameters(), **OPTIMIZERS["momentum"]), rho=rho, eta=eta, **OPTIONS)
    sgd = torch.optim.SGD(twin.parameters(), **OPTIMIZERS["momentum"])
    for images, labels in data:
        step(closure(model, (images, labels)))
        sgd.zero_grad()
        functional.cross_entropy(twin(images), labels).backward()
        moves = {}
        for name, parameter in twin.named_parameters():
            size = parameter.detach().abs() + eta if name.endswith("weight") else 1.0
            moves[parameter] = (size * size * parameter.grad, size * parameter.grad)
        norm = math.sqrt(sum(float(scaled.square().sum()) for _, scaled in moves.values()))
        for parameter, (move, _) in moves.items():
            parameter.data.add_(move, alpha=rho / norm)
        sgd.zero_grad()
        functional.cross_entropy(twin(images), labels).backward()
        for parameter, (move, _) in moves.items():
            parameter.data.sub_(move, alpha=rho / norm)
        sgd.step()
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), **CLOSE)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("p", NORMS)
def test_perturbation_has_norm_rho_in_units_of_t_and_no_feasible_direction_rises_more(
    p: float, normalisation: str
) -> None:
    rho, eta = 0.7, 0.01
    for seed in range(5):
        model = SmallNet(seed=seed)
        slopes = slopes_like(model, seed=seed)
        T = flat(list(scales_of(weights_of(model), eta=eta, normalisation=normalisation).values()))
        eps = flat(perturbed(model, slopes, rho=rho, eta=eta, p=p, normalisation=normalisation))
        assert torch.linalg.vector_norm(eps / T, p).item() == pytest.approx(rho, rel=1e-13)
        rises = feasible_directions(eps / T, rho=rho, p=p) * T @ flat(slopes)
        assert (rises <= eps @ flat(slopes) + 1e-12).all()
        assert rises.max() > 0.5 * (eps @ flat(slopes))
        dual = {1: math.inf, math.inf: 1}.get(p) or p / (p - 1)
        steepest = rho * torch.linalg.vector_norm(T * flat(slopes), dual)
        assert (eps @ flat(slopes)).item() == pytest.approx(steepest.item(), rel=1e-13)


def test_p_2_is_rho_t_squared_g_over_the_norm_of_t_g() -> None:
    model = nn.Linear(2, 1).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -0.5]]))
    slopes = [torch.tensor([[1.0, 4.0]], dtype=torch.float64), torch.tensor([6.0], dtype=torch.float64)]
    weight, bias = perturbed(model, slopes, rho=14.0, eta=0.0, p=2, normalisation="element")
    # T g = (3, 2, 6) of norm 7: eps = 14 T^2 g / 7
    assert flat([weight, bias]).tolist() == pytest.approx([18, 2, 12], rel=1e-15)


def test_biases_and_the_shift_of_bn_are_perturbed_with_t_1_and_its_scale_with_its_size_plus_eta() -> None:
    model = SmallNet()
    slopes = [torch.ones_like(weight) for weight in model.parameters()]
    eps = perturbed(model, slopes, rho=1.0, eta=0.25, p=math.inf, normalisation="element")
    for (name, weight), moved in zip(model.named_parameters(), eps, strict=True):
        expected = torch.ones_like(weight) if name.endswith("bias") else weight.abs() + 0.25
        assert torch.equal(moved, expected), name


def test_filters_are_output_channels_of_convolutions_and_everything_else_goes_element_by_element() -> None:
    model = SmallNet()
    slopes = [torch.ones_like(weight) for weight in model.parameters()]
    by_name = dict(
        zip(
            weights_of(model),
            perturbed(model, slopes, rho=1.0, eta=0.25, p=math.inf, normalisation="filter"),
            strict=True,
        )
    )
    weights = weights_of(model)
    for channel in range(4):
        size = math.sqrt(sum(value**2 for value in weights["conv.weight"][channel].flatten().tolist()))
        assert by_name["conv.weight"][channel].flatten().tolist() == pytest.approx([size + 0.25] * 27, rel=1e-14)
    assert torch.equal(by_name["linear.weight"], weights["linear.weight"].abs() + 0.25)
    assert torch.equal(by_name["bn.weight"], weights["bn.weight"].abs() + 0.25)


@pytest.mark.parametrize("p", NORMS)
def test_weights_of_size_1_and_eta_0_give_sam_bit_for_bit(p: float) -> None:
    model = SmallNet()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sign_()
    slopes = slopes_like(model)
    ours = perturbed(model, slopes, rho=0.3, eta=0.0, p=p, normalisation="element")
    theirs = sam_perturbation(list(model.parameters()), [slope.clone() for slope in slopes], rho=0.3, p=p)
    assert torch.equal(flat(ours), flat(theirs))


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("p", NORMS)
def test_zero_gradients_or_weights_give_zero_perturbation(p: float, normalisation: str) -> None:
    model = SmallNet()
    nothing = [torch.zeros_like(weight) for weight in model.parameters()]
    assert flat(perturbed(model, nothing, rho=1.0, eta=0.01, p=p, normalisation=normalisation)).count_nonzero() == 0
    model = nn.Conv2d(3, 2, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    assert (
        flat(perturbed(model, slopes_like(model), rho=1.0, eta=0.0, p=p, normalisation=normalisation)).count_nonzero()
        == 0
    )


def relu_net(*, convolutions: int) -> nn.Sequential:
    """ReLU layers without biases: [N, 3, 6, 6] -> [N, 5]."""
    side = 6 - 2 * convolutions
    layers: list[nn.Module] = []
    for number in range(convolutions):
        layers += [nn.Conv2d(4 if number else 3, 4, 3, bias=False), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * side * side, 5, bias=False)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel()
            draws = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(draws * math.sqrt(2 / fan_in))
    return model


def loss_above(model: nn.Module, method: str, batch: Batch, **options: float | str) -> tuple[float, float]:
    """L(w) and L(w + eps)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step: SharpnessAware = (
        asam(model, optimizer, **options, **OPTIONS)
        if method == "asam"
        else sam(model, optimizer, **options, **OPTIONS)
    )
    losses: list[float] = []
    step(closure(model, batch, losses))
    return losses[0], losses[1]


def rescale_layers(model: nn.Sequential, first: int, second: int, factor: float) -> None:
    with torch.no_grad():
        model[first].weight.mul_(factor)
        model[second].weight.div_(factor)


def rescale_filter(model: nn.Sequential, channel: int, factor: float) -> None:
    """Channel `channel` of the only convolution by `factor`, the linear layer's weights on it by 1 / factor."""
    with torch.no_grad():
        model[0].weight[channel].mul_(factor)
        model[3].weight.view(5, 4, 16)[:, channel].div_(factor)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("p", NORMS)
def test_rescaling_consecutive_layers_leaves_the_loss_above_unchanged_and_changes_that_of_sam(
    p: float, normalisation: str
) -> None:
    (batch,) = batches(1)
    options = {"rho": RADII[p], "eta": 0.0, "p": p, "normalisation": normalisation}
    before, above = loss_above(relu_net(convolutions=2), "asam", batch, **options)
    _, above_sam = loss_above(relu_net(convolutions=2), "sam", batch, rho=0.2, p=p)
    assert above > before + 1e-3
    for layers, factor in (((0, 2), 3.7), ((2, 5), 0.04)):
        model = relu_net(convolutions=2)
        rescale_layers(model, *layers, factor)
        rescaled_before, rescaled_above = loss_above(model, "asam", batch, **options)
        assert rescaled_before == pytest.approx(before, rel=1e-12)
        assert rescaled_above == pytest.approx(above, rel=1e-11)
        assert abs(loss_above(model, "sam", batch, rho=0.2, p=p)[1] - above_sam) > 1e-3


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("p", NORMS)
def test_rescaling_one_filter_leaves_the_loss_above_unchanged_and_changes_that_of_sam(
    p: float, normalisation: str
) -> None:
    (batch,) = batches(1)
    options = {"rho": RADII[p], "eta": 0.0, "p": p, "normalisation": normalisation}
    before, above = loss_above(relu_net(convolutions=1), "asam", batch, **options)
    _, above_sam = loss_above(relu_net(convolutions=1), "sam", batch, rho=0.2, p=p)
    model = relu_net(convolutions=1)
    rescale_filter(model, 2, 5.3)
    rescaled_before, rescaled_above = loss_above(model, "asam", batch, **options)
    assert above > before + 1e-3
    assert rescaled_before == pytest.approx(before, rel=1e-12)
    assert rescaled_above == pytest.approx(above, rel=1e-11)
    assert abs(loss_above(model, "sam", batch, rho=0.2, p=p)[1] - above_sam) > 1e-3


def test_eta_breaks_the_invariance() -> None:
    (batch,) = batches(1)
    options = {"rho": 1.0, "eta": 0.1, "p": 2, "normalisation": "element"}
    _, above = loss_above(relu_net(convolutions=2), "asam", batch, **options)
    model = relu_net(convolutions=2)
    rescale_layers(model, 0, 2, 3.7)
    assert abs(loss_above(model, "asam", batch, **options)[1] - above) > 1e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": -1.0}, "step.rho=-1.0: expected a number >= 0"),
        ({"rho": 1.0, "p": 0.5}, "step.p=0.5: expected a number >= 1, or inf"),
        ({"rho": 1.0, "eta": -0.01}, "step.eta=-0.01: expected a number >= 0"),
        ({"rho": 1.0, "eta": math.nan}, "step.eta=nan: expected a number >= 0"),
        ({"rho": 1.0, "normalisation": "layer"}, "step.normalisation=layer: expected element or filter"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(values: dict, message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        asam(model, torch.optim.SGD(model.parameters(), lr=0.1), **values, **OPTIONS)
    assert str(error.value) == message


class Bare(nn.Module):
    """A network whose matrix is not called a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(5, 12))


def test_a_network_without_a_parameter_to_scale_is_refused() -> None:
    model = Bare()
    with pytest.raises(InputError, match='no parameter of this network has "weight" in its name'):
        asam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0, **OPTIONS)


def test_parameters_of_which_none_is_scaled_are_perturbed_as_by_sam() -> None:
    weights = [nn.Parameter(torch.randn(5, 12, generator=torch.Generator().manual_seed(0)))]
    gradients = [torch.randn(5, 12, generator=torch.Generator().manual_seed(1))]
    scales = {weights[0]: "one"}
    ours = asam_perturbation(weights, [gradients[0].clone()], rho=0.5, eta=0.01, p=2, scales=scales)
    assert torch.equal(ours[0], sam_perturbation(weights, gradients, rho=0.5, p=2)[0])
