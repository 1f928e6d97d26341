"""A recorded config as dotted keys and plain values: the columns of a data frame, and what sets runs apart."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from broadopt.analysis.tables.match import show, whole
from broadopt.config.identity import AS_WITHOUT, came_later, identity_of

ABSENT = object()
"""The value of a key that a config does not have: SGD has no step.rho."""

ALIASES = {"dataset": "dataset.name", "model": "model.name"}
"""What people type for a group, whose choice is its name."""

_HASH = re.compile(r"(sha256:)?([0-9a-f]{8})[0-9a-f]{24,}")


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a nested config by dotted key, in its order; lists as tuples, empty groups left out."""
    return dict(_walk(config, ""))


def _walk(config: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        inner = f"{path}{key}"
        if isinstance(value, Mapping):
            yield from _walk(value, f"{inner}.")
        else:
            yield inner, tuple(value) if isinstance(value, list) else value


def completed(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Flat configs in which a key that is recorded only at other values than its first one has that value: where one
    run has schedule.count_from, a run without it counted from 0.
    """
    recorded = {key for config in configs for key in config} & AS_WITHOUT.keys()
    filled = []
    for config in configs:
        # A group without any option of its own, as the step of SGD, does not have the key at any value.
        groups = {key.partition(".")[0] for key in config if not key.endswith("._target_")}
        lacking = {key for key in recorded - config.keys() if "." not in key or key.split(".")[0] in groups}
        at_first = {key for key in lacking if came_later(key, config.get(f"{key.partition('.')[0]}._target_"))}
        filled.append({**config, **{key: AS_WITHOUT[key] for key in at_first}})
    return filled


def recipe_id(config: Mapping[str, Any]) -> str:
    """Eight digits that the runs of one config share, whatever their seeds."""
    return identity_of({key: value for key, value in config.items() if key != "seed"})[:8]


def label(value: Any) -> str:
    """A value as a table shows it: hashes by their first digits, nothing where there is none."""
    if value is ABSENT:
        return ""
    text = show(value)
    match = _HASH.fullmatch(text)
    return match[2] if match else text


def order(value: Any) -> tuple[Any, ...]:
    """Sorts values of any types: nothing first, then numbers by size, then texts, then lists."""
    if value is ABSENT or value is None:
        return (0, value is None)
    if isinstance(value, (bool, int, float)):
        return (1, value)
    if isinstance(value, (list, tuple)):
        return (3, [order(item) for item in value])
    return (2, str(value))


def comparable(value: Any) -> Any:
    """What is equal for equal values, and can be put into a set whatever a file of others holds: 200 is 200.0, true is
    not 1.
    """
    return whole(value) if isinstance(value, (bool, list, tuple)) else value


def distinct(values: Iterable[Any]) -> list[Any]:
    """The different ones of some values, sorted."""
    found = {comparable(value): value for value in values}
    return sorted(found.values(), key=order)
