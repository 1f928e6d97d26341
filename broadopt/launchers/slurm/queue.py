"""The queue of a Slurm cluster: its commands, and the runs of earlier jobs that are in it."""

import logging
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_bytes, read_json, reason

log = logging.getLogger("broadopt")

HELD = "HELD"
"""State of a task that waits for `scontrol release`."""
HELD_BY_US = "held"
"""The file in the folder of a job that broadopt, not its user, holds back."""

OUT_OF_REACH = r"[Uu]nable to contact|Connection refused"
"""What Slurm's commands say where the controller has not got the request."""
UNANSWERED = r"timed out"
"""The same where it may have got it."""

OLD_DRAFT = 3600.0
"""Seconds after which nobody, on whatever machine, is about to submit a draft any more."""


class Task:
    """Run number `place` of the array job whose folder this is, in the array task that carries it out beside `together`
    - 1 others.
    """

    def __init__(self, folder: Path, place: int, *, together: int = 1) -> None:
        self.folder, self.place = folder, place
        self.name, self.output = f"{folder.name}_{place // together}", folder / f"{place}.out"

    def code(self) -> int | None:
        """The exit code of its run; None where it was cancelled or lost, or what is there is none."""
        try:
            content = read_bytes(self.folder / f"{self.place}.exit", limit=16)
        except (OSError, ValueError):
            return None
        return int(content) if re.fullmatch(rb"\d{1,3}\n", content) else None  # without its end it is being written


def in_queue(root: Path) -> dict[str, Task]:
    """The tasks of earlier jobs below `root` that are in the queue, by the names of their runs. What a command that
    was ended while it submitted has left is put right.
    """
    clear_drafts(root / "slurm")
    states = queue()
    found = {}
    for path in (root / "slurm").glob("*/runs.json"):
        try:
            names, together = _named(path)
        except (OSError, ValueError) as error:
            log.warning("%s: %s; its runs are taken for none of this sweep", path, reason(error))
            continue
        for place, name in enumerate(names):
            task = Task(path.parent, place, together=together)
            if task.name in states and task.code() is None:  # beside others that are not at their ends yet
                found[name] = task
    for folder in sorted({task.folder for task in found.values() if states[task.name] == HELD}):
        release(folder)
    return found


def _named(path: Path) -> tuple[list[str], int]:
    """The names of a job's runs, and how many of them a task carries out. Raises ValueError for what is no such list,
    OSError where it cannot be read.
    """
    content = read_json(path, limit=16 * MEBIBYTE)
    if isinstance(content, list):  # as it was before tasks had several
        content = {"together": 1, "runs": content}
    match content:
        case {"together": int(together), "runs": list(names)} if together >= 1:
            if all(isinstance(name, str) for name in names):
                return names, together
    raise ValueError("no list of a job's runs")


def new_draft(folder: Path) -> Path:
    """A folder for a job that has no number yet."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".draft-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"
    draft.mkdir()
    (draft / HELD_BY_US).touch()
    return draft


def clear_drafts(folder: Path) -> None:
    """Remove the drafts whose process has ended, and cancel the jobs that it may have submitted."""
    left = [draft for draft in folder.glob(".draft-*") if _is_left(draft)]
    if not left:
        return
    jobs = slurm("squeue", "--me", "--noheader", "--format=%F %o").splitlines()
    scripts = {script: job for job, _, script in (line.strip().partition(" ") for line in jobs)}
    for draft in left:
        if job := scripts.get(str(draft / "job.sh")):
            slurm("scancel", job)
            print(f"cancelled: job {job}, held since its submission was interrupted", flush=True)
        shutil.rmtree(draft, ignore_errors=True)


def _is_left(draft: Path) -> bool:
    named = re.fullmatch(r"\.draft-(.+)-(\d+)-\d+", draft.name)
    if named and named[1] == socket.gethostname():
        try:
            os.kill(int(named[2]), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user's process
            pass
    with suppress(OSError):
        return time.time() - draft.stat().st_mtime > OLD_DRAFT
    return False


def release(folder: Path) -> None:
    """Let the job of this folder begin, where broadopt holds it; where that fails the next look tries again."""
    if not (folder / HELD_BY_US).exists():
        return
    try:
        slurm("scontrol", "release", folder.name)
    except InputError as error:
        log.warning("job %s is still held: %s; the same command releases it", folder.name, error)
    else:
        (folder / HELD_BY_US).unlink(missing_ok=True)


def queue(*, attempts: int = 30) -> dict[str, str]:
    """The state of every array task of this user that has not ended, by JOB_TASK."""
    text = slurm("squeue", "--me", "--noheader", "--array", "--format=%F_%K %T %r", attempts=attempts)
    lines = re.findall(r"^\s*(\d+_\d+) (\w+) ?(.*?)\s*$", text, flags=re.MULTILINE)
    return {task: HELD if why == "JobHeldUser" else state for task, state, why in lines}


def slurm(*words: str, attempts: int = 30, again: str = f"{OUT_OF_REACH}|{UNANSWERED}") -> str:
    """What a Slurm command prints. Where it says what matches `again` it is given again for a minute.

    Raises InputError where there is no such command, or what it says where it refuses.
    """
    for attempt in range(attempts):
        try:
            done: Any = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise InputError(f"hydra/launcher=slurm: there is no command {words[0]} on this machine") from error
        if done.returncode == 0:
            return str(done.stdout)
        if not re.search(again, done.stderr) or attempt == attempts - 1:
            break
        time.sleep(2)
    raise InputError(f"hydra/launcher=slurm: {words[0]}: {' '.join(done.stderr.split())}")
