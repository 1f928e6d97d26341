"""hydra/launcher=slurm: the runs of a sweep as one array job of a Slurm cluster.

The job is a shell script that is kept and can be read: <results_dir>/slurm/<job>/job.sh carries out line k of
commands.txt as task k, and writes <k>.out and, at the run's own end, its exit code to <k>.exit.
"""

import json
import logging
import os
import re
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from broadopt.errors import InputError, Interrupted
from broadopt.files import MEBIBYTE, read_json, reason, write_text
from broadopt.launchers.place import PLACE
from broadopt.launchers.sweep import Ended, Planned, SweepLauncher, quoted

log = logging.getLogger("broadopt")

SCRIPT = """#!/bin/bash
{options}
# Carries out one line of commands.txt. Slurm sends {signal} ahead of a preemption and of the time limit: the run
# saves its state and ends, and the job goes back into the queue. A run killed without it goes on from its checkpoint.
cd {cwd} || exit 1
folder={folder}
task=$SLURM_ARRAY_TASK_ID
export BROADOPT_OUTPUT=$folder/$task.out
{setup}
command=$(sed -n "$((task + 1))p" "$folder/commands.txt")
asked=
trap 'asked=yes; kill -{forwarded} "$run" 2>/dev/null; echo "{signal}: the run saves its state"' {signal}
{prefix}bash -c "exec $command" &
run=$!
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done
if [ -n "$asked" ] && [ "$code" != 0 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$task" && exit 0
fi
case $code in 0|1|2|3) echo "$code" > "$folder/$task.exit";; esac
exit "$code"
"""


LIMITS: dict[str, tuple[float, float]] = {
    "gpus": (0, 1024),
    "cpus": (1, 65_536),
    "hours": (1 / 60, 24 * 366),
    "parallel": (1, 1_000_000),
    "signal_seconds": (0, 65_535),  # as sbatch takes them
    "processes": (1, 1024),
    "poll": (0.1, 86_400),
}
"""The least and the largest value of each number."""
FRACTIONS = ("hours", "poll")


LARGEST_ARRAY = 1000
"""Tasks of one job: Slurm's MaxArraySize is 1001 unless a cluster has changed it."""


