"""The weights of a run in the course of its training, kept on request (keep=snapshots): one file a moment, no code."""

import errno
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from broadopt import predictor
from broadopt.config.run_config import Recipe

FOLDER = "snapshots"


@dataclass(frozen=True, order=True)
class Snapshot:
    """A file of weights and BN statistics, as the training had them right after a step; step 0 is the start."""

    step: int
    path: Path


class Snapshots:
    """Keeps what a run of `folder` has at each moment that it is called for.

    A run first removes those that lie beyond the step from which it goes on: no file is of another course than the
    result.
    """

    def __init__(self, folder: Path, *, recipe: Recipe, classes: tuple[str, ...]) -> None:
        self._folder, self._metadata = folder / FOLDER, predictor.described(recipe, classes)

    def __call__(self, model: nn.Module, step: int) -> None:
        """Write the weights and buffers of `model`, whole or not at all. Raises OSError (disk full, ...)."""
        if self._folder.is_symlink():  # it would lead to files that are not this run's
            raise OSError(errno.ENOTDIR, "a link, expected a folder", str(self._folder))
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"step-{step:010d}.safetensors"
        predictor.write(path, model, metadata=self._metadata | {"step": str(step)})


def files(folder: Path) -> list[Snapshot]:
    """The snapshots of a run folder in the order of their steps; none where the run has kept none, or where a link in
    the place of their folder leads elsewhere.
    """
    place = folder / FOLDER
    names = [] if place.is_symlink() else sorted(place.glob("step-*.safetensors"))
    return [Snapshot(int(path.stem[5:]), path) for path in names if path.stem[5:].isdecimal()]


def size(model: nn.Module) -> int:
    """Bytes of one snapshot of `model`, but for the few of its description."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
