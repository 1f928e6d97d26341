"""The recorded form of a config, and the hash of it by which a run is known.

Recorded configs name what they build by public names. Code may move between modules: MODULES then changes, and
identities, stored results and users' own configs stay what they were.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

SEMANTICS = 1
"""Raised whenever the same config would compute other numbers than before; part of every identity."""


MODULES = {
    "broadopt.augment": "broadopt.data.augment",
    "broadopt.datasets": "broadopt.data.datasets",
    "broadopt.methods": "broadopt.methods",
    "broadopt.models": "broadopt.models",
    "broadopt.schedule": "broadopt.methods.schedule",
}
"""Public module, or package with all that is below it: where its code is today."""

AS_WITHOUT: Mapping[str, Any] = {
    "step.perturbation": "global",
    "step.chunk": None,
    "step.from": 0,
    "step.until": None,
    "step.every": 1,
    "step.ascent": 1,
    "step.layers": "all",
    "step.second_order": False,
    "schedule.count_from": 0,
    "schedule.replay_from": None,
    "schedule.warmup": 0,
    "augmentation.border": "black",
    "model.gamma": "ones",
    "dataset.noise": "symmetric",
    "dataset.coarse": False,
    "clip": None,
    "optimizer": {"_target_": "broadopt.methods.steps.optimizers.sgd"},
}
"""Keys that came later than the first results, and the values that compute what was computed without them: a key with
this value is not recorded, so that the identities of earlier runs stay what they are."""


def is_of_others(target: Any) -> bool:
    """Whether a `_target_` is a user's own, torch's or another library's: its keys mean what it makes of them."""
    return isinstance(target, str) and not public(target).startswith("broadopt.")


def came_later(key: str, target: Any) -> bool:
    """Whether the dotted `key` of a node of this `_target_` is one of AS_WITHOUT. To code of a user's own a key of such
    a name means what it makes of it, and its default may be any; but what its data set reads has a fingerprint.
    """
    return key in AS_WITHOUT and ("." not in key or key.startswith("dataset.") or not is_of_others(target))


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config as they are recorded, by their top-level keys."""
    nodes = {key: recorded_node(key, value) for key, value in values.items()}
    return {key: node for key, node in nodes.items() if (key, node) not in AS_WITHOUT.items()}


def recorded_node(key: str, value: Any) -> Any:
    """`value` of a config's top-level `key` as it is recorded: targets by their public names, without the keys of
    AS_WITHOUT.
    """
    if not isinstance(value, Mapping):
        return value
    target = value.get("_target_")
    kept = {
        name: item
        for name, item in value.items()
        if not (came_later(f"{key}.{name}", target) and AS_WITHOUT[f"{key}.{name}"] == item)
    }
    return _with_public_targets(kept)


def _with_public_targets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: public(item) if key == "_target_" and isinstance(item, str) else _with_public_targets(item)
            for key, item in value.items()
        }
    return [_with_public_targets(item) for item in value] if isinstance(value, list) else value


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


def public(target: str) -> str:
    """The name under which a `_target_` is recorded: `broadopt.methods.schedule.Schedule` is
    `broadopt.schedule.Schedule`, a user's own target is its own name.
    """
    return _renamed(target, {place: name for name, place in MODULES.items()})


def importable(node: Any) -> Any:
    """A copy of a config node with each `_target_`, nested ones too, under the name that Python imports."""
    if isinstance(node, Mapping):
        return {
            key: _renamed(item, MODULES) if key == "_target_" and isinstance(item, str) else importable(item)
            for key, item in node.items()
        }
    return [importable(item) for item in node] if isinstance(node, list) else node


def _renamed(target: str, modules: Mapping[str, str]) -> str:
    for old, new in sorted(modules.items(), key=lambda names: -len(names[0])):  # the most particular one first
        if target.startswith(f"{old}."):
            return new + target[len(old) :]
    return target