class SlurmLauncher(SweepLauncher):
    """One array job, one task a run; more than a thousand runs are several jobs.

    partition, account, qos: as of sbatch. gpus, cpus, memory: of each run. hours: time limit of each start; a run that
    needs more goes on in the next. parallel: tasks at a time. signal_seconds: how long before the time limit a run gets
    the signal. setup: lines of shell ahead of each run. prefix: what the command is given to, a container for example.
    extra: further options of sbatch. processes: of one run, by torchrun. wait: stay until all have ended, looking every
    `poll` seconds. Raises InputError for a number out of its LIMITS.
    """

    def __init__(
        self,
        *,
        partition: str | None,
        account: str | None,
        qos: str | None,
        gpus: int,
        cpus: int,
        memory: str | None,
        hours: float,
        parallel: int,
        signal_seconds: int,
        setup: Sequence[str],
        prefix: str,
        extra: Sequence[str],
        processes: int,
        wait: bool,
        poll: float,
    ) -> None:
        super().__init__()
        numbers = {"gpus": gpus, "cpus": cpus, "hours": hours, "parallel": parallel, "signal_seconds": signal_seconds}
        for name, value in {**numbers, "processes": processes, "poll": poll}.items():
            _check(name, value)
        self.resources = {"partition": partition, "account": account, "qos": qos, "mem": memory}
        self.gpus, self.cpus, self.hours, self.parallel = gpus, cpus, hours, parallel
        self.signal_seconds, self.setup_lines, self.prefix, self.extra = signal_seconds, list(setup), prefix, extra
        self.processes, self.wait, self.poll = processes, wait, poll
        self.queued: dict[str, Task] = {}

    def look(self, root: Path) -> Container[str]:
        """Names of the runs in the queue."""
        self.queued = in_queue(root.resolve())
        return self.queued

    def launch_elsewhere(self, planned: list[Planned], root: Path) -> list[Ended]:
        """Submit the runs that are in no queue yet; then wait for all of them."""
        root = root.resolve()
        new = [one for one in planned if one.name not in self.queued]
        tasks = {one.name: self.queued[one.name] for one in planned if one.name in self.queued}
        if tasks:
            jobs = ", ".join(sorted({task.folder.name for task in tasks.values()}))
            print(f"in the queue already, and left there: {len(tasks)} runs (job {jobs})", flush=True)
        for first in range(0, len(new), LARGEST_ARRAY):
            part = new[first : first + LARGEST_ARRAY]
            folder = self._submit(part, root)
            print(f"submitted: {len(part)} runs as job {folder.name}; what they print is in {folder}", flush=True)
            tasks |= {one.name: Task(folder, place) for place, one in enumerate(part)}
        if not self.wait:
            return []
        try:
            self._wait_for(list(tasks.values()))
        except (Interrupted, KeyboardInterrupt):
            print("the jobs go on without this command; give it again to see how they stand", flush=True)
            raise
        return [Ended(one, tasks[one.name].code(), tasks[one.name].output) for one in planned]

    def _submit(self, planned: list[Planned], root: Path) -> Path:
        """Write the job's folder and hand it to sbatch; the folder is then called by the job's number."""
        (root / "slurm").mkdir(parents=True, exist_ok=True)
        draft = root / "slurm" / f".draft-{os.getpid()}-{time.time_ns()}"
        draft.mkdir()
        commands = [quoted(["env", f"{PLACE}={one.place}", *one.command(processes=self.processes)]) for one in planned]
        write_text(draft / "commands.txt", "".join(f"{command}\n" for command in commands))
        (draft / "runs.json").write_text(json.dumps([one.name for one in planned]))
        # Held until the folder has its name, which the script derives from the job's own number.
        write_text(draft / "job.sh", self._script(root, len(planned)))
        job = slurm("sbatch", "--parsable", "--hold", str(draft / "job.sh")).split(";")[0].strip()
        folder = root / "slurm" / job
        draft.rename(folder)
        slurm("scontrol", "release", job)
        return folder

    def _script(self, root: Path, runs: int) -> str:
        options = {
            **self.resources,
            "job-name": "broadopt",
            "array": f"0-{runs - 1}%{self.parallel}",
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "cpus-per-task": self.cpus,
            "time": max(1, round(60 * self.hours)),
            "signal": f"B:USR2@{self.signal_seconds}",
            "open-mode": "append",
            "output": f"{root}/slurm/%A/%a.out",
        }
        lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
        return SCRIPT.format(
            options="\n".join([*lines, "#SBATCH --requeue", *(f"#SBATCH {option}" for option in self.extra)]),
            signal="USR2",
            forwarded="TERM" if self.processes > 1 else "USR2",  # torchrun passes on TERM alone
            cwd=shlex.quote(os.getcwd()),
            folder=f"{shlex.quote(str(root))}/slurm/$SLURM_ARRAY_JOB_ID",
            setup="\n".join([f"export OMP_NUM_THREADS={max(1, self.cpus // self.processes)}", *self.setup_lines]),
            prefix=f"{self.prefix} " if self.prefix else "",
        )

    def _wait_for(self, tasks: list["Task"]) -> None:
        """Until none of the tasks is in the queue any more; each change is a line."""
        reported = ""
        while True:
            states = queue()
            here = [states[task.name] for task in tasks if task.name in states]
            counts = Counter(state.lower() for state in here)
            ended = len(tasks) - len(here)
            line = ", ".join(
                [f"{ended} of {len(tasks)} ended", *(f"{n} {state}" for state, n in sorted(counts.items()))]
            )
            if line != reported:
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
                reported = line
            if not here:
                return
            time.sleep(self.poll)


def _check(name: str, value: Any) -> None:
    low, high = LIMITS[name]
    kinds, kind = ((int, float), "a number") if name in FRACTIONS else ((int,), "a whole number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InputError(f"hydra.launcher.{name}={value}: expected {kind} from {low:.3g} to {high:,}")


class Task:
    """Task number `place` of the array job whose folder this is."""

    def __init__(self, folder: Path, place: int) -> None:
        self.folder, self.place = folder, place
        self.name, self.output = f"{folder.name}_{place}", folder / f"{place}.out"

    def code(self) -> int | None:
        """The exit code of its run; None where it was cancelled or lost."""
        try:
            return int((self.folder / f"{self.place}.exit").read_text())
        except FileNotFoundError:
            return None


def in_queue(root: Path) -> dict[str, Task]:
    """The tasks of earlier jobs below `root` that are in the queue, by the names of their runs."""
    states = queue()
    found = {}
    for path in (root / "slurm").glob("*/runs.json"):
        try:
            names = read_json(path, limit=16 * MEBIBYTE)
        except (OSError, ValueError) as error:
            log.warning("%s: %s; its runs are taken for none of this sweep", path, reason(error))
            continue
        for place, name in enumerate(names):
            task = Task(path.parent, place)
            if task.name in states:
                found[name] = task
    return found


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
