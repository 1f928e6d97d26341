"""The one number that a run returns to the sweeper that started it, so that it can choose the next runs by it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broadopt.runs.schema import longest


class Outcome(float):
    """The objective of a finished run, and where its result lies. Sweepers take it for the number that it is."""

    results_dir: Path
    folder: Path
    line: str
    """The result in a line."""

    def __new__(cls, objective: float, results_dir: str | Path, folder: Path, line: str) -> "Outcome":
        """A number with attributes. Its paths are absolute: hydra.job.chdir leaves the folder that others begin in."""
        found = super().__new__(cls, objective)
        found.results_dir, found.folder, found.line = Path(results_dir).absolute(), folder.absolute(), line
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        """For the way back from a worker process: a float would be made anew without the rest."""
        return type(self), (float(self), self.results_dir, self.folder, self.line)


def is_minimised(name: str) -> bool:
    """Whether a smaller value of an objective is a better one: of a mean negative log-likelihood (nats), not of an
    accuracy (percent).
    """
    return name.endswith("_nll")


def value(metrics: Mapping[str, Any], name: str) -> float:
    """An objective of a finished run's `metrics`, as its result has them: that of what its collector, of several the
    first, predicts after the most budgets, else that of the last weights.
    """
    key = longest(metrics["collected"])
    if key is not None:
        return float(metrics["collected"][key][name])
    return float((metrics["validation"] if name.startswith("validation") else metrics)["last"][name])
