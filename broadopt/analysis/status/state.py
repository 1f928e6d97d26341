"""The status of each run: finished, running, interrupted, failed or missing; from what the run folders hold alone."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.analysis.status.devices import SEVERAL, UNKNOWN, Device
from broadopt.analysis.tables.summary import has_diverged
from broadopt.files import reason
from broadopt.runs import heartbeat, results
from broadopt.runs.folders import run_folder, scan

STATES = ("finished", "running", "interrupted", "failed", "missing")


Record = Mapping[str, Any]
Beat = tuple[Path, dict[str, Any]]
"""A run folder and the heartbeat in it."""


@dataclass(frozen=True)
class Run:
    """One run, there or not."""

    record: Record
    state: str
    epoch: float
    """Epochs behind it; of a run that has to be started again, those that are saved."""
    epochs: float
    seconds: float
    """Device time spent so far, in training steps."""
    words: str
    """Where it is, for people."""
    diverged: bool = False
    """Whether it has come to its end without having learned."""
    device: Device = UNKNOWN
    """On which `seconds` were spent."""

    @property
    def seed(self) -> int:
        return int(self.record["seed"])


@dataclass(frozen=True)
class Folder:
    """What a results folder holds at one moment, by identity."""

    root: Path
    results: Mapping[str, dict[str, Any]]
    progress: Mapping[str, Beat]
    """Run folder and heartbeat of the runs that have left one."""
    left_out: tuple[str, ...]

    def records(self) -> Iterator[tuple[str, Record]]:
        """Identity and recorded config of every run that is known."""
        yield from ((identity, result["config"]) for identity, result in self.results.items())
        yield from ((key, seen["config"]) for key, (_, seen) in self.progress.items() if key not in self.results)


def look(root: Path) -> Folder:
    """Read every heartbeat and every result below `root`."""
    paths, unusable = scan(root, results.NAME, heartbeat.NAME)
    beats: list[Beat] = []
    for path in paths:
        if path.name != heartbeat.NAME:
            continue
        try:
            seen = heartbeat.read(path.parent)
        except (ValueError, OSError) as error:
            unusable.append(f"{path.relative_to(root).as_posix()}: {reason(error)}")
            continue
        if seen is not None:
            beats.append((path.parent, seen))
    # Results come last, also those that were not there when the folders were listed: a run that has ended since its
    # heartbeat was looked for has a result by now.
    found, left_out = results.read_all(root, sorted({path.parent for path in paths}))
    return settled(root, found, beats, left_out=(*unusable, *left_out))


def settled(
    root: Path, found: Iterable[dict[str, Any]], beats: Iterable[Beat], *, left_out: Sequence[str] = ()
) -> Folder:
    """What results and heartbeats say together. Of several copies of one run that is not finished one counts: that
    which is running, else the one that has come farthest, of equals the first.
    """
    ended = {result["identity"]: result for result in found}
    copies: dict[str, list[Beat]] = defaultdict(list)
    for path, seen in beats:
        copies[seen["identity"]].append((path, seen))
    progress: dict[str, Beat] = {}
    for identity, several in copies.items():
        path, seen = max(several, key=_reached) if len(several) > 1 else several[0]
        result = ended.get(identity)
        if result is not None and result["state"] != "finished" and root / result["folder"] != path:
            if _reached((path, seen)) < (False, result["epochs"]):
                continue
            del ended[identity]
        progress[identity] = path, seen
    return Folder(root, ended, progress, tuple(left_out))


def _reached(beat: Beat) -> tuple[bool, float]:
    path, seen = beat
    return heartbeat.is_alive(path, seen), seen["epoch"] or 0.0


def run_of(folder: Folder, record: Record, identity: str) -> Run:
    """The status, in a results folder, of the run of a recorded config whose identity this is."""
    result = folder.results.get(identity)
    if result is not None and result["state"] == "finished":
        diverged, last = has_diverged(result), result["metrics"]["last"]
        words = f"diverged: its last test accuracy is {last['test_accuracy']:.2f} %" if diverged else ""
        epochs, device = result["epochs"], Device.of(result["environment"])
        return Run(record, "finished", epochs, epochs, _seconds(result), words, diverged, device)
    if identity in folder.progress:
        return _in_progress(record, *folder.progress[identity], result)
    if result is not None:
        return _ended(record, folder.root / result["folder"], result)
    return _without_figures(record, run_folder(folder.root, record))


def without_figures(folder: Folder, known: Collection[str], is_wanted: Callable[[Record], bool]) -> list[str]:
    """A line on each run that has a heartbeat and a config that is wanted, and whose identity is not among those with a
    result or a history.
    """
    runs = (
        (path.relative_to(folder.root), run_of(folder, progress["config"], identity))
        for identity, (path, progress) in sorted(folder.progress.items(), key=lambda item: item[1][0])
        if identity not in known and is_wanted(progress["config"])
    )
    return [f"not compared: {path} has no history yet ({run.state}: {run.words})" for path, run in runs]


def total_epochs(record: Record) -> float:
    """Epochs that a run trains: its budget, or the longest of those that its collector reads out."""
    collectors = [record["collect"], *record["collect"].get("also", {}).values()]
    return float(record["budget"]) * max([1, *(most for one in collectors for most in one.get("budgets", []))])


def _seconds(result: Mapping[str, Any]) -> float:
    """What a run has spent itself, on all of its devices; the epochs of a trunk that it began from are another's."""
    own = float(result["cost"]["train_seconds"] - result.get("trunk", {}).get("train_seconds", 0.0))
    return max(0.0, own) * processes(result["config"])


