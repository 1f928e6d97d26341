"""BN statistics estimated anew.

The oracles: means and unbiased variances worked out by hand from what enters each BN, and torch's own running update.
"""

import copy
from collections.abc import Iterator

import pytest
import torch
from formulas import batches
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from broadopt.methods.batchnorm import keep_statistics, reestimate

UNEQUAL = (8, 8, 3)
EQUAL = (5, 5, 5, 5)


def network(*, dropout: float = 0.0) -> nn.Sequential:
    """Three BN layers in float64, the last one [B, C], with momenta of their own and statistics of another network."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, momentum=0.9),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.BatchNorm1d(5, momentum=None),
    ).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in (*model.parameters(), *model.buffers()):
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.1)
    return model


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d))]


def images(sizes: tuple[int, ...]) -> list[Tensor]:
    pictures = batches(1, size=sum(sizes))[0][0]
    return list(pictures.split(sizes))


def statistics_by_hand(model: nn.Module, data: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """For each BN layer the mean over batches of what enters it, and of its unbiased variance, weighted by size."""
    twin = copy.deepcopy(model).train()
    entering: list[list[Tensor]] = [[] for _ in norms(twin)]
    for layer, seen in zip(norms(twin), entering, strict=True):
        layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
    for batch in data:
        twin(batch)
    share = [len(batch) / sum(map(len, data)) for batch in data]
    results = []
    for seen in entering:
        rows = [inputs.movedim(1, 0).flatten(1) for inputs in seen]
        means = [row.sum(1) / row.shape[1] for row in rows]
        variances = [
            (row - mean[:, None]).square().sum(1) / (row.shape[1] - 1) for row, mean in zip(rows, means, strict=True)
        ]
        results.append(
            tuple(sum(s * value for s, value in zip(share, each, strict=True)) for each in (means, variances))
        )
    return results


@pytest.mark.parametrize("sizes", [EQUAL, UNEQUAL, (8,)])
def test_statistics_are_means_over_batches_weighted_by_size(sizes: tuple[int, ...]) -> None:
    model, data = network(), images(sizes)
    expected = statistics_by_hand(model, data)
    reestimate(model, data)
    for layer, (mean, variance) in zip(norms(model), expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-12, atol=0)
        assert layer.num_batches_tracked.item() == len(sizes)


def test_nothing_of_the_earlier_statistics_remains() -> None:
    model, twin, data = network(), network(), images(UNEQUAL)
    for layer in norms(model):
        for buffer in (layer.running_mean, layer.running_var):
            buffer.fill_(float("nan"))
        layer.num_batches_tracked.fill_(7)
    for each in (model, twin):
        reestimate(each, data)
    assert all(map(torch.equal, model.buffers(), twin.buffers()))


def test_equal_batches_give_what_torchs_own_update_gives() -> None:
    model, twin, data = network(), network(), images(EQUAL)
    reestimate(model, data)
    update_bn(data, twin)
    torch.testing.assert_close(model.state_dict(), twin.state_dict(), rtol=1e-13, atol=1e-15)


def test_smaller_last_batch_counts_less_than_in_torchs_own_update() -> None:
    model, twin, data = network(), network(), images(UNEQUAL)
    reestimate(model, data)
    update_bn(data, twin)
    assert (norms(model)[0].running_mean - norms(twin)[0].running_mean).abs().max() > 1e-3


def test_dropout_stays_active() -> None:
    model, data = network(dropout=0.5), images(UNEQUAL)
    torch.manual_seed(3)
    expected = statistics_by_hand(model, data)
    torch.manual_seed(3)
    reestimate(model, data)
    for layer, (mean, variance) in zip(norms(model), expected, strict=True):
        torch.testing.assert_close(layer.running_mean, mean, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(layer.running_var, variance, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", [True, False])
def test_parameters_momenta_and_mode_are_what_they_were(mode: bool) -> None:
    model = network().train(mode)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    reestimate(model, images(UNEQUAL))
    assert all(map(torch.equal, model.parameters(), weights))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [layer.momentum for layer in norms(model)] == [0.1, 0.9, None]
    assert model.training == mode


def test_momenta_and_mode_come_back_when_the_data_fail() -> None:
    model = network().eval()

    def fails() -> Iterator[Tensor]:
        yield from images(EQUAL)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reestimate(model, fails())
    assert [layer.momentum for layer in norms(model)] == [0.1, 0.9, None]
    assert not model.training


def test_network_without_bn_needs_no_pass() -> None:
    def fails() -> Iterator[Tensor]:
        raise AssertionError("no image is needed")
        yield

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.BatchNorm2d(4, track_running_stats=False))
    reestimate(model.eval(), fails())
    assert not model.training


def test_kept_statistics_come_back_and_passes_inside_normalise_by_their_batch() -> None:
    model, twin, (batch, other, _) = network(), network(), images(UNEQUAL)
    model(batch)
    before = copy.deepcopy(model.state_dict())
    with keep_statistics(model):
        assert torch.equal(model(other), twin(other))
        assert norms(model)[0].num_batches_tracked.item() == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_kept_statistics_come_back_when_the_pass_fails() -> None:
    model, (batch, *_) = network(), images(UNEQUAL)
    before = copy.deepcopy(model.state_dict())

    def interrupted() -> None:
        with keep_statistics(model):
            model(batch)
            assert not torch.equal(norms(model)[0].running_mean, before["1.running_mean"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
