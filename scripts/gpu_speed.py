"""The parts of scripts/gpu_check.py that measure: rates, the cost of an ascent step, several runs on a card, and the
convolutions.
"""

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import measure
import torch
from measure import PROTOCOL, interleaved, parts_of, random_dataset, ratio, seconds, steps_of, wait
from torch import Tensor, nn
from torch.nn.functional import conv2d

from broadopt.config.compose import compose, run_config
from broadopt.devices.device import choose_device, choose_precision, peak_memory
from broadopt.devices.rates import OPERATIONS
from broadopt.devices.sharing import PER_GPU, keep_to_share
from broadopt.models.build import network

TOGETHER = ("vgg16", "resnet20")
BF16 = 2e-2
"""What factors of 8 bits may make of a convolution, as a share of its norm: several times 2^-9."""
Rows = Iterator[dict[str, Any]]


def of_rates(arguments: argparse.Namespace) -> Rows:
    """A few steps of the loop at a time, by SGD in the precision that auto takes."""
    device = choose_device(arguments.device)
    fastest = product_rate(device, choose_precision("auto", device))
    variants: dict[str, tuple[str, ...]] = {"as auto chooses": (), "plain steps": ("graphs=false",)}
    if device.type != "cuda":
        print("rates: a CPU records nothing; both variants are plain steps")
    if arguments.compile:
        variants["compiled"] = ("compile=true", "graphs=false")
    dataset = random_dataset(arguments.batch * arguments.steps, 2)
    for variant, keys in variants.items():  # the plain steps, of which some take 80 ms, come last
        for name in arguments.networks:
            yield rate(name, variant, keys, arguments, dataset) | {"matmul TFLOP/s": fastest}


def fixed(name: str, arguments: argparse.Namespace) -> tuple[str, ...]:
    """What all measured trainings of a network have in common."""
    return (
        *(f"model={name}", f"batch_size={arguments.batch}", "budget=1", PROTOCOL),
        f"device={arguments.device}",
    )


