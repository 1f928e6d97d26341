"""Trackers beside a run, each in a process of its own: whatever one does, hangs or dies, the run does not notice."""

import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from broadopt.errors import printable

log = logging.getLogger("broadopt")

PATIENCE = "BROADOPT_TRACKER_SECONDS", 20.0
"""The variable that says how many seconds a command waits at its end for its trackers, and what it is without it: less
than the 30 that schedulers give after SIGTERM.
"""

Row = Mapping[str, float]


class Tracker:
    """One tracker of one run. Nothing here waits for it: what it is sent lies in memory until it takes it."""

    def __init__(self, name: str, config: Mapping[str, Any], place: Path) -> None:
        self.name, self.place = name, place
        self._reported = False
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.send(config)
        # A session of its own: Ctrl-C of a terminal is for the run alone.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "broadopt.trackers.child", name, str(place.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._watcher = threading.Thread(target=self._watch, name=f"tracker {name}", daemon=True)
        self._watcher.start()
        threading.Thread(target=self._write, name=f"to tracker {name}", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, as the module of the process describes them."""
        self._lines.put(json.dumps(message) + "\n")

    def close(self) -> None:
        """Nothing more will be sent."""
        self._lines.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the process's end, and end it where it has not come in time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._report("it has not sent everything in time")
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._watcher.join(5)  # which may still have a line to say

    def _write(self) -> None:
        assert self.process.stdin is not None
        with suppress(OSError), self.process.stdin as pipe:  # OSError: the process has ended, which _watch reports
            while (line := self._lines.get()) is not None:
                pipe.write(line.encode())
                pipe.flush()

    def _watch(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            said = pipe.read().decode(errors="replace").strip()
        code = self.process.wait()
        if said:
            self._report(said)
        elif code:
            self._report(f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")

    def _report(self, reason: str) -> None:
        """Say once what has become of the tracker."""
        if not self._reported:
            self._reported = True
            later = f"broadopt-export {self.name} {shlex.quote(str(self.place))} sends the whole run"
            log.warning("tracker=%s: %s; the run is not affected, %s", self.name, printable(reason), later)


class Tracking:
    """The trackers of one run."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def rows(self, rows: Iterable[Row]) -> None:
        """Send rows of the history, which is sent from its first one."""
        self._send({"rows": list(rows)})

    def end(self, result: Mapping[str, Any]) -> None:
        """Send what the run's result says of its end."""
        self._send({"rows": [], "state": result["state"], "metrics": result["metrics"]})
        for tracker in self._trackers:
            tracker.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        for tracker in self._trackers:
            tracker.send(message)


NOT_TRACKED = Tracking(())


class Trackers:
    """All trackers of a command, of which the runs of a sweep start theirs one after the other."""

    def __init__(self) -> None:
        self._started: list[Tracker] = []

    def start(self, names: Sequence[str], config: Mapping[str, Any], place: Path) -> Tracking:
        """Start the trackers of a run by its recorded config; what is local lies below `place`, its results folder."""
        started = []
        for name in names:
            try:
                started.append(Tracker(name, config, place))
            except OSError as error:  # no process or no memory is to be had
                log.warning("tracker=%s cannot be started: %s; the run is not affected", name, error.strerror or error)
        self._started += started
        return Tracking(started)

    def wait(self) -> None:
        """Give the trackers, all together, the seconds of PATIENCE to come to their end."""
        deadline = time.monotonic() + _patience()
        for tracker in self._started:
            tracker.close()  # of a run that has ended without a result
            tracker.wait(max(0.0, deadline - time.monotonic()))
        self._started.clear()


def _patience() -> float:
    name, default = PATIENCE
    try:
        seconds = float(os.environ.get(name) or default)
    except ValueError:
        return default
    return seconds if seconds >= 0 else default  # and where it is no number
