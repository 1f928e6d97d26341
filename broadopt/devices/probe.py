"""Whether a CPU trains a network faster in bf16 than in fp32, by a measurement that is made once and kept.

Processors with instructions for bf16 differ: on those of one maker a network trains at twice the rate, on those of
another at 0.8 times (docs/log.md). So the convolutions in which a network spends most of its time are timed.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from broadopt.devices.modes import mode
from broadopt.files import MEBIBYTE, cache_folder, read_json, replacing

GAIN = 1.1
"""bf16 is chosen from this ratio of the rates on: nobody wants another arithmetic for less."""
LAYERS = 3
"""Kinds of convolutions that are timed, those that hold the most multiply-adds of the network."""
WORK = 2e8
"""Floating-point operations of one timing, which decide its number of images: a few milliseconds."""
REPETITIONS = 4
PATIENCE = 20
"""Seconds for which a run waits for another's measurement; then it makes its own."""
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors, x86 and ARM, that compute in bf16 at all; others emulate it and are not timed."""


@dataclass(frozen=True)
class Convolution:
    """One kind of convolution of a network, on images of height and width `size`."""

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    size: int

    @property
    def macs(self) -> int:
        """Multiply-adds of one image."""
        area = (self.size // self.stride[0]) ** 2
        return area * self.outputs * self.inputs // self.groups * self.kernel[0] * self.kernel[1]


def convolutions(model: nn.Module) -> list[tuple[Convolution, int]]:
    """The kinds of convolutions that hold the most multiply-adds of a network for images [B, 3, 32, 32], and how often
    each occurs.
    """
    found: Counter[Convolution] = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        (height, width), (down, right) = module.kernel_size, module.stride
        size = inputs[0].shape[-1]
        kind = Convolution(module.in_channels, module.out_channels, (height, width), (down, right), module.groups, size)
        found[kind] += 1

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    try:
        with torch.no_grad(), mode(model, training=False):
            model(torch.zeros(1, 3, 32, 32))
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(found.items(), key=lambda kind: kind[0].macs * kind[1], reverse=True)[:LAYERS]


def gain_of_bf16(model: Callable[[], nn.Module], *, key: str, processor: str) -> float:
    """The rate of training in bf16 over that in fp32 on this CPU; 0 where the processor has no instructions for it.

    `model` makes the network; its figure is kept by `key`, `processor` and version of torch. A file
    that cannot be read or written costs the next run a fifth of a second, no more.
    """
    if not computes_in_bf16():
        return 0.0
    file = cache_folder() / "bf16.json"
    place = " | ".join([processor, f"torch {torch.__version__}", key])
    if (found := _kept(file).get(place)) is not None:
        return found
    with _alone(file):  # runs that begin together choose by one figure, and none of them measures beside another
        known = _kept(file)
        if place not in known:
            with torch.random.fork_rng(devices=[]):
                known[place] = _measured(convolutions(model()))
            with suppress(OSError), replacing(file) as opened:
                opened.write(json.dumps(known).encode())
    return known[place]


def _kept(file: Path) -> dict[str, float]:
    with suppress(OSError, ValueError):
        content = read_json(file, limit=MEBIBYTE)
        if isinstance(content, dict):
            return {name: value for name, value in content.items() if isinstance(value, float)}
    return {}


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Whoever comes second waits, but not for long, and not where no lock can be had."""
    with ExitStack() as stack:
        with suppress(OSError):  # Timeout is one
            file.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(file.with_suffix(".lock"), timeout=PATIENCE))
        yield


def computes_in_bf16() -> bool:
    """Whether the processor has instructions for bf16, as far as the system says."""
    with suppress(OSError), open("/proc/cpuinfo") as file:
        flags = next((line.split() for line in file if line.startswith(("flags", "Features"))), [])
        return any(name in flags for name in INSTRUCTIONS)
    return False


def _measured(kinds: list[tuple[Convolution, int]]) -> float:
    """The time of forward and backward passes through `kinds` in fp32 over that in bf16, each as often as it occurs.

    By one thread: several wait for one another, so that on a busy machine they would measure the others' work.
    """
    if not kinds:
        return 0.0
    fp32 = bf16 = 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, count in kinds:
            images = min(64, max(2, round(WORK / (6 * kind.macs))))
            slow, fast = _seconds(kind, images)
            fp32 += count / images * slow
            bf16 += count / images * fast
    finally:
        torch.set_num_threads(threads)
    return fp32 / bf16


def _seconds(kind: Convolution, images: int) -> tuple[float, float]:
    """The shortest time of a forward and a backward pass in fp32 and in bf16, by turns: another load meets both."""
    padding = kind.kernel[0] // 2
    layer = nn.Conv2d(kind.inputs, kind.outputs, kind.kernel, kind.stride, padding, groups=kind.groups, bias=False)
    layer = layer.to(memory_format=torch.channels_last)
    batch = torch.randn(images, kind.inputs, kind.size, kind.size).to(memory_format=torch.channels_last)
    batch.requires_grad_()
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPETITIONS):
        for reduced in times:
            begun = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                layer(batch).sum().backward()
            times[reduced].append(time.perf_counter() - begun)
    return min(times[False]), min(times[True])
