"""Where runs lie below a results folder, and what can be found there, whoever has made it."""

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from broadopt.config.identity import identity_of
from broadopt.errors import InputError
from broadopt.files import reason

READERS = 16
"""Threads that list folders and read files."""

DEEPEST = 16
"""Levels below runs/ that are looked at: those of a run folder are four, and one more for each / in a name."""

PARTS = 5
"""Folders from runs/ to that of a run, both counted; one more for each / in a name."""

RESULT = "result.json"

MOST_FOLDERS = 5
"""Folders that a message names."""

OUTPUT = "output.txt"
"""The link that a launcher lays from a run folder to what the run prints: never one to a folder."""

T = TypeVar("T")
S = TypeVar("S")


def run_folder(results_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """`<results_dir>/runs/<dataset>/<model>/<method>/seed<k>-<first 8 of the identity>` for a recorded config."""
    return Path(results_dir, "runs", _place(config, identity_of(config)))


def located(folder: Path, *, option: str = "--results ") -> Path:
    """The results folder that is meant: `folder` itself, which holds runs/; where it is called runs, the folder that it
    lies in; where it holds no runs/ but one of its folders does, that one.

    Raises InputError where there is no such folder, where it is a part of runs/, or where several of its folders hold
    runs/; `option` is what is typed ahead of a folder.
    """
    if not os.path.isdir(folder):
        absent = "is not a folder" if os.path.lexists(folder) else "does not exist"
        raise InputError(f"results folder {folder} {absent}: {option or 'RESULTS '}names the folder that holds runs/")
    if os.path.isdir(folder / "runs"):
        return folder
    if Path(os.path.abspath(folder)).name == "runs":
        return folder.parent if folder.name == "runs" else folder / ".."
    below = with_runs(folder)
    if len(below) > 1:
        named = " ".join(f"{option}{path}" for path in below[:MOST_FOLDERS]) + (
            " ..." if len(below) > MOST_FOLDERS else ""
        )
        raise InputError(f"results folder {folder} holds no runs/, but {len(below)} of its folders do: {named}")
    if not below:
        _check_is_no_part(folder)
    return below[0] if below else folder


def _check_is_no_part(folder: Path) -> None:
    """Raise InputError for a folder with runs of a results folder, such as that of a method: without runs/ ahead of
    them they are not known by their places, and would be none.
    """
    for place in (folder, Path(os.path.realpath(folder))):
        if "runs" not in place.parts[-PARTS:]:
            continue
        above = place.parts[: len(place.parts) - 1 - place.parts[::-1].index("runs")]
        if any(any(folder.glob(f"{'*/' * depth}{RESULT}")) for depth in range(PARTS - 1)):
            root = Path(*above)
            what = "the folder of a run" if (folder / RESULT).is_file() else f"a part of {root / 'runs'}"
            raise InputError(f"results folder {folder} is {what}; expected {root}, of whose runs --where selects some")


def with_runs(folder: Path) -> list[Path]:
    """Those of a folder's folders that hold runs/."""
    try:
        return sorted(path for path in folder.iterdir() if os.path.isdir(path / "runs"))
    except OSError:  # a folder that cannot be listed holds nothing that can be read
        return []


def remark(asked: Path, found: Path) -> list[str]:
    """A line that `found` is read for the results folder `asked`; none where they are the same."""
    return [] if found == asked else [f"{asked} holds no runs/: read from {found}"]


def to_be_filled(asked: Path) -> tuple[Path, list[str]]:
    """The results folder that is meant, and a line where there is more to be said of it: the one that a folder called
    runs lies in, else what is asked for, since the first run may still have to be made there.
    """
    if os.path.isdir(asked / "runs") or not os.path.isdir(asked):
        return asked, []
    if Path(os.path.abspath(asked)).name == "runs":
        found = located(asked)
        return found, remark(asked, found)
    _check_is_no_part(asked)
    if below := with_runs(asked):
        named = ", ".join(map(str, below[:MOST_FOLDERS])) + ", ..." * (len(below) > MOST_FOLDERS)
        return asked, [f"{asked} holds no runs/ (yet): every run counts as missing; those of {named} are not looked at"]
    return asked, []


def check_place(folder: Path, config: Mapping[str, Any], identity: str) -> None:
    """Raise ValueError where a run folder is not called as that of this recorded config, whose identity this is: its
    files were copied.
    """
    place = _place(config, identity)
    if not os.path.abspath(folder).endswith(f"/{place}"):
        raise ValueError(f"it belongs to another run, whose folder is {place}")


def _place(config: Mapping[str, Any], identity: str) -> str:
    names = (config["dataset"]["name"], config["model"]["name"], config["method"])
    return "/".join((*names, f"seed{config['seed']}-{identity[:8]}"))


def scan(results_dir: str | Path, *names: str) -> tuple[list[Path], list[str]]:
    """The files of these names below `results_dir`/runs, sorted, and a line on each folder that cannot be listed.

    Links to folders are followed, each folder once; those that lead back up are left alone.
    """
    root = Path(results_dir)
    links, found, left_out = [root / "runs"], [], []
    # Folders by their real paths: inodes are not unique where a results folder spans several file systems.
    top = Path(os.path.realpath(root))
    seen = {str(top), *map(str, top.parents)}
    while links:
        # Of several links to one folder that which is called as the folder is: a run is known by its folder's name.
        links.sort(key=lambda link: (link.name != os.path.basename(os.path.realpath(link)), link))
        targets = list(zip(links, at_once(_target, links), strict=True))
        links, level = [], []
        for path, target in targets:
            if isinstance(target, OSError):
                left_out.append(f"{path.relative_to(root).as_posix()}: {reason(target)}")
            elif target is not None and target not in seen:
                seen.add(target)
                level.append(_Folder(path, target))
        # Real folders to the end before the next link: a folder that both lead to is found by its own name.
        for _ in range(DEEPEST):
            listings, level = list(zip(level, at_once(_listing, level), strict=True)), []
            for folder, listing in listings:
                if isinstance(listing, OSError):
                    left_out.append(f"{folder.path.relative_to(root).as_posix()}: cannot be listed ({reason(listing)})")
                    continue
                found += [folder.path / name for name in listing.names if name in names]
                links += [folder.path / name for name in listing.links]
                inner = [_Folder(folder.path / name, f"{folder.real}/{name}") for name in listing.folders]
                level += [one for one in inner if one.real not in seen]
                seen.update(one.real for one in inner)
            if not level:
                break
    return sorted(found), sorted(left_out)


@dataclass(frozen=True)
class _Folder:
    path: Path
    real: str
    """Its path without links."""


@dataclass(frozen=True)
class _Listing:
    names: Sequence[str]
    folders: Sequence[str]
    links: Sequence[str]


def _listing(folder: _Folder) -> _Listing | OSError:
    try:
        with os.scandir(folder.path) as found:
            entries = list(found)
        folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:  # removed since
        return _Listing((), (), ())
    except OSError as error:
        return error
    links = [entry.name for entry in entries if entry.is_symlink() and entry.name != OUTPUT]
    return _Listing([entry.name for entry in entries], folders, links)


def _target(link: Path) -> str | OSError | None:
    """The real path of the folder that a link leads to; None where that is a file or nothing."""
    try:
        mode = os.stat(link).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:  # a link to itself, or into a folder that is not ours to read
        return error
    if stat.S_ISDIR(mode):
        return os.path.realpath(link)
    return None if link.is_symlink() else NotADirectoryError(0, "a file, expected a folder of runs")


def at_once(look: Callable[[S], T], places: Sequence[S]) -> list[T]:
    """`look` at each place, in several threads: on a network file system each waits for an answer most of the time."""
    share = max(1, -(-len(places) // READERS))
    shares = [places[first : first + share] for first in range(0, len(places), share)]
    with ThreadPoolExecutor(READERS) as pool:
        return [seen for done in pool.map(lambda some: list(map(look, some)), shares) for seen in done]
