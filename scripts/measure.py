"""What the benchmark and the GPU check share: random data, trainings of broadopt's own parts, times and reports."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain, count, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import ModelConfig, RunConfig
from broadopt.data.datasets import Dataset, Images
from broadopt.devices.device import choose_device, choose_precision, set_flags
from broadopt.devices.graphs import WARM_UP
from broadopt.devices.provenance import environment
from broadopt.errors import InputError
from broadopt.files import replacing
from broadopt.models.build import macs, network
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.parts import Parts

BATCH = 128
PROTOCOL = "protocol=asam2021"
"""The recipe that is measured; a network's variant hangs on it."""
FIRST = WARM_UP + 2
"""Steps of a training ahead of those that are measured: in them memory is allocated, libraries choose their algorithms,
and the step is compiled, or recorded and replayed for the first time.
"""
HOW = (
    f"Training steps are timed after the first {FIRST} of their training, from an idle device until it is idle again; "
    "the first turn of all is not counted."
)


class Silent:
    """A reporter that says nothing."""

    def start(self, *, images: int, done: int, epochs: float) -> None: ...

    def batch(self, epoch: int, images: int, means: Any) -> None: ...

    def row(self, row: dict[str, float], images_per_second: float) -> None: ...

    def close(self) -> None: ...


def random_dataset(train: int, test: int, *, classes: int = 100) -> Dataset:
    """Noise in CIFAR's shape; the same for the same arguments."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> Images:
        pixels = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return Images(pixels, torch.randint(classes, (count,), generator=generator))

    return Dataset("random", tuple(map(str, range(classes))), images(train), images(test), None)


def parts_of(*overrides: str, dataset: Dataset) -> Parts:
    """The parts of `broadopt-run OVERRIDES`, on `dataset` in place of the one that it names."""
    run = composed(*overrides)
    device = choose_device(run.execution.device)
    precision = choose_precision(run.recipe.precision, device)
    set_flags(precision, deterministic=run.execution.deterministic)
    run = replace(run, recipe=replace(run.recipe, precision=precision))
    return build(run, dataset, device)


@cache
def composed(*overrides: str) -> RunConfig:
    """The run of `broadopt-run OVERRIDES` with a small lr; composed once, since most of them are made twice."""
    return run_config(compose(["lr=1e-4", *overrides]))  # noise is learnt by heart, or not at all


def trained(parts: Parts) -> Training:
    """One training of `parts` from where their weights stand, as the runner does it but for checkpoints."""
    training = Training(parts, stop=Stop(), reporter=Silent())
    training.run(lambda: None, minutes=float("inf"))
    return training


def steady(parts: Parts, steps: int) -> Callable[[], None]:
    """Makes `steps` steps of one training whenever it is called, its data, schedule and counts included. The FIRST ones
    are made here: none of them is among those that are measured.
    """
    training = Training(parts, stop=Stop(), reporter=Silent())

    def make(number: int) -> None:
        training.progress.step = 0  # steps that differ along a training are the same ones at every call
        inputs = chain.from_iterable(parts.data.inputs(epoch) for epoch in count())
        for one in islice(inputs, number):
            training.train_on(*one)

    make(FIRST)
    return lambda: make(steps)


def steps_of(parts: Parts, steps: int) -> Callable[[], float]:
    """Wall-clock seconds of `steps` steady steps."""
    make = steady(parts, steps)
    return lambda: seconds(make, parts.device)


def seconds(call: Callable[[], Any], device: torch.device, *, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of `call` by the clock, what it started on the device included."""
    wait(device)
    began = clock()
    call()
    wait(device)
    return clock() - began


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare(parts: Parts, steps: int) -> Callable[[], float]:
    """Seconds of `steps` steps on one batch that never changes: forward, backward, optimizer; recorded as a CUDA graph
    where the training's own are, which `parts` cannot share: a recording keeps the optimizer's tensors.
    """
    images, labels = next(iter(parts.data.train(0)))
    autocast = parts.autocast

    def step() -> float:
        parts.step.optimizer.zero_grad()
        with autocast:
            logits = parts.model(images)
        cross_entropy(logits.float(), labels).backward()
        parts.step.optimizer.step()
        return 1

    make: Callable[[], object] = step
    if parts.graph is not None:
        graph = parts.graph()
        for _ in range(WARM_UP):
            graph.warm_up(step)
        graph.record(step)
        make = graph.replay

    def all_steps(_held: object = step) -> None:  # a recording knows the addresses of images and labels alone
        for _ in range(steps):
            make()

    return lambda: seconds(all_steps, parts.device)


def interleaved(cases: Mapping[str, Callable[[], float]], *, rounds: int) -> list[dict[str, float]]:
    """The value of every case in each round, after one round unrecorded; what slows the machine meets all alike."""
    measured = [{name: case() for name, case in cases.items()} for _ in range(rounds + 1)]
    return measured[1:]


def ratio(measured: Sequence[Mapping[str, float]], above: str, below: str) -> dict[str, float]:
    """Median, least and greatest of the rounds' quotients of two cases."""
    quotients = [values[above] / values[below] for values in measured]
    return {"ratio": median(quotients), "least": min(quotients), "greatest": max(quotients)}


def multiply_adds(model: ModelConfig) -> int:
    """Multiply-adds of a forward pass of a network with 100 classes on one image."""
    with torch.device("meta"):
        return macs(network(model, 100))


def gmacs(*overrides: str) -> float:
    """Those of the network of a command line, in units of 1e9."""
    return multiply_adds(run_config(compose(list(overrides))).recipe.model) / 1e9


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *[[shown(row.get(column)) for column in columns] for row in rows]]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write(rows: Sequence[Mapping[str, Any]], path: Path | None, *, device: str, **facts: str) -> None:
    """Write rows with the command and the machine's facts as JSON, where there is a `path`: the whole file or nothing,
    also where a signal ends it.
    """
    if path is None:
        return
    place = choose_device(device)
    known = environment(place, {"precision": choose_precision("auto", place)}) | facts
    path.parent.mkdir(parents=True, exist_ok=True)
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]  # no folder of this machine
    content = {"command": "python " + " ".join(words), "environment": known, "timing": HOW, "rows": list(rows)}
    with replacing(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())


def shown(value: Any) -> str:
    """A cell's text."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fail(error: InputError) -> None:
    """Say one line on stderr and exit with 2."""
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    sys.exit(2)
