"""A run of a second in this process: broadopt's own parts on 40 random images, stopped at an exact moment."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import RunConfig
from broadopt.data.datasets import Dataset, Images
from broadopt.errors import Interrupted
from broadopt.runs import checkpoint
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines

STEPS_PER_EPOCH = 3  # of 16, 16 and 8 images
FIXED = ("batch_size=16", "budget=4", "evaluate_every=1", "device=cpu", "precision=fp32")
RESNET = ("model=resnet20", "model.depth=8")
OF_ANY_SIZE = ("ResNet", "ShakeShake", "PyramidNet")
"""Classes of networks that end in a mean over the pixels."""
METHODS = {  # with the values that they had when tests/golden/semantics.json was written
    f"{step}{'' if collect == 'none' else f'+{collect}'}": (
        "protocol=asam2021",
        f"step={step}",
        f"collect={collect}",
        *(("collect.start=0.5", "collect.budgets=[1]") if collect == "swa" else ()),
        *(("collect.start=0.25", "collect.cycle=0.25", "schedule.low=0.01") if collect == "fge" else ()),
    )
    for step in ("sgd", "sam", "asam")
    for collect in ("none", "swa", "fge")
}


@cache
def composed(*overrides: str) -> RunConfig:
    """The run of `broadopt-run OVERRIDES`; composed once, since most runs here are made twice."""
    return run_config(compose([*FIXED, "precision=fp32", *overrides]))


def parts_of(*overrides: str, apart: int = 4) -> Any:
    """The parts of `broadopt-run OVERRIDES` on random images, of which a network that takes any size is shown the
    pixels that are so far `apart`: it computes in a sixteenth of the time.
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (60,), generator=generator)
    dataset = Dataset(
        "random", tuple("0123456789"), Images(pixels[:40], labels[:40]), Images(pixels[40:], labels[40:]), None
    )
    parts = build(composed(*overrides), dataset, torch.device("cpu"))
    if type(parts.model).__name__ in OF_ANY_SIZE:
        parts.model.register_forward_pre_hook(lambda _, inputs: (inputs[0][..., ::apart, ::apart],))
    return parts


class Kind:
    """Which pass of a network a moment is: one of training, of evaluation, or of estimating BN statistics."""

    TRAIN, TEST, STATISTICS = "train", "test", "statistics"

    @staticmethod
    def of(model: nn.Module) -> str:
        if not model.training:
            return Kind.TEST
        return Kind.TRAIN if torch.is_grad_enabled() else Kind.STATISTICS


def at_pass(kind: str, number: int, act: Callable[[], None]) -> Any:
    """Do `act` in pass `number` of `kind` of whatever network; returns what removes it."""
    left = [number]

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if type(module).__name__ in (*OF_ANY_SIZE, "Small") and Kind.of(module) == kind:
            left[0] -= 1
            if left[0] == 0:
                act()

    return nn.modules.module.register_module_forward_hook(hook)


def run(folder: Path, *overrides: str, stop: Stop | None = None, minutes: float = float("inf")) -> Training:
    """Train from the newest checkpoint in `folder`, if there is one, to the end; raises Interrupted as a run does."""
    folder.mkdir(exist_ok=True)
    parts = parts_of(*overrides)
    training = Training(parts, stop=stop or Stop(), reporter=EpochLines())
    state = checkpoint.load(folder, identity="short", device="cpu")
    if state is not None:
        training.load_state_dict(state)

    def save() -> None:
        training.check_finite()
        checkpoint.save(folder, training.state_dict(), identity="short", step=training.progress.step)

    training.run(save, minutes=minutes)
    return training


def stopped(folder: Path, *overrides: str, kind: str, number: int) -> None:
    """Train until a signal comes in pass `number` of `kind`; leaves a checkpoint."""
    stop = Stop()
    removed = at_pass(kind, number, lambda: setattr(stop, "requested", "SIGTERM"))
    try:
        run(folder, *overrides, stop=stop)
    except Interrupted:
        return
    finally:
        removed.remove()
    raise AssertionError(f"the run ended before pass {number} of {kind}")


def outcome(training: Training) -> dict[str, Any]:
    """All that a run ends with, times apart: every tensor of it and every figure."""
    state = training.state_dict()
    state["progress"] = {key: value for key, value in state["progress"].items() if key != "train_seconds"}
    return state


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Where two states are not the same bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [found for key in one for found in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place}: {len(one)} and {len(other)} entries"]
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{place}/{i}")
        ]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [place]
    return [] if type(one) is type(other) and one == other else [f"{place}: {one!r} and {other!r}"]
