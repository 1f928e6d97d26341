"""Modes of a network's modules. The oracle is the list of them, taken before."""

from contextlib import suppress

import pytest
import torch
from torch import nn

from broadopt.devices.modes import mode
from broadopt.devices.probe import convolutions
from broadopt.methods.batchnorm import reestimate, statistics
from broadopt.models.build import macs
from broadopt.training.evaluate import log_probabilities


class Frozen(nn.Module):
    """A backbone that its constructor puts into evaluation mode, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_what_a_constructor_has_frozen_stays_frozen() -> None:
    model, images = Frozen(), torch.rand(4, 3, 32, 32)
    before = modes(model)
    assert len(set(before)) == 2
    macs(model)
    convolutions(model)
    autocast = torch.autocast("cpu", enabled=False)
    log_probabilities(model, [(images, torch.zeros(4))], autocast=autocast, before_batch=lambda: None)
    assert modes(model) == before


def test_statistics_of_a_frozen_part_are_not_estimated_anew() -> None:
    """Its training has used them as they are. Of a network that is evaluated as a whole all are."""
    model, images = Frozen(), torch.rand(4, 3, 32, 32)
    before, (mean, variance) = modes(model), statistics(model)
    mean.fill_(3)
    variance.fill_(5)
    reestimate(model, [images])
    assert modes(model) == before
    assert (mean == 3).all()
    assert (variance == 5).all()
    reestimate(model.eval(), [images])
    assert not (mean == 3).any()
    assert not any(modes(model))


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_all_modules_for_a_while_also_where_it_ends_by_an_error(training: bool) -> None:
    model = Frozen()
    before = modes(model)
    during = set()
    with suppress(KeyError), mode(model, training=training):
        during = set(modes(model))
        raise KeyError
    assert during == {training}
    assert modes(model) == before
