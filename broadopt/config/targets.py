"""Names of what a config can build, kept apart from where its code lives.

Recorded configs, and with them every run's identity, hold these public names. Code may move between modules: the
table then changes, and identities, stored results and users' own configs stay what they were.
"""

from collections.abc import Mapping
from typing import Any

MODULES = {
    "broadopt.augment": "broadopt.data.augment",
    "broadopt.datasets": "broadopt.data.datasets",
    "broadopt.methods": "broadopt.methods",
    "broadopt.models": "broadopt.models",
    "broadopt.schedule": "broadopt.training.schedule",
}
"""Public module, or package with all that is below it: where the code is today."""


def public(target: str) -> str:
    """The name under which a `_target_` is recorded: `broadopt.training.schedule.Schedule` is
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
    for old, new in modules.items():
        if target.startswith(f"{old}."):
            return new + target[len(old) :]
    return target
