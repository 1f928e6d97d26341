"""SAM-ON: normalisation parameters alone are perturbed, and the first pass makes no other gradients.

The oracle: formulas.py in float64, the perturbation being that of the parameters of BN by themselves.
"""

import pytest
import torch
import torch.nn.functional as F
from formulas import CLOSE, SmallNet, batches, closure, gradients, perturbation, sgd_update, weights_of
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.asam import asam
from broadopt.methods.sam import sam
from broadopt.models.wrn import WideResNet

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
METHODS = {"sam": sam, "asam": asam}
ETA = 0.01
NORMS = ("bn.weight", "bn.bias")


def scales(method: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    adaptive = method == "asam"
    return {n: w.abs() + ETA if adaptive and "weight" in n else torch.ones_like(w) for n, w in weights.items()}


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_perturb_the_normalisation_alone_and_move_everything(method: str) -> None:
    model, data = SmallNet(), batches(3)
    step = METHODS[method](
        model, torch.optim.SGD(model.parameters(), fused=True, **MOMENTUM), rho=0.7, layers="normalisation"
    )
    weights, momenta = weights_of(SmallNet()), {}
    for batch in data:
        slopes = {name: slope for name, slope in gradients(weights, *batch).items() if name in NORMS}
        norms = {name: weights[name] for name in NORMS}
        eps = perturbation(norms, slopes, rho=0.7, p=2, scales=scales(method, norms))
        above = weights | {name: weights[name] + eps[name] for name in NORMS}
        sgd_update(weights, gradients(above, *batch), momenta, **MOMENTUM)
        step(closure(model, batch))
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert {len(step._copies), len(NORMS)} == {2}


def gradients_in_first_pass(model: nn.Module, batch: tuple[Tensor, Tensor], layers: str) -> dict[str, Tensor]:
    """By name, those that the first pass leaves."""
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1, layers=layers)
    found: list[dict[str, Tensor]] = []

    def run() -> Tensor:
        value = F.cross_entropy(model(batch[0]), batch[1])
        value.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return value.detach()

    step(run)
    assert found[1].keys() == dict(model.named_parameters()).keys()
    return found[0]


def test_the_first_pass_makes_the_same_bits_and_none_that_nobody_reads() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(16, 3, 32, 32, generator=generator), torch.randint(10, (16,), generator=generator)
    found = []
    for layers in ("normalisation", "all"):
        torch.manual_seed(0)
        model = WideResNet(depth=10, widen_factor=1, num_classes=10, variant="homura")
        found.append(gradients_in_first_pass(model, batch, layers))
    norms, every = found
    modules = dict(model.named_modules())
    assert norms.keys() == {name for name in every if isinstance(modules[name.rpartition(".")[0]], nn.BatchNorm2d)}
    assert 0 < len(norms) < len(every)
    assert all(torch.equal(gradient, every[name]) and gradient.any() for name, gradient in norms.items())


@pytest.mark.parametrize("pass_number", [1, 2])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_needs_a_gradient_is_what_it_was_also_when_a_signal_ends_a_pass(
    error: type[BaseException], pass_number: int
) -> None:
    model, (batch,) = SmallNet(), batches(1)
    model.conv.bias.requires_grad_(False)
    needs = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before, run, during = weights_of(model), closure(model, batch), []
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, layers="normalisation")

    def fails() -> Tensor:
        during.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})
        if len(during) == pass_number:
            raise error
        return run()

    with pytest.raises(error):
        step(fails)
    assert during[0] == set(NORMS)
    assert during[1:] in ([], [{name for name, needed in needs.items() if needed}])
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == needs
    assert all(torch.equal(value, before[name]) for name, value in weights_of(model).items())


def test_a_network_without_normalisation_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, affine=False))
    with pytest.raises(InputError) as error:
        sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, layers="normalisation")
    assert str(error.value) == (
        "step.layers=normalisation: the network has no such layer with parameters; expected all"
    )
