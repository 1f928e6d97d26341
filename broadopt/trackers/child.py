"""The process of a tracker, one for each tracker of each run: `python -m broadopt.trackers.child NAME FOLDER`.

stdin: lines of JSON, first the run's recorded config, then as they come `rows` of its history, at its end `state` and
`metrics`. stdout: a line where the tracker fails. What the tracker itself prints goes nowhere.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

from broadopt.signals import SIGNALS
from broadopt.trackers.choose import failure, opened
from broadopt.trackers.record import TrackedRun, points_of, record

LINGER = 60
"""Seconds that the process has left at most once its run has ended, whatever has become of the run's process."""


def main() -> None:
    """Follow a run to its end."""
    # A signal to a whole job is for the run, which ends this process by closing the pipe, after its last words.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)  # the run comes first
    name, place = sys.argv[1:]
    messages, report = _own_streams()
    try:
        follow(name, Path(place), messages)
    except Exception as error:  # noqa: BLE001 - whatever a tracker raises, it is one line
        print(failure(error), file=report, flush=True)
        os._exit(0)  # without what the tracker would still try on its way out


def _own_streams() -> tuple[TextIO, TextIO]:
    """stdin and stdout under numbers that no tracker knows, which may ask for a password or draw a progress bar."""
    messages, report = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return messages, report


def follow(name: str, place: Path, messages: TextIO) -> None:
    """Send what comes in `messages` to the tracker `name`. Raises whatever the tracker raises."""
    writer = opened(name, TrackedRun.of(json.loads(messages.readline())), place)
    history: list[dict[str, float]] = []
    state = "interrupted"  # where the run's process was killed, nothing more comes
    for line in messages:
        message = json.loads(line)
        history += message["rows"]
        state = message.get("state", state)
        finished = state == "finished"
        record(writer, points_of(history, message["metrics"] if finished else None), complete=finished)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LINGER)
    writer.finish(state)


if __name__ == "__main__":
    main()
