"""Accuracy, negative log-likelihood and calibration error.

The oracles: torchmetrics, the definitions in Python's own floats, and cases worked out by hand.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes import training
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from broadopt.training.evaluate import calibration_error, log_probabilities, metrics

FP32 = torch.autocast("cpu", torch.bfloat16, enabled=False)
BF16 = torch.autocast("cpu", torch.bfloat16, enabled=True)


def nothing() -> None:
    """No signal has arrived."""


def random_predictions(seed: int, classes: int, sharpness: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities float64 [300, classes], and labels of which about half are the predicted ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(300, classes, generator=generator, dtype=torch.float64)
    other = torch.randint(classes, (300,), generator=generator)
    return logits.log_softmax(1), torch.where(torch.rand(300, generator=generator) < 0.5, logits.argmax(1), other)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_metrics_are_those_of_torchmetrics(seed: int, classes: int, sharpness: float) -> None:
    outputs, labels = random_predictions(seed, classes, sharpness)
    values = metrics(outputs, labels)
    accuracy = multiclass_accuracy(outputs.exp(), labels, num_classes=classes, average="micro").item()
    error = multiclass_calibration_error(outputs.exp(), labels, num_classes=classes, n_bins=15, norm="l1").item()
    assert values["accuracy"] == pytest.approx(100 * accuracy, rel=1e-6)  # torchmetrics rounds to float32 first
    assert values["ece"] == pytest.approx(error, rel=2e-6)
    assert values["nll"] == pytest.approx(functional.nll_loss(outputs, labels).item(), rel=1e-14)


@given(seed=st.integers(0, 10_000), classes=st.sampled_from([2, 10, 100]), sharpness=st.sampled_from([0.1, 1.0, 8.0]))
def test_metrics_are_their_definitions(seed: int, classes: int, sharpness: float) -> None:
    outputs, labels = random_predictions(seed, classes, sharpness)
    rows = list(zip(outputs.tolist(), labels.tolist(), strict=True))
    correct = [row.index(max(row)) == label for row, label in rows]
    confidence = [math.exp(max(row)) for row, _ in rows]
    error = 0.0
    for b in range(15):
        inside = [n for n in range(300) if b / 15 < confidence[n] <= (b + 1) / 15]
        if inside:
            gap = sum(correct[n] for n in inside) / len(inside) - sum(confidence[n] for n in inside) / len(inside)
            error += len(inside) / 300 * abs(gap)
    values = metrics(outputs, labels)
    assert values.keys() == {"accuracy", "nll", "ece"}
    assert values["accuracy"] == pytest.approx(100 * sum(correct) / 300, rel=1e-14)
    assert values["nll"] == pytest.approx(-sum(row[label] for row, label in rows) / 300, rel=1e-13)
    assert values["ece"] == pytest.approx(error, rel=1e-12)


def test_metrics_by_hand() -> None:
    rows = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25], [0.9, 0.05, 0.05]]
    values = metrics(torch.tensor(rows, dtype=torch.float64).log(), torch.tensor([0, 1, 1, 2]))
    assert values["accuracy"] == 50.0
    assert values["nll"] == pytest.approx(-math.log(0.7 * 0.3 * 0.5 * 0.05) / 4, rel=1e-14)
    # each in a bin of its own: 0.7 and 0.5 hit, 0.6 and 0.9 missed
    assert values["ece"] == pytest.approx((0.3 + 0.6 + 0.5 + 0.9) / 4, rel=1e-14)


def test_gaps_cancel_within_a_bin_and_add_between_bins() -> None:
    hit = torch.tensor([True, False])
    together = torch.tensor([0.61, 0.65], dtype=torch.float64)
    apart = torch.tensor([0.61, 0.68], dtype=torch.float64)
    assert calibration_error(together, hit).item() == pytest.approx(abs(0.39 - 0.65) / 2, rel=1e-14)
    assert calibration_error(apart, hit).item() == pytest.approx((0.39 + 0.68) / 2, rel=1e-14)


@pytest.mark.parametrize("k", range(1, 16))
def test_bins_are_closed_above(k: int) -> None:
    edge = k / 15
    inside_below, inside_above = edge - 0.5 / 15, edge + 0.5 / 15
    hit = torch.tensor([True, False])
    below = calibration_error(torch.tensor([edge, inside_below], dtype=torch.float64), hit).item()
    above = calibration_error(torch.tensor([edge, inside_above], dtype=torch.float64), hit).item()
    assert below == pytest.approx(abs(1 - edge - inside_below) / 2, abs=1e-15)  # one bin
    assert above == pytest.approx((1 - edge + inside_above) / 2, abs=1e-15)  # two bins


def test_confidences_0_and_1_and_rounded_above_1_have_a_bin() -> None:
    confidence = torch.tensor([0.0, 1.0, math.nextafter(1.0, 2.0)], dtype=torch.float64)
    error = calibration_error(confidence, torch.tensor([True, True, False])).item()
    assert error == pytest.approx((1 + abs(0 - 1)) / 3, rel=1e-14)


def test_calibrated_predictions_have_error_0() -> None:
    confidence = torch.full((8,), 0.75, dtype=torch.float64)
    assert calibration_error(confidence, torch.tensor([True, True, True, False] * 2)).item() == 0


class Fixed(nn.Module):
    """Answers every batch with the next of given logits."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.answers = iter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return next(self.answers)


