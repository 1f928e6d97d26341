"""Results as files: one folder a run, one result.json written last and whole, never believed unchecked."""

import hashlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from broadopt.config.identity import SEMANTICS, identity_of
from broadopt.files import MEBIBYTE, parse_json, read_bytes, reason, replacing
from broadopt.runs import history as histories
from broadopt.runs.folders import at_once, check_place, run_folder, scan
from broadopt.runs.schema import SCHEMA, check_result

__all__ = ["SCHEMA", "run_folder"]  # names that belong to a result as well

NAME = "result.json"
LIMIT = MEBIBYTE
"""Bytes of a result.json, which has 2 to 4 thousand."""


def summary(result: Mapping[str, Any]) -> str:
    """The result in a few lines, each number with what it is."""
    found = result["metrics"]
    lines = [
        f"  last  {_percent(found['last'])}, nll {found['last']['test_nll']:.4f}, ece {found['last']['test_ece']:.4f}",
        f"  best  {_percent(found['best'])} in epoch {found['best']['epoch']:g}",
    ]
    for budgets, values in found["collected"].items():
        members = f" ({values['members']:g} member{'s' * (values['members'] != 1)})" if "members" in values else ""
        lines.append(
            f"  {_collected(budgets)}{members}  {_percent(values)}, "
            f"nll {values['test_nll']:.4f}, ece {values['test_ece']:.4f}"
        )
    cost, epochs = result["cost"], result["epochs"]
    seconds, rate = f"{cost['train_seconds']:.0f} s in training steps", f"{cost['images_per_second']:.0f} images/s"
    return "\n".join([*lines, f"  {epochs:g} epoch{'s' * (epochs != 1)}, {seconds}, {rate}"])


def line(result: Mapping[str, Any]) -> str:
    """The result in one line: which run it is, and its test accuracies, each with what it is."""
    found = result["metrics"]
    name = ", ".join([result["method"], result["model"], result["dataset"], f"seed {result['seed']}"])
    accuracies = [f"last {found['last']['test_accuracy']:.2f} %", f"best {found['best']['test_accuracy']:.2f} %"]
    accuracies += [
        f"{_collected(budgets)} {values['test_accuracy']:.2f} %" for budgets, values in found["collected"].items()
    ]
    return f"{name}: test accuracy {', '.join(accuracies)}"


def _collected(key: str) -> str:
    name, _, budgets = key.rpartition(" ")
    return f"collected{f' by {name}' * bool(name)} after {budgets} budget{'s' * (budgets != '1')}"


def _percent(values: Mapping[str, float]) -> str:
    return f"test accuracy {values['test_accuracy']:.2f} %"


def set_aside(folder: Path) -> None:
    """Rename an existing result.json to result.1.json (2, 3, ...), and its history alike: what was finished is kept,
    tables do not read it.
    """
    number = next(
        number for number in count(1) if not [*folder.glob(f"*.{number}.json"), *folder.glob(f"*.{number}.csv")]
    )
    # The history is copied first and removed last: killed at any moment, a result stands beside its own history.
    history, kept = folder / histories.NAME, folder / f"history.{number}.csv"
    try:
        content = read_bytes(history, limit=histories.LIMIT)
        with replacing(kept) as file:
            file.write(content)
        shutil.copystat(history, kept)
    except FileNotFoundError:
        pass
    except ValueError:  # a folder, a FIFO, a huge file: no run's history
        os.replace(history, kept)
    if os.path.lexists(folder / NAME):
        os.replace(folder / NAME, folder / f"result.{number}.json")
    history.unlink(missing_ok=True)


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json with its checksum, replacing an earlier one in one move. Raises OSError, and ValueError, with
    the earlier one as it was, for a result that `read` would not take.
    """
    content = sealed(result)
    check(content, folder)
    with replacing(folder / NAME) as file:
        file.write(content)


def sealed(result: Mapping[str, Any]) -> bytes:
    """The content of result.json. Raises ValueError for NaN or infinity."""
    whole = {**result, "checksum": checksum(result)}
    return json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def check(content: bytes, folder: Path, *, room: int = 0) -> None:
    """Raise ValueError where `read` would not take a result.json of this content in a run folder; `room`: bytes that
    are still to come.
    """
    if len(content) > LIMIT - room:
        raise ValueError(f"{len(content):,} bytes, expected {LIMIT - room:,} at most")
    _parsed(content, folder)


def read(folder: Path, *, identity: str | None = None) -> dict[str, Any] | None:
    """The result of one run folder, or None where there is none. Raises ValueError, saying why, for a file that cannot
    be trusted or is that of another run than the folder's or, where it is given, that of `identity`; OSError for one
    that cannot be read.
    """
    content = _content(folder)
    if isinstance(content, OSError | ValueError):
        raise content
    if content is None:
        return None
    result = _parsed(content, folder)
    if identity not in (None, result["identity"]):
        raise ValueError(f"it belongs to another run, of identity {result['identity'][:8]}")
    return result


def _content(folder: Path) -> bytes | OSError | ValueError | None:
    try:
        return read_bytes(folder / NAME, limit=LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return error


def _parsed(content: bytes, folder: Path) -> dict[str, Any]:
    result = parse_json(content)
    _verify(result)
    check_place(folder, result["config"], result["identity"])
    return dict(result)


def read_all(results_dir: str | Path, folders: Sequence[Path] | None = None) -> tuple[list[dict[str, Any]], list[str]]:
    """Every valid result below `results_dir`/runs, each with its "folder" (relative), sorted by it; and a line for each
    that is left out. `folders`: the run folders to look into where they are known.

    Of byte-identical files of one run the first counts. Of those that differ, one that alone is finished does; where
    none is finished, that with the most epochs; where several are, it is not known which is right, and none counts.
    """
    root = Path(results_dir)
    found, left_out = _found(root, folders)
    valid, doubled = unique(found)
    return valid, sorted(left_out + doubled)


def read_several(results_dirs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """As `read_all`, of several results folders taken together; where they are several, each "folder" and each line
    begins with the results folder that it is of.
    """
    together: list[Found] = []
    left_out: list[str] = []
    for root in results_dirs:
        ahead = f"{root}/" if len(results_dirs) > 1 else ""
        found, unusable = _found(root, None)
        together += [Found(f"{ahead}{one.folder}", one.result, one.digest) for one in found]
        left_out += [f"{ahead}{line}" for line in unusable]
    valid, doubled = unique(together)
    return valid, sorted(left_out + doubled)


@dataclass(frozen=True)
class Found:
    """A result, or what else says how far a run has come: its identity, state and epochs."""

    folder: str
    result: dict[str, Any]
    digest: bytes
    """Of the file's bytes: equal for a copy, whatever it is called."""


