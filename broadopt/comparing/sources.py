"""Where the results lie that are compared: one or several folders, named exactly or one level off."""

import os
from collections.abc import Sequence
from pathlib import Path

from broadopt.errors import InputError
from broadopt.runs.results import read_several
from broadopt.tables.match import Result

MOST = 5
"""Folders that a message names."""


def located(folder: Path) -> Path:
    """The results folder that is meant: `folder` itself, which holds runs/; where it is called runs, the folder that it
    lies in; where it holds no runs/ but one of its folders does, that one.

    Raises InputError where there is no such folder, or where several of its folders hold runs/.
    """
    if not os.path.isdir(folder):
        absent = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"results folder {folder} {absent}: --results names the folder that holds runs/")
    if os.path.isdir(folder / "runs"):
        return folder
    if Path(os.path.abspath(folder)).name == "runs":
        return folder.parent if folder.name == "runs" else folder / ".."
    try:
        below = sorted(path for path in folder.iterdir() if os.path.isdir(path / "runs"))
    except OSError:  # a folder that cannot be listed holds nothing that can be read
        below = []
    if len(below) > 1:
        named = " ".join(f"--results {path}" for path in below[:MOST]) + (" ..." if len(below) > MOST else "")
        raise InputError(f"results folder {folder} holds no runs/, but {len(below)} of its folders do: {named}")
    return below[0] if below else folder


def read(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The results of all `folders`, each run once and with its "path", and a line on each file that cannot be used.
    Raises InputError.
    """
    roots = list(dict.fromkeys(map(located, folders)))
    found, left_out = read_several(roots)
    # Of several folders the names of run folders begin with theirs already.
    return [
        {**one, "path": one["folder"] if len(roots) > 1 else str(roots[0] / one["folder"])} for one in found
    ], left_out