def rate(name: str, variant: str, keys: tuple[str, ...], arguments: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """One network's row."""
    before = allocated(arguments.device)
    parts = parts_of(*fixed(name, arguments), *keys, "method=sgd", dataset=dataset)
    measured = interleaved({"sgd": steps_of(parts, arguments.steps)}, rounds=arguments.rounds)
    memory = peak_memory(parts.device) - before if parts.device.type == "cuda" else None
    images_per_second = len(dataset.train.labels) / median(row["sgd"] for row in measured)
    return {
        "network": name,
        "variant": variant,
        "batch": arguments.batch,
        "precision": parts.precision,
        "recorded": "yes" if parts.settings["graphs"] else "no",
        "sgd, images/s": images_per_second,
        "TFLOP/s": 1e-3 * OPERATIONS * measure.gmacs(f"model={name}", PROTOCOL) * images_per_second,
        **({} if memory is None else {"sgd, peak GiB": memory / 2**30}),
        "parameters GiB": sum(parameter.nbytes for parameter in parts.model.parameters()) / 2**30,
    }


def of_ascent(arguments: argparse.Namespace) -> Rows:
    """Seconds of SAM's and ASAM's steps over SGD's, in turns."""
    dataset = random_dataset(arguments.batch * arguments.steps, 2)
    for name in arguments.networks:
        allocated(arguments.device)
        yield ascent(name, arguments, dataset)


def ascent(name: str, arguments: argparse.Namespace, dataset: Any) -> dict[str, Any]:
    """One network's row; what it takes of the device is let go at its end."""
    methods = ("sgd", "sam", "asam")
    made = {method: parts_of(*fixed(name, arguments), f"method={method}", dataset=dataset) for method in methods}
    cases = {method: steps_of(parts, arguments.steps) for method, parts in made.items()}
    measured = interleaved(cases, rounds=arguments.rounds)
    ratios = {f"{method} / sgd, seconds": ratio(measured, method, "sgd")["ratio"] for method in ("sam", "asam")}
    recorded = [method for method, parts in made.items() if parts.settings["graphs"]]
    return {"network": name, **ratios, "recorded": ", ".join(recorded) or "none"}


def allocated(device: str) -> int:
    """Bytes in use on a GPU, whose peak is counted from here on, when nothing holds what was trained before; 0 on a
    CPU.
    """
    place = choose_device(device)
    if place.type != "cuda":
        return 0
    gc.collect()  # the networks before, which hold each other in circles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(place)
    return torch.cuda.memory_allocated(place)


def product_rate(device: torch.device, precision: str, *, size: int = 4096) -> float:
    """TFLOP/s of the product of two square matrices in `precision`: the most that a network can reach here."""
    size = size if device.type == "cuda" else 1024
    factors = torch.randn(2, size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    times = [seconds(lambda: [factors[0] @ factors[1] for _ in range(10)], device) for _ in range(6)]
    return 10 * 2 * size**3 / min(times[1:]) / 1e12


def of_together(arguments: argparse.Namespace) -> Rows:
    """Images/s of all runs that share the device, each a process of its own, by how many they are."""
    for name in (name for name in TOGETHER if name in arguments.networks):
        for runs in range(1, arguments.runs + 1):
            rates = together(name, runs, arguments)
            yield {"network": name, "runs": runs, "images/s in all": sum(rates), "of the slowest": min(rates)}


def together(name: str, runs: int, arguments: argparse.Namespace) -> list[float]:
    """The rates of so many runs, which begin when all are ready."""
    options = {"device": arguments.device, "batch": arguments.batch, "steps": arguments.steps}
    options |= {"rounds": arguments.rounds}
    command = [sys.executable, str(Path(__file__).with_name("gpu_check.py")), "--one-of-several", name]
    command += [word for key, value in options.items() for word in (f"--{key}", str(value))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env=os.environ | {PER_GPU: str(runs)}, **pipes)  # type: ignore[call-overload]
        for _ in range(runs)
    ]
    try:
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"together: a process of {runs} has ended with {process.wait()}")
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [float(process.stdout.readline()) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def one_of_several(arguments: argparse.Namespace) -> None:
    """A process of `together`: makes its first steps, then, when all are ready, so many rounds of the next ones, and
    prints its images/s.
    """
    keep_to_share(choose_device(arguments.device))
    dataset = random_dataset(arguments.batch * arguments.steps, 2)
    parts = parts_of(*fixed(arguments.one_of_several, arguments), "method=sgd", dataset=dataset)
    measured = steps_of(parts, arguments.rounds * arguments.steps)
    wait(parts.device)
    print("ready", flush=True)
    sys.stdin.readline()
    spent = measured()
    print(arguments.rounds * len(dataset.train.labels) / spent, flush=True)


Shape = tuple[Any, ...]
"""Channels in and out, kernel, stride, padding, groups, height and width of the input."""


def shapes(name: str) -> set[Shape]:
    """The convolutions that occur in a network."""
    found: set[Shape] = set()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.groups)
        found.add((*sizes, *inputs[0].shape[2:]))

    with torch.device("meta"):
        model = network(run_config(compose([f"model={name}", PROTOCOL])).recipe.model, 100)
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_pre_hook(note)
        model(torch.empty(2, 3, 32, 32))
    return found


def of_convolutions(arguments: argparse.Namespace) -> Rows:
    """Each network's convolutions alone, forward and backward, in both precisions: the largest difference relative to
    fp32's norm.
    """
    device, known = choose_device(arguments.device), dict[Shape, float]()
    for name in arguments.networks:
        counted = shapes(name)
        for shape in counted:
            if shape not in known:
                known[shape] = difference(shape, arguments.batch, device)
        largest = max(known[shape] for shape in counted)
        yield {
            "check": f"{name}: bf16 against fp32 on its {len(counted)} shapes of convolutions",
            "found": largest,
            "at most": BF16,
            "passed": "yes" if largest <= BF16 else "no",
        }


def difference(shape: Shape, batch: int, device: torch.device) -> float:
    """How much the output and the gradients differ between fp32 and bf16."""
    channels, filters, kernel, stride, padding, groups, height, width = shape
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, height, width, generator=generator).bfloat16()
    weights = torch.randn(filters, channels // groups, *kernel, generator=generator).bfloat16()
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs, factors = (
            tensor.to(device, dtype, memory_format=torch.channels_last).requires_grad_() for tensor in (images, weights)
        )
        output = conv2d(inputs, factors, stride=stride, padding=padding, groups=groups)
        gradients = torch.autograd.grad(output, (inputs, factors), torch.ones_like(output))
        outputs.append([tensor.double() for tensor in (output.detach(), *gradients)])
    return max(float((own - other).norm() / own.norm()) for own, other in zip(*outputs, strict=True))
