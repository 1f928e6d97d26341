"""The files that broadopt ships beside its code: Hydra's config groups and the published tables."""

from pathlib import Path

import broadopt


def _shipped(inside: str, checkout: str) -> Path:
    """A folder that travels inside the wheel, or stands at the top of a checkout."""
    package = Path(broadopt.__file__).resolve().parent
    return package / inside if (package / inside).is_dir() else package.parent / checkout


def config_dir() -> Path:
    """The folder of the Hydra groups."""
    return _shipped("configs", "configs")


def paper_dir() -> Path:
    """The folder of the published tables."""
    return _shipped("paper", "results/paper")


def options(group: str) -> list[str]:
    """The choices of a config group that broadopt ships, sorted, those in folders as folder/choice."""
    folder = config_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
