"""Hydra's and OmegaConf's errors about a command line, in one line each."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hydra.errors import HydraException, InstantiationException, MissingConfigException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from broadopt.config import GROUPS, compose, options
from broadopt.errors import InputError, nearest


def one_line(error: BaseException, arguments: list[str]) -> str | None:
    """What a user is told of `error` raised for the command line `arguments`; None where it is not about the input."""
    for cause in _chain(error):
        if isinstance(cause, InputError):
            return str(cause)
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _override(error, arguments)
    return str(error) if isinstance(error, OSError) else None


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_config(error: MissingConfigException) -> str:
    group, _, name = (error.missing_cfg_file or "").removesuffix(".yaml").partition("/")
    if not group:
        return f"{error.missing_cfg_file}: there is no such config"
    choices = sorted({*options(group), *(error.options or [])})
    return f"{group}={name}: expected one of {', '.join(choices)}{nearest(name, choices)}"


def _override(error: BaseException, arguments: list[str]) -> str:
    text = " ".join(str(error).split())
    text += " " + " ".join(" ".join(str(cause).split()) for cause in _chain(error.__cause__))
    if match := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return f"{match[1]}: a list of values is a sweep and needs -m (one value that is a list: key=[a,b])"
    if match := re.search(r"Could not override '(.*?)'", text):
        return f"unknown key {match[1]}{nearest(match[1], _known_keys(arguments))}"
    if match := re.search(r"Could not (?:find a match for|append to config|delete from config)[^.]*?'(.*?)'", text):
        return f"{match[1]}: {text.split('.')[0].strip()}"
    if match := re.search(r"Key '(.*?)' (?:is not in struct|not in)", text):
        return f"unknown key {match[1]}{nearest(match[1], _known_keys(arguments))}"
    return text.strip()


def _known_keys(arguments: list[str]) -> list[str]:
    """Every key of the config that the command line's groups make, or of the default one where they make none."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    chosen = [argument for argument in arguments if argument.split("=")[0] in (*GROUPS, "experiment")]
    try:
        composed = compose(chosen)
    except HydraException:
        composed = compose([])
    config: Any = OmegaConf.to_container(composed, resolve=False)
    return [key for key in _flat(config) if not key.startswith(("hydra", "protocol"))]


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from _flat(child, f"{prefix}{key}.")


def instantiation_error(error: InstantiationException, group: str) -> InputError:
    """The error of a config node whose target cannot be built, as an InputError."""
    for cause in _chain(error.__cause__):
        if isinstance(cause, InputError):
            return cause
    text = str(error.__cause__ or error).splitlines()[0]
    return InputError(f"{group}: {text}")
