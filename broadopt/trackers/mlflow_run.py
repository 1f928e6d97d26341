"""MLflow, on the server that MLFLOW_TRACKING_URI names or in a SQLite file."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from broadopt.errors import InputError
from broadopt.trackers.record import PROJECT, TrackedRun

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

for noisy in ("mlflow", "alembic"):
    logging.getLogger(noisy).setLevel(logging.WARNING)

TAG = "broadopt.identity"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
LONGEST = 6000
"""Characters of a parameter's value."""


class MlflowRun:
    """A run in MLflow, known by a tag: MLflow makes the ids of its runs itself."""

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.points: dict[int, dict[str, float]] = {}
        self.uri = os.environ.get("MLFLOW_TRACKING_URI")
        address = self.uri or _address(folder / "mlflow.db")
        with self._alone():
            self.client = MlflowClient(address)
            self.experiment = self._experiment()
            runs = self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{run.identity}'")
            self.id = runs[0].info.run_id if runs else self._create()
            for name in runs[0].data.metrics if runs else ():
                for metric in self.client.get_metric_history(self.id, name):
                    self.points.setdefault(metric.step, {})[name] = metric.value

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at a step."""
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        with self._alone():
            self.client.log_batch(self.id, metrics)

    def forget(self, step: int) -> None:
        """MLflow removes runs only, not values: another run takes the place of this one."""
        with self._alone():
            self.client.delete_run(self.id)
            self.id = self._create()
        self.points.clear()

    def finish(self, state: str) -> None:
        """Note how the run ended, if it did."""
        with self._alone():
            if state in STATUS:
                self.client.set_terminated(self.id, STATUS[state])
            else:
                self.client.update_run(self.id, status="RUNNING")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        place = None if self.uri else str(self.folder / "mlartifacts")
        return str(self.client.create_experiment(name, artifact_location=place))

    def _create(self) -> str:
        tags = {TAG: self.run.identity, "broadopt.group": self.run.group}
        made = self.client.create_run(self.experiment, run_name=self.run.name, tags=tags)
        values = [Param(name, str(value)[:LONGEST]) for name, value in self.run.hyperparameters.items()]
        for first in range(0, len(values), 100):  # as many as one request takes
            self.client.log_batch(made.info.run_id, params=values[first : first + 100])
        return str(made.info.run_id)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A SQLite file takes one writer at a time, and is laid out by the first."""
        if self.uri:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".mlflow.lock"):
            yield


def _address(database: Path) -> str:
    """The address of a SQLite file. Raises InputError where it would be another file's: `?` begins its options, `%` the
    number of a character. Quoted, it is the right file's, but MLflow makes a folder of the quoted name as well.
    """
    from sqlalchemy.engine import make_url  # here, since a client on a server works without it

    address = f"sqlite:///{database}"
    if make_url(address).database != str(database):
        raise InputError(
            f"{database.parent}: MLflow's address of a database has no room for ? and %; expected another folder, as "
            "broadopt-export mlflow RESULTS --output FOLDER takes"
        )
    return address


def opened(run: TrackedRun, place: Path) -> MlflowRun:
    """A run in MLflow; without a server in `place`/mlflow.db. Raises InputError where no such file can be named."""
    return MlflowRun(run, place.absolute())
