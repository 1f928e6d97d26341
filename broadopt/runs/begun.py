"""The folder of a run that begins or goes on: what was begun before, what is laid out and what is cleared away."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from broadopt.config.identity import AS_WITHOUT, came_later
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_bytes, read_yaml, replacing, write_text
from broadopt.runs import checkpoint, heartbeat, results

log = logging.getLogger("broadopt")


def precision_of(
    decided: Callable[[str], Recipe],
    results_dir: str | Path,
    *,
    here: str,
    others: Sequence[str],
    elsewhere: Sequence[str] = (),
    force: bool = False,
) -> str:
    """The precision in which precision=auto computes a run: that in which it is finished below `results_dir`, else that
    in which it was begun (it has left a checkpoint, or is going on), else `here`, which this machine would choose.

    `decided` gives the run's recipe in a precision; `others` are those that this machine can compute in as well,
    `elsewhere` those that it cannot. Of several that are equal `here` comes first. Raises InputError where it would
    have to compute in one of `elsewhere`; `force`: what is finished is computed too.
    """
    places = {name: results.run_folder(results_dir, decided(name).record()) for name in (here, *others, *elsewhere)}
    for state, is_so in (("finished", _is_finished), ("begun", _is_begun)):
        for name, folder in places.items():
            if is_so(folder, decided(name)):
                if name in elsewhere and (force or state == "begun"):
                    raise InputError(
                        f"precision=auto: this run was {state} in {name}, in {folder}, which this device does not "
                        f"compute in; expected a device that does, or precision={here}, which is a run of its own"
                    )
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
    if checkpoint.files(folder):
        return True
    try:
        progress = heartbeat.read(folder, identity=recipe.identity)
    except (OSError, ValueError):
        progress = None
    return heartbeat.is_alive(folder, progress)


def check_own_keys(folder: Path, recipe: Recipe) -> None:
    """Raise InputError where what lies in the folder of a run may be another's: a former version recorded no key of
    AS_WITHOUT at its value there, not even for a user's own code, whose default may be another. config.yaml has it.
    """
    nodes = recipe.values()
    doubtful = [key for key in AS_WITHOUT if "." in key and not _came_later(key, nodes) and not _has(key, nodes)]
    if not doubtful:
        return
    try:
        former = read_yaml(folder / "config.yaml", limit=MEBIBYTE)
    except (OSError, ValueError):  # the run has none, or none that says more than its result
        return
    for key in doubtful:
        if _has(key, former):
            raise InputError(
                f"{folder}: its config.yaml has {key}, which was not recorded when it was made, and this run has none: "
                "it may be another; expected another results_dir, or that folder moved away"
            )


def _came_later(key: str, nodes: Mapping[str, Any]) -> bool:
    return came_later(key, nodes[key.partition(".")[0]].get("_target_"))


def _has(key: str, nodes: Any) -> bool:
    """Whether the nodes of a config, or what a file has in their place, have a dotted key."""
    group, _, leaf = key.partition(".")
    node = nodes.get(group) if isinstance(nodes, dict) else None
    return isinstance(node, dict) and leaf in node


def prepare(folder: Path, run: RunConfig) -> None:
    """Lay out the folder of a run that begins or goes on."""
    with replacing(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(run.values()).encode())
    remove([folder / "error.txt"])
    remove(unfinished(folder))
    link_output(folder)


def record_changes(folder: Path, changes: str, *, resumed: bool) -> None:
    """Keep how the code of a run differs from its commit (`changes`, empty where it does not).

    code.diff is that of the code which began the training: a run that is `resumed` from its checkpoint leaves it as it
    is, and keeps another difference in code.resumed.diff. What a training begun anew finds of an earlier one goes.
    """
    begun, later = folder / "code.diff", folder / "code.resumed.diff"
    if not resumed:
        _write_or_remove(begun, changes)
        changes = ""
    elif changes == _content(begun):
        changes = ""
    _write_or_remove(later, changes)


def _write_or_remove(path: Path, text: str) -> None:
    if text:
        write_text(path, text)
    else:
        path.unlink(missing_ok=True)


def _content(path: Path) -> str:
    """The text of a code.diff; empty where there is none that can be read."""
    try:
        return read_bytes(path, limit=MEBIBYTE).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def unfinished(folder: Path) -> list[Path]:
    """What processes that died while they wrote a file have left; to be called by the one that holds the folder."""
    # Where a link in its place leads elsewhere, the files there are another's.
    snapshots = [] if (folder / "snapshots").is_symlink() else folder.glob("snapshots/.*.tmp")
    return [*folder.glob(".*.tmp"), *snapshots]


def leftovers(folder: Path) -> list[Path]:
    """What a process that died right after writing its finished result has left."""
    return [*checkpoint.files(folder), *folder.glob(heartbeat.NAME), *unfinished(folder)]


def remove(files: Iterable[Path]) -> None:
    """Remove files that may already be gone. A folder of such a name, which no run has made, stays."""
    for file in files:
        with suppress(FileNotFoundError, IsADirectoryError):
            file.unlink()


def link_output(folder: Path) -> None:
    """Where a launcher has sent what the run prints to a file, lay a link to it, output.txt, into the run's folder."""
    link = folder / "output.txt"
    link.unlink(missing_ok=True)
    if os.environ.get("BROADOPT_OUTPUT"):
        # Of real paths: from a folder behind a symbolic link, .. leads to where it really is.
        output, here = os.path.realpath(os.environ["BROADOPT_OUTPUT"]), os.path.realpath(folder)
        link.symlink_to(os.path.relpath(output, here))
