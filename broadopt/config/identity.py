"""What decides a run's result, and the hash of it by which a run is known."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEMANTICS = 1
"""Raised whenever the same config would compute other numbers than before; part of every identity."""


EXECUTION = (
    *("device", "memory_format", "compile", "cuda_graphs", "deterministic"),
    *("data_dir", "results_dir", "force", "wait", "plan", "checkpoint"),
)
"""Keys that say how a run is carried out: they are no part of its identity. They change its result by the rounding of
float operations at most, and dropout in feature maps by another draw of the same kind."""

AS_WITHOUT = {
    "step.perturbation": "global",
    "step.chunk": None,
    "schedule.count_from": 0,
    "schedule.replay_from": None,
    "augmentation.border": "black",
    "model.gamma": "ones",
}
"""Keys that came later than the first results, and the values that compute what was computed without them: a key with
this value is not recorded, so that the identities of earlier runs stay what they are."""

LOCATION = ("data_dir", "path", "verify")
"""Keys of a data set that say where it lies; what lies there is told by its fingerprint."""


def recorded(
    values: Mapping[str, Any], *, precision: str, fingerprint: str | None, processes: int = 1
) -> dict[str, Any]:
    """What decides a run's result: the config without its execution keys, with the precision, the data and, where it
    is not one, the number of processes that are really used.
    """
    config = {key: _without_later_keys(key, value) for key, value in values.items() if key not in EXECUTION}
    dataset = {key: value for key, value in config["dataset"].items() if key not in LOCATION}
    found = {"precision": precision, "dataset": dataset | {"fingerprint": fingerprint}}
    return config | found | ({"processes": processes} if processes > 1 else {})


def _without_later_keys(group: str, node: Any) -> Any:
    """`node`, a mapping, less its keys that have the value of AS_WITHOUT; anything else as it is."""
    if not isinstance(node, Mapping):
        return node
    return {key: value for key, value in node.items() if (f"{group}.{key}", value) not in AS_WITHOUT.items()}


def identity_of(config: Mapping[str, Any]) -> str:
    """SHA-256 (64 hex digits) of the canonical form of a recorded config and of the semantics version."""
    content = {"semantics": SEMANTICS, "config": _canonical(config)}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
