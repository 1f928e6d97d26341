"""m-sharpness: each part of a batch has its own perturbation, the update is their mean (SAM, section 4.1)."""

from contextlib import nullcontext

import pytest
import torch
from formulas import (
    CLOSE,
    SmallNet,
    Tensors,
    batches,
    closure,
    gradients,
    ones,
    perturbation,
    sgd_update,
    weights_of,
)
from formulas import (
    loss as loss_of,
)
from handed_batches import batch_of
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.asam import asam
from broadopt.methods.batch import Batch
from broadopt.methods.sam import sam

MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05, "nesterov": True}
ETA = 0.01


def asam_scales(weights: Tensors) -> Tensors:
    return {name: w.abs() + ETA if "weight" in name else torch.ones_like(w) for name, w in weights.items()}


METHODS = {"sam": (sam, ones, 0.3), "asam": (asam, asam_scales, 0.5)}


def trained(method: str, *, chunk: int | None, steps: int = 3) -> tuple[nn.Module, list[Batch], list[Tensor]]:
    """SmallNet after `steps` steps on 10 images each, the batches as the steps left them, and the losses."""
    model, made = SmallNet(), METHODS[method][0]
    step = made(model, torch.optim.SGD(model.parameters(), fused=True, **MOMENTUM), rho=METHODS[method][2], chunk=chunk)
    data = [batch_of(model, batch) for batch in batches(steps, size=10)]
    return model, data, [step(batch) for batch in data]


@pytest.mark.parametrize("method", METHODS)
def test_each_chunk_is_perturbed_by_its_own_gradient(method: str) -> None:
    _, scales, rho = METHODS[method]
    model, _, losses = trained(method, chunk=4)

    weights, momenta, expected_losses = weights_of(SmallNet()), {}, []
    for images, labels in batches(3, size=10):
        mean, loss = {name: torch.zeros_like(weight) for name, weight in weights.items()}, 0.0
        for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
            piece, share = (images[part], labels[part]), (part.stop - part.start) / 10
            eps = perturbation(weights, gradients(weights, *piece), rho=rho, p=2, scales=scales(weights))
            slopes = gradients({name: weights[name] + eps[name] for name in weights}, *piece)
            mean = {name: mean[name] + share * slopes[name] for name in weights}
            loss += share * float(loss_of(weights, *piece))
        sgd_update(weights, mean, momenta, **MOMENTUM)
        expected_losses.append(loss)
    torch.testing.assert_close(weights_of(model), weights, **CLOSE)
    assert [loss.item() for loss in losses] == pytest.approx(expected_losses, rel=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_a_chunk_as_large_as_the_batch_is_the_plain_step_bit_for_bit(method: str) -> None:
    expected = trained(method, chunk=None)[0].state_dict()
    for chunk in (10, 99):
        found = trained(method, chunk=chunk)[0].state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(trained(method, chunk=4)[0].state_dict()["conv.weight"], expected["conv.weight"])


@pytest.mark.parametrize("skipped", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
def test_a_weight_without_a_gradient_in_some_chunks_has_the_mean_of_the_others(skipped: set[int]) -> None:
    """As with stochastic depth: the layer takes no part in the passes of the chunks that are `skipped`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.at_times = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(10.0))

        def forward(self, images: Tensor) -> Tensor:
            return images[:, 0] * self.always + (0 if int(images[0, 1]) in skipped else images[:, 0] * self.at_times)

    model = Net()

    def gradient(images: Tensor, labels: Tensor, first: bool) -> Tensor:
        loss = model(images).mean()
        loss.backward()
        return loss.detach()

    # The second column is the number of the chunk; the loss is linear, so that no perturbation changes a gradient.
    images = torch.tensor([[1.0, 0], [3, 0], [4, 1], [8, 1], [64, 2]])
    step = sam(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=0.3, chunk=2)
    step(Batch(images, torch.zeros(5), gradient, nullcontext))
    sums = [4.0, 12.0, 64.0]
    assert float(model.always.grad) == pytest.approx(sum(sums) / 5, rel=1e-6)
    if len(skipped) == 3:
        assert model.at_times.grad is None
    else:
        expected = sum(sums[chunk] for chunk in {0, 1, 2} - skipped) / 5
        assert float(model.at_times.grad) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chunk", [None, 4, 10])
def test_gradients_are_counted_in_whole_batches(chunk: int | None) -> None:
    assert [batch.passes for batch in trained("sam", chunk=chunk)[1]] == [2, 2, 2]


def test_the_step_keeps_one_copy_of_the_parameters_and_one_sum() -> None:
    model, (batch,) = SmallNet(), batches(1)
    step = sam(model, torch.optim.SGD(model.parameters(), fused=True, **MOMENTUM), rho=0.3, chunk=3)
    step(batch_of(model, batch))
    assert len(step._copies) == len(list(model.parameters()))
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_chunk_needs_a_batch_that_can_be_taken_apart() -> None:
    model, (batch,) = SmallNet(), batches(1)
    step = sam(model, torch.optim.SGD(model.parameters(), fused=True, **MOMENTUM), rho=0.3, chunk=3)
    with pytest.raises(TypeError, match="needs a closure that can be taken apart"):
        step(closure(model, batch))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": 0}, "step.chunk=0: expected a whole number of images >= 1, or null"),
        ({"perturbation": "local"}, "step.perturbation=local: expected global or share"),
    ],
)
def test_unknown_options_are_refused_in_one_line(options: dict, message: str) -> None:
    model = SmallNet()
    with pytest.raises(InputError) as error:
        sam(model, torch.optim.SGD(model.parameters(), **MOMENTUM), rho=0.3, **options)
    assert str(error.value) == message
