"""Trunks on disk: the state after some epochs, which is no run's alone, in a folder of its own.

`<results_dir>/trunks/<dataset>/<model>/seed<k>-<first 8 of its identity>/` holds trunk.json and a checkpoint without
collectors. Like every file of a results folder it may come from anyone, and is checked before it is believed.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.config.identity import identity_of
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


def write(
    folder: Path,
    state: dict[str, Any],
    *,
    config: Mapping[str, Any],
    steps: int,
    run: str,
    train_seconds: float,
    begun_from: Mapping[str, Any],
) -> None:
    """Write `state` as the trunk of a beginning's recorded config, whole or not at all; one that is there is left as it
    is. `run`: the folder of the run that has trained it, seen from the results folder, and of no other process;
    `train_seconds`: those of the training up to there; `begun_from`: the trunk that this run has begun from itself, as
    it names it. Raises OSError (disk full, ...).
    """
    if folder.exists():
        return
    content = {
        "schema": SCHEMA,
        "identity": identity_of(config),
        "epochs": config["epochs"],
        "steps": steps,
        "run": run,
        "train_seconds": train_seconds,
    }
    content |= {"config": dict(config)} | ({"trunk": dict(begun_from)} if begun_from else {})
    # Named after the run, so that what it has left when it was killed is removed when it goes on.
    draft = folder.with_name(f".{folder.name}.{run.rpartition('-')[2]}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        checkpoint.save(draft, state, identity=str(content["identity"]), step=steps)
        with replacing(draft / NAME) as file:
            sealed = {**content, "checksum": checksum(content)}
            file.write(json.dumps(sealed, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")
        try:
            os.rename(draft, folder)
        except OSError:
            if not folder.exists():  # else another run of the same beginning has been faster
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
    if not folder.name.endswith(f"-{content['identity'][:8]}"):
        raise ValueError("it belongs to another folder")
    return Trunk(folder, content)


def found(results_dir: str | Path, config: Mapping[str, Any]) -> tuple[list[Trunk], list[str]]:
    """The trunks of a recorded config's data set, network and seed, that with the most epochs first; and a line on each
    that cannot be used.
    """
    trunks, left_out = [], []
    for folder in sorted(place(results_dir, config).glob(f"seed{config['seed']}-*")):
        try:
            trunks.append(read(folder))
        except (OSError, ValueError) as error:
            left_out.append(f"trunk {folder} is passed over: {NAME}: {reason(error)}")
    return sorted(trunks, key=lambda trunk: -trunk.epochs), left_out
