"""One process a run: the lock of a run folder, which goes with the process that holds it."""

import errno
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from broadopt.errors import InputError
from broadopt.signals import Stop

log = logging.getLogger("broadopt")

WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What flock says on a file system that has none: Lustre without `-o flock`, NFS version 3 without its lock daemon."""


@contextmanager
def only_writer(folder: Path, *, wait: bool, stop: Stop) -> Iterator[bool]:
    """Hold the lock of a run folder, made where it is missing; yields False where another process holds it and `wait`
    is not set. On a file system without locks it says so and yields True.

    A wait ends, by Interrupted, when `stop` is asked for. Raises InputError where the folder cannot be written.
    """
    lock = _lock(folder / ".lock")
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
    except (OSError, NotImplementedError) as error:  # the latter is ENOSYS in older versions of filelock
        if isinstance(error, OSError) and error.errno not in WITHOUT_LOCKS:
            raise InputError(f"results_dir: {folder} cannot be written ({error.strerror or error})") from error
        log.warning("%s: its file system has no locks; a second process that is given this run trains it too", folder)
    try:
        yield True
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    """Not what newer versions of filelock take where there is no flock, a file that is the lock as long as it exists:
    it would outlive a process that was killed.
    """
    is_choice = "fallback_to_soft" in inspect.signature(FileLock.__init__).parameters
    return FileLock(path, fallback_to_soft=False) if is_choice else FileLock(path)
