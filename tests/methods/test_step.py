"""What every step does with weights, gradients, BN statistics, noise and the optimizer's state.

The oracles: torch.optim.SGD on a twin, bit for bit, and formulas.py in float64.
"""

import copy
import gc
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from formulas import (
    CLOSE,
    SmallNet,
    batches,
    closure,
    features,
    gradients,
    ones,
    perturbation,
    weights_of,
)
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.asam import asam
from broadopt.methods.sam import sam
from broadopt.methods.step import Plain, SharpnessAware

METHODS = {"sam": sam, "asam": asam}
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}


def sgd(model: nn.Module, **options: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), fused=True, **(options or MOMENTUM))


def sharpness_aware(
    model: nn.Module, *, method: str = "sam", rho: float = 0.3, bn: str = "both", noise: str = "fresh", p: float = 2
) -> SharpnessAware:
    return METHODS[method](model, sgd(model), rho=rho, p=p, bn=bn, noise=noise)


def assert_bit_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name


def copy_of_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def momenta(step: Plain | SharpnessAware, model: nn.Module) -> dict[str, Tensor]:
    return {name: step.optimizer.state[weight]["momentum_buffer"] for name, weight in model.named_parameters()}


def test_plain_step_is_one_update_with_one_gradient() -> None:
    model, (batch,) = SmallNet(), batches(1)
    start, losses = weights_of(model), []
    for parameter in model.parameters():  # of an earlier batch
        parameter.grad = torch.full_like(parameter, 1e6)
    returned = Plain(model, sgd(model, lr=0.1))(closure(model, batch, losses))
    assert losses == [returned.item()]
    expected = {name: start[name] - 0.1 * slope for name, slope in gradients(start, *batch).items()}
    torch.testing.assert_close(weights_of(model), expected, **CLOSE)


