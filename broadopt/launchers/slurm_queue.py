"""The queue of a Slurm cluster: its commands, and the runs of earlier jobs that are in it."""

import logging
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_bytes, read_json, reason

log = logging.getLogger("broadopt")


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
    """The tasks of earlier jobs below `root` that are in the queue, by the names of their runs."""
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


def queue() -> dict[str, str]:
    """The state of every array task of this user that has not ended, by JOB_TASK."""
    lines = slurm("squeue", "--me", "--noheader", "--array", "--format=%F_%K %T").splitlines()
    return dict(re.findall(r"^(\d+_\d+) (\w+)$", "\n".join(line.strip() for line in lines), flags=re.MULTILINE))


def slurm(*words: str, attempts: int = 30) -> str:
    """What a Slurm command prints. A controller that does not answer is asked again for a minute.

    Raises InputError where there is no such command, or what it says where it refuses.
    """
    for attempt in range(attempts):
        try:
            done: Any = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise InputError(f"hydra/launcher=slurm: there is no command {words[0]} on this machine") from error
        if done.returncode == 0:
            return str(done.stdout)
        if not re.search(r"[Uu]nable to contact|Connection refused|timed out", done.stderr) or attempt == attempts - 1:
            break
        time.sleep(2)
    raise InputError(f"hydra/launcher=slurm: {words[0]}: {' '.join(done.stderr.split())}")
