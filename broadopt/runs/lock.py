"""One process a run: the lock of a run folder, which goes with the process that holds it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from broadopt.errors import InputError
from broadopt.signals import Stop


@contextmanager
def only_writer(folder: Path, *, wait: bool, stop: Stop) -> Iterator[bool]:
    """Hold the lock of a run folder, made where it is missing; yields False where another process holds it and `wait`
    is not set.

    A wait ends, by Interrupted, when `stop` is asked for. Raises InputError where the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0.5)  # broadopt-table --status looks at a lock by taking a share of it for a moment
        except Timeout:
            if not wait:
                yield False
                return
            print(f"another process is on {folder}: waiting for it to end", flush=True)
        while not lock.is_locked:
            stop.check()
            with suppress(Timeout):
                lock.acquire(timeout=1)
    except OSError as error:
        raise InputError(f"results_dir: {folder} cannot be written ({error.strerror or error})") from error
    try:
        yield True
    finally:
        lock.release()