@pytest.mark.parametrize("size", [1e3, 1e30, 3e38])
def test_extreme_logits_give_finite_metrics(size: float) -> None:
    logits = torch.tensor([[size, -size], [-size, size], [size, size]], dtype=torch.float32)
    labels = torch.tensor([0, 0, 1])
    outputs = log_probabilities(Fixed(logits), [(torch.zeros(3, 1), labels)], autocast=FP32, before_batch=nothing)
    values = metrics(outputs, labels)
    assert values["nll"] == pytest.approx((2 * float(torch.tensor(size)) + math.log(2)) / 3, rel=1e-12)
    assert values["accuracy"] == pytest.approx(100 / 3, rel=1e-14)
    # confidences 1, 1 and 0.5 (a tie goes to the first class): hit, missed, missed
    assert values["ece"] == pytest.approx((1 + 0.5) / 3, rel=1e-14)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 5))
    model(torch.randn(16, 3, 6, 6))  # running statistics that are neither 0 and 1 nor a batch's own
    return model


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(sum(sizes), 3, 6, 6, generator=generator)
    labels = torch.randint(5, (sum(sizes),), generator=generator)
    return list(zip(images.split(sizes), labels.split(sizes), strict=True))


def test_predictions_are_float64_in_evaluation_mode_and_in_the_order_of_the_images() -> None:
    model, batches = network(), data(4, 4, 2)
    outputs = log_probabilities(model, batches, autocast=FP32, before_batch=nothing)
    assert outputs.dtype == torch.float64
    assert not outputs.requires_grad
    model.eval()
    logits = torch.cat([model(images) for images, _ in batches]).double()
    torch.testing.assert_close(outputs, logits - logits.exp().sum(1, keepdim=True).log(), rtol=1e-13, atol=1e-14)


def test_bf16_predictions_are_normalised_in_float64() -> None:
    model, batches = network(), data(4, 2)
    outputs = log_probabilities(model, batches, autocast=BF16, before_batch=nothing)
    with BF16, torch.no_grad():
        logits = torch.cat([model.eval()(images) for images, _ in batches])
    assert logits.dtype == torch.bfloat16
    assert torch.equal(outputs, logits.double().log_softmax(1))
    torch.testing.assert_close(outputs.exp().sum(1), torch.ones(6, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", [True, False])
def test_predicting_leaves_the_network_as_it_is(mode: bool) -> None:
    model = network().train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    log_probabilities(model, data(4, 2), autocast=FP32, before_batch=nothing)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training == mode for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("mode", [True, False])
def test_interruption_comes_before_a_batch_and_leaves_the_mode_as_it_was(mode: bool) -> None:
    model, asked, passes = network().train(mode), [], []
    model.register_forward_hook(lambda *_: passes.append(1))

    def interrupt_at_the_third() -> None:
        asked.append(len(passes))
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        log_probabilities(model, data(2, 2, 2, 2), autocast=FP32, before_batch=interrupt_at_the_third)
    assert asked == [0, 1, 2]
    assert all(module.training == mode for module in model.modules())


def test_bn_statistics_in_bf16_are_those_of_images_augmented_as_in_training() -> None:
    """AutoAugment resamples, which in bf16 would take other pixels; the network's own passes are in bf16."""
    made = training("method=sgd", "+model.batch_norm=true", "precision=bf16", "augmentation.autoaugment=true")
    seen, in_bf16 = [], []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0])
        in_bf16.append(torch.is_autocast_enabled("cpu"))

    made.parts.model.register_forward_pre_hook(note, prepend=True)
    made.reestimate(made.parts.model)
    assert in_bf16 == [True] * made.parts.data.steps_per_epoch
    assert torch.equal(torch.cat(seen), torch.cat([images for images, _ in made.parts.data.statistics(0)]))
