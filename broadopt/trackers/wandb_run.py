"""Weights & Biases, online or offline as WANDB_MODE and the login say."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import wandb

from broadopt.trackers.record import PROJECT, TrackedRun


class WandbRun:
    """A run in W&B. Its id is the identity, so a resumed run is the same one.

    A server keeps what it has and cannot be asked to forget: steps that it has are left as they are.
    """

    def __init__(self, run: TrackedRun, folder: Path) -> None:
        self.points: dict[int, dict[str, float]] = {}
        _remove_offline(run, folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False)
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.identity,
            name=run.name,
            group=run.group,
            config=dict(run.hyperparameters),
            dir=str(folder),
            resume="allow",
            settings=settings,
        )
        self.run.define_metric("*", step_metric="epoch")
        self.first = self.run.step
        """The first step that the server does not have."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add values at a step; those of one step may come in several calls. Of a step that the server has already the
        run's summary alone, its newest values, takes them.
        """
        if step >= self.first:
            self.run.log(dict(values), step=step)
        else:
            self.run.summary.update(dict(values))

    def forget(self, step: int) -> None:
        """Nothing: there is nothing that was read back."""

    def finish(self, state: str) -> None:
        """Wait until all is sent."""
        self.run.finish(exit_code=0 if state in ("finished", "running") else 1)
        wandb.teardown()  # an offline file is whole only once W&B's own process has ended


def _remove_offline(run: TrackedRun, folder: Path) -> None:
    """Remove what earlier processes have left of this run to be synced later. An offline run cannot be gone on with,
    and two of one id would be synced over each other; the whole history is written again.
    """
    for left in offline_folders(run, folder):
        shutil.rmtree(left)


def offline_folders(run: TrackedRun, folder: Path) -> list[Path]:
    """What W&B has below `folder` of a run that is to be synced later."""
    return [left for name in ("wandb", ".wandb") for left in (folder / name).glob(f"offline-run-*-{run.identity}")]


def home(place: Path) -> Path:
    """The folder in which W&B keeps what is local: WANDB_DIR, else `place`."""
    return Path(os.environ.get("WANDB_DIR") or place)


def opened(run: TrackedRun, place: Path) -> WandbRun:
    """A run in W&B; what W&B keeps locally lies in WANDB_DIR, else in `place`/wandb."""
    return WandbRun(run, home(place))
