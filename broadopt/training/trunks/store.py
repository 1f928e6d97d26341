"""Trunks on disk: the state after some epochs, which is no run's alone, in a folder of its own.

`<results_dir>/trunks/<dataset>/<model>/seed<k>-<first 8 of its identity>/` holds trunk.json and a checkpoint without
collectors. Like every file of a results folder it may come from anyone, and is checked before it is believed.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.config.identity import identity_of
from broadopt.errors import printable
from broadopt.files import MEBIBYTE, read_json, reason, replacing
from broadopt.runs import checkpoint
from broadopt.runs.results import checksum
from broadopt.runs.schema import check_trunk

NAME = "trunk.json"
SCHEMA = 1


@dataclass(frozen=True)
class Trunk:
    """A trunk that there is."""

    folder: Path
    content: Mapping[str, Any]
    """Of its trunk.json."""

    @property
    def identity(self) -> str:
        """That of the beginning whose state it holds."""
        return str(self.content["identity"])

    @property
    def epochs(self) -> int:
        return int(self.content["epochs"])

    @property
    def named(self) -> dict[str, Any]:
        """How the result of a run that has begun from it names it."""
        return {key: self.content[key] for key in ("identity", "epochs", "run", "train_seconds")}


def place(results_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """The folder of the trunks of a recorded config's data set and network."""
    return Path(results_dir, "trunks", config["dataset"]["name"], config["model"]["name"])


def folder_of(results_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """That of the trunk of a beginning's recorded config."""
    return place(results_dir, config) / f"seed{config['seed']}-{identity_of(config)[:8]}"


def is_there(folder: Path, run: str) -> bool:
    """Whether a folder is there, so that nothing is to be written. What `run` was writing when it was killed goes."""
    shutil.rmtree(_draft(folder, run), ignore_errors=True)
    return os.path.exists(folder)  # not Path.exists, which raises where a folder above may not be entered


def _draft(folder: Path, run: str) -> Path:
    return folder.with_name(f".{folder.name}.{run.rpartition('-')[2]}.tmp")


def write(
    folder: Path,
    state: dict[str, Any],
    *,
    config: Mapping[str, Any],
    steps: int,
    run: str,
    train_seconds: float,
    deterministic: bool,
    begun_from: Mapping[str, Any],
) -> None:
    """Write `state` as the trunk of a beginning's recorded config, whole or not at all; one that is there is left as it
    is. Raises OSError (disk full, ...).

    `run`: the folder of the run that has trained it, seen from the results folder, and of no other process.
    `train_seconds`: those of the training up to there. `deterministic`: whether all of it was. `begun_from`: the trunk
    that this run has begun from itself, as it names it.
    """
    if is_there(folder, run):
        return
    content = {
        "schema": SCHEMA,
        "identity": identity_of(config),
        "epochs": config["epochs"],
        "steps": steps,
        "run": run,
        "train_seconds": train_seconds,
        "deterministic": deterministic,
    }
    content |= {"config": dict(config)} | ({"trunk": dict(begun_from)} if begun_from else {})
    draft = _draft(folder, run)
    draft.mkdir(parents=True)
    try:
        checkpoint.save(draft, state, identity=str(content["identity"]), step=steps)
        with replacing(draft / NAME) as file:
            sealed = {**content, "checksum": checksum(content)}
            file.write(json.dumps(sealed, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        try:
            os.rename(draft, folder)
        except OSError:
            if not os.path.exists(folder):  # else another run of the same beginning has been faster
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def read(folder: Path) -> Trunk:
    """The trunk of a folder, its state apart. Raises ValueError, saying why, for one that cannot be trusted, OSError
    for one that cannot be read.
    """
    content = read_json(folder / NAME, limit=MEBIBYTE)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    if content.get("checksum") != checksum(content):
        raise ValueError("its checksum does not fit: edited or damaged")
    check_trunk(content)
    if content["identity"] != identity_of(content["config"]):
        raise ValueError("its identity is not that of its config")
    if not re.fullmatch(rf"seed[0-9]+-{content['identity'][:8]}", folder.name):
        raise ValueError("it belongs to another folder")
    return Trunk(folder, content)


def found(results_dir: str | Path, config: Mapping[str, Any]) -> tuple[list[Trunk], list[str]]:
    """The trunks of a recorded config's data set, network and seed, that with the most epochs first; and a line on each
    that cannot be used.
    """
    trunks, left_out = [], []
    whole = place(results_dir, config)
    try:
        folders = sorted(path for path in whole.iterdir() if path.name.startswith(f"seed{config['seed']}-"))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [f"trunks in {printable(str(whole))} are passed over: {reason(error)}"]
    for folder in folders:
        try:
            trunks.append(read(folder))
        except (OSError, ValueError) as error:
            left_out.append(
                f"trunk {printable(str(folder))} is passed over: {NAME}: {reason(error)}; once removed, it is left anew"
            )
    return sorted(trunks, key=lambda trunk: -trunk.epochs), left_out
