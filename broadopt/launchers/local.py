"""hydra/launcher=local: several runs of a sweep at a time on one machine."""

import fcntl
import os
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from broadopt.errors import InputError
from broadopt.launchers.sweep import Ended, Planned, SweepLauncher, quoted


class LocalLauncher(SweepLauncher):
    """Each run in a process of its own with a GPU that no other run has, or with its share of the CPU's cores.

    n_jobs: runs at a time. gpus: numbers of the GPUs to use, all by default. What a run prints goes to a file.
    """

    def __init__(self, *, n_jobs: int, gpus: list[int] | None = None) -> None:
        super().__init__()
        if not isinstance(n_jobs, int) or n_jobs < 1:
            raise InputError(f"hydra.launcher.n_jobs={n_jobs}: expected a whole number >= 1")
        self.n_jobs, self.gpus = n_jobs, gpus

    def launch_elsewhere(self, planned: list[Planned], root: Path) -> list[Ended]:
        """Carry the runs out, `n_jobs` at a time."""
        outputs = root / "local" / time.strftime("%Y-%m-%d_%H-%M-%S")
        outputs.mkdir(parents=True, exist_ok=True)
        gpus = visible_gpus() if self.gpus is None else self.gpus
        threads = max(1, len(os.sched_getaffinity(0)) // self.n_jobs)
        device = f"{len(gpus)} GPUs" if gpus else f"{threads} CPU threads each"
        print(f"{len(planned)} runs, {self.n_jobs} at a time, {device}; what they print is in {outputs}", flush=True)
        stopped = threading.Event()

        def carry_out(place: int) -> Ended:
            one, output = planned[place], outputs / f"{place}.out"
            if stopped.is_set():
                return Ended(one, None, output)
            code = run(one, output, gpus, threads)
            if code == 75:
                stopped.set()
            print(f"{STATES.get(code, 'failed')}: {quoted(one.overrides)}", flush=True)
            return Ended(one, code, output)

        with ThreadPoolExecutor(self.n_jobs) as pool:
            waiting = [pool.submit(carry_out, place) for place in range(len(planned))]
            try:
                return [future.result() for future in waiting]
            except KeyboardInterrupt:  # the runs have got the signal too: they save and end
                stopped.set()
                return [future.result() for future in waiting]


STATES = {0: "finished", 75: "interrupted"}


def run(planned: Planned, output: Path, gpus: list[int], threads: int) -> int:
    """Carry out one run; returns its exit code."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "BROADOPT_OUTPUT": str(output)}
    lock = None
    if gpus:
        gpu, lock = claim(gpus)
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    try:
        with open(output, "wb") as file:
            # The child holds the claim as well: it ends with the last of the two, however they end.
            return subprocess.run(
                planned.command(),
                env=environment,
                stdout=file,
                stderr=file,
                pass_fds=[] if lock is None else [lock],
            ).returncode
    finally:
        if lock is not None:
            os.close(lock)


def claim(gpus: list[int], *, folder: Path | None = None) -> tuple[int, int]:
    """Wait for a GPU that no other run of this machine has claimed; its number, and the descriptor that holds it."""
    folder = folder or Path(tempfile.gettempdir())
    while True:
        for gpu in gpus:
            descriptor = os.open(folder / f"broadopt-gpu-{gpu}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
            else:
                return gpu, descriptor
        time.sleep(0.2)


def visible_gpus() -> list[int]:
    """Numbers of the GPUs that this process may use."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [int(number) for number in chosen.split(",") if number.strip().isdigit()]
    import torch

    return list(range(torch.cuda.device_count()))
