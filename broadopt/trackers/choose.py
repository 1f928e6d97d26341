"""The trackers by their names: which are installed, and a run opened in one of them."""

import os
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from broadopt.errors import InputError, printable
from broadopt.trackers.record import TrackedRun, Writer

PACKAGES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy"),
    "trackio": ("trackio",),
}
"""What each tracker imports; the first one always."""


def check_installed(names: Sequence[str]) -> None:
    """Raise InputError, with what to type, for a tracker whose package is missing."""
    for name in names:
        # MLflow's client on a server works without a database.
        for package in PACKAGES[name][: 1 if os.environ.get("MLFLOW_TRACKING_URI") else None]:
            spec = find_spec(package)
            # A folder of that name, as wandb/ in the current one, is a package without an origin.
            if spec is None or spec.origin is None:
                raise InputError(f"tracker={name}: {package} is not installed: pip install '.[{name}]' in the checkout")


def opened(name: str, run: TrackedRun, place: Path) -> Writer:
    """A run in the tracker `name`, made where it is new. What is local lies below the folder `place`, unless the
    tracker's own variables say otherwise. Raises whatever the tracker raises.
    """
    writer: Writer = import_module(f"broadopt.trackers.{name}_run").opened(run, place)
    return writer


def failure(error: Exception) -> str:
    """What a tracker has raised, in a line that may be gone on with."""
    if isinstance(error, InputError):
        return printable(str(error))
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}")
