"""hydra/launcher=slurm: the runs of a sweep as one array job of a Slurm cluster.

The job is a shell script that is kept and can be read: <results_dir>/slurm/<job>/job.sh carries out line k of
commands.txt as task k, and writes <k>.out and, at the run's own end, its exit code to <k>.exit.
"""

import json
import os
import re
import shlex
import time
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from broadopt.devices.sharing import PER_GPU
from broadopt.errors import InputError, Interrupted
from broadopt.files import write_text
from broadopt.launchers.place import PLACE
from broadopt.launchers.slurm_queue import Task, in_queue, queue, slurm
from broadopt.launchers.sweep import CRASHES, Ended, Planned, SweepLauncher, quoted

SCRIPT = """#!/bin/bash
{options}
# Carries out its lines of commands.txt, {per_gpu} a task. Slurm sends {signal} ahead of a preemption and of the time
# limit: the runs save their states and end, and the job goes back into the queue. A run killed without it goes on from
# its checkpoint.
cd {cwd} || exit 1
folder={folder}
task=$SLURM_ARRAY_TASK_ID
{setup}
asked= again= worst=0
declare -A runs
trap 'asked=yes; kill -{forwarded} "${{!runs[@]}}" 2>/dev/null; echo "{signal}: {saving}"' {signal}
for ((number = task * {per_gpu}; number < (task + 1) * {per_gpu}; number++)); do
  command=$(sed -n "$((number + 1))p" "$folder/commands.txt")
  if [ -n "$asked" ]; then again=yes; continue; fi
  if [ -z "$command" ] || [ -e "$folder/$number.exit" ]; then continue; fi
  export BROADOPT_OUTPUT=$folder/$number.out
  {prefix}bash -c "exec $command"{output} &
  runs[$!]=$number
done
for run in "${{!runs[@]}}"; do
  wait "$run"
  code=$?
  while kill -0 "$run" 2>/dev/null; do wait "$run"; code=$?; done
  if [ "$code" != 0 ]; then worst=$code; fi
  if [ -n "$asked" ] && [ "$code" != 0 ]; then again=yes; continue; fi
  # A start after another: the lost node may still hold the run's lock.
  if [ "$code" = 3 ] && [ "${{SLURM_RESTART_COUNT:-0}}" != 0 ]; then again=yes; continue; fi
  case $code in {crashes}) code=1;; esac # a crash, which would come again
  case $code in 0|1|2|3) echo "$code" > "$folder/${{runs[$run]}}.exit";; esac
done
if [ -n "$again" ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$task" && exit 0
fi
exit "$worst"
"""


LIMITS: dict[str, tuple[float, float]] = {
    "gpus": (0, 1024),
    "cpus": (1, 65_536),
    "hours": (1 / 60, 24 * 366),
    "parallel": (1, 1_000_000),
    "signal_seconds": (0, 65_535),  # as sbatch takes them
    "processes": (1, 1024),
    "per_gpu": (1, 64),
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
    extra: further options of sbatch. processes: of one run, by torchrun. per_gpu: runs of one task, which share its GPU
    and have `cpus` and `memory` each. wait: stay until all have ended, looking every
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
        per_gpu: int,
        wait: bool,
        poll: float,
    ) -> None:
        super().__init__()
        numbers = {"gpus": gpus, "cpus": cpus, "hours": hours, "parallel": parallel, "signal_seconds": signal_seconds}
        for name, value in {**numbers, "processes": processes, "per_gpu": per_gpu, "poll": poll}.items():
            _check(name, value)
        if per_gpu > 1 and (gpus != 1 or processes > 1):
            what = f"gpus={gpus}" if gpus != 1 else f"processes={processes}"
            raise InputError(
                f"hydra.launcher.per_gpu={per_gpu}: runs share one GPU; expected {what.split('=')[0]}=1, found {what}"
            )
        if processes > 1 and gpus not in (0, processes):
            raise InputError(
                f"hydra.launcher.processes={processes}: each has a GPU of its own; "
                f"expected hydra.launcher.gpus={processes} (or 0 without GPUs), found {gpus}"
            )
        self.per_gpu = per_gpu
        memory = _times(memory, per_gpu) if memory and per_gpu > 1 else memory
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
        most = LARGEST_ARRAY * self.per_gpu
        for first in range(0, len(new), most):
            part = new[first : first + most]
            folder = self._submit(part, root)
            print(f"submitted: {len(part)} runs as job {folder.name}; what they print is in {folder}", flush=True)
            tasks |= {one.name: Task(folder, place, together=self.per_gpu) for place, one in enumerate(part)}
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
        names = {"together": self.per_gpu, "runs": [one.name for one in planned]}
        (draft / "runs.json").write_text(json.dumps(names))
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
            "array": f"0-{-(-runs // self.per_gpu) - 1}%{max(1, self.parallel // self.per_gpu)}",
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "cpus-per-task": self.cpus * self.per_gpu,
            "time": max(1, round(60 * self.hours)),
            "signal": f"B:USR2@{self.signal_seconds}",
            "open-mode": "append",
            # What several runs print goes to a file each; the task's own words then have one too.
            "output": f"{str(root).replace('%', '%%')}/slurm/%A/{'task-' * (self.per_gpu > 1)}%a.out",
        }
        variables = [f"export OMP_NUM_THREADS={max(1, self.cpus // self.processes)}"]
        variables += [f"export {PER_GPU}={self.per_gpu}"] * (self.per_gpu > 1)
        lines = [f"#SBATCH --{name}={_word(value)}" for name, value in options.items() if value is not None]
        return SCRIPT.format(
            options="\n".join([*lines, "#SBATCH --requeue", *(f"#SBATCH {option}" for option in self.extra)]),
            signal="USR2",
            saving="the run saves its state" if self.per_gpu == 1 else "the runs save their states",
            per_gpu=self.per_gpu,
            output=' >> "$BROADOPT_OUTPUT" 2>&1' if self.per_gpu > 1 else "",
            forwarded="TERM" if self.processes > 1 else "USR2",  # torchrun passes on TERM alone
            cwd=shlex.quote(os.getcwd()),
            folder=f"{shlex.quote(str(root))}/slurm/$SLURM_ARRAY_JOB_ID",
            setup="\n".join([*variables, *self.setup_lines]),
            prefix=f"{self.prefix} " if self.prefix else "",
            crashes="|".join(str(128 + number) for number in CRASHES),
        )

    def _wait_for(self, tasks: list["Task"]) -> None:
        """Until none of the tasks is in the queue any more; each change is a line."""
        reported = ""
        while True:
            states = queue()
            here = [states[task.name] for task in tasks if task.name in states and task.code() is None]
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


def _word(value: Any) -> str:
    """A value as sbatch reads it in a script, by rules of its own: a backslash escapes inside of quotes as well."""
    if re.fullmatch(r"[\w.,:/%@+=-]*", text := str(value), flags=re.ASCII):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _check(name: str, value: Any) -> None:
    low, high = LIMITS[name]
    kinds, kind = ((int, float), "a number") if name in FRACTIONS else ((int,), "a whole number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InputError(f"hydra.launcher.{name}={value}: expected {kind} from {low:.3g} to {high:,}")


def _times(memory: str, count: int) -> str:
    """A size as sbatch takes it, so many times. Raises InputError for any other."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", str(memory))
    if match is None:
        raise InputError(f"hydra.launcher.memory={memory}: expected a whole number and K, M, G or T, as 32G")
    return f"{count * int(match[1])}{match[2]}"
