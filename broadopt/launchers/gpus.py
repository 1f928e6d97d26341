"""The GPUs of this machine, and the files by which its runs claim them."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path

from broadopt.errors import InputError

MOMENT = 2.0
"""Seconds of waiting of which nothing is said: a run that ends lets go of its GPU a little later."""


def claim(
    gpus: Sequence[int | str],
    *,
    per_gpu: int = 1,
    folder: Path | None = None,
    given_up: Callable[[], bool] = lambda: False,
) -> tuple[int | str, list[int]] | None:
    """Wait for a GPU that no other run of this machine has claimed, or, with `per_gpu` above 1, fewer runs than that
    which share it as well; its number, and the descriptors that hold it. None where the waiting was `given_up`. Runs of
    another number do not share it: each takes its part of the memory by its own. What is waited for longer than a
    moment is said.
    """
    folder = folder or Path(tempfile.gettempdir())
    files = {gpu: folder / f"broadopt-gpu-{_job()}{gpu}.lock" for gpu in gpus}
    begun, said = time.monotonic(), False
    while not given_up():
        for slot, gpu in product(range(per_gpu), gpus):  # the GPUs take one run each before any takes a second
            held = _locked(files[gpu], fcntl.LOCK_EX) if per_gpu == 1 else _held_slot(files[gpu], slot, per_gpu)
            if held:
                return gpu, held
        if not said and time.monotonic() - begun > MOMENT:
            print(f"waiting for a GPU: other runs hold {', '.join(map(str, files.values()))}", flush=True)
            said = True
        time.sleep(0.2)
    return None


def _job() -> str:
    """What the lock files of a Slurm job are called by: where each job sees its own GPUs alone, all of them count from
    0, and Slurm gives a GPU to one job at a time.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"job{job}-" if job.isdigit() else ""


def _held_slot(path: Path, slot: int, per_gpu: int) -> list[int]:
    """The descriptors that hold a GPU's file together with others, and one of its `per_gpu` slots alone; none where
    either is taken.
    """
    held = _shared(path, per_gpu)
    own = _locked(path.with_name(f"{path.stem}-{slot}.lock"), fcntl.LOCK_EX) if held else []
    if own:
        return held + own
    let_go_of(held)
    return []


def _shared(path: Path, per_gpu: int) -> list[int]:
    """The descriptor that holds a GPU's file together with runs of the same `per_gpu`; none where others have it.

    The file holds their number. It is written under the exclusive lock, which nobody gets while a run has the GPU, and
    read under the shared one, since another may come between the two.
    """
    if first := _locked(path, fcntl.LOCK_EX):
        if os.pread(first[0], 20, 0) != str(per_gpu).encode():
            try:
                os.ftruncate(first[0], 0)
                os.pwrite(first[0], str(per_gpu).encode(), 0)
            except OSError as error:
                raise InputError(
                    f"{path}: it is another user's and cannot be written: remove it, or give hydra.launcher.per_gpu=1"
                ) from error
        let_go_of(first)
    held = _locked(path, fcntl.LOCK_SH)
    if held and os.pread(held[0], 20, 0) != str(per_gpu).encode():
        let_go_of(held)
        return []
    return held


def _locked(path: Path, kind: int) -> list[int]:
    """The descriptor that holds a lock of this kind on the file; none where it is taken."""
    held = _opened(path)
    try:
        fcntl.flock(held, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return []
    return [held]


def _opened(path: Path) -> int:
    """A descriptor of a lock file that all users of the machine share; made where there is none."""
    # Without O_CREAT where it is there: in a folder as /tmp, Linux refuses it on a file of another user.
    with suppress(FileNotFoundError):
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except PermissionError:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)  # enough for a lock
    made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    os.fchmod(made, 0o666)  # whatever the umask of its maker
    return made


def let_go_of(descriptors: Sequence[int]) -> None:
    """Close the lock files of a claimed GPU, which frees it for other runs."""
    for descriptor in descriptors:
        os.close(descriptor)


def visible_gpus() -> list[str]:
    """Numbers, or the names that CUDA_VISIBLE_DEVICES gives, of the GPUs that this process may use."""
    import torch

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(torch.cuda.device_count())) if chosen is None else map(str.strip, chosen.split(","))
    return list(names)[: torch.cuda.device_count()]
