"""Waiting for the runs of Slurm jobs, and what is known of those that have left the queue without an exit code."""

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from broadopt.errors import InputError
from broadopt.launchers.ended import Ended
from broadopt.launchers.slurm.queue import HELD, Task, queue, release, slurm
from broadopt.launchers.sweep import Planned

LATE = 60.0
"""Seconds in which an exit code may still appear: NFS clients keep what they know of a folder as long (acdirmax)."""

NO_OUTPUT_FILE = 53
"""The signal by which Slurm reports that it could not open a job's files on the node."""


@dataclass(frozen=True)
class Said:
    """What Slurm says of a task that has left the queue: its state, its exit code where it has failed, and a line."""

    state: str = ""
    code: int | None = None
    line: str = "it left the queue without an exit code"


def wait_for(tasks: Sequence[Task], *, poll: float) -> None:
    """Until none of the tasks is in the queue any more; each change is a line. A look at the queue that fails is said,
    and the next one goes on.
    """
    reported, failed = "", False
    while True:
        try:
            states = queue(attempts=1)
        except InputError as error:
            if not failed:
                print(f"{time.strftime('%H:%M:%S')} {error}; looking again every {poll:g} seconds", flush=True)
            failed = True
            time.sleep(poll)
            continue
        failed = False
        here = [task for task in tasks if task.name in states and task.code() is None]
        for folder in sorted({task.folder for task in here if states[task.name] == HELD}):
            release(folder)
        counts = Counter(states[task.name].lower() for task in here)
        ended = len(tasks) - len(here)
        line = ", ".join([f"{ended} of {len(tasks)} ended", *(f"{n} {state}" for state, n in sorted(counts.items()))])
        if line != reported:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
            reported = line
        if not here:
            return
        time.sleep(poll)


def ends(planned: Sequence[tuple[Planned, Task]]) -> list[Ended]:
    """What has become of runs that are in no queue any more."""
    lost = [task for _, task in planned if task.code() is None]
    said = {name: _said(name) for name in dict.fromkeys(task.name for task in lost)}
    # One that was cancelled or lost has written none.
    late = [task for task in lost if said[task.name].state in ("", "COMPLETED", "FAILED")]
    if late:
        print(
            f"{len(late)} runs have left the queue without an exit code: looking for it for {LATE:g} seconds, "
            "since a network file system shows files late",
            flush=True,
        )
    until = time.monotonic() + LATE
    while late and time.monotonic() < until:
        time.sleep(1)
        late = [task for task in late if task.code() is None]
    # The exit code of a task is that of any of its runs.
    partly = {task.name for _, task in planned if task.code() is not None}
    found = []
    for one, task in planned:
        code = task.code()
        if code is not None:
            found.append(Ended(one, code, task.output))
        else:
            what = said[task.name]
            found.append(Ended(one, None if task.name in partly else what.code, task.output, what.line))
    return found


def _said(name: str) -> Said:
    """Of a task of this name; Slurm forgets it some minutes after its end (MinJobAge)."""
    try:
        text = slurm("scontrol", "show", "job", "--oneliner", name, attempts=1)
    except InputError:
        return Said()
    state, code = re.search(r"\bJobState=(\w+)", text), re.search(r"\bExitCode=(\d+):(\d+)", text)
    if state is None or code is None:
        return Said()
    number, signal = int(code[1]), int(code[2])
    failed = state[1] == "FAILED" and (number or signal == NO_OUTPUT_FILE)
    line = f"Slurm says {state[1]}, exit code {code[1]}:{code[2]}"
    if signal == NO_OUTPUT_FILE:
        line += " (its output file could not be opened on the node)"
    return Said(state[1], (number or 1) if failed else None, line)
