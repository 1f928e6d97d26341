"""Error and loss at given weights, against an explicit computation."""

import math
from pathlib import Path

import pytest
import torch
from small_networks import Reads
from stored import record, store
from torch import nn

from broadopt.analysis.landscape.grid import Landscape, Penalty
from broadopt.analysis.landscape.networks import flat, put
from broadopt.analysis.landscape.probabilities import Predictions
from broadopt.analysis.landscape.runs import chosen

COUNT = 40


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, 3, 4, 4, generator=generator), torch.randint(3, (COUNT,), generator=generator)


def landscape(model: nn.Module, **options) -> Landscape:
    defaults = {"weight_decay": 0.1, "batch_size": 16, "context": torch.autocast("cpu", enabled=False)}
    return Landscape(model, train=data(1), test=data(2), statistics=data(5)[0], **defaults | options)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def test_flat_weights_come_back() -> None:
    model = linear()
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    vector = torch.arange(147.0)
    put(model, vector)
    assert torch.equal(flat(model), vector)
    assert model[1].bias.tolist() == [144, 145, 146]
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    with pytest.raises(ValueError, match=r"shape \[146\], expected \[147\]"):
        put(model, vector[:-1])


def test_a_linear_network_is_measured_as_computed_by_hand() -> None:
    weights = torch.randn(147, generator=torch.Generator().manual_seed(3)) / 5
    found = landscape(linear()).at(weights)

    def outcomes(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = data(seed)
        logits = images.flatten(1).double() @ weights[:144].view(3, 48).double().T + weights[144:].double()
        losses = -torch.log(torch.softmax(logits, 1))[torch.arange(COUNT), labels]
        return losses, logits.argmax(1) != labels

    losses, wrong = outcomes(1)
    assert found.train_loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.train_loss_se == pytest.approx(float(losses.std()) / math.sqrt(COUNT), rel=1e-6)
    assert found.train_error == 100 * int(wrong.sum()) / COUNT
    assert found.train_objective == pytest.approx(found.train_loss + 0.05 * float(weights.double() @ weights.double()))
    assert found.norm == pytest.approx(float(weights.double().norm()))
    losses, wrong = outcomes(2)
    share = int(wrong.sum()) / COUNT
    assert found.test_error == 100 * share
    assert found.test_error_se == pytest.approx(100 * math.sqrt(share * (1 - share) / COUNT))
    assert found.test_nll == pytest.approx(float(losses.mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "plus 0.00025 ‖w‖²"),
        (("optimizer._target_=torch.optim.SGD",), "plus 0.00025 ‖w‖²"),
        (("optimizer._target_=torch.optim.SGD", "+optimizer.weight_decay=0.5"), "plus 0.25 ‖w‖²"),
        (
            ("optimizer=adamw",),
            "without an L2 term, since weight decay is a term of the loss with SGD, not with adamw",
        ),
        (
            ("optimizer._target_=torch.optim.AdamW",),
            "without an L2 term, since weight decay is a term of the loss with SGD, not with AdamW",
        ),
        (
            ("optimizer._target_=torch.optim.RMSprop",),
            "without an L2 term, since weight decay is known to be a term of the loss for SGD alone (here: RMSprop)",
        ),
    ],
)
def test_the_l2_term_is_that_of_optimizers_that_are_known_to_have_one(
    tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    folder = store(tmp_path, record("experiment=quickstart", "weight_decay=0.0005", *words))
    assert Penalty.of(chosen([str(folder)], [])).words == expected


def test_bn_statistics_are_those_of_their_images_at_these_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    place = landscape(model, batch_size=COUNT)
    assert place.has_bn
    weights = torch.randn(flat(model).numel(), generator=torch.Generator().manual_seed(4))
    first = place.at(weights)
    outputs = model[0](data(5)[0])
    torch.testing.assert_close(model[1].running_mean, outputs.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model[1].running_var, outputs.var(dim=(0, 2, 3)))
    # What was measured in between leaves no trace.
    place.at(weights * 2)
    assert place.at(weights) == first


def test_a_last_batch_of_one_image_joins_that_before_it() -> None:
    """BN of features without a place fails on a single image; the statistics are those of batches of 13, 13 and 14."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    weights = torch.randn(flat(model).numel(), generator=torch.Generator().manual_seed(4))
    landscape(model, batch_size=13).at(weights)
    parts = model[1](model[0](data(5)[0])).split([13, 13, 14])
    expected = sum(len(part) / COUNT * part.var(dim=0) for part in parts)
    torch.testing.assert_close(model[2].running_var, expected)
    predict = Predictions(model=model, test=data(2)[0], train=data(5)[0], batch_size=13, seed=1)
    assert predict.at(weights).shape == (COUNT, 3)
    torch.testing.assert_close(model[2].running_var, expected)


def test_bn_without_statistics_has_none_to_be_re_estimated() -> None:
    """Neither a landscape nor predictions say of it that they were."""
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False), nn.Flatten())
    assert not landscape(model).has_bn
    assert not Predictions(model=model, test=data(2)[0], train=data(5)[0], batch_size=13, seed=1).has_bn


def test_a_point_is_read_in_a_few_values_however_many_parameters_there_are() -> None:
    shallow, deep = linear(), nn.Sequential(linear(), *(nn.Linear(3, 3) for _ in range(5)))
    counts = []
    for model in (shallow, deep):
        with Reads() as reads:
            found = landscape(model).measured()
        counts.append(reads.count)
        assert found.norm == math.sqrt(sum(float(one.detach().double().square().sum()) for one in model.parameters()))
    assert counts[0] == counts[1]


def test_logits_that_are_not_finite_hit_nothing() -> None:
    found = landscape(linear()).at(torch.full((147,), torch.inf))
    assert (found.test_error, found.train_error) == (100, 100)
    assert math.isnan(found.train_loss)
