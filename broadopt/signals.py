"""Signals that ask a command to stop: obeyed at once, or, where a training has to be saved first, at its next batch."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from broadopt.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

SAME_REQUEST = 1.0
"""Seconds within which further signals, Ctrl-C apart, belong to the first: a terminal that is closed sends SIGHUP
twice, a scheduler SIGTERM along with its own.
"""


@contextmanager
def loading() -> Iterator[None]:
    """Within the block a command imports what it needs: Ctrl-C ends it as it ends any program that does not heed it,
    without a traceback; there is nothing to save yet.
    """
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not heeds or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Stop:
    """Within the `with` block the signals raise Interrupted; afterwards the previous handlers are back.

    Inside `deferred()` they are noted in `requested` instead. Once one has arrived, the next one ends the process at
    once, without saving. SIGHUP is left alone where it is ignored, as it is under nohup. A forked child (a data worker)
    takes the signals as if nobody had asked for them.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deferred = 0
        self._arrived = 0.0
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise Interrupted where a signal has arrived."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal is noted only; what runs there looks at `requested`, or calls `check`, by itself."""
        self._deferred += 1
        try:
            yield
        finally:
            self._deferred -= 1

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            heeded = [
                number
                for number in SIGNALS
                if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
            ]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return _as_if_unheeded(number)
        if self.requested is not None:
            if number == signal.SIGINT or time.monotonic() - self._arrived > SAME_REQUEST:
                _as_if_unheeded(number)
            return
        self.requested, self._arrived = signal.Signals(number).name, time.monotonic()
        if not self._deferred:
            raise Interrupted(self.requested)


def hand_on(name: str) -> None:
    """Give a signal that was heeded, and restored since, to the handler that was there before, where that is somebody's
    own.
    """
    number = signal.Signals[name]
    handler = signal.getsignal(number)
    if callable(handler) and handler is not signal.default_int_handler:
        os.kill(os.getpid(), number)


def _as_if_unheeded(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
