"""What can be added to the commands of broadopt-table --missing, and whether broadopt-run would take it."""

from collections.abc import Sequence

from broadopt.config.rules import RULES, checked
from broadopt.config.run_config import EXECUTION
from broadopt.errors import InputError, nearest

ADDED = tuple(
    key for key in RULES if key == "precision" or (key.partition(".")[0] in EXECUTION and key != "results_dir")
)
"""Keys that --missing adds to its commands: the run remains one of the table. Its results folder is --results."""

OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep")
"""Beginnings of keys that a command with -m takes, and one of --missing, a single run, does not."""


def checked_overrides(given: Sequence[str]) -> tuple[str, ...]:
    """The overrides, each checked, and all together as the run checks them. Raises InputError."""
    found = tuple(map(_override, given))
    words: dict[str, list[str]] = {}
    for text in found:
        words.setdefault(text.partition("=")[0], []).append(text)
    known = [text for key, own in words.items() if key in ADDED and "${" not in "".join(own) for text in own]
    if known:
        from broadopt.config.arguments import quoted_path
        from broadopt.config.compose import compose, run_config

        run_config(compose([quoted_path(text, sweep=False) for text in known]))
    return found


def _override(text: str) -> str:
    """An override that may be added to a printed command: it must not make it another run, nor one that is refused."""
    key = text.partition("=")[0]
    if "=" not in text or not (key in ADDED or key.startswith(("hydra.", "hydra/"))):
        hint = nearest(key, ADDED) or "; --results names it" * (key == "results_dir")
        raise InputError(f"{text}: expected KEY=VALUE with one of {', '.join(ADDED)} or hydra.KEY{hint}")
    if key.startswith(OF_SWEEPS):
        raise InputError(f"{text}: that is for the runs of a sweep, and each of these commands is a single run")
    if key in ADDED and "${" not in text:  # what an interpolation stands for, the run will see
        _check_value(key, text)
    return text


def _check_value(key: str, text: str) -> None:
    """Raise InputError for an override whose value broadopt-run would not take."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from broadopt.config.arguments import quoted_path

    try:
        override = OverridesParser.create().parse_override(quoted_path(text, sweep=False))
    except HydraException as error:
        raise InputError(f"{text}: expected {RULES[key].words}") from error
    if override.is_sweep_override():
        raise InputError(f"{text}: several values are a sweep, and each of these commands is a single run")
    group, _, leaf = key.rpartition(".")
    checked({group: {leaf: override.value()}} if group else {leaf: override.value()})
