"""trackio, in its local database."""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path

from broadopt.trackers.record import PROJECT, TrackedRun

REMOTE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


class TrackioRun:
    """A run in trackio, known by its name, which ends with the beginning of its identity."""

    def __init__(self, run: TrackedRun) -> None:
        from trackio import Api
        from trackio.sqlite_storage import SQLiteStorage

        self.run, self.api = run, Api()
        self.points: dict[int, dict[str, float]] = {}
        if SQLiteStorage.get_project_db_path(PROJECT).exists():
            for row in SQLiteStorage.get_logs(PROJECT, run.name):
                values = {name: value for name, value in row.items() if name not in ("step", "timestamp")}
                self.points.setdefault(row["step"], {}).update(values)
        self._open()

    def _open(self) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            self.opened = trackio.init(
                project=PROJECT,
                name=self.run.name,
                group=self.run.group,
                config={**self.run.hyperparameters, "identity": self.run.identity},
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at a step."""
        self.opened.log(dict(values), step=step)

    def forget(self, step: int) -> None:
        """trackio removes runs only, not values: another run takes the place of this one."""
        self.finish("running")
        for known in self.api.runs(PROJECT):
            if known.name == self.run.name:
                known.delete()
        self.points.clear()
        self._open()

    def finish(self, state: str) -> None:
        """Wait until all is written."""
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # and not the run's own, after which trackio finishes it once more at exit


def opened(run: TrackedRun, place: Path) -> TrackioRun:
    """A run in trackio. Raises ValueError where it is to be sent elsewhere: what is there cannot be read back."""
    for name in REMOTE:
        if os.environ.get(name):
            raise ValueError(f"{name} is set: expected a local trackio, whose database `trackio sync` publishes")
    os.environ.setdefault("TRACKIO_DIR", str(place / "trackio"))  # read when trackio is imported
    return TrackioRun(run)
