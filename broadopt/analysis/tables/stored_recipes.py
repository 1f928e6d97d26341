"""Recipes kept from one command to the next: composing one takes Hydra a tenth of a second, and a table has two dozen.

What is kept belongs to one state of the config files, of the modules of broadopt.config, and of the libraries that
compose: where any of these is another, all are composed anew.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from broadopt.config import compose
from broadopt.config.compose import recipe_of
from broadopt.config.shipped import config_dir
from broadopt.files import cache_folder, replacing


class StoredRecipes:
    """broadopt.config.compose.recipe_of with a memory in a file."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or cache_folder() / "recipes.json"
        self._state = _state()
        self._known = self._read()
        self._saved = len(self._known)

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """As recipe_of; raises what it raises."""
        key = json.dumps(list(overrides))
        if key not in self._known:
            self._known[key] = recipe_of(overrides)
        return self._known[key]

    def save(self) -> None:
        """Keep what was composed since. A file that cannot be written costs the next command its time, no more."""
        if len(self._known) == self._saved:
            return
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file, sync=False) as file:
                file.write(json.dumps({"state": self._state, "recipes": self._known}).encode())
        self._saved = len(self._known)

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("state") != self._state:
            return {}
        return dict(content["recipes"])


def _state() -> str:
    """SHA-256 over all that a recipe is made from."""
    digest = hashlib.sha256()
    for library in ("hydra-core", "omegaconf"):
        digest.update(f"{library} {importlib.metadata.version(library)}\n".encode())
    folder = config_dir()
    for path in [*sorted(Path(compose.__file__).parent.glob("*.py")), *sorted(folder.rglob("*.yaml"))]:
        content = path.read_bytes()
        name = path.relative_to(folder) if folder in path.parents else path.name
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
