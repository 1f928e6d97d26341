"""What only a GPU can show, in one command: `python scripts/gpu_check.py --json results/benchmark/gpu.json`.

gradients   logits and gradient of every network beside those of the CPU, fp32
training    a few steps of every method beside the CPU's, the network in float64: what differs is not rounding
resume      every method, interrupted and resumed with deterministic=true, bit for bit
waiting     the step loop of every method with each wait for the device made an error
rates       images/s of every network in training, its share of the device's matrix-multiplication rate, memory, SAM's
            and ASAM's cost over SGD's

It exits with 1 where a check fails. `--device cpu` runs it without a GPU, to see that the command itself works.
"""

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import measure
import torch
from measure import Silent, interleaved, parts_of, random_dataset, ratio, seconds, trained
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from broadopt.config.shipped import options
from broadopt.devices.device import choose_device, choose_precision, peak_memory
from broadopt.errors import InputError, Interrupted
from broadopt.runs import checkpoint
from broadopt.signals import Stop
from broadopt.training.loop import Training
from broadopt.training.parts import Parts

CPU = torch.device("cpu")
NETWORKS = sorted(options("model"))
METHODS = {
    "sgd": ("method=sgd",),
    "sam": ("method=sam",),
    "asam": ("method=asam",),
    "swa": ("method=swa", "collect.budgets=[1]"),
    "fge": ("method=fge",),
    "sam+swa": ("method=sam", "collect=swa", "collect.budgets=[1]"),
}
NOISY = {"dropout": "vgg16", "Shake-Shake": "shakeshake26_2x64d", "ShakeDrop": "pyramidnet272_shakedrop"}
SHORT = ("batch_size=16", "budget=2", "evaluate_every=1", "precision=fp32")  # 2 epochs of 3 steps, the last of 8 images
FP32 = 2e-3
"""What rounding may make of a gradient, as a share of its norm, in networks as deep as PyramidNet-272."""
FLOAT64 = 1e-8
Rows = Iterator[dict[str, Any]]


def checked(what: str, found: float, limit: float) -> dict[str, Any]:
    """A row of a check that is passed where `found` is at most `limit`."""
    return {"check": what, "found": found, "at most": limit, "passed": "yes" if found <= limit else "no"}


def of_gradients(arguments: argparse.Namespace) -> Rows:
    """BN uses the batch's statistics; noise is switched off, for the two devices draw different noise."""
    device = choose_device(arguments.device)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8)
    for name in arguments.networks:
        parts = parts_of(f"model={name}", "batch_size=8", "device=cpu", "precision=fp32", dataset=random_dataset(8, 2))
        model = without_noise(parts.model)
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
    cross_entropy(logits, labels).backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach().cpu().double(), torch.cat(gradients).cpu().double()


def of_training(arguments: argparse.Namespace) -> Rows:
    """The largest relative difference of any figure that a training reports."""
    for method, keys in METHODS.items():
        own, reference = (figures(doubled(*keys, device=device)) for device in (arguments.device, "cpu"))
        largest = max(abs(own[name] - value) / max(abs(value), 1e-12) for name, value in reference.items())
        yield checked(f"{method}: {len(reference)} figures of 6 steps against the CPU's", largest, FLOAT64)


def doubled(*keys: str, device: str) -> Training:
    """A short training of ResNet-8, its network in float64."""
    small = ("model=resnet20", "model.depth=8", *SHORT, f"device={device}")
    parts = parts_of(*small, *keys, dataset=random_dataset(40, 20, classes=10))
    parts.model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return trained(parts)


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
        whole, halves = (resumed(*keys, device=arguments.device, at=at) for at in (None, 4))
        differing = sum(not torch.equal(own, halves[0][name]) for name, own in whole[0].items())
        differing += sum(halves[1][name] != value for name, value in whole[1].items())
        yield checked(f"{what}: resumed in the middle of an epoch, differing values", differing, 0)


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


def of_waiting(arguments: argparse.Namespace) -> Rows:
    """Steps whose code waits for the device, in an epoch of ten."""
    if choose_device(arguments.device).type != "cuda":
        print("waiting: there is nothing to wait for on a CPU; left out")
        return
    dataset = random_dataset(160, 2)
    ema = ("method=sgd", "collect=ema", "collect.bn=own")
    for method, keys in {name: (f"method={name}",) for name in options("step")} | {"ema": ema}.items():
        parts = parts_of(
            *("model=resnet20", *keys, "batch_size=16", "budget=1"),
            f"device={arguments.device}",
            dataset=dataset,
        )
        training = Training(parts, stop=Stop(), reporter=Silent())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for images, labels in parts.data.train(0):
                training.train_on(images, labels)
            torch.cuda.set_sync_debug_mode("default")
        waits = [warning for warning in caught if "synchroniz" in str(warning.message)]
        yield checked(f"{method}: waits for the device in 10 steps", len(waits), 0)


