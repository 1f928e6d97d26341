"""What the loop looks at before a checkpoint and at an epoch's end, and the memory that a training leaves."""

import gc
import json
import math
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from command import OWN, SMALL, run
from processes import training
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from broadopt.config.compose import compose, run_config
from broadopt.errors import InputError, Interrupted, RunFailed
from broadopt.methods.steps.products import sums_of_norms
from broadopt.runs import checkpoint
from broadopt.signals import Stop
from broadopt.training import loop as loops
from broadopt.training.execute import execute
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines


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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(value: float) -> None:
    loop = training("method=sgd", "+model.batch_norm=false")
    loop.stepper.loss_sum.fill_(value)
    with pytest.raises(RunFailed, match=r"^the loss is not finite in epoch 0 at lr "):
        loop.check_finite()


def test_outputs_that_are_not_finite_end_the_run() -> None:
    """As those of weights that are finite, and too large."""
    made = training("method=sgd", "+model.batch_norm=false", "lr=1e-30")
    with torch.no_grad():
        made.parts.model.linear.weight.fill_(1e308)
    reason = r"^the outputs on held-out images are not finite after epoch 1 at lr 1e-30$"
    with pytest.raises(RunFailed, match=reason):
        made.evaluator.metrics(made.evaluator.predict(made.parts.model), where="after epoch 1 at lr 1e-30")


