"""hydra/launcher=local: several runs of a sweep at a time on one machine."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from broadopt.devices.sharing import PER_GPU
from broadopt.errors import InputError
from broadopt.launchers.ended import Ended
from broadopt.launchers.gpus import claim, let_go_of, visible_gpus
from broadopt.launchers.place import PLACE
from broadopt.launchers.sweep import Planned, SweepLauncher, quoted
from broadopt.signals import Stop


class LocalLauncher(SweepLauncher):
    """Each run in a process of its own with a GPU that no other run has, or with its share of the CPU's cores.

    n_jobs: runs at a time; by default as many as the GPUs take where per_gpu is given, else one. gpus: numbers or UUIDs
    of the GPUs to use, all by default. per_gpu: runs that share a GPU, and its memory in equal parts, with each other
    alone. What a run prints goes to a file. Raises InputError.
    """

    def __init__(self, *, n_jobs: int | None, gpus: Sequence[int | str] | None = None, per_gpu: int = 1) -> None:
        super().__init__()
        for name, value in (("n_jobs", 1 if n_jobs is None else n_jobs), ("per_gpu", per_gpu)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"hydra.launcher.{name}={value}: expected a whole number >= 1")
        if isinstance(gpus, str) or not isinstance(gpus, Sequence | None):
            raise InputError(f"hydra.launcher.gpus={gpus}: expected a list, [0,1] for example, or null for all")
        self.n_jobs, self.gpus, self.per_gpu = n_jobs, gpus, per_gpu

    def launch_elsewhere(self, planned: list[Planned], root: Path) -> list[Ended]:
        """Carry the runs out, `n_jobs` at a time. Raises InputError where there is no GPU for several to share."""
        gpus: Sequence[int | str] = visible_gpus() if self.gpus is None else self.gpus
        if self.per_gpu > 1 and not gpus:
            raise InputError(
                f"hydra.launcher.per_gpu={self.per_gpu}: this machine has no GPU; hydra.launcher.n_jobs={self.per_gpu} "
                "carries out as many runs at a time on its CPU"
            )
        outputs = new_folder(root / "local" / time.strftime("%Y-%m-%d_%H-%M-%S"))
        n_jobs = self.n_jobs or (self.per_gpu * len(gpus) if self.per_gpu > 1 else 1)
        threads = threads_of_a_run(n_jobs)
        device = f"{len(gpus)} GPU{'s' * (len(gpus) > 1)}" if gpus else f"{threads} CPU threads each"
        device += f", {self.per_gpu} runs on each with 1/{self.per_gpu} of its memory" * (self.per_gpu > 1)
        opening = f"{len(planned)} runs, {n_jobs} at a time, {device}; what they print is in {outputs}"
        children, unreadable = Children(), dict[str, Path]()

        def carry_out(place: int) -> Ended:
            one, output = planned[place], outputs / f"{place}.out"
            if one.dataset.source in unreadable:  # said already, by the run that has this output
                return Ended(one, 2, unreadable[one.dataset.source])
            code = run(one, output, gpus, threads, children, per_gpu=self.per_gpu)
            if code is not None:
                line, ended = f"{state(code)}: {quoted(one.overrides)}\n", Ended(one, code, output)
                if code == 0:
                    line += f"  {ended.last_line()}\n"
                elif state(code) == "failed":  # at once: the other runs may go on for days, or end for the same reason
                    line += f"  {ended.line()}\n"
                if ended.is_for_its_data():
                    unreadable[one.dataset.source] = output
                print(line, end="", flush=True)  # in one write, since threads share stdout
            return Ended(one, code, output)

        with Stop() as stop, stop.deferred(), ThreadPoolExecutor(n_jobs) as pool:
            print(opening, flush=True)
            waiting = [pool.submit(carry_out, place) for place in range(len(planned))]
            while wait(waiting, timeout=0.2).not_done:
                if stop.requested and not children.signalled:
                    children.stop()
                    print(f"{stop.requested}: the runs save their state and end", flush=True)
        self.stopped_by = stop.requested
        return [future.result() for future in waiting]


def new_folder(path: Path) -> Path:
    """Make a folder that no other sweep has, `path` or `path`-2, -3, ..."""
    for number in count(1):
        folder = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("count does not end")


def threads_of_a_run(n_jobs: int) -> int:
    """OMP_NUM_THREADS where it is set, else one run's share, of `n_jobs`, of the cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdigit() and int(given) >= 1:
        return int(given)
    return max(1, len(os.sched_getaffinity(0)) // n_jobs)


def state(code: int) -> str:
    """What the exit code of a run means."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return {0: "finished", 3: "left to another process", 75: "interrupted"}.get(code, "failed")


class Children:
    """The processes that carry out runs. Once one was interrupted, or all were signalled, no other is started."""

    def __init__(self) -> None:
        self.stopped, self.signalled = False, False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def carry_out(self, command: list[str], **options: Any) -> int | None:
        """The exit code of a command, with Popen's options; None where it was not started any more."""
        with self._lock:
            if self.stopped:
                return None
            child = subprocess.Popen(command, **options)
            self._running.add(child)
        code = child.wait()
        with self._lock:
            self._running.remove(child)
            self.stopped |= code == 75
        return code

    def stop(self) -> None:
        """Ask all to save their state and to end."""
        with self._lock:
            for child in self._running:
                child.send_signal(signal.SIGTERM)
            self.stopped = self.signalled = True


def run(
    planned: Planned,
    output: Path,
    gpus: Sequence[int | str],
    threads: int,
    children: Children,
    *,
    per_gpu: int = 1,
) -> int | None:
    """Carry out one run; returns its exit code, None where it was not started any more."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "BROADOPT_OUTPUT": str(output), PLACE: planned.place}
    locks: list[int] = []
    if gpus:
        claimed = claim(gpus, per_gpu=per_gpu, given_up=lambda: children.stopped)
        if claimed is None:
            return None
        gpu, locks = claimed
        environment |= {"CUDA_VISIBLE_DEVICES": str(gpu), PER_GPU: str(per_gpu)}
    try:
        with open(output, "wb") as file:
            # The child holds the claim as well: it ends with the last of the two, however they end.
            return children.carry_out(planned.command(), env=environment, stdout=file, stderr=file, pass_fds=locks)
    finally:
        let_go_of(locks)
