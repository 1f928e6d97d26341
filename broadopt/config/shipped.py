"""The files that broadopt ships beside its code: Hydra's config groups and the published tables; and the choices that
are made of several such files.
"""

import re
from collections.abc import Sequence
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import broadopt
from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_yaml


def _shipped(inside: str, checkout: str) -> Path:
    """A folder that travels inside the wheel, or stands at the top of a checkout."""
    package = Path(broadopt.__file__).resolve().parent
    return package / inside if (package / inside).is_dir() else package.parent / checkout


def config_dir() -> Path:
    """The folder of the Hydra groups."""
    return _shipped("configs", "configs")


def paper_dir() -> Path:
    """The folder of the published tables."""
    return _shipped("paper", "results/paper")


def options(group: str) -> list[str]:
    """The choices of a config group that broadopt ships, sorted, those in folders as folder/choice."""
    folder = config_dir() / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


@cache
def looked_up(folders: tuple[Path, ...]) -> frozenset[str]:
    """The keys that any config in `folders` looks up in the recipe of a protocol, as ${recipe:KEY}."""
    files = [path for folder in folders for path in folder.rglob("*.yaml")]
    texts = [re.sub(r"(^|\s)#.*", "", path.read_text(encoding="utf-8", errors="replace")) for path in files]
    return frozenset(key for text in texts for key in re.findall(r"\$\{recipe: *(\w+) *\}", text))


SEVERAL = "collect"
"""The group of which one run may have several choices: `collect=swa+ema`."""


def names_of(choice: str) -> list[str]:
    """`swa`, `ema` of `swa+ema`: the first brings the schedule and is what the run reports."""
    return choice.split("+")


@cache
def register_several() -> None:
    """Make `collect=A+B` known to Hydra: A with all that its file chooses, and the node of B under `collect.also.B`.

    Hydra has one config a choice, and two of a group would be merged into one node. So a source of configs beside the
    folders answers for what no folder has.
    """
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.object_type import ObjectType
    from hydra.core.plugins import Plugins
    from hydra.plugins.config_source import ConfigResult, ConfigSource
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Several(ConfigSource):
        """Configs that are made of those of the other sources."""

        others: Sequence[Any] = ()

        def __getstate__(self) -> dict[str, Any]:
            """A launcher's own process, which composes its run there, has no Hydra that could be asked for them."""
            return {**vars(self), "others": _folders()}

        @staticmethod
        def scheme() -> str:
            return "several"

        def load_config(self, config_path: str) -> ConfigResult:
            return _made(config_path, self.others or _folders())

        def is_group(self, config_path: str) -> bool:
            return False

        def is_config(self, config_path: str) -> bool:
            return len(_found(config_path, self.others or _folders())) > 1

        def available(self) -> bool:
            return True

        def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
            return []

    class SeveralPath(SearchPathPlugin):
        """Asks that source behind all folders."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            search_path.append(provider="broadopt", path=f"{Several.scheme()}://")

    for plugin in (Several, SeveralPath):
        Plugins.instance().register(plugin)


def circle(own: Path) -> list[str]:
    """The configs of a folder whose defaults lead from each to the next and from the last to the first; none where none
    do.
    """
    files = {path.relative_to(own).with_suffix("").as_posix(): path for path in sorted(own.rglob("*.yaml"))}
    try:
        TopologicalSorter({name: _named(name, path) for name, path in files.items()}).prepare()
    except CycleError as error:
        return list(error.args[1][:0:-1])
    return []


def _named(name: str, path: Path) -> list[str]:
    """The configs that the defaults of a file bring in, as Hydra reads them; none of one that cannot be read."""
    try:
        content = read_yaml(path, limit=MEBIBYTE)
    except (OSError, ValueError):
        return []
    found, own = [], name.rpartition("/")[0]
    for one in content.get("defaults") or () if isinstance(content, dict) else ():
        key, value = next(iter(one.items())) if isinstance(one, dict) and one else ("", one)
        for choice in value if isinstance(value, list) else [value]:
            words = f"{key}/{choice}".removeprefix("optional ") if key else str(choice)
            if not words.startswith("override "):
                group, _, last = words.rpartition("/")
                target = f"{group.partition('@')[0]}/{last.partition('@')[0]}"
                found.append(target.lstrip("/") if words.startswith("/") else f"{own}/{target.lstrip('/')}".lstrip("/"))
    return found


def _folders() -> list[Any]:
    """Hydra's sources of configs in files."""
    from hydra.core.global_hydra import GlobalHydra

    return [one for one in GlobalHydra.instance().config_loader().get_sources() if one.scheme() != "several"]


def _source(name: str, folders: Sequence[Any]) -> Any:
    """The source that has a collector; None where none has."""
    return next((one for one in folders if one.is_config(f"{SEVERAL}/{name}")), None)


def _found(path: str, folders: Sequence[Any]) -> list[Any]:
    """The source of each collector of `collect/swa+ema`; none where the path is not of that form or one is unknown."""
    group, _, choice = path.removesuffix(".yaml").partition("/")
    if group != SEVERAL or "+" not in choice:
        return []
    names = names_of(choice)
    found = [_source(name, folders) for name in names]
    is_known = None not in found and "none" not in names and len(set(names)) == len(names)
    return found if is_known else []


def _made(path: str, folders: Sequence[Any]) -> Any:
    """The config of `collect/swa+ema`, in Hydra's form."""
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf

    first, *others = names_of(path.removesuffix(".yaml").partition("/")[2])
    header = _found(path, folders)[0].load_config(f"{SEVERAL}/{first}").header
    also = {name: _keys(name, folders) for name in others}
    is_global = header.get("package") == "_global_"
    content = {"defaults": [first], **({SEVERAL: {"also": also}} if is_global else {"also": also})}
    return ConfigResult(provider="broadopt", path="several://", config=OmegaConf.create(content), header=header)


def _keys(name: str, folders: Sequence[Any], within: tuple[str, ...] = ()) -> dict[str, Any]:
    """A collector's own keys, whichever package its file is for, over those of the collectors that its defaults name.
    What else it chooses, as a schedule, the first collector of a run decides. Raises InputError for other defaults.
    """
    from omegaconf import OmegaConf

    result: Any = _source(name, folders).load_config(f"{SEVERAL}/{name}")
    node = result.config.get(SEVERAL, {}) if result.header.get("package") == "_global_" else result.config
    parts = []
    defaults = [one for one in result.config.get("defaults", ()) if isinstance(one, str)]
    for one in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if one == "_self_":
            parts.append({key: node._get_node(key) for key in node if key != "defaults"})
        elif one in (name, *within) or _source(one, folders) is None:
            raise InputError(f"{SEVERAL}.also.{(*within, name)[0]}: its defaults have {one}; expected other collectors")
        else:
            parts.append(_keys(one, folders, (*within, name)))
    if len(parts) == 1:
        return parts[0]
    merged: Any = OmegaConf.merge(*map(OmegaConf.create, parts))
    return {key: merged._get_node(key) for key in merged}