class Clock:
    """In the place of the module `time`: goes on by what is said to take time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def takes(self, seconds: float, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*given: Any, **named: Any) -> Any:
            self.now += seconds
            return act(*given, **named)

        return acted


def clocked(monkeypatch: pytest.MonkeyPatch, *, step: float, evaluation: float) -> tuple[Training, Clock]:
    """Two epochs of eight steps, evaluated at the end of each, on a clock of its own."""
    clock = Clock()
    monkeypatch.setattr(loops, "time", clock)
    made = training("method=sgd", "+model.batch_norm=false")
    made.stepper.train_on = clock.takes(step, made.stepper.train_on)  # type: ignore[method-assign]
    made.evaluator.predict = clock.takes(evaluation, made.evaluator.predict)  # type: ignore[method-assign]
    return made, clock


def test_the_time_of_a_training_is_that_of_its_steps_and_it_is_saved_every_so_many_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, clock = clocked(monkeypatch, step=30, evaluation=7)
    saved: list[int] = []
    made.run(clock.takes(500, lambda: saved.append(made.progress.step)), minutes=1.5)
    assert made.progress.train_seconds == 16 * 30
    assert made.images_per_second == made.measured_rate == 2 * 1438 / (16 * 30)
    # The seconds of an evaluation count for the next checkpoint: 30 + 37 + 30 are more than 90.
    assert saved == [3, 6, 9, 12, 15]


def test_a_training_that_is_interrupted_has_the_time_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made, clock = clocked(monkeypatch, step=30, evaluation=7)
    take, saved = made.stepper.train_on, []

    def interrupted(*inputs: Tensor, step: int) -> float:
        made.stop.requested = "SIGTERM" if step == 9 else None
        return take(*inputs, step=step)

    made.stepper.train_on = interrupted  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        made.run(clock.takes(500, lambda: saved.append(made.progress.step)), minutes=1e9)
    assert (made.progress.train_seconds, saved) == (10 * 30, [10])


def test_where_a_training_is_counts_the_epochs_of_its_trunk() -> None:
    made = training("method=sgd", "+model.batch_norm=false")
    made.progress.step, made.measured_rate, made.progress.trunk = 11, 321.0, {"epochs": 1}
    found = made.position()
    assert (found.step, found.steps, found.steps_per_epoch, found.trunk_epochs) == (11, 16, 8, 1)
    assert (found.images_per_epoch, found.images_per_second) == (1438, 321.0)


def test_the_rate_after_a_move_to_another_kind_of_device_is_that_of_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, _ = clocked(monkeypatch, step=30, evaluation=7)
    made.progress.step, made.progress.train_seconds = 8, 1000.0
    made.progress.evaluated_at = 8
    made.measure_from_here()
    assert (made.measured_rate, made.position().epochs_elsewhere) == (0.0, 1.0)
    made.run(lambda: None, minutes=1e9)
    assert made.measured_rate == 1438 / (8 * 30)
    assert made.images_per_second == 2 * 1438 / (1000 + 8 * 30)


def test_an_image_that_is_mixed_of_two_counts_by_its_larger_share() -> None:
    made = training("method=sgd", "+model.batch_norm=false")
    images, labels = next(iter(made.parts.data.train(0)))
    one_hot = nn.functional.one_hot(labels, 10).double()
    logits = []
    made.parts.model.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
    made.train_on(images, 0.6 * one_hot + 0.4 * one_hot.roll(1, 0))
    assert made.stepper.sums().hits == int((logits[0].argmax(1) == labels).sum()) > 0


def test_norms_of_tensors_on_two_devices_are_summed_on_each() -> None:
    """As on a GPU those of an optimizer that is not fused, which counts its steps on the CPU; no GPU is needed."""
    one, other = torch.full((4,), 3.0), torch.tensor(5.0)
    assert sums_of_norms([one, other, one], order=2) == {torch.device("cpu"): 6 + 5 + 6}
    with FakeTensorMode():
        weight, step = torch.ones(4, device="cuda"), torch.tensor(5.0)
        sums = sums_of_norms([weight, step, weight], order=2)
    assert {device: (value.device, value.shape) for device, value in sums.items()} == {
        place: (place, ()) for place in (torch.device("cuda", 0), torch.device("cpu"))
    }


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


@pytest.mark.parametrize("number", [numpy.float64, numpy.float32, torch.tensor])
def test_a_checkpoint_after_an_lr_that_numpy_made_can_be_read(
    number: Callable[[float], object], tmp_path: Path
) -> None:
    parts = replace(
        training("method=sgd", "+model.batch_norm=true").parts,
        schedule=lambda epochs, *, step: number(0.01),
        evaluate_every=9,
    )
    made = Training(parts, stop=Stop(), reporter=EpochLines())
    for epoch in range(2):
        for inputs in parts.data.inputs(epoch):
            made.train_on(*inputs)
        made._end_epoch()
    checkpoint.save(tmp_path, made.state_dict(), identity="own", step=made.progress.step)
    state = checkpoint.load(tmp_path, identity="own", device="cpu")
    assert state is not None
    assert state["last"]["lr"] == float(number(0.01))
    assert [row["lr"] for row in json.loads(json.dumps(state["progress"]["history"]))] == 2 * [float(number(0.01))]


@pytest.mark.parametrize(("lr", "epoch"), [("0.1 if epochs < 1 else float('nan')", 2), ("None", 1)])
def test_a_schedule_that_gives_no_lr_ends_the_run_in_a_line(lr: str, epoch: int, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"class Mine:\n    def __call__(self, epochs, *, step):\n        return {lr}\n"
        "    def __init__(self, lr, budget, **others): pass\n"
    )
    given = ("method=sgd", "budget=3", "schedule._target_=mine.Mine")
    done = run(*SMALL, *given, cwd=tmp_path, PYTHONPATH=f"{OWN}:{tmp_path}")
    reason = f"the lr that it gives in epoch {epoch} is {'None' if epoch == 1 else 'nan'}; expected a finite number"
    assert done.returncode == 1
    assert f"schedule: {reason}" in done.stderr.splitlines()[-1]
    (path,) = tmp_path.rglob("result.json")
    left = json.loads(path.read_text())
    assert (left["state"], left["failure"]["reason"]) == ("failed", f"schedule: {reason}")
    assert left["epochs"] == epoch - 1


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("collect", ["swa", "ema", "lawa", "swag"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_a_network_that_cannot_be_copied_ends_the_run_after_its_first_step(
    norm: Callable[[nn.Module], nn.Module], collect: str
) -> None:
    made = training("method=sgd", f"collect={collect}", "+model.batch_norm=true")
    norm(made.parts.model.linear)
    with pytest.raises(RunFailed) as error:
        made.run(lambda: None, minutes=60)
    assert made.progress.step == 1
    assert str(error.value).startswith("model: Linear linear keeps a tensor of its last pass, so that the network ")
    assert str(error.value).endswith("of weight_norm and spectral_norm those of torch.nn.utils.parametrizations")


def test_a_collector_without_a_copy_takes_such_a_network_and_all_take_the_newer_norms() -> None:
    made = training("method=sgd", "+model.batch_norm=true", "budget=1")
    nn.utils.spectral_norm(made.parts.model.linear)
    made.run(lambda: None, minutes=60)
    assert made.progress.step == made.calendar.total_steps

    made = training("method=sgd", "collect=swa", "+model.batch_norm=true", "budget=1", "collect.start=0")
    nn.utils.parametrizations.spectral_norm(made.parts.model.linear)
    made.run(lambda: None, minutes=60)
    assert made.progress.collected
