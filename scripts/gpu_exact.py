"""The parts of scripts/gpu_check.py that must agree: trainings and gradients with the CPU's, recorded steps with plain
ones, resumed trainings with whole ones; and steps that must not wait for the device.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch
from measure import Silent, parts_of, random_dataset, trained
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from broadopt.config.shipped import options
from broadopt.devices.device import choose_device, choose_precision
from broadopt.devices.graphs import CudaGraph, waiting_counted
from broadopt.errors import Interrupted
from broadopt.methods.schedule import Schedule
from broadopt.runs import checkpoint
from broadopt.signals import Stop
from broadopt.training.loop import Training

METHODS = {
    "sgd": ("method=sgd",),
    "sam": ("method=sam",),
    "asam": ("method=asam",),
    "swa": ("method=swa", "collect.budgets=[1]"),
    "fge": ("method=fge",),
    "sam+swa": ("method=sam", "collect=swa", "collect.budgets=[1]"),
    "sgd+adamw": ("method=sgd", "optimizer=adamw"),
}
NOISY = {
    "dropout": "vgg16",
    "torchvision's head": "vgg19_bn",
    "Shake-Shake": "shakeshake26_2x64d",
    "ShakeDrop": "pyramidnet272_shakedrop",
}
SHORT = ("batch_size=16", "budget=2", "evaluate_every=1", "precision=fp32")  # 2 epochs of 3 steps, the last of 8 images
FP32 = 2e-3
"""What rounding may make of a smooth network's gradient, as a share of its norm, at PyramidNet-272's depth too."""
FLOAT64 = 1e-8
Rows = Iterator[dict[str, Any]]


def checked(what: str, found: float, limit: float) -> dict[str, Any]:
    """A row of a check that is passed where `found` is at most `limit`."""
    return {"check": what, "found": found, "at most": limit, "passed": "yes" if found <= limit else "no"}


class Smooth(TorchFunctionMode):
    """ReLUs are SiLUs, and maxima of pools means, while it is on.

    A ReLU passes the gradient on by the sign of its input, and of a million inputs some are as near to 0 as rounding
    goes: one that falls on the other side changes the gradient of 8 images by half a percent (0.0066 between fp32 and
    float64 on the same CPU, ResNet-20; 3.5e-6 where it is smooth). That would hide a kernel that is wrong.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (functional.relu, torch.relu, torch.relu_):
            return functional.silu(args[0])
        if function in (functional.max_pool2d, torch.max_pool2d):
            return mean_of_pool(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def mean_of_pool(images: Tensor, size: int, stride: int | None = None, padding: int = 0, *_: Any, **__: Any) -> Tensor:
    """What takes the place of a maximum of the same windows."""
    return functional.avg_pool2d(images, size, stride, padding)


def of_gradients(arguments: argparse.Namespace) -> Rows:
    """BN uses the batch's statistics; noise is switched off, for the two devices draw different noise."""
    device = choose_device(arguments.device)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    for name in arguments.networks:
        parts = parts_of(f"model={name}", "batch_size=8", "device=cpu", "precision=fp32", dataset=random_dataset(8, 2))
        model = without_noise(parts.model)
        with Smooth():
            reference = gradient(model, images, labels)
            choose_flags(device)
            there = copy.deepcopy(model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            found = gradient(there, images.to(device), labels.to(device))
        for place, own, other in zip(("logits", "gradient"), found, reference, strict=True):
            yield checked(f"{name}: {place} against the CPU's", float((own - other).norm() / other.norm()), FP32)


def choose_flags(device: torch.device) -> None:
    """fp32 as broadopt sets it up on `device`."""
    measure.set_flags(choose_precision("fp32", device), deterministic=False)


def without_noise(model: nn.Module) -> nn.Module:
    """`model` with BN in training mode and everything else in evaluation mode."""
    model.eval()
    for module in model.modules():
        module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return model


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and flat gradient of the mean cross-entropy, in float64 on the CPU."""
    model.zero_grad()
    logits = model(images)
    functional.cross_entropy(logits, labels).backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach().cpu().double(), torch.cat(gradients).cpu().double()


def of_training(arguments: argparse.Namespace) -> Rows:
    """The largest relative difference of any figure that a training reports."""
    for method, keys in METHODS.items():
        own, reference = (figures(doubled(*keys, device=device)) for device in (arguments.device, "cpu"))
        largest = max(abs(own[name] - value) / max(abs(value), 1e-12) for name, value in reference.items())
        yield checked(f"{method}: {len(reference)} figures of 6 steps against the CPU's", largest, FLOAT64)


def doubled(*keys: str, device: str) -> Training:
    """A short training of ResNet-8, its network and its loss in float64.

    A GPU divides pixels by 255 as it multiplies by the reciprocal, so its float32 images are a rounding off the CPU's:
    the network is given them in steps of 1/64, from whose bounds no pixel's value is that near.
    """
    small = ("model=resnet20", "model.depth=8", *SHORT, f"device={device}")
    parts = parts_of(*small, *keys, dataset=random_dataset(40, 20, classes=10))
    # A GPU takes the learning rate from a float32 tensor: the CPU's training is given the same one.
    parts = replace(parts, schedule=Rounded(**vars(parts.schedule)))
    parts.model.double().register_forward_pre_hook(lambda _, inputs: ((64 * inputs[0].double()).round() / 64,))
    return trained(parts)


class Rounded(Schedule):
    """Its learning rates as float32 has them."""

    def __call__(self, epochs: float, *, step: float = 0.0) -> float:
        """See Schedule."""
        return torch.tensor(super().__call__(epochs, step=step), dtype=torch.float32).item()


def figures(training: Training) -> dict[str, float]:
    """Every number that a training reports, by its place."""
    rows: dict[str, Any] = {f"epoch {row['epoch']}": row for row in training.progress.history}
    rows |= training.progress.collected
    return {f"{place} {name}": value for place, row in rows.items() for name, value in row.items()}


def of_resume(arguments: argparse.Namespace) -> Rows:
    """Tensors and figures that differ between a whole training and one that was interrupted, saved and resumed."""
    cases = {f"{method} (resnet20)": ("model=resnet20", *keys) for method, keys in METHODS.items()}
    cases |= {f"asam with {noise}": (f"model={name}", "method=asam") for noise, name in NOISY.items()}
    cases = {what: keys for what, keys in cases.items() if keys[0].removeprefix("model=") in arguments.networks}
    for what, keys in cases.items():
        undisturbed, halves = (resumed(*keys, device=arguments.device, at=at) for at in (None, 4))
        found = differing(undisturbed, halves)
        yield checked(f"{what}: resumed in the middle of an epoch, differing values", found, 0)


def resumed(*keys: str, device: str, at: int | None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Final weights and figures; with `at`, stopped at the step of that number and resumed by a second process's
    parts.
    """
    arguments = (*SHORT, "deterministic=true", f"device={device}", *keys)
    dataset = random_dataset(40, 20)
    parts = parts_of(*arguments, dataset=dataset)
    with TemporaryDirectory() as folder:
        training = Training(parts, stop=StopAt(parts.model, at), reporter=Silent())

        def save() -> None:
            state = training.state_dict()
            checkpoint.save(Path(folder), state, identity="check", step=training.progress.step)

        try:
            training.run(save, minutes=float("inf"))
        except Interrupted:
            parts = parts_of(*arguments, dataset=dataset)
            state = checkpoint.load(Path(folder), identity="check", device=parts.device)
            training = Training(parts, stop=Stop(), reporter=Silent())
            training.load_state_dict(state or {})
            training.run(lambda: None, minutes=float("inf"))
    return parts.model.state_dict(), figures(training)


class StopAt(Stop):
    """Asks to stop at the first check after `forward` passes in training mode; never with None."""

    def __init__(self, model: nn.Module, forward: int | None) -> None:
        super().__init__()
        self.left = forward
        model.register_forward_hook(self._count)

    def _count(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if model.training and self.left is not None:
            self.left -= 1
            if self.left == 0:
                self.requested = "the check"


def of_graphs(arguments: argparse.Namespace) -> Rows:
    """Values that differ between trainings of recorded and of plain steps; eight full batches and one of eight images.
    Without CUDA the recording is its twin that replays by calling.
    """
    device = choose_device(arguments.device)
    if device.type != "cuda":
        print("graphs: a CPU records nothing; its twin that replays by calling takes the place")
    cases = {f"{method} (resnet20)": ("model=resnet20", *keys) for method, keys in METHODS.items()}
    cases |= {f"asam with {noise}": (f"model={name}", "method=asam") for noise, name in NOISY.items()}
    cases = {what: keys for what, keys in cases.items() if keys[0].removeprefix("model=") in arguments.networks}
    for what, keys in cases.items():
        plain, recorded = (whole(*keys, device=device, is_recorded=choice) for choice in (False, True))
        yield checked(f"{what}: recorded steps, differing values", differing(plain, recorded), 0)
        yield checked(f"{what}: recordings that failed", 1 - recorded[2], 0)
    if device.type == "cuda":
        plain, waiting = (
            whole("model=resnet20", device=device, is_recorded=choice, waits=True) for choice in (False, True)
        )
        yield checked("a network that waits: goes on with plain steps, differing values", differing(plain, waiting), 0)
        yield checked("a network that waits: recordings", waiting[2], 0)


class CalledGraph:
    """Work that is replayed by calling it, on any device: its buffers are those of a CUDA graph."""

    def warm_up(self, work: Callable[[], float]) -> tuple[float, str]:
        return work(), ""

    def record(self, work: Callable[[], object]) -> None:
        self._work = work

    def replay(self) -> None:
        self._work()


def whole(
    *keys: str, device: torch.device, is_recorded: bool, waits: bool = False
) -> tuple[dict[str, Tensor], dict[str, float], int]:
    """Final weights and figures of a short training, and whether its steps were recorded to the end."""
    overrides = ("batch_size=16", "budget=1", "precision=fp32", "deterministic=true", "graphs=false")
    parts = parts_of(*overrides, f"device={device}", *keys, dataset=random_dataset(136, 20))
    graph: Callable[[], Any] = partial(CudaGraph, device) if device.type == "cuda" else CalledGraph
    parts = replace(parts, graph=graph if is_recorded else None, settings=parts.settings | {"graphs": is_recorded})
    if waits:
        parts.model.register_forward_hook(lambda _, inputs, logits: float(logits.sum()) and None)
    training = trained(parts)
    return parts.model.state_dict(), figures(training), int(parts.settings["graphs"])


def differing(one: tuple[Any, ...], other: tuple[Any, ...]) -> int:
    """How many tensors and figures of two trainings are not the same bits."""
    tensors = sum(not torch.equal(own, other[0][name]) for name, own in one[0].items())
    return tensors + sum(other[1][name] != value for name, value in one[1].items())


def of_waiting(arguments: argparse.Namespace) -> Rows:
    """Steps whose code waits for the device, in an epoch of ten."""
    device, dataset = choose_device(arguments.device), random_dataset(160, 2)
    if device.type != "cuda":
        print("waiting: there is nothing to wait for on a CPU; the steps are made, none is counted")
    cases = {name: (f"method={name}",) for name in sorted(options("step"))}
    cases |= {"ema": ("method=sgd", "collect=ema", "collect.bn=own")}
    cases |= {"AutoAugment": ("method=sgd", "augmentation.autoaugment=true")}
    for what, keys in cases.items():  # graphs=false: what is replayed waits for nothing
        small = ("model=resnet20", "model.depth=8", "batch_size=16", "budget=1", "graphs=false")
        overrides = (*small, *keys, f"device={arguments.device}")
        parts = parts_of(*overrides, dataset=dataset)
        training = Training(parts, stop=Stop(), reporter=Silent())
        for _ in parts.data.inputs(0):  # AutoAugment sends each table once
            pass
        with waiting_counted(device) as places:
            for one in parts.data.inputs(0):
                training.train_on(*one)
        if device.type == "cuda":
            yield checked(f"{what}: waits for the device in 10 steps {' '.join(places)}".rstrip(), len(places), 0)
