"""Hydra's and OmegaConf's errors about a command line, in one line each."""

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from broadopt.config.compose import COMPOSED, compose
from broadopt.config.shipped import config_dir, options
from broadopt.errors import InputError, nearest


def one_line(error: BaseException, arguments: list[str]) -> str | None:
    """What a user is told of `error` raised for the command line `arguments`; None where it is not about the input."""
    line = _line(error, arguments)
    return None if line is None else printable(line)


def printable(text: str) -> str:
    """`text` on one line, each character that cannot be printed as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _line(error: BaseException, arguments: list[str]) -> str | None:
    for cause in _chain(error):
        if isinstance(cause, InputError):
            return str(cause)
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, (HydraException, OmegaConfBaseException, ValueError)) and (line := _malformed(arguments)):
        return line
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _override(error, arguments)
    if isinstance(error, (OSError, YAMLError)) or _raised_by_hydra(error):
        return " ".join(str(error).split())
    return None


def _raised_by_hydra(error: BaseException) -> bool:
    """Whether Hydra itself refused the command line by a ValueError, as it does for options that exclude each other."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        isinstance(error, ValueError) and trace is not None and trace.tb_frame.f_globals["__name__"].startswith("hydra")
    )


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_config(error: MissingConfigException) -> str:
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = missing.rpartition("/") if missing.startswith("hydra/") else missing.partition("/")
    if not missing:
        return " ".join(str(error).split())
    if not name and not options(group):
        return f"{missing}: there is no such config"
    choices = sorted({*options(group), *(error.options or [])})
    return f"{group}={name}: expected one of {', '.join(choices)}{nearest(name, choices)}"


def _malformed(arguments: list[str]) -> str | None:
    """The first override that says nothing: not of the form KEY=VALUE, without a key, or a group without a choice."""
    for argument in get_args_parser().parse_known_args(arguments)[0].overrides:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException:
            return f"{argument}: expected KEY=VALUE or GROUP=CHOICE (a value with spaces, commas or brackets is quoted)"
        key = override.key_or_group
        if not key:
            return f"{argument}: expected a key or a group before the ="
        if options(key) and not (override.is_delete() or override.is_sweep_override()):
            value = override.value()
            if not isinstance(value, (str, list)):
                return f"{argument}: expected one of {', '.join(options(key))}"
    return None


def _override(error: BaseException, arguments: list[str]) -> str:
    text = " ".join(str(error).split())
    text += " " + " ".join(" ".join(str(cause).split()) for cause in _chain(error.__cause__))
    if match := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return f"{match[1]}: a list of values is a sweep and needs -m (one value that is a list: key=[a,b])"
    if match := re.search(r"Error merging override (~\S+)", text):
        return f"{match[1]}: a key cannot be removed, only given another value"
    if match := re.search(r"Error merging override \+([^+=]+)=|Could not append to config.* already at '(.*?)'", text):
        key = match[1] or match[2]
        if key in _known_keys(arguments):
            return f"+{key}: there is such a key, and its value is given without the +"
    if match := re.search(r"Could not override '(.*?)'", text):
        return unknown_key(match[1], _known_keys(arguments))
    if match := re.search(r"Could not (?:find a match for|append to config|delete from config)[^.]*?'(.*?)'", text):
        return f"{match[1]}: {text.split('.')[0].strip()}"
    if match := re.search(r"Key '(.*?)' (?:is not in struct|not in)", text):
        return unknown_key(match[1], _known_keys(arguments))
    return text.strip()


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The line about a key that no config has. A key of a group is compared with that group's, or, where there is no
    such group, with those of all groups.
    """
    known, (group, _, leaf) = [name for name in known if name != key], key.rpartition(".")
    if group in known:
        hint = nearest(leaf, [name.removeprefix(f"{group}.") for name in known if name.startswith(f"{group}.")])
        hint = hint.replace('"', f'"{group}.', 1)
        having = [choice for choice in options(group) if leaf in _own_keys(group, choice)]
        return f"unknown key {key}" + (f"; {group}={' or '.join(having)} has it" if having else hint)
    return f"unknown key {key}{nearest(key, [name for name in known if '.' in name] if group else known)}"


def _known_keys(arguments: list[str]) -> list[str]:
    """Every key of the config that the command line's groups make, or of the default one where they make none."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    own = get_args_parser().parse_known_args(arguments)[0].config_dir
    search = [f"hydra.searchpath=['file://{Path(own).resolve()}']"] if own else []
    firsts = [argument.split(",")[0] for argument in arguments]
    chosen = [argument for argument in firsts if argument.split("=")[0] in (*COMPOSED, "experiment", "hydra/launcher")]
    try:
        composed = compose([*search, *chosen])
    except HydraException:
        composed = compose([])
    config: Any = OmegaConf.to_container(composed, resolve=False)
    given = [key for key in _flat(config) if key.startswith("hydra.launcher") or not key.startswith("hydra")]
    return [key for key in given if not key.startswith("protocol.") and not key.endswith("_target_")]


def _own_keys(group: str, choice: str) -> Iterable[str]:
    """The keys that a choice of a group brings with it."""
    node: Any = OmegaConf.load(config_dir() / group / f"{choice}.yaml")
    return map(str, node.get(group, node))


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from _flat(child, f"{prefix}{key}.")


def unknown_option(option: str, valid: Iterable[str]) -> InputError:
    """The error of an option that Hydra does not have; keys are often given like options."""
    key, _, value = option.lstrip("-").partition("=")
    if value:
        return InputError(f"unknown option {option}: a key is given without dashes, {key}={value}")
    return InputError(f"unknown option {option}{nearest(option, valid)}")


def instantiation_error(error: InstantiationException, group: str, node: Mapping[str, Any]) -> InputError:
    """The error of a config node whose target cannot be built, as an InputError."""
    for cause in _chain(error.__cause__):
        if isinstance(cause, InputError):
            return cause
    target, text = node["_target_"], " ".join(str(error.__cause__ or error).split())
    if "Error loading" in text or "Error locating" in text:
        module = target.rpartition(".")[0]
        known = [f"{module}.{known}" for known in vars(sys.modules.get(module, object)) if not known.startswith("_")]
        reason = text.partition("': ")[2].partition(" Are you sure")[0]
        return InputError(f"{group}._target_={target}: cannot be loaded ({reason}){nearest(target, known)}")
    match = re.search(r"unexpected keyword argument '(\w+)'", text)
    key = match[1] if match else [*node, ""][1] if "takes no arguments" in text else ""
    if key in node:
        arguments = {*node, *inspect.signature(get_object(target)).parameters} - {key, "_target_", "options"}
        line = unknown_key(f"{group}.{key}", [group, *sorted(f"{group}.{argument}" for argument in arguments)])
        return InputError(f"{line} ({target} has no such argument)")
    return InputError(f"{group}._target_={target}: {text}")