def of_rates(arguments: argparse.Namespace) -> Rows:
    """Whole epochs of the loop, of a few steps each, in the precision that auto takes."""
    device = choose_device(arguments.device)
    fastest = product_rate(device, choose_precision("auto", device))
    variants = {"as auto chooses": (), **({"compiled": ("compile=true",)} if arguments.compile else {})}
    for name in arguments.networks:
        dataset = random_dataset(arguments.batch * arguments.steps, 2)
        for variant, keys in variants.items():
            yield rate(name, variant, keys, arguments, dataset) | {"matmul TFLOP/s": fastest}


def rate(name: str, variant: str, keys: tuple[str, ...], arguments: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """One network's row: rate and memory of SGD, and what SAM and ASAM cost beside it."""
    cases, memory = {}, {}
    fixed = (f"model={name}", f"batch_size={arguments.batch}", "budget=1", "protocol=asam2021", *keys)
    for method in ("sgd", "sam", "asam"):
        before = allocated(arguments.device)
        parts = parts_of(*fixed, f"method={method}", f"device={arguments.device}", dataset=dataset)
        trained(parts)
        memory[method] = peak_memory(parts.device) - before if parts.device.type == "cuda" else None
        cases[method] = partial(train_seconds, parts)
    measured = interleaved(cases, rounds=arguments.rounds)
    images = len(dataset.train.labels)
    images_per_second, gmacs = images / median(row["sgd"] for row in measured), measure.gmacs(name)
    return {
        "network": name,
        "variant": variant,
        "batch": arguments.batch,
        "precision": parts.precision,
        "sgd, images/s": images_per_second,
        "TFLOP/s": 6e-3 * gmacs * images_per_second,
        **{f"{method} / sgd, seconds": ratio(measured, method, "sgd")["ratio"] for method in ("sam", "asam")},
        **{f"{method}, peak GiB": peak / 2**30 for method, peak in memory.items() if peak is not None},
        "parameters GiB": sum(parameter.nbytes for parameter in parts.model.parameters()) / 2**30,
    }


def train_seconds(parts: Parts) -> float:
    """Seconds in the steps of one training."""
    return trained(parts).progress.train_seconds


def allocated(device: str) -> int:
    """Bytes in use on a GPU, whose peak is counted from here on; 0 on a CPU."""
    place = choose_device(device)
    if place.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(place)
    return torch.cuda.memory_allocated(place)


def product_rate(device: torch.device, precision: str, *, size: int = 4096) -> float:
    """TFLOP/s of the product of two square matrices in `precision`: the most that a network can reach here."""
    size = size if device.type == "cuda" else 1024
    factors = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = [seconds(lambda: [factors[0] @ factors[1] for _ in range(10)], device) for _ in range(6)]
    return 10 * 2 * size**3 / min(times[1:]) / 1e12


PARTS = {
    "gradients": of_gradients,
    "training": of_training,
    "resume": of_resume,
    "waiting": of_waiting,
    "rates": of_rates,
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (cuda)")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help="all by default")
    made.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, metavar="NAME", help="all by default"
    )
    made.add_argument("--batch", type=int, default=measure.BATCH, help="rates: images a step (128)")
    made.add_argument("--steps", type=int, default=20, help="rates: steps a turn (20)")
    made.add_argument("--rounds", type=int, default=3, help="rates: turns, after one that is not counted (3)")
    made.add_argument("--compile", action="store_true", help="rates: with torch.compile as well")
    made.add_argument("--json", type=Path, help="write the rows as JSON, with the command and the machine's facts")
    return made


def main() -> None:
    """Run the parts, row by row, then print a table of each."""
    arguments = parser().parse_args()
    logging.getLogger("broadopt").setLevel(logging.ERROR)
    rows: list[dict[str, Any]] = []
    try:
        for part in arguments.parts:
            for row in PARTS[part](arguments):
                print("  ".join(f"{key}: {measure.shown(value)}" for key, value in row.items()), flush=True)
                rows.append({"part": part, **row})
    except InputError as error:
        measure.fail(error)
    print()
    measure.report(rows, arguments.json, device=arguments.device)
    failed = [row for row in rows if row.get("passed") == "no"]
    print(f"{sum('passed' in row for row in rows)} checks, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
