"""The files that broadopt ships beside its code: Hydra's config groups and the published tables; and the choices that
are made of several such files.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import broadopt


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


def _folders() -> list[Any]:
    """Hydra's sources of configs in files."""
    from hydra.core.global_hydra import GlobalHydra

    return [one for one in GlobalHydra.instance().config_loader().get_sources() if one.scheme() != "several"]


def _found(path: str, folders: Sequence[Any]) -> list[Any]:
    """The source of each collector of `collect/swa+ema`; none where the path is not of that form or one is unknown."""
    group, _, choice = path.removesuffix(".yaml").partition("/")
    if group != SEVERAL or "+" not in choice:
        return []
    names = names_of(choice)
    found = [next((one for one in folders if one.is_config(f"{SEVERAL}/{name}")), None) for name in names]
    is_known = None not in found and "none" not in names and len(set(names)) == len(names)
    return found if is_known else []


def _made(path: str, folders: Sequence[Any]) -> Any:
    """The config of `collect/swa+ema`, in Hydra's form."""
    from hydra.plugins.config_source import ConfigResult
    from omegaconf import OmegaConf

    names, sources = names_of(path.removesuffix(".yaml").partition("/")[2]), _found(path, folders)
    own, *others = (source.load_config(f"{SEVERAL}/{name}") for source, name in zip(sources, names, strict=True))
    also = {name: _node(result) for name, result in zip(names[1:], others, strict=True)}
    is_global = own.header.get("package") == "_global_"
    content = {"defaults": [names[0]], **({SEVERAL: {"also": also}} if is_global else {"also": also})}
    return ConfigResult(provider="broadopt", path="several://", config=OmegaConf.create(content), header=own.header)


def _node(result: Any) -> Any:
    """A collector's own keys in the config of its file, whichever package that is for."""
    node = result.config.get(SEVERAL, {}) if result.header.get("package") == "_global_" else result.config
    return {key: node._get_node(key) for key in node if key != "defaults"}