def _found(root: Path, folders: Sequence[Path] | None) -> tuple[list[Found], list[str]]:
    """The valid results below a results folder in the order of their folders, and a line on each other file."""
    left_out: list[str] = []
    if folders is None:
        paths, left_out = scan(root, NAME)
        folders = [path.parent for path in paths]
    found: list[Found] = []
    for path, content in zip(folders, at_once(_content, folders), strict=True):
        folder = path.relative_to(root).as_posix()
        try:
            if isinstance(content, OSError | ValueError):
                raise content
            if content is not None:
                found.append(Found(folder, _parsed(content, path), hashlib.sha256(content).digest()))
        except (ValueError, OSError) as error:
            left_out.append(f"{folder}: {reason(error)}")
    return found, left_out


def unique(found: Sequence[Found]) -> tuple[list[dict[str, Any]], list[str]]:
    """One result a run, with its "folder"; and a line on each of the files of a run that contradict each other."""
    by_identity: dict[str, dict[bytes, Found]] = defaultdict(dict)
    copies: dict[str, list[Found]] = defaultdict(list)
    for one in found:
        by_identity[one.result["identity"]].setdefault(one.digest, one)
        copies[one.result["identity"]].append(one)
    alone, left_out = [], []
    for identity, different in by_identity.items():
        finished = [one for one in different.values() if one.result["state"] == "finished"]
        counted = finished if len(finished) < 2 else []
        if not finished:
            counted = [max(different.values(), key=_progress)]  # the first of equals
        alone += counted
        doubled = copies[identity]
        for one in doubled:
            if not counted:
                others = sorted({other.folder for other in doubled} - {one.folder})
                left_out.append(f"{one.folder}: its identity is also that of {', '.join(others)}")
            elif one.digest != counted[0].digest:
                ours, theirs = (_reached(each.result, finished=bool(finished)) for each in (one, counted[0]))
                left_out.append(f"{one.folder}: {ours}, and {theirs} in {counted[0].folder}")
    return [{**one.result, "folder": one.folder} for one in alone], left_out


def _progress(one: Found) -> tuple[bool, float]:
    """What is going on comes before all that has ended, as in a status."""
    return one.result["state"] == "running", float(one.result["epochs"])


def _reached(result: Mapping[str, Any], *, finished: bool) -> str:
    return result["state"] + f" after {result['epochs']:g} epochs" * (not finished)


def checksum(result: Mapping[str, Any]) -> str:
    """SHA-256 (16 hex digits) over a result without its checksum: reveals an edited file, not a forged one."""
    content = {key: value for key, value in result.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _verify(result: Any) -> None:
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    if result.get("checksum") != checksum(result):
        raise ValueError("its checksum does not fit: edited or damaged")
    if (semantics := result.get("semantics")) != SEMANTICS:
        which = f"semantics {semantics}" if type(semantics) is int else "no known semantics"
        raise ValueError(f"computed under {which}, this broadopt computes {SEMANTICS}")
    check_result(result)
    if result["identity"] != identity_of(result["config"]):
        raise ValueError("its identity is not that of its config")
