"""The heartbeat of a run: progress.json in its folder, written anew while the run lives and removed when it ends.

A thread of its own writes it, so an evaluation of minutes does not make a run look dead and the loop never waits for a
file system. It reads plain numbers alone: nothing here waits for a device.
"""

import fcntl
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from broadopt.config.identity import identity_of
from broadopt.errors import printable
from broadopt.files import MEBIBYTE, read_json, replacing
from broadopt.runs.folders import check_place
from broadopt.runs.schema import SCHEMA, check_progress

log = logging.getLogger("broadopt")

NAME = "progress.json"
INTERVAL = 10.0
"""Seconds between two heartbeats; the second comes after one, so that a rate is known soon."""

AGE_LIMIT = 120.0
"""Seconds after which a heartbeat from another machine, or on a file system without locks, is one no more: room for a
few that were late or cached by a network file system, and for clocks that differ by up to a minute.
"""

LIMIT = MEBIBYTE
"""Bytes of a progress.json, which has 2 to 4 thousand."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a training is, in plain numbers."""

    step: int
    steps: int
    steps_per_epoch: int
    images_per_epoch: int
    images_per_second: float
    """In training steps, as last measured; 0 before that."""
    trunk_epochs: int = 0
    """Epochs that another run has trained, which this one has begun from."""
    epochs_elsewhere: float = 0.0
    """Epochs that were trained on another kind of device, and are not in the rate."""


class Heartbeat:
    """Within the `with` block `folder` holds a heartbeat; with figures once a training is followed."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        device: str,
        threads: int | None = None,
        size: Mapping[str, float | None] | None = None,
    ) -> None:
        """`threads`: of a CPU; `size`: what estimates of cost need, as a result's cost has it."""
        self._file = folder / NAME
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False
        self._fixed = {
            "schema": SCHEMA,
            "identity": identity_of(config),
            "host": platform.node(),
            "machine": machine(),
            "pid": os.getpid(),
            "device": device,
            **({"threads": threads} if threads is not None else {}),
            "config": config,
            **(size or {}),
        }

    def __enter__(self) -> "Heartbeat":
        self._write({"epoch": None, "epochs": None, "images_per_epoch": self._fixed.get("images_per_epoch")})
        return self

    def follow(self, position: Callable[[], Position]) -> None:
        """Report from now on where the training is."""
        self._thread = threading.Thread(target=self._beat, args=(position,), name="heartbeat", daemon=True)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._file.unlink(missing_ok=True)
        except OSError as problem:
            self._warn(problem)

    def _beat(self, position: Callable[[], Position]) -> None:
        first, began = position(), time.monotonic()
        step, moved = first.step, time.time()
        for pause in chain((0.0, 1.0), repeat(INTERVAL)):
            if self._ended.wait(pause):
                return
            now = position()
            if now.step != step:
                step, moved = now.step, time.time()
            self._write(_figures(first, now, seconds=time.monotonic() - began) | {"moved": moved})

    def _write(self, figures: dict[str, Any]) -> None:
        try:
            # By rename, so that no reader meets half of it; not synced to the disk: after a crash it means nothing.
            with replacing(self._file, sync=False) as file:
                file.write(json.dumps(self._fixed | figures | {"time": time.time()}).encode())
        except OSError as problem:
            self._warn(problem)

    def _warn(self, problem: OSError) -> None:
        """Say once that there is no heartbeat: the run itself goes on."""
        if not self._warned:
            log.warning("%s cannot be written, other machines take this run for dead: %s", self._file, problem)
        self._warned = True


def _figures(first: Position, now: Position, *, seconds: float) -> dict[str, Any]:
    """The figures of progress.json for a training that was at `first` and is at `now`, `seconds` later."""
    pace = (now.step - first.step) / seconds if seconds > 0 else 0.0  # evaluations and checkpoints included
    so_far = pace / now.steps_per_epoch * now.images_per_epoch
    return {
        "step": now.step,
        "steps": now.steps,
        "epoch": now.step / now.steps_per_epoch,
        "epochs": now.steps / now.steps_per_epoch,
        "images_per_epoch": now.images_per_epoch,
        "images_per_second": now.images_per_second or so_far or None,
        "trunk_epochs": now.trunk_epochs,
        "seconds_left": (now.steps - now.step) / pace if pace else None,
        **({"epochs_elsewhere": now.epochs_elsewhere} if now.epochs_elsewhere else {}),
    }


def machine() -> str:
    """This machine since it was started: it distinguishes two of one name, and one before and after a crash."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{platform.node()} {boot.read_text().strip() if boot.exists() else ''}".strip()


def read(folder: Path, *, identity: str | None = None) -> dict[str, Any] | None:
    """The newest heartbeat in a run folder, or None where there is none.

    Raises ValueError, saying why, for a file that is none or is that of another run than the folder's or, where it is
    given, that of `identity`; OSError for one that cannot be read.
    """
    try:
        progress = read_json(folder / NAME, limit=LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(progress, dict) or progress.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    check_progress(progress)
    if progress["identity"] != identity_of(progress["config"]):
        raise ValueError("its identity is not that of its config")
    check_place(folder, progress["config"], progress["identity"])
    if identity not in (None, progress["identity"]):
        raise ValueError(f"it belongs to another run, of identity {progress['identity'][:8]}")
    return dict(progress)


def is_alive(folder: Path, progress: Mapping[str, Any] | None) -> bool:
    """Whether a process is on this run: by its lock where it was started on this machine (or has left no heartbeat),
    else, or where locks tell nothing, by the age of its heartbeat.
    """
    if progress is None or progress["machine"] == machine():
        held = is_held(folder)
        if held is not None or progress is None:
            return bool(held)
    # The clock of its writer or that of the file server: whichever agrees with ours.
    stamps = [progress["time"]]
    with suppress(OSError):  # the run has ended since and has taken its heartbeat along
        stamps.append((folder / NAME).stat().st_mtime)
    return any(abs(time.time() - stamp) <= AGE_LIMIT for stamp in stamps)


def silence(folder: Path) -> str:
    """A remark on a run folder whose lock another process holds while the heartbeat, from another machine, is old; else
    nothing.
    """
    with suppress(ValueError, OSError):
        progress = read(folder)
        if progress is not None and not is_alive(folder, progress):
            minutes, host = (time.time() - progress["time"]) / 60, printable(progress["host"])
            return (
                f"; the last heartbeat, from {host}, is {minutes:.0f} minutes old: "
                "a file server may hold the lock of a lost machine for some time"
            )
    return ""


def is_held(folder: Path) -> bool | None:
    """Whether a process of this machine holds the lock of a run folder; a lock file is neither made nor changed. One
    that cannot be opened is held by none that we know of. None on a file system without locks, where a run holds none.
    """
    try:
        descriptor = os.open(folder / ".lock", os.O_RDONLY | os.O_NONBLOCK)  # a FIFO in its place does not make us wait
    except OSError:
        return False
    try:
        # Shared, so that two who look at the same time do not take each other for the run.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(descriptor)
    return False
