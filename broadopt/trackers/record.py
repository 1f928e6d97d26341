"""What a tracker is given of a run, and the one function that gives it, while the run trains and afterwards.

The run's own files are the record; a tracker holds a copy. So `record` compares: what is there already is not sent
again, and what differs is sent anew. A resumed run goes on with its curve, and an export made twice is one export.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from broadopt.config.identity import identity_of
from broadopt.runs.folders import run_folder

Points = Mapping[int, Mapping[str, float]]
"""Values by name, by step: the number of the epoch, a last epoch that is not whole counted as one."""

PROJECT = "broadopt"
"""W&B's project, MLflow's experiment and trackio's project, where the tracker's own variables name no other."""

SPLITS = ("train", "validation", "test")
CLOSE = 1e-6
"""Relative difference of two values that are the same: TensorBoard keeps 32 bits of each."""


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """A run as a tracker names it; all of it follows from the recorded config."""

    identity: str
    """The run's id: the same for a resumed run, another one for another seed."""
    name: str
    """Its folder below runs/."""
    group: str
    """The folder above: runs of one data set, network and method."""
    hyperparameters: Mapping[str, str | float | int | bool]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TrackedRun":
        """The run of a recorded config, as result.json and progress.json have it."""
        name = run_folder("", config).relative_to("runs").as_posix()
        return cls(
            identity=identity_of(config),
            name=name,
            group=name.rpartition("/")[0],
            hyperparameters=flat(config),
        )


class Writer(Protocol):
    """One run in a tracker, open to be added to."""

    points: dict[int, dict[str, float]]
    """What the tracker has of this run, as far as it can be read back."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at a step, which is no smaller than those before it."""
        ...

    def forget(self, step: int) -> None:
        """Remove what is there from `step` on, or more, from the tracker and from `points`."""
        ...

    def finish(self, state: str) -> None:
        """Send all, note the run's state (finished, failed, interrupted, running), and close."""
        ...


def record(writer: Writer, points: Points, *, complete: bool = False) -> None:
    """Make what a tracker has of a run these `points`; of a run that is `complete` there are no others."""
    wrong = [
        step
        for step, values in writer.points.items()
        if (step in points and _differ(values, points[step])) or (complete and step not in points)
    ]
    if wrong:
        # A checkpoint is older than the last point, and epochs that a GPU trains again differ by rounding.
        writer.forget(min(wrong))
    kept = writer.points
    for step in sorted(points):
        new = {name: value for name, value in points[step].items() if name not in kept.get(step, {})}
        if new:
            writer.log(step, new)
            kept.setdefault(step, {}).update(new)


def _differ(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    shared = ours.keys() & theirs.keys()
    return not all(math.isclose(ours[name], theirs[name], rel_tol=CLOSE, abs_tol=1e-12) for name in shared)


def points_of(history: Sequence[Mapping[str, float]], metrics: Mapping[str, Any] | None = None) -> Points:
    """The points of a history's rows and, at the last of them, of a finished run's metrics as result.json has them."""
    points = {math.ceil(row["epoch"]): {_title(name): value for name, value in row.items()} for row in history}
    if points and metrics is not None:
        points[max(points)].update(_final(metrics))
    return points


def _title(column: str) -> str:
    """`test/nll` for the column test_nll: trackers draw what has the same beginning side by side."""
    split, _, name = column.partition("_")
    return f"{split}/{name}" if split in SPLITS else column


def _final(metrics: Mapping[str, Any]) -> dict[str, float]:
    """best/test_accuracy, best/epoch, collected/1.25/test_accuracy, ...; metrics.last is the last row itself."""
    final = {f"best/{name}": value for name, value in (metrics["best"] or {}).items()}
    for key, values in metrics["collected"].items():  # of a further collector `ema 1`: collected/ema/1/test_accuracy
        final |= {f"collected/{key.replace(' ', '/')}/{name}": value for name, value in values.items()}
    best = (metrics.get("validation") or {}).get("best") or {}
    return final | {f"validation_best/{name}": value for name, value in best.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | int | bool]:
    """`step.rho` and the like: a nested config as a flat one; null and lists as JSON."""
    found: dict[str, str | float | int | bool] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value if isinstance(value, (str, float, int)) else json.dumps(value)
    return found