@pytest.mark.parametrize("method", ["plain", *METHODS])
def test_step_takes_as_many_gradients_as_it_says(method: str) -> None:
    model, (batch,), losses = SmallNet(), batches(1), []
    step = Plain(model, sgd(model)) if method == "plain" else sharpness_aware(model, method=method)
    step(closure(model, batch, losses))
    assert len(losses) == step.passes == (1 if method == "plain" else 2)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_an_earlier_batch_do_not_count(method: str) -> None:
    model, twin, (batch,) = SmallNet(), SmallNet(), batches(1)
    for parameter in twin.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    for network in (model, twin):
        sharpness_aware(network, method=method)(closure(network, batch))
    assert_bit_equal(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_optimizer_sees_the_unperturbed_weights_bit_for_bit(method: str, dtype: torch.dtype) -> None:
    model, data = SmallNet().to(dtype), batches(3)
    step = sharpness_aware(model, method=method, rho=3.0)
    seen: list[dict[str, Tensor]] = []
    step.optimizer.register_step_pre_hook(lambda *_: seen.append(weights_of(model)))
    for images, labels in data:
        before, places = weights_of(model), [parameter.data_ptr() for parameter in model.parameters()]
        during: list[dict[str, Tensor]] = []
        run = closure(model, (images.to(dtype), labels))
        step(lambda run=run, during=during: (during.append(weights_of(model)), run())[1])
        assert_bit_equal(seen.pop(), before)
        assert not seen
        assert_bit_equal(during[0], before)
        assert len(during) == 2
        assert not torch.equal(during[1]["linear.weight"], before["linear.weight"])
        assert [parameter.data_ptr() for parameter in model.parameters()] == places


@pytest.mark.parametrize("bn", ["both", "first"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_and_nothing_is_updated_when_the_second_pass_raises(
    error: type[BaseException], bn: str
) -> None:
    model, (first, batch) = SmallNet(), batches(2)
    step = sharpness_aware(model, bn=bn)
    step(closure(model, first))
    before, velocity = weights_of(model), {name: value.clone() for name, value in momenta(step, model).items()}
    run, after_pass = closure(model, batch), []

    def fails_in_the_second_pass() -> Tensor:
        loss = run()
        after_pass.append(copy_of_state(model))
        if len(after_pass) == 2:
            raise error
        return loss

    with pytest.raises(error):
        step(fails_in_the_second_pass)
    assert not torch.equal(after_pass[1]["conv.weight"], before["conv.weight"])
    assert_bit_equal(weights_of(model), before)
    assert_bit_equal(momenta(step, model), velocity)
    if bn == "first":
        assert_bit_equal(model.state_dict(), after_pass[0])


@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bn", ["first", "both"])
def test_rho_0_is_sgd_bit_for_bit(method: str, p: float, bn: str) -> None:
    model, twin, data = SmallNet(dropout=0.4), SmallNet(dropout=0.4), batches(6)
    step = sharpness_aware(model, method=method, rho=0.0, p=p, bn=bn, noise="replay")
    plain = Plain(twin, sgd(twin))
    for number, batch in enumerate(data):
        torch.manual_seed(number)
        loss = step(closure(model, batch))
        after = torch.get_rng_state()
        torch.manual_seed(number)
        assert torch.equal(plain(closure(twin, batch)), loss)
        assert torch.equal(torch.get_rng_state(), after)
    assert_bit_equal(weights_of(model), weights_of(twin))
    assert_bit_equal(momenta(step, model), momenta(plain, twin))
    if bn == "first":
        assert_bit_equal(model.state_dict(), twin.state_dict())


def batch_statistics(weights: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    inputs = features(weights, images).movedim(1, 0).flatten(1)
    return inputs.mean(1), ((inputs - inputs.mean(1, keepdim=True)) ** 2).sum(1) / (inputs.shape[1] - 1)


@pytest.mark.parametrize("bn", ["first", "both"])
@pytest.mark.parametrize("momentum", [0.1, 0.9])
def test_running_statistics_take_the_first_pass_or_both(bn: str, momentum: float) -> None:
    model, (batch,) = SmallNet(), batches(1)
    model.bn.momentum = momentum
    start = weights_of(model)
    eps = perturbation(start, gradients(start, *batch), rho=0.5, p=2, scales=ones(start))
    passes = [start, {name: start[name] + eps[name] for name in start}]
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for weights in passes if bn == "both" else passes[:1]:
        batch_mean, batch_variance = batch_statistics(weights, batch[0])
        mean = (1 - momentum) * mean + momentum * batch_mean
        variance = (1 - momentum) * variance + momentum * batch_variance
    sharpness_aware(model, rho=0.5, bn=bn)(closure(model, batch))
    torch.testing.assert_close(model.bn.running_mean, mean, rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(model.bn.running_var, variance, rtol=1e-13, atol=0)
    assert model.bn.num_batches_tracked.item() == (2 if bn == "both" else 1)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


class Masks(nn.Module):
    """Notes which of a constant input's entries dropout let through, on both sides of a layer with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(0.5), nn.Linear(64, 64)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        dropped = self.dropout(inputs)
        outputs = self.linear(dropped)
        again = self.dropout(torch.ones_like(outputs))
        self.seen.append((dropped != 0, again != 0))
        return (outputs * again).square().mean()


@pytest.mark.parametrize("device", DEVICES)
def test_replay_repeats_the_noise_of_the_first_pass_and_fresh_does_not(device: str) -> None:
    for noise in ("replay", "fresh"):
        model = Masks().to(device)
        step = sharpness_aware(model, noise=noise)
        inputs = torch.ones(16, 64, device=device)

        def run(model: Masks = model, inputs: Tensor = inputs) -> Tensor:
            value = model(inputs)
            value.backward()
            return value.detach()

        for _ in range(2):
            step(run)
        (first, other), (second, another), (later, _), _ = model.seen
        assert torch.equal(first, second) == torch.equal(other, another) == (noise == "replay")
        assert not torch.equal(first, other)  # the noise within a pass is not one draw
        assert not torch.equal(first, later)  # nor is the next step's the same


class Paths(nn.Module):
    """Linear layers of which a pass uses those named in `active`."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleDict({name: nn.Linear(3, 2).double() for name in ("always", "first", "second", "never")})
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.layers["frozen"] = nn.Linear(3, 2).double().requires_grad_(False)


PASSES = (("always", "first", "frozen"), ("always", "second", "frozen"))


def path_loss(weights: dict[str, Tensor], inputs: Tensor, active: tuple[str, ...]) -> Tensor:
    outputs = [inputs @ weights[f"layers.{name}.weight"].T + weights[f"layers.{name}.bias"] for name in active]
    return torch.stack(outputs).tanh().square().sum()


@pytest.mark.parametrize("method", METHODS)
def test_parameters_without_a_gradient_are_neither_perturbed_nor_moved(method: str) -> None:
    model, inputs = Paths(), batches(1)[0][0][:, :, 0, 0]
    start, during = weights_of(model), []
    step = sharpness_aware(model, method=method, rho=0.5)

    def run() -> Tensor:
        weights = dict(model.named_parameters())
        during.append(weights_of(model))
        value = path_loss(weights, inputs, PASSES[len(during) - 1])
        value.backward()
        return value.detach()

    step(run)
    end = weights_of(model)
    names = {layer: [f"layers.{layer}.weight", f"layers.{layer}.bias"] for layer in model.layers}
    for name in names["never"] + names["frozen"]:
        assert torch.equal(during[1][name], start[name]), name
        assert torch.equal(end[name], start[name]), name
    for name in names["first"]:  # perturbed, restored, and then no gradient to move it
        assert not torch.equal(during[1][name], start[name]), name
        assert torch.equal(end[name], start[name]), name
    for name in names["second"]:
        assert torch.equal(during[1][name], start[name]), name
        assert not torch.equal(end[name], start[name]), name
    moved = names["always"] + names["second"]
    slopes = torch.func.grad(path_loss)(during[1], inputs, PASSES[1])
    for name in moved:  # the first Nesterov step: w - lr (1 + mu) (g + lambda w)
        expected = start[name] - 0.1 * 1.9 * (slopes[name] + 0.05 * start[name])
        torch.testing.assert_close(end[name], expected, rtol=1e-12, atol=1e-14)


def test_radius_is_that_of_the_parameters_with_a_gradient() -> None:
    model, inputs = Paths(), batches(1)[0][0][:, :, 0, 0]
    start, during = weights_of(model), []

    def run() -> Tensor:
        during.append(weights_of(model))
        value = path_loss(dict(model.named_parameters()), inputs, ("always",))
        value.backward()
        return value.detach()

    sharpness_aware(model, rho=0.5)(run)
    moves = torch.cat([(during[1][name] - start[name]).flatten() for name in start])
    assert moves.norm().item() == pytest.approx(0.5, rel=1e-13)
    assert moves.count_nonzero() == 8


def test_momentum_sees_one_gradient_a_step() -> None:
    model, data = SmallNet(), batches(2)
    step = METHODS["sam"](model, sgd(model, lr=0.1, momentum=0.9), rho=0.3, bn="both", noise="fresh")
    updates: list[int] = []
    step.optimizer.register_step_post_hook(lambda *_: updates.append(1))
    velocity: dict[str, Tensor] = {}
    for batch in data:
        start = weights_of(model)
        eps = perturbation(start, gradients(start, *batch), rho=0.3, p=2, scales=ones(start))
        slopes = gradients({name: start[name] + eps[name] for name in start}, *batch)
        velocity = {name: 0.9 * velocity[name] + slopes[name] if velocity else slopes[name] for name in start}
        step(closure(model, batch))
        torch.testing.assert_close(momenta(step, model), velocity, **CLOSE)
        expected = {name: start[name] - 0.1 * velocity[name] for name in start}
        torch.testing.assert_close(weights_of(model), expected, **CLOSE)
    assert len(updates) == 2


def test_learning_rates_of_parameter_groups_act_once() -> None:
    model, (batch,) = SmallNet(), batches(1)
    start = weights_of(model)
    groups = [
        {"params": model.conv.parameters(), "lr": 0.5},
        {"params": [*model.bn.parameters(), *model.linear.parameters()]},
    ]
    step = sam(model, torch.optim.SGD(groups, lr=0.1), rho=0.3, bn="both", noise="fresh")
    step.optimizer.param_groups[1]["lr"] = 0.2  # as the loop does it
    step(closure(model, batch))
    eps = perturbation(start, gradients(start, *batch), rho=0.3, p=2, scales=ones(start))
    slopes = gradients({name: start[name] + eps[name] for name in start}, *batch)
    rates = {name: 0.5 if name.startswith("conv") else 0.2 for name in start}
    expected = {name: start[name] - rates[name] * slopes[name] for name in start}
    torch.testing.assert_close(weights_of(model), expected, **CLOSE)


@pytest.mark.parametrize("method", METHODS)
def test_optimizers_state_is_all_that_a_later_step_needs(method: str) -> None:
    model, data = SmallNet(), batches(4)
    step = sharpness_aware(model, method=method)
    for batch in data[:2]:
        step(closure(model, batch))
    resumed = SmallNet(seed=5)
    resumed.load_state_dict(copy_of_state(model))
    again = sharpness_aware(resumed, method=method)
    again.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    for batch in data[2:]:
        step(closure(model, batch))
        again(closure(resumed, batch))
    assert_bit_equal(resumed.state_dict(), model.state_dict())


@pytest.fixture
def counted() -> Iterator[None]:
    """Only what a test makes is counted by bytes_of_all_tensors, not what is there of other tests."""
    gc.freeze()
    yield
    gc.unfreeze()


def bytes_of_all_tensors() -> int:
    tensors = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
    return sum({tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("method", METHODS)
def test_step_keeps_one_copy_of_the_parameters_and_its_second_pass_begins_with_no_more(method: str, p: float) -> None:
    model, (batch,) = SmallNet(), batches(1)
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    step = sharpness_aware(model, method=method, p=p)
    Plain(model, step.optimizer)(closure(model, batch))  # from here on there are gradients and momenta
    at_pass, run = [], closure(model, batch)
    gc.collect()
    without_gradients = bytes_of_all_tensors() - size

    def measured() -> Tensor:
        at_pass.append(bytes_of_all_tensors())
        return run()

    for number in range(3):
        at_pass.clear()
        loss = step(measured)
        assert at_pass[0] == without_gradients + (size if number else 0)
        assert at_pass[1] == without_gradients + size + loss.nbytes
        del loss
        assert bytes_of_all_tensors() == without_gradients + size + size


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bn": "second", "noise": "fresh"}, "step.bn=second: expected both or first"),
        ({"bn": "both", "noise": "same"}, "step.noise=same: expected fresh or replay"),
    ],
)
def test_unknown_options_are_refused_in_one_line(options: dict, message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        SharpnessAware(model, sgd(model), lambda weights, slopes: slopes, **options)
    assert str(error.value) == message


def test_any_function_of_weights_and_gradients_serves_as_perturbation() -> None:
    model, (batch,) = SmallNet(), batches(1)
    halfway: Callable[[list[Tensor], list[Tensor]], list[Tensor]] = lambda weights, slopes: [-w / 2 for w in weights]  # noqa: E731
    start = weights_of(model)
    SharpnessAware(model, sgd(model, lr=0.1), halfway, bn="both", noise="fresh")(closure(model, batch))
    slopes = gradients({name: weight / 2 for name, weight in start.items()}, *batch)
    expected = {name: start[name] - 0.1 * slopes[name] for name in start}
    torch.testing.assert_close(weights_of(model), expected, **CLOSE)
