"""What a run reports of all that it has measured, and the one number of it by which a sweeper chooses the next runs."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def evaluation_point(key: str) -> tuple[str, float]:
    """The collector and the budgets spent of a key of metrics.collected: ("", 1.5) of `1.5`, which is the run's own
    collector's, and ("ema", 1.0) of `ema 1`, which is another's. In ascending order the run's own come first.
    """
    name, _, budgets = key.rpartition(" ")
    return name, float(budgets)


def longest(keys: Iterable[str]) -> str | None:
    """The key of metrics.collected for what a run reports: that of its own collector after the most budgets; None
    where there is none.
    """
    own = [key for key in keys if not evaluation_point(key)[0]]
    return max(own, key=evaluation_point, default=None)


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
