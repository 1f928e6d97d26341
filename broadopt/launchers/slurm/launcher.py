"""hydra/launcher=slurm: the runs of a sweep as one array job of a Slurm cluster.

The job is a shell script that is kept and can be read: <results_dir>/slurm/<job>/job.sh carries out line k of
commands.txt as task k, and writes <k>.out and, at the run's own end, its exit code to <k>.exit.
"""

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from broadopt.devices.sharing import PER_GPU
from broadopt.errors import InputError, Interrupted
from broadopt.files import write_text
from broadopt.launchers.ended import CRASHES, Ended
from broadopt.launchers.place import PLACE
from broadopt.launchers.slurm.job import SCRIPT, TOLD, word
from broadopt.launchers.slurm.queue import OUT_OF_REACH, UNANSWERED, Task, in_queue, new_draft, release, slurm
from broadopt.launchers.slurm.waiting import ends, wait_for
from broadopt.launchers.sweep import Planned, SweepLauncher, quoted

log = logging.getLogger("broadopt")

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
    `poll` seconds. Raises InputError for a number out of its LIMITS, or numbers that do not go together.
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
        _check_together(hours=hours, signal_seconds=signal_seconds, gpus=gpus, processes=processes, per_gpu=per_gpu)
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
        refused: InputError | None = None
        submitted = 0
        most = LARGEST_ARRAY * self.per_gpu
        for first in range(0, len(new), most):
            part = new[first : first + most]
            try:
                folder = self._submit(part, root)
            except InputError as error:
                if not submitted:
                    raise
                refused = error
                break
            print(f"submitted: {len(part)} runs as job {folder.name}; what they print is in {folder}", flush=True)
            tasks |= {one.name: Task(folder, place, together=self.per_gpu) for place, one in enumerate(part)}
            submitted += len(part)
        if refused is not None:
            left = f"not submitted: {len(new) - submitted} runs: {refused}; the same command submits them"
            if not self.wait:
                raise InputError(left)
            log.warning("%s", left)
        return self._ends(planned, tasks) if self.wait else []

    def _ends(self, planned: list[Planned], tasks: dict[str, Task]) -> list[Ended]:
        """Wait for all that was submitted."""
        try:
            wait_for(list(tasks.values()), poll=self.poll)
            ended = ends([(one, tasks[one.name]) for one in planned if one.name in tasks])
        except (Interrupted, KeyboardInterrupt):
            print("the jobs go on without this command; give it again to see how they stand", flush=True)
            raise
        return ended + [Ended(one, None, None) for one in planned if one.name not in tasks]

    def _submit(self, planned: list[Planned], root: Path) -> Path:
        """Write the job's folder and hand it to sbatch; the folder is then called by the job's number."""
        draft = new_draft(root / "slurm")
        commands = [quoted(["env", f"{PLACE}={one.place}", *one.command(processes=self.processes)]) for one in planned]
        write_text(draft / "commands.txt", "".join(f"{command}\n" for command in commands))
        names = {"together": self.per_gpu, "runs": [one.name for one in planned]}
        (draft / "runs.json").write_text(json.dumps(names))
        # Held until the folder has its name, which the script derives from the job's own number.
        write_text(draft / "job.sh", self._script(root, len(planned)))
        try:
            # Without an answer it is not given again: the job may be in the queue. The next command cancels it.
            printed = slurm("sbatch", "--parsable", "--hold", str(draft / "job.sh"), again=OUT_OF_REACH)
        except InputError as error:
            if not re.search(UNANSWERED, str(error)):
                shutil.rmtree(draft)
            raise
        folder = root / "slurm" / printed.split(";")[0].strip()
        draft.rename(folder)
        release(folder)
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
        # torchrun kills its processes that long after it has passed the signal on; a version that knows no such
        # variable (before --shutdown-timeout) does so after 30 seconds.
        patience = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
        default = f"export {patience}=${{{patience}:-{max(30, self.signal_seconds)}}}"
        variables += [default] * (self.processes > 1)
        lines = [f"#SBATCH --{name}={word(value)}" for name, value in options.items() if value is not None]
        return SCRIPT.format(
            options="\n".join([*lines, "#SBATCH --requeue", *(f"#SBATCH {option}" for option in self.extra)]),
            signal="USR2",
            saving="the run saves its state" if self.per_gpu == 1 else "the runs save their states",
            per_gpu=self.per_gpu,
            output=' >> "$BROADOPT_OUTPUT" 2>&1' if self.per_gpu > 1 else "",
            told=TOLD if self.per_gpu > 1 else "",
            forwarded="TERM" if self.processes > 1 else "USR2",  # torchrun passes on TERM alone
            cwd=shlex.quote(os.getcwd()),
            folder=f"{shlex.quote(str(root))}/slurm/$SLURM_ARRAY_JOB_ID",
            setup="\n".join([*variables, *self.setup_lines]),
            prefix=f"{self.prefix} " if self.prefix else "",
            crashes="|".join(str(128 + number) for number in CRASHES),
        )


def _check(name: str, value: Any) -> None:
    low, high = LIMITS[name]
    kinds, kind = ((int, float), "a number") if name in FRACTIONS else ((int,), "a whole number")
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise InputError(f"hydra.launcher.{name}={value}: expected {kind} from {low:.3g} to {high:,}")


def _check_together(*, hours: float, signal_seconds: int, gpus: int, processes: int, per_gpu: int) -> None:
    """Raise InputError for numbers that do not go together."""
    if signal_seconds >= 3600 * hours:
        raise InputError(
            f"hydra.launcher.signal_seconds={signal_seconds}: a run is told to save so long before its time limit; "
            f"expected less than the {3600 * hours:g} seconds of hydra.launcher.hours={hours:g}"
        )
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


def _times(memory: str, count: int) -> str:
    """A size as sbatch takes it, so many times. Raises InputError for any other."""
    match = re.fullmatch(r"(\d+)([KMGT]?)", str(memory))
    if match is None:
        raise InputError(f"hydra.launcher.memory={memory}: expected a whole number and K, M, G or T, as 32G")
    return f"{count * int(match[1])}{match[2]}"
