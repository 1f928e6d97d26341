"""The ratios that broadopt's speed is judged by, each of things measured in turns in one process."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import usual_loop
from measure import BATCH, PROTOCOL, bare, interleaved, parts_of, random_dataset, ratio, seconds, steps_of

from broadopt.devices.device import choose_device
from broadopt.methods.averaging.ema import MovingAverage
from broadopt.methods.averaging.swag import GaussianAverage
from broadopt.methods.batchnorm import reestimate
from broadopt.methods.swa import WeightAverage
from broadopt.training.evaluate import log_probabilities
from broadopt.training.parts import Parts

STEPS_PER_EPOCH = 391  # 50,000 images in batches of 128
STARTUP = (
    "import os, sys; from broadopt.methods import step; step.Plain.__call__ = lambda *_: os._exit(0); "
    "from broadopt.run import main; sys.argv[1:] = ['experiment=quickstart', 'results_dir=' + sys.argv[1]]; main()"
)
MEMORY = (
    "import resource, sys; from measure import parts_of, random_dataset, trained; "
    "parts = parts_of('model=vgg19_bn', 'batch_size=2', 'budget=1', 'precision=fp32', 'device=cpu', *sys.argv[1:], "
    "dataset=random_dataset(6, 2)); trained(parts); size = sum(p.numel() * 4 for p in parts.model.parameters()); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, size)"
)


def rows(*, device: str, steps: int, few: int, rounds: int, workers: int) -> Iterator[dict[str, Any]]:
    """What was measured, its median and range over the rounds, and what it is to reach. A GPU's rows leave out memory
    and start, which are those of a CPU.
    """
    yield from of_usual_loops(device=device, steps=steps, rounds=rounds, workers=workers)
    yield from of_an_epoch(device=device, steps=steps, rounds=rounds)
    for network in ("resnet20", "wrn28_2", "vgg16"):
        dataset = random_dataset(BATCH * few, 2)
        common = (f"model={network}", PROTOCOL, "budget=1", f"device={device}")
        made = {name: parts_of(*common, f"method={name}", dataset=dataset) for name in ("sgd", "sam", "asam")}
        cases = {name: steps_of(parts, few) for name, parts in made.items()}
        cases["bare"] = bare(parts_of(*common, "method=sgd", dataset=dataset), few)
        measured = interleaved(cases, rounds=rounds)
        for name in ("sam", "asam"):
            yield judged(f"seconds, {name} step over sgd step ({network})", "<= 2.05", ratio(measured, name, "sgd"))
        yield judged(f"images/s, loop over bare step ({network})", ">= 0.97", ratio(measured, "bare", "sgd"))
    if choose_device(device).type == "cuda":
        return
    yield judged("peak memory, SAM over SGD, in copies of the parameters (vgg19_bn)", "<= 1.02", extra_memory())
    yield judged("seconds, command to first step over importing torch", "<= 2.0", startup(rounds))


def judged(what: str, target: str, found: dict[str, float]) -> dict[str, Any]:
    """A row; `target` is ">= x" or "<= x"."""
    limit = float(target.split()[1])
    reached = found["ratio"] >= limit if target.startswith(">=") else found["ratio"] <= limit
    return {"what": what, **found, "to reach": target, "reached": "yes" if reached else "no"}


def of_an_epoch(*, device: str, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """ResNet-20: the parts of an epoch beside each other."""
    dataset = random_dataset(BATCH * steps, BATCH * steps)
    sgd = parts_of("model=resnet20", "method=sgd", "budget=1", f"device={device}", dataset=dataset)
    cases = {"sgd": steps_of(sgd, steps), **parts_of_an_epoch(sgd)}
    measured = interleaved(cases, rounds=rounds)
    average = ratio(measured, "average", "sgd")  # one average an epoch; the epoch measured here is a short one
    swa = {key: 1 + value * steps / STEPS_PER_EPOCH for key, value in average.items()}
    update = ratio(measured, "update", "sgd")  # a moving average is updated at every step of an epoch
    ema = {key: 1 + value for key, value in update.items()}
    swag = ratio(measured, "moments", "sgd")  # once an epoch, as SWA's average
    swag = {key: 1 + value * steps / STEPS_PER_EPOCH for key, value in swag.items()}
    yield judged("seconds, SWA epoch of 50,000 images over SGD epoch", "<= 1.01", swa)
    yield judged("seconds, EMA epoch over SGD epoch", "<= 1.02", ema)
    yield judged("seconds, SWAG epoch of 50,000 images over SGD epoch", "<= 1.02", swag)
    yield judged("seconds, BN re-estimation over training epoch", "<= 0.35", ratio(measured, "statistics", "sgd"))
    yield judged(
        "seconds, evaluation over forward share of an epoch", "<= 1.05", ratio(measured, "evaluation", "forward")
    )


def of_usual_loops(*, device: str, steps: int, rounds: int, workers: int) -> Iterator[dict[str, Any]]:
    """The loop beside the field's, with images from a DataLoader and with images on the device, in turns."""
    dataset = random_dataset(BATCH * steps, 2)
    for network in ("resnet20", "vgg16"):
        made = {
            method: parts_of(f"model={network}", f"method={method}", "budget=1", f"device={device}", dataset=dataset)
            for method in ("sgd", "asam")
        }
        parts = made["sgd"]
        goals = (">= 10", ">= 3") if parts.device.type == "cuda" else (">= 3", ">= 1")
        pictures = usual_loop.loader(steps=steps, batch=BATCH, workers=workers)
        resident = usual_loop.Resident(BATCH * steps, BATCH, parts.device)
        cases = {method: steps_of(one, steps) for method, one in made.items()}
        for method, rho in (("sgd", None), ("asam", 0.5)):
            cases[f"pictures {method}"] = usual_loop.epoch(parts.model, parts.device, pictures, rho=rho)
            cases[f"resident {method}"] = usual_loop.epoch(parts.model, parts.device, resident, rho=rho)
        measured = interleaved(cases, rounds=rounds)
        for method in made:
            for goal, (name, loop) in zip(
                goals, (("pictures", "DataLoader + PIL"), ("resident", "fp32 loop on the device")), strict=True
            ):
                quotient = ratio(measured, f"{name} {method}", method)
                yield judged(f"images/s, loop over {loop}, {method} ({network})", goal, quotient)


