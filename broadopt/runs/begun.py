"""The folder of a run that begins or goes on: what was begun before, what is laid out and what is cleared away."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from broadopt.config.run_config import Recipe, RunConfig
from broadopt.files import replacing, write_text
from broadopt.runs import checkpoint, heartbeat, results

log = logging.getLogger("broadopt")


def precision_of(decided: Callable[[str], Recipe], results_dir: str | Path, *, here: str, others: Sequence[str]) -> str:
    """The precision in which precision=auto computes a run: that in which it is finished below `results_dir`, else that
    in which it was begun and left a checkpoint, else `here`, which this machine would choose.

    `decided` gives the run's recipe in a precision; `others` are those that this machine can compute in as well. Of
    several that are equal `here` comes first.
    """
    places = {name: results.run_folder(results_dir, decided(name).record()) for name in (here, *others)}
    for state, is_so in (("finished", _is_finished), ("begun", _is_begun)):
        for name, folder in places.items():
            if is_so(folder, decided(name)):
                if name != here:
                    log.warning(
                        "precision=auto: %s, in which this run was %s; a new one is in %s here", name, state, here
                    )
                return name
    return here


def _is_finished(folder: Path, recipe: Recipe) -> bool:
    try:
        result = results.read(folder, identity=recipe.identity)
    except (OSError, ValueError):  # whoever carries the run out says what is wrong with it
        return False
    return result is not None and result["state"] == "finished"


def _is_begun(folder: Path, recipe: Recipe) -> bool:
    return bool(checkpoint.files(folder))


def prepare(folder: Path, run: RunConfig, *, changes: str) -> None:
    """Lay out the folder of a run that begins, or goes on. `changes`: the diff of a working tree that is not clean."""
    with replacing(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(run.values()).encode())
    (folder / "error.txt").unlink(missing_ok=True)
    if changes:
        write_text(folder / "code.diff", changes)
    remove(unfinished(folder))
    link_output(folder)


def unfinished(folder: Path) -> list[Path]:
    """What processes that died while they wrote a file have left; to be called by the one that holds the folder."""
    return [*folder.glob(".*.tmp"), *folder.glob("snapshots/.*.tmp")]


def leftovers(folder: Path) -> list[Path]:
    """What a process that died right after writing its finished result has left."""
    return [*checkpoint.files(folder), *folder.glob(heartbeat.NAME), *unfinished(folder)]


def remove(files: Iterable[Path]) -> None:
    """Remove files that may already be gone."""
    for file in files:
        file.unlink(missing_ok=True)


def link_output(folder: Path) -> None:
    """Where a launcher has sent what the run prints to a file, lay a link to it, output.txt, into the run's folder."""
    link = folder / "output.txt"
    link.unlink(missing_ok=True)
    if os.environ.get("BROADOPT_OUTPUT"):
        link.symlink_to(os.path.relpath(os.environ["BROADOPT_OUTPUT"], folder))
