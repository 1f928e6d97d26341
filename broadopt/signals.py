"""Signals that ask a run to stop: noted here, obeyed by the loop at the next batch."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from broadopt.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Stop:
    """Within the `with` block the four signals set `requested`; afterwards the previous handlers are back.

    A second SIGINT ends the process at once. A forked child (a data worker) takes the signals as if nobody had asked
    for them.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._process = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def check(self) -> None:
        """Raise Interrupted where a signal has arrived."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT and self.requested == "SIGINT"
        if again or os.getpid() != self._process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = signal.Signals(number).name
