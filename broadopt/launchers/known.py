"""Which runs of a sweep there are already: what is known of a run before it is begun, held against stored results."""

import json
import logging
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

from broadopt.config.identity import identity_of
from broadopt.config.run_config import KINDS_OF_NOISE, DatasetConfig
from broadopt.errors import InputError
from broadopt.runs import heartbeat, results
from broadopt.runs.folders import scan

log = logging.getLogger("broadopt")

Runs = dict[str, set[tuple[str, str | None]]]
"""Of the runs of each key, the precision that each is computed in and the fingerprint of its data."""


def key(record: dict[str, Any]) -> str:
    """Of a recorded config what is known before the run: all but the precision and the fingerprint of the data."""
    dataset = {name: value for name, value in record["dataset"].items() if name != "fingerprint"}
    return identity_of({name: value for name, value in record.items() if name != "precision"} | {"dataset": dataset})


_fingerprints: dict[str, str | None] = {}


def fingerprint(dataset: DatasetConfig) -> str | None:
    """The fingerprint of the data that a config leads to; "unknown" where they are not within reach.

    They are read once, but for those that are either the published ones or refused.
    """
    from broadopt.data.datasets import read

    if dataset.target.get("verify") and dataset.noise in KINDS_OF_NOISE:
        return None
    place = json.dumps(dataset.values(), sort_keys=True)
    if place not in _fingerprints:
        try:
            _fingerprints[place] = read(dataset).fingerprint
        except InputError:  # the machine that starts the runs need not have what theirs have: left to the runs
            _fingerprints[place] = "unknown"
    return _fingerprints[place]


def known(root: Path) -> tuple[Runs, Runs]:
    """The runs below `root` that are finished, and those that a process is on."""
    paths, left_out = scan(root, results.NAME, heartbeat.NAME)
    for line in left_out:
        log.warning("left out: %s", line)
    folders = sorted({path.parent for path in paths})
    finished, running = defaultdict(set), defaultdict(set)
    for result in results.read_all(root, folders)[0]:
        if result["state"] == "finished":
            finished[key(result["config"])].add(variant(result["config"]))
    for folder in folders:
        with suppress(ValueError, OSError):  # a heartbeat that cannot be read is none
            progress = heartbeat.read(folder)
            if progress is not None and heartbeat.is_alive(folder, progress):
                running[key(progress["config"])].add(variant(progress["config"]))
    return finished, running


def variant(record: dict[str, Any]) -> tuple[str, str | None]:
    """The precision and the fingerprint of the data of a recorded config."""
    return record["precision"], record["dataset"]["fingerprint"]
