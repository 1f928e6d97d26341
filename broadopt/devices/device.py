"""Which device, precision and memory format a run uses."""

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from broadopt.errors import InputError

SLOWER_BY_CHANNELS_LAST = ("vgg16", "vgg19_bn")
"""Networks that a CPU trains faster in the contiguous format: 0.87 and 0.94 times the rate by channels_last, all others
of the tables 1.06 to 1.34 (results/benchmark/networks.json)."""


def choose_device(name: str) -> torch.device:
    """auto takes the GPU where there is one; a GPU asked for by name must exist, else InputError. A GPU comes with its
    number: torch's limit on a process's memory takes no device without.
    """
    count = torch.cuda.device_count() if name != "cpu" and torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
        raise InputError(f"device={name}: this machine has {found}; expected cpu, auto or one that exists")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def choose_precision(name: str, device: torch.device, gains_on_cpu: Callable[[], bool] = lambda: False) -> str:
    """auto takes bf16 autocast where it is the faster one, else fp32: on a CPU where `gains_on_cpu` says so of the
    network (broadopt.devices.probe). Raises InputError for tf32 without a GPU.
    """
    if name == "tf32" and device.type != "cuda":
        raise InputError(f"precision=tf32: expected a CUDA device, this run is on {device}")
    if name != "auto":
        return name
    gains = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else gains_on_cpu()
    return "bf16" if gains else "fp32"


AUTOMATIC = ("fp32", "bf16")
"""Precisions among which `auto` chooses."""


def automatic_precisions(device: torch.device) -> tuple[str, ...]:
    """Those of AUTOMATIC that a device can compute in."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ("fp32",)
    return AUTOMATIC


def choose_memory_format(
    name: str, network: str, device: torch.device, *, second_order: bool = False
) -> torch.memory_format:
    """auto takes channels_last, but contiguous on CPUs for the networks that train slower by it there, and for second
    derivatives: those of BN sum over images and pixels many times, which torch does slowly where channels come last.
    """
    if name == "auto":
        slower = second_order or network in SLOWER_BY_CHANNELS_LAST
        name = "contiguous" if device.type == "cpu" and slower else "channels_last"
    return torch.channels_last if name == "channels_last" else torch.contiguous_format


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass: bf16 products where the precision is bf16, nothing otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def set_flags(precision: str, *, deterministic: bool) -> None:
    """Set torch's process-wide switches for one run, whatever an earlier run of the process left.

    fp32 is IEEE arithmetic throughout, tf32 lets a GPU round the factors of its products to 10 bits. Deterministic
    algorithms make a run on a GPU repeat bit for bit, more slowly; on a CPU it does so without.
    """
    products = "tf32" if precision == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # type: ignore[attr-defined]
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to be so; read when it starts
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    _keep_freed_memory()


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed what a step on `device` draws from by default (dropout, noise of a network's own): as torch.manual_seed,
    which on a CPU also notes for each kind of device that was never used where it was called: longer than a small step.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory rather than return it to the kernel and take it back at the next step, page by page:
    5 to 9 % of a step on a CPU. Blocks above 32 MiB, its limit, are returned as ever.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    libc.mallopt(mmap_threshold, 32 << 20)
    libc.mallopt(trim_threshold, (1 << 31) - 1)


def device_name(device: torch.device) -> str:
    """What a device is: the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"CPU ({name})"


def is_broken(device: torch.device) -> bool:
    """Whether a GPU does nothing more for this process: after an illegal access, for one, every call reports
    it again. Waits for the device.
    """
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError:
            return True
    return False


def count_peak_from_here(device: torch.device) -> None:
    """Let `peak_memory` tell of what comes, not of an earlier run of this process: on a GPU; a CPU's counts the process
    from its start.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """The most memory in use at any time, in bytes: of the device's allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
