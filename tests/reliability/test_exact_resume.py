"""A run that is interrupted and resumed ends, bit for bit, as one that was not: every method, every moment."""

import os
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import short_run
from processes import NETWORK
from short_run import METHODS, RESNET, STEPS_PER_EPOCH, Kind, differences, outcome
from torch import nn
from torch.nn import functional

from broadopt.errors import Interrupted
from broadopt.runs import checkpoint
from broadopt.signals import Stop
from broadopt.training.loop import Training


@cache
def undisturbed(*overrides: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        return outcome(short_run.run(Path(folder), *overrides))


def passes_a_step(method: str) -> int:
    return 1 if method.startswith("sgd") else 2


def moments(method: str) -> dict[str, tuple[str, int]]:
    """The kind and the number of the pass in which the signal comes."""
    passes = passes_a_step(method)
    found = {
        "inside an epoch": (Kind.TRAIN, passes * (2 * STEPS_PER_EPOCH + 1)),
        "at the end of an epoch": (Kind.TRAIN, passes * 2 * STEPS_PER_EPOCH),
        "during an evaluation": (Kind.TEST, 2),
    }
    if method.endswith("swa"):
        found["while BN statistics are estimated"] = (Kind.STATISTICS, 2)
    if passes == 2:
        found["in the second pass of a step"] = (Kind.TRAIN, 2 * STEPS_PER_EPOCH)
    return found


@pytest.mark.parametrize(("method", "moment"), [(method, moment) for method in METHODS for moment in moments(method)])
def test_every_method_resumes_exactly_at_every_moment(method: str, moment: str, tmp_path: Path) -> None:
    overrides = (*RESNET, *METHODS[method])
    kind, number = moments(method)[moment]
    short_run.stopped(tmp_path, *overrides, kind=kind, number=number)
    assert len(list(tmp_path.glob("checkpoint-*.ckpt"))) == 1
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


COLLECTORS = {
    "ema": ("collect=ema", "collect.start=0.25", "collect.every=2", "collect.bn=own"),
    "swag": ("collect=swag", "collect.start=0.25", "collect.budgets=[1]", "collect.rank=2", "collect.samples=3"),
    "swa+fge+ema+lawa": (
        "collect=swa+fge+ema+lawa",
        "collect.start=0.5",
        "collect.budgets=[1]",
        *("collect.also.fge.start=0.125", "collect.also.fge.cycle=0.25"),
        *("collect.also.ema.half_life=1", "collect.also.lawa.latest=2"),
    ),
}
AWKWARD = {  # the pass in which the signal comes, and where that leaves the run
    "before the first update": ("ema", Kind.TRAIN, 2, {"step": 2, "collected": []}),
    "between two updates": ("ema", Kind.TRAIN, 6, {"step": 6, "collected": []}),
    "ahead of the only evaluation": ("ema", Kind.TEST, 4, {"step": 12, "evaluated_at": 12, "collected": []}),
    "while a second network is drawn": ("swag", Kind.STATISTICS, 5, {"collected_at": 12, "collected": []}),
    "while a second network predicts": ("swag", Kind.TEST, 6, {"collected_at": 12, "collected": []}),
    "when one has collected and another has not": (
        *("swa+fge+ema+lawa", Kind.TRAIN, 6),
        {"step": 6, "collected_at": 6, "also_collected_at": {"fge": 3}},
    ),
    "when one is evaluated and another is not": (
        *("swa+fge+ema+lawa", Kind.STATISTICS, 4),
        {"step": 12, "also_collected_at": {"fge": 9, "lawa": 12}, "collected": ["1", "fge 1"]},
    ),
    "in the last evaluation": (
        *("swa+fge+ema+lawa", Kind.STATISTICS, 8),
        {"step": 12, "collected": ["1", "ema 1", "fge 1"]},
    ),
}


@pytest.mark.parametrize("moment", AWKWARD)
def test_every_collector_resumes_exactly_at_awkward_moments(moment: str, tmp_path: Path) -> None:
    name, kind, number, left = AWKWARD[moment]
    overrides = (*RESNET, "protocol=asam2021", "step=sgd", *COLLECTORS[name])
    short_run.stopped(tmp_path, *overrides, kind=kind, number=number)
    state = checkpoint.load(tmp_path, identity="short", device="cpu")
    assert state is not None
    found = state["progress"] | {"collected": sorted(state["progress"]["collected"])}
    assert {key: found[key] for key in left} == left
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_exactly_when_killed_while_a_checkpoint_is_written(method: str, tmp_path: Path) -> None:
    """Killed for good, in a process of its own, after the bytes are in the temporary file and before it is renamed."""
    overrides = (*RESNET, *METHODS[method])
    child = os.fork()
    if child == 0:
        left, replace = [7], os.replace

        def die_at_the_seventh(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*arguments)

        try:
            os.replace = die_at_the_seventh
            short_run.run(tmp_path, *overrides, minutes=0)
        finally:
            os._exit(70)  # whatever is raised: this child is no second pytest
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob(".checkpoint-*.tmp"))) == 1
    assert [path.name for path in sorted(tmp_path.glob("checkpoint-*"))] == [
        f"checkpoint-{step:010d}.ckpt" for step in (5, 6)
    ]
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