def parts_of_an_epoch(parts: Parts) -> dict[str, Callable[[], float]]:
    """Seconds of the forward passes of a training epoch, of evaluating as many images, of re-estimating BN, of one
    weight average, of a moving average's updates at every step, and of one collection of SWAG's moments.
    """
    model, device, average = copy.deepcopy(parts.model), parts.device, WeightAverage(start=0)
    moving, gaussian = MovingAverage(half_life=2.0), GaussianAverage(start=0, rank=20)
    average.collect(model)
    batches = list(parts.data.train(0))
    autocast = parts.autocast

    def forward() -> None:
        for images, _ in batches:
            with autocast:
                model(images)

    def statistics() -> None:
        reestimate(model, (images for images, _ in parts.data.statistics(0)), autocast=autocast)

    def evaluation() -> None:
        log_probabilities(model, parts.data.held_out()["test"], autocast=autocast, before_batch=lambda: None)

    def collect() -> None:
        average.collect(model)

    def update() -> None:
        for _ in batches:
            moving.update(model, epochs=1 / STEPS_PER_EPOCH)

    def moments() -> None:
        gaussian.collect(model)

    return {
        "forward": lambda: seconds(forward, device),
        "statistics": lambda: seconds(statistics, device),
        "evaluation": lambda: seconds(evaluation, device),
        "average": lambda: seconds(collect, device),
        "update": lambda: seconds(update, device),
        "moments": lambda: seconds(moments, device),
    }


def extra_memory() -> dict[str, float]:
    """Copies of the parameters that SAM's peak memory has more than SGD's; each in a process of its own, on the CPU."""
    peaks, size = [], 0
    for method in ("sgd", "sam"):
        command = [sys.executable, "-c", MEMORY, f"method={method}"]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent).stdout
        peak, size = map(int, out.split())
        peaks.append(peak)
    return {"ratio": (peaks[1] - peaks[0]) / size}


def startup(rounds: int) -> dict[str, float]:
    """The quickstart up to its first step, beside the imports that it cannot do without."""

    def timed(*command: str) -> Callable[[], float]:
        call = [sys.executable, "-c", *command]
        return lambda: seconds(lambda: subprocess.run(call, check=True, capture_output=True), torch.device("cpu"))

    with TemporaryDirectory() as folder:
        cases = {"step": timed(STARTUP, folder), "import": timed("import torch, torchvision")}
        return ratio(interleaved(cases, rounds=rounds), "step", "import")