def processes(record: Record) -> int:
    """How many processes a run has, each on a device of its own."""
    return int(record.get("processes", 1))


def _in_progress(record: Record, path: Path, progress: Mapping[str, Any], result: Mapping[str, Any] | None) -> Run:
    """A run that has left a heartbeat: it is running, or died without a word."""
    epochs, rate = progress["epochs"] or total_epochs(record), progress.get("images_per_second")
    epoch = progress["epoch"] if progress["epoch"] is not None else _saved(path, result, epochs, steps=None) or 0.0
    images = progress["images_per_epoch"]
    elsewhere = progress.get("epochs_elsewhere", 0.0)
    own = max(0.0, epoch - max(progress.get("trunk_epochs", 0), elsewhere))
    seconds = own * images / rate * processes(record) if rate and images else 0.0
    if result is not None:
        seconds = seconds + _seconds(result) if elsewhere else max(seconds, _seconds(result))
    place, device = f"on {progress['host']}", SEVERAL if elsewhere else Device.of(progress)
    if heartbeat.is_alive(path, progress):
        left = progress.get("seconds_left")
        words = f"epoch {epoch:.1f} of {epochs:g}" + (f", {duration(left)} left" if left is not None else "")
        still = progress["time"] - progress.get("moved", progress["time"])
        stuck = f", no step for {duration(still)}" if still > STILL else ""
        return Run(record, "running", epoch, epochs, seconds, f"{words}, {place}{stuck}", device=device)
    saved = _saved(path, result, epochs, steps=progress.get("steps"))
    words = f"died {place} in epoch {epoch:.1f}; {_goes_on(saved, epochs)}"
    return Run(record, "interrupted", saved or 0.0, epochs, seconds, words, device=device)


STILL = 300.0
"""Seconds without a step that are worth a word."""


LONGEST = 500
"""Characters of the reason of a failed run that are shown."""


def _ended(record: Record, path: Path, result: dict[str, Any]) -> Run:
    """A run that wrote why it came to its end."""
    epochs = total_epochs(record)
    saved, device = _saved(path, result, epochs, steps=None), Device.of(result["environment"])
    if result["state"] == "failed":
        why = result.get("failure", {}).get("reason", "no reason given")
        words = why.strip().splitlines()[0][:LONGEST]
        return Run(record, "failed", saved or 0.0, epochs, _seconds(result), words, has_diverged(result), device)
    return Run(record, "interrupted", saved or 0.0, epochs, _seconds(result), _goes_on(saved, epochs), device=device)


def _without_figures(record: Record, path: Path) -> Run:
    """A run of which there is no more than a folder, if that."""
    epochs = total_epochs(record)
    # os.path says no, where pathlib raises, of what lies in a folder that cannot be read.
    if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):
        return Run(record, "missing", 0.0, epochs, 0.0, "its folder cannot be read")
    if os.path.lexists(path / results.NAME):
        return Run(record, "missing", 0.0, epochs, 0.0, "its result.json is left out, see below")
    if heartbeat.is_alive(path, None):
        return Run(record, "running", 0.0, epochs, 0.0, "begins")
    if os.path.lexists(path / ".lock"):
        saved = _saved(path, None, epochs, steps=None)
        return Run(record, "interrupted", saved or 0.0, epochs, 0.0, _goes_on(saved, epochs))
    return Run(record, "missing", 0.0, epochs, 0.0, "")


def _saved(path: Path, result: Mapping[str, Any] | None, epochs: float, *, steps: int | None) -> float | None:
    """The epoch of the newest checkpoint, None where it is not known; 0 where there is none."""
    names = (re.fullmatch(r"checkpoint-(\d{10})\.ckpt", file.name) for file in path.glob("checkpoint-*.ckpt"))
    saved = [int(name[1]) for name in names if name]
    if not saved:
        return 0.0
    if steps:
        return min(max(saved) / steps, 1.0) * epochs
    return float(result["epochs"]) if result is not None else None


def _goes_on(saved: float | None, epochs: float) -> str:
    if saved is None:
        return "goes on from its checkpoint"
    return f"goes on from epoch {saved:.1f} of {epochs:g}" if saved else "from scratch: no checkpoint"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `1 h 20 min`, `2 d 3 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