def test_a_signal_while_a_checkpoint_is_written_stops_the_run_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides, stop, fsync = (*RESNET, *METHODS["sam+swa"]), Stop(), os.fsync

    def ask(descriptor: int) -> None:
        stop.requested = "SIGTERM"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", ask)
    with pytest.raises(Interrupted):
        short_run.run(tmp_path, *overrides, stop=stop, minutes=0)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step:010d}.ckpt" for step in (1, 2)]
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


NOISE = {
    "dropout": (*NETWORK, "+model.batch_norm=true", "budget=1.5"),
    "Shake-Shake": ("model=shakeshake26_2x64d", "model.depth=8", "model.width=8"),
    "ShakeDrop": ("model=pyramidnet272_shakedrop", "model.depth=11", "model.alpha=16"),
    "label noise": (*RESNET, "dataset.label_noise=0.4"),
    "AutoAugment, Cutout and CutMix": (
        *(*RESNET, "augmentation.autoaugment=true", "augmentation.cutout=8", "augmentation.cutmix=0.5"),
    ),
    "held-out images": (*RESNET, "dataset.validation=10"),
}


@pytest.mark.parametrize("noise", NOISE)
def test_whatever_is_random_resumes_exactly(noise: str, tmp_path: Path) -> None:
    overrides = (*METHODS["sam+swa"], "budget=2", *NOISE[noise])
    short_run.stopped(tmp_path, *overrides, kind=Kind.TRAIN, number=7)
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


@pytest.mark.parametrize("method", ["sgd", "sgd+fge"])
def test_what_a_network_draws_in_an_evaluation_resumes_exactly(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with dropout at test time does."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, images: functional.dropout(images, self.p, training=True))
    overrides = (*METHODS[method], *NOISE["dropout"], "dataset.validation=10")
    whole = outcome(short_run.run(tmp_path / "whole", *overrides))
    for number in (1, 2, 3):  # two of an evaluation
        short_run.stopped(tmp_path / str(number), *overrides, kind=Kind.TEST, number=number)
        assert differences(outcome(short_run.run(tmp_path / str(number), *overrides)), whole) == []


def test_a_run_resumed_at_every_single_step_ends_alike(tmp_path: Path) -> None:
    overrides = (*RESNET, *METHODS["asam+fge"])
    for _ in range(12):
        stop = Stop()
        removed = short_run.at_pass(Kind.TRAIN, 2, lambda stop=stop: setattr(stop, "requested", "SIGTERM"))
        try:
            with pytest.raises(Interrupted):
                short_run.run(tmp_path, *overrides, stop=stop)
        finally:
            removed.remove()
    assert differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides)) == []


def test_a_forgotten_piece_of_state_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: here the momentum is lost."""
    overrides = (*RESNET, *METHODS["sgd"])
    short_run.stopped(tmp_path, *overrides, kind=Kind.TRAIN, number=7)
    load = Training.load_state_dict

    def forget(self: Training, state: dict[str, Any]) -> None:
        load(self, state)
        self.parts.step.optimizer.state.clear()

    monkeypatch.setattr(Training, "load_state_dict", forget)
    found = differences(outcome(short_run.run(tmp_path, *overrides)), undisturbed(*overrides))
    assert any(place.startswith("/model") for place in found)
