"""Config files are parsed once a process, and once for all the commands that the tests' server forks.

Hydra reads a dozen files for every config that it composes, and most of the time goes into their YAML. Here what
OmegaConf.load gives for a text is kept, pickled, so that whoever asks for the same text again has an object of his own
that is equal to the first; the tree that OmegaConf parses an interpolation into, which nobody changes, is kept as it
is. FORK_SERVER=no leaves OmegaConf and Hydra as they are.

Hydra also composes the config of every command once ahead, for the one key hydra.mode. Where no file but the shipped
ones and those of tests/own can have set it, and no override does, it is None, as Hydra would find it.
"""

import os
import pickle
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import kept_compositions
import omegaconf
from hydra._internal import defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from broadopt.config.shipped import config_dir

OWN = Path(__file__).parent / "own"
KNOWN = {f"file://{folder}" for folder in (config_dir(), OWN)}
"""Folders of configs that no test writes to."""
SMALL = ("experiment=quickstart", "model=small")
COMMON = (
    ((), RunMode.RUN, SMALL[:1]),
    ((OWN,), RunMode.RUN, SMALL),
    *(((OWN,), RunMode.RUN, (*SMALL, f"method={method}")) for method in ("sgd", "sam", "asam")),
    ((OWN,), RunMode.RUN, (*SMALL, "method=sam", "collect=swa")),
    ((OWN,), RunMode.MULTIRUN, SMALL),
    ((OWN,), RunMode.MULTIRUN, (*SMALL, "hydra/launcher=local")),
)
"""What most commands of the tests choose: folders of configs beside the shipped one, mode, choices."""
kept: dict[str, bytes] = {}


def is_installed() -> bool:
    """Whether this process keeps configs."""
    return os.environ.get("FORK_SERVER") != "no"


def install() -> None:
    """Keep what is loaded from now on in this process."""
    if is_installed():
        OmegaConf.load = staticmethod(_keeping(OmegaConf.load))  # type: ignore[method-assign]
        omegaconf.base.parse = omegaconf._utils.parse = cache(omegaconf.base.parse)
        # Hydra copies the store of all registered configs for each that it composes, and copies again what it takes.
        ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
        Hydra.get_mode = _looking_first(Hydra.get_mode)  # type: ignore[method-assign]
        defaults_list._create_interpolation_map = _where_there_are_some(defaults_list._create_interpolation_map)
        kept_compositions.install(KNOWN)


def _looking_first(get_mode: Callable[..., Any]) -> Callable[..., Any]:
    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        paths = {source.full_path() for source in self.config_loader.get_sources() if source.scheme() == "file"}
        if paths <= KNOWN and not any("hydra.mode" in override or "searchpath" in override for override in overrides):
            return None
        return get_mode(self, config_name, overrides)

    return mode


def _where_there_are_some(create: Callable[..., Any]) -> Callable[..., Any]:
    """What the interpolations in the defaults of a file are resolved with, made for those files alone that have one."""

    def created(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        return create(overrides, defaults, self_added) if any(one.is_interpolation() for one in defaults) else None

    return created


def _keeping(load: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def loaded(file_: Any) -> Any:
        if isinstance(file_, (str, Path)):
            with open(file_, encoding="utf-8") as file:
                return loaded(file)
        start = file_.tell()
        text = file_.read()
        if text not in kept:
            file_.seek(start)  # an error names the file
            found = load(file_)
            kept[text] = pickle.dumps(found)
        return pickle.loads(kept[text])

    return loaded


def warm() -> None:
    """Load all that is shipped, and have the grammars of Hydra and OmegaConf know what is in it, which they learn by
    parsing; what Hydra is in a process that has composed nothing is left as it was.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from broadopt.config.compose import compose, run_config

    for folder in (config_dir(), Path(hydra.__file__).parent / "conf"):
        for path in sorted(folder.rglob("*.yaml")):
            OmegaConf.load(path)
    for words in (
        ("experiment=quickstart", "method=swa", "seed=1"),
        ("experiment=table3/resnet20", "method=asam", "step.rho=0.5"),
    ):
        run_config(compose(words))
    for folders, mode, words in COMMON:
        _compose_as_the_command(folders, mode, words)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def _compose_as_the_command(folders: Sequence[Path], mode: RunMode, words: Sequence[str]) -> None:
    GlobalHydra.instance().clear()
    path = create_config_search_path(str(config_dir()))
    for folder in folders:
        path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    hydra = Hydra.create_main_hydra2(task_name="run", config_search_path=path)
    hydra.compose_config("run", list(words), mode, with_log_configuration=False)
