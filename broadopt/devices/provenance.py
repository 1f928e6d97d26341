"""Where a result comes from: versions, machine and, in a checkout, the commit with what was changed since."""

import logging
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

import broadopt
from broadopt.devices.device import device_name
from broadopt.errors import printable

log = logging.getLogger("broadopt")

CODE = ("broadopt", "configs")
"""What of a checkout decides results."""

LONGEST_DIFFERENCE = 200_000
"""Characters of a difference that are kept."""


def environment(device: torch.device, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into a result: versions, device, arithmetic, `settings` (precision, memory format, ...), commit."""
    return {
        "broadopt": broadopt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "device": device_name(device),
        **settings,
        "threads": torch.get_num_threads(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "git_commit": code().commit,
    }


def arithmetic(device: torch.device) -> dict[str, Any]:
    """What the rounding of float sums depends on: a GPU's kind; a CPU's number of threads and vector instructions."""
    if device.type == "cuda":
        return {"device": device_name(device)}
    return {"threads": torch.get_num_threads(), "instruction_set": torch.backends.cpu.get_cpu_capability()}


GPUS = ("NVIDIA", "Tesla", "GeForce", "Quadro", "TITAN", "A100-", "AMD Instinct")
"""What the names of GPUs begin with."""


def say_where_rounding_differs(before: Mapping[str, Any], device: torch.device, *, what: str) -> None:
    """A line where `before`, the arithmetic or the environment of an earlier run, is not that of this machine."""
    now = arithmetic(device)
    is_gpu, was_gpu = device.type == "cuda", _is_of_gpu(before)
    if was_gpu is not None and was_gpu != is_gpu:
        there = f"the GPU {_shown(before['device'])}" if was_gpu else "a CPU"
        here = f"the GPU {now['device']}" if is_gpu else "a CPU"
        log.warning("%s on %s, this process is on %s: figures can differ by rounding, which grows", what, there, here)
        return
    others = {key: before[key] for key in now if key in before and before[key] != now[key]}
    if not others:
        return
    there = ", ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in others.items())
    here = ", ".join(f"{key.replace('_', ' ')} {now[key]}" for key in others)
    is_known = list(others) == ["threads"] and type(others["threads"]) is int
    advice = f"; OMP_NUM_THREADS={others['threads']} gives the same" if is_known else ""
    log.warning(
        "%s with %s, this machine has %s: figures can differ by rounding, which grows%s", what, there, here, advice
    )


def _is_of_gpu(before: Mapping[str, Any]) -> bool | None:
    """Whether an arithmetic, or an environment, which has the threads of the CPU beside a GPU as well, is a GPU's; None
    where nothing is known.
    """
    if "device" in before and "threads" not in before:
        return True
    return str(before.get("device", "")).startswith(GPUS) if "threads" in before else None


def _shown(value: Any) -> str:
    """A value of a file that anyone may have made: on one line, of a length that a line has room for."""
    return printable(str(value)[:100])


@dataclass(frozen=True)
class Code:
    """The state of a checkout's code; of an installed package nothing is known."""

    commit: str | None
    """The checkout's commit, with a + where its files differ from it; None for an installed package."""
    changes: str
    """That difference, as `difference` has it."""


@cache
def code() -> Code:
    """The state of the code that this process has imported: git is asked at the first call, and never again.

    A run calls this before it trains, and its result records the answer at the end. By then, which may be days later,
    the checkout can hold other code than that which the process runs.
    """
    changes, head = difference(), _git("rev-parse", "HEAD")
    return Code(head and head.strip() + "+" * bool(changes), changes)


def difference() -> str:
    """The difference of the checkout's code from its commit, cut off after LONGEST_DIFFERENCE characters; empty for an
    installed package.
    """
    text = _git("diff", "HEAD", "--", *CODE) or ""
    text += "".join(
        f"untracked: {name}\n" for name in (_git("ls-files", "-o", "--exclude-standard", *CODE) or "").splitlines()
    )
    return text if len(text) <= LONGEST_DIFFERENCE else text[:LONGEST_DIFFERENCE] + "\n[cut off]\n"


def _git(*words: str) -> str | None:
    top = Path(broadopt.__file__).resolve().parent.parent
    if not (top / ".git").exists():
        return None
    # GIT_DIR and the like, as hooks set them, would lead to another repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", *words], cwd=top, env=variables, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="replace")
