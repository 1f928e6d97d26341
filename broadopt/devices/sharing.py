"""Several runs on one GPU: each is kept to its share of the memory, so that none fails by what another takes."""

import os
from typing import TYPE_CHECKING

from broadopt.errors import is_lack_of_memory

if TYPE_CHECKING:
    import torch

PER_GPU = "BROADOPT_PER_GPU"
"""The environment variable by which a launcher tells a run how many share its GPU."""

USABLE = 0.95
"""Of a GPU's memory, for all runs together; the rest is for what CUDA itself takes of it in each process."""


def runs_on_gpu() -> int:
    """How many runs share the GPU of this process, 1 by default."""
    given = os.environ.get(PER_GPU, "")
    return int(given) if given.isdigit() and int(given) >= 1 else 1


def keep_to_share(device: "torch.device") -> None:
    """Let torch take no more than this run's share of a GPU that it has not for itself."""
    if device.type == "cuda" and (runs := runs_on_gpu()) > 1:
        import torch

        torch.cuda.set_per_process_memory_fraction(USABLE / runs, device)


def advice(error: BaseException) -> str:
    """What follows the reason of a run that failed for lack of memory on a GPU that it shares; nothing for others."""
    if (runs := runs_on_gpu()) == 1 or not is_lack_of_memory(error):
        return ""
    return f"; {runs} runs share the GPU: give a smaller hydra.launcher.per_gpu than {runs}, or a smaller batch_size"
