"""What the loop looks at before a checkpoint and at an epoch's end, and the memory that a training leaves."""

import gc
import math
import weakref

import pytest
import torch
from processes import training

from broadopt.config.compose import compose, run_config
from broadopt.errors import InputError, RunFailed
from broadopt.signals import Stop
from broadopt.training.execute import execute


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


def test_a_run_begins_with_the_memory_of_the_runs_before_it_given_back() -> None:
    """As broadopt-run has it, where Python hardly looks for cycles by itself."""
    before = training("method=sgd", "+model.batch_norm=false")
    before.itself = before  # type: ignore[attr-defined] - a cycle
    kept = weakref.ref(before)
    gc.disable()
    try:
        del before
        assert kept() is not None
        with pytest.raises(InputError):
            execute(run_config(compose(["experiment=quickstart", "device=cuda:99"])), Stop())
        assert kept() is None
    finally:
        gc.enable()


def test_a_training_is_given_back_where_nothing_refers_to_it_any_more() -> None:
    made = training("method=sgd", "+model.batch_norm=false")
    kept = weakref.ref(made.stepper)
    gc.disable()
    try:
        del made
        assert kept() is None
    finally:
        gc.enable()
