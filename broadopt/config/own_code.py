"""Code of users' own that a config names: its source is part of the identity, and a stranger's is not run unasked."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import logging
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from broadopt.config.identity import MODULES
from broadopt.errors import InputError

log = logging.getLogger("broadopt")

DEPENDENCIES = frozenset(
    {
        *("broadopt", "torch", "torchvision", "hydra", "omegaconf", "yaml", "numpy", "scipy", "pandas", "sklearn"),
        *("PIL", "safetensors", "filelock", "tqdm", "tabulate", "jinja2"),
    }
)
"""What a result's environment, or broadopt's semantics version, answers for."""

TRUSTED = (*MODULES, "torchvision.models", "torchvision.transforms")
"""Modules whose own functions and classes a stranger's config may name."""


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` of a config, nested ones too."""
    if isinstance(node, Mapping):
        for key, item in node.items():
            if key == "_target_" and isinstance(item, str):
                yield item
            else:
                yield from targets(item)
    elif isinstance(node, list):
        for item in node:
            yield from targets(item)


def own_code(node: Any) -> dict[str, str]:
    """Module: `sha256:` and 16 hex digits of its source, for each module outside broadopt and its dependencies that the
    targets of a config come from or that these import; of an installed package its version instead.

    Nothing is imported: imports are read in the source, so what a program imports by name at run time is not seen. What
    was found first holds for the whole process, as the module itself does once it is imported.
    """
    found: dict[str, str] = {}
    for target in targets(node):
        if target.partition(".")[0] not in DEPENDENCIES:
            found |= _code_of(target)
    return dict(sorted(found.items()))


def refuse_foreign(node: Any, *, trusted: Sequence[str], place: object) -> None:
    """Raise InputError, naming `place`, where a config from elsewhere names code that is neither broadopt's, nor
    torchvision's, nor of a `trusted` module, or holds an interpolation, which can make such a name.
    """
    refuse_interpolation(node, place=place)
    for target in targets(node):
        if any(target == name or target.startswith(f"{name}.") for name in trusted):
            continue
        if not _is_harmless(target):
            module = target.rpartition(".")[0] or target
            raise InputError(
                f"{place}: it names {target}, which is not broadopt's: trust={module} runs that code, once you have "
                "read it"
            )


def say_what_has_changed(node: Any, recorded: Mapping[str, str], *, identity: str, place: object) -> None:
    """A line, naming `place`, on each module of the user's own that a config's node needs and that is not what the run
    of this `identity` has `recorded`; once in a process. What a former version has not recorded is not known.

    No refusal: a comment or another class in the same file changes a hash too, and weights would be lost by it.
    """
    for module, now in own_code(node).items() if recorded else ():
        then = recorded.get(module, "nothing of it")
        if then != now and (identity, module) not in _said:
            _said.add((identity, module))
            log.warning(
                "%s: %s is not what the run was trained with (%s here, recorded %s): its weights may compute something "
                "else",
                *(place, module, now, then),
            )


_said: set[tuple[str, str]] = set()


def refuse_interpolation(node: Any, *, place: object) -> None:
    """Raise InputError, naming `place`, where a value is still to be computed: `${oc.create:...}` would make a node
    with a `_target_` of its own, which nobody has looked at, and `${oc.env:...}` reads what is no part of a config.
    """
    if isinstance(node, str) and "${" in node:
        raise InputError(f"{place}: found {node[:80]!r}; expected a value, not an interpolation")
    for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ():
        refuse_interpolation(item, place=place)


def _is_harmless(target: str) -> bool:
    """Whether a target is what its name says: `broadopt.methods.step.torch.load` leads out of broadopt.methods."""
    from hydra.utils import get_object

    from broadopt.config.identity import importable

    if not any(target.startswith(f"{module}.") for module in TRUSTED):
        return False
    place = importable({"_target_": target})["_target_"]
    try:
        found = get_object(place)
    except Exception:  # noqa: BLE001 - whatever importing it raises, it is not to be called
        return False
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}" == place


@cache
def _code_of(target: str) -> dict[str, str]:
    name, spec = _locate(target)
    if spec is None:
        return {}
    found: dict[str, str] = {}
    waiting = [(name, spec)]
    while waiting:
        name, spec = waiting.pop()
        if name in found or spec.origin is None:
            continue
        path = Path(spec.origin)
        if _is_installed(path):
            found[name.partition(".")[0]] = _version(name)
            continue
        source = path.read_bytes() if path.is_file() else b""
        found[name] = f"sha256:{hashlib.sha256(source).hexdigest()[:16]}"
        for imported in _imports(name, spec, source) if path.suffix == ".py" else ():
            if imported.partition(".")[0] not in DEPENDENCIES | sys.stdlib_module_names:
                place, other = _locate(imported)
                waiting += [(place, other)] if other is not None else []
    return found


def _locate(dotted: str) -> tuple[str, ModuleSpec | None]:
    """The longest beginning of a dotted name that is a module, and where it lies; found without running any code."""
    first, *names = dotted.split(".")
    try:
        found, spec = first, importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return first, None
    for name in names:
        folders = spec.submodule_search_locations if spec is not None else None
        # importlib.util.find_spec would import the packages around a module to find it.
        inner = PathFinder.find_spec(f"{found}.{name}", list(folders)) if folders is not None else None
        if inner is None:
            break
        found, spec = f"{found}.{name}", inner
    return found, spec


def _imports(name: str, spec: ModuleSpec, source: bytes) -> Iterator[str]:
    """The dotted names that a module's source imports, relative ones made absolute; and the packages around it."""
    yield from (name.rpartition(".")[0],) if "." in name else ()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # Python will say so when it imports it
        return
    package = name.split(".") if spec.submodule_search_locations is not None else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            place = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{place}.{alias.name}".strip(".") for alias in node.names)


def _is_installed(path: Path) -> bool:
    folders = {*map(sysconfig.get_path, ("stdlib", "platlib", "purelib")), *site.getsitepackages()}
    folders.add(site.getusersitepackages())  # of pip install --user
    return any(path.is_relative_to(folder) for folder in folders)


def _version(name: str) -> str:
    package = name.partition(".")[0]
    for distribution in importlib.metadata.packages_distributions().get(package, ()):
        return f"{distribution} {importlib.metadata.version(distribution)}"
    return "unknown"
