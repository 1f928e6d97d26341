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
    """The runs below `root`/runs that have a history, each once, read one after the other, and a list that is filled
    meanwhile: a line for each folder that is left out. Of several copies of a run that counts which counts in tables.
    """
    files, left_out = scan(root, results.NAME, heartbeat.NAME)
    alike: dict[str, list[Path]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        alike.setdefault(folder.name, []).append(folder)  # a copy has the name, or it is refused as another run's

    def read() -> Iterator[StoredRun]:
        for folders in alike.values():
            for folder in _counted(root, folders, left_out) if len(folders) > 1 else folders:
                try:
                    found = _read(folder)
                except (OSError, ValueError) as error:
                    left_out.append(f"{folder.relative_to(root).as_posix()}: {reason(error)}")
                    continue
                if found is not None:
                    yield found

    return read(), left_out


def _counted(root: Path, folders: Sequence[Path], left_out: list[str]) -> list[Path]:
    """Those of some folders that are no copy of another, with a line in `left_out` on each copy that is not the same.
    One that cannot be read stays, for whoever reads it next to say why.
    """
    counted, found = [], []
    for folder in folders:
        try:
            standing = _standing(folder)
            digest = results.checksum(standing).encode() if standing is not None else b""  # a text may have no bytes
        except (OSError, ValueError):
            counted.append(folder)
            continue
        if standing is not None:
            found.append(results.Found(folder.relative_to(root).as_posix(), standing, digest))
    one_each, lines = results.unique(found)
    left_out += lines
    return sorted([*counted, *(root / one["folder"] for one in one_each)])


def _standing(folder: Path) -> dict[str, Any] | None:
    """The result of a run folder; of a run that is going on, or died, the same fields by its heartbeat."""
    # The heartbeat first: a run that ends in between has written its result before it takes its heartbeat away.
    progress = heartbeat.read(folder)
    result = results.read(folder)
    if progress is None:
        return result
    is_alive = heartbeat.is_alive(folder, progress)
    if result is not None and not is_alive:
        return result
    known = {"identity": progress["identity"], "config": progress["config"], "epochs": progress["epoch"] or 0.0}
    return known | {"state": "running" if is_alive else "interrupted"}


def _read(folder: Path) -> StoredRun | None:
    """The run of a folder; None where it has no epoch behind it, or has been removed since."""
    standing = _standing(folder)
    if standing is None:
        return None
    state, rows = standing["state"], history.rows_of(folder, standing)
    if state == "finished" and not rows:
        raise ValueError("it is finished and has no history.csv")
    metrics = standing["metrics"] if state == "finished" else None
    return StoredRun(config=standing["config"], state=state, history=rows, metrics=metrics) if rows else None
