"""The runs of a command line, and how those of a sweep are distributed: over a cluster, one machine, or by others."""

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from hydra.core.plugins import Plugins

if TYPE_CHECKING:
    from broadopt.launchers.session import Session

MODULE = "hydra_plugins.broadopt"
"""Hydra takes plugins from modules below hydra_plugins alone. As no file of broadopt may lie there, in its top level,
the module exists in memory only."""


def register(session: "Session") -> None:
    """Make `hydra/launcher=slurm`, `hydra/launcher=local` and the sweeper of every sweep known to Hydra, and have all
    launchers report to `session`.
    """
    plugins = Plugins.instance()  # imports Hydra's own anew: what is derived from them has to be imported later

    from broadopt.launchers.local import LocalLauncher
    from broadopt.launchers.slurm.launcher import SlurmLauncher
    from broadopt.launchers.sweeper import OnceSweeper
    from broadopt.launchers.tidy import Tidy
    from broadopt.launchers.watched import watch

    if "hydra_plugins" not in sys.modules and importlib.util.find_spec("hydra_plugins") is None:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    module = sys.modules[MODULE] = ModuleType(MODULE)
    for plugin in (LocalLauncher, SlurmLauncher, OnceSweeper):
        plugin.__module__ = MODULE
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
    vars(module)["Tidy"] = Tidy  # by its own name: launchers send it to processes of theirs
    watch(plugins, session)
