"""What the loop looks at before a checkpoint and at an epoch's end."""

import math

import pytest
import torch
from processes import training

from broadopt.errors import RunFailed


def test_weights_whose_squares_overflow_are_finite() -> None:
    loop = training("method=sgd", "+model.batch_norm=false")
    loop.parts.model.float()
    weights = next(loop.parts.model.parameters()).detach()
    weights[0] = 1e30
    assert torch.linalg.vector_norm(weights).isinf()
    loop.check_finite()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_named(value: float) -> None:
    loop = training("method=sgd", "+model.batch_norm=true")
    loop.parts.model.get_buffer("features.1.running_mean")[0] = value
    with pytest.raises(RunFailed, match=r"^features\.1\.running_mean is not finite in epoch 0 at lr "):
        loop.check_finite()
