"""Signals on their way to the processes that launchers of others have made on this machine."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from broadopt.signals import Stop

STOPPABLE = (
    "hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_submitit_launcher.submitit_launcher.LocalLauncher",
)
"""Launchers, below hydra_plugins, whose processes may get a signal: all of them carry out runs, or ignore it."""


def is_stoppable(launcher: object) -> bool:
    """Whether `stopping_workers` has anything to say to the processes of this launcher."""
    kind = type(launcher)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("hydra_plugins.") in STOPPABLE


@contextmanager
def stopping_workers(stop: Stop) -> Iterator[None]:
    """Inside, a signal does not end this process, which would kill its workers: it is passed on to them, and they save
    the states of their runs.
    """
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.wait(0.1):
            if stop.requested:
                for process in descendants(os.getpid()):
                    with suppress(ProcessLookupError):
                        # SIGTERM, whatever arrived: of a second SIGINT, after that of a terminal, they would die.
                        os.kill(process, signal.SIGTERM)
                print(f"{stop.requested}: the runs save their state and end", flush=True)
                return

    watcher = threading.Thread(target=pass_on, daemon=True)
    with stop.deferred():
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def descendants(process: int) -> list[int]:
    """The processes that this one has started, and those that they have; none where there is no /proc."""
    found = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *descendants(child)]
    return found
