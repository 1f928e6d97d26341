"""The runs of a results folder as trackers are given them, from files alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.files import reason
from broadopt.runs import heartbeat, history, results
from broadopt.runs.folders import scan


@dataclass(frozen=True, kw_only=True)
class StoredRun:
    """What the files of a run folder say of it."""

    config: Mapping[str, Any]
    """As it is recorded."""
    state: str
    """finished, failed, interrupted or running."""
    history: Sequence[Mapping[str, float]]
    metrics: Mapping[str, Any] | None
    """Of a finished run."""


def stored_runs(root: Path) -> tuple[Iterator[StoredRun], list[str]]:
    """The runs below `root`/runs that have a history, read one after the other, and a list that is filled meanwhile: a
    line for each folder that is left out.
    """
    files, left_out = scan(root, results.NAME, heartbeat.NAME)

    def read() -> Iterator[StoredRun]:
        for folder in dict.fromkeys(file.parent for file in files):
            try:
                found = _read(folder)
            except (OSError, ValueError) as error:
                left_out.append(f"{folder.relative_to(root).as_posix()}: {reason(error)}")
                continue
            if found is not None:
                yield found

    return read(), left_out


def _read(folder: Path) -> StoredRun | None:
    """The run of a folder; None where it has no epoch behind it, or has been removed since."""
    # The heartbeat first: a run that ends in between has written its result before it takes its heartbeat away.
    progress = heartbeat.read(folder)
    result = results.read(folder)
    if progress is not None and (result is None or heartbeat.is_alive(folder, progress)):
        state = "running" if heartbeat.is_alive(folder, progress) else "interrupted"
        found = StoredRun(config=progress["config"], state=state, history=history.read(folder), metrics=None)
    elif result is not None:
        metrics = result["metrics"] if result["state"] == "finished" else None
        found = StoredRun(config=result["config"], state=result["state"], history=history.read(folder), metrics=metrics)
    else:
        return None
    if found.state == "finished" and not found.history:
        raise ValueError("it is finished and has no history.csv")
    return found if found.history else None
