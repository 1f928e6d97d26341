"""TensorBoard: event files in tensorboard/<run>, written without torch or TensorFlow."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from broadopt.trackers.record import TrackedRun


class TensorBoardRun:
    """The scalars of a run, and its hyperparameters; a file is made only where there is something to add."""

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.points = _read(folder) if folder.is_dir() else {}
        self.writer: EventFileWriter | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars, and flush them: an epoch may be long."""
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=Summary(value=scalars))

    def forget(self, step: int) -> None:
        """Event files are only added to: the start of a session at `step` makes their readers drop what came before
        it from there on.
        """
        self._add(step, session_log=SessionLog(status=SessionLog.START))
        for later in [known for known in self.points if known >= step]:
            del self.points[later]

    def finish(self, state: str) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()

    def _add(self, step: int, **content: Any) -> None:
        if self.writer is None:
            self.writer = EventFileWriter(str(self.folder))
            if not self.points:
                summary = hparams_pb(dict(self.run.hyperparameters), trial_id=self.run.identity)
                self._add(0, summary=summary)
        self.writer.add_event(Event(wall_time=time.time(), step=step, **content))
        self.writer.flush()


def _read(folder: Path) -> dict[int, dict[str, float]]:
    """The scalars that are there. Raises ValueError for a FIFO among the files, at which TensorBoard would wait."""
    for path in sorted(folder.iterdir()):
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{path}: a device, a FIFO, a socket or a link to nothing, not a regular file")
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all of them
    found.Reload()
    points: dict[int, dict[str, float]] = {}
    for tag in found.Tags()["scalars"]:
        for event in found.Scalars(tag):
            points.setdefault(event.step, {})[tag] = event.value
    return points


def opened(run: TrackedRun, place: Path) -> TensorBoardRun:
    """A run in `place`/tensorboard."""
    return TensorBoardRun(run, place / "tensorboard" / run.name)
