"""Hydra's and OmegaConf's errors about a command line, in one line each."""

import inspect
import re
import shlex
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

from broadopt.config.compose import COMPOSED, NO_PACKAGE, compose, several
from broadopt.config.habits import about_choice, from_habit
from broadopt.config.identity import importable
from broadopt.config.rules import RULES
from broadopt.config.shipped import SEVERAL, circle, config_dir, options
from broadopt.errors import InputError, nearest, printable


def one_line(error: BaseException, arguments: list[str]) -> str | None:
    """The line that reports `error`, raised for the command line `arguments`; None where it is not about the input."""
    line = _line(error, arguments)
    return None if line is None else printable(line)


def _line(error: BaseException, arguments: list[str]) -> str | None:
    for cause in _chain(error):
        if isinstance(cause, InputError):
            return str(cause)
    if isinstance(error, RecursionError):
        return _circle(arguments)
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, UnicodeDecodeError) and (line := _no_text(arguments)):
        return line
    if isinstance(error, (HydraException, OmegaConfBaseException, ValueError)) and (line := _malformed(arguments)):
        return line
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return _override(error, arguments)
    if isinstance(error, OSError) and error.filename:  # of a sweep's folder, made ahead of its runs
        return f"{error.filename}: {error.strerror}"
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


def _circle(arguments: list[str]) -> str | None:
    """The line about configs of the user's own whose defaults go round in a circle, which Hydra goes on along."""
    own = get_args_parser().parse_known_args(arguments)[0].config_dir
    first, *others = (circle(Path(own)) if own else []) or [""]
    if not first:
        return None
    by = f", by {', '.join(others)}" if others else ""
    return f"{Path(own, first)}.yaml: its defaults lead back to it{by}; expected other files"


def _no_text(arguments: list[str]) -> str | None:
    """The message about the first file of the user's configs that is no text: Hydra's error does not name it."""
    own = get_args_parser().parse_known_args(arguments)[0].config_dir
    for path in sorted(Path(own).rglob("*.yaml")) if own else ():
        try:
            path.read_bytes().decode("utf-8")
        except ValueError as error:
            return f"{path}: expected YAML, in UTF-8 ({error})"
    return None


def _missing_config(error: MissingConfigException) -> str:
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = missing.rpartition("/") if missing.startswith("hydra/") else missing.partition("/")
    if not missing:
        return " ".join(str(error).split())
    if not name and not options(group):
        return f"{missing}: there is no such config"
    choices = sorted({*options(group), *(error.options or [])})
    return f"{group}={name}: expected one of {', '.join(choices)}{about_choice(group, name, choices)}"


def _malformed(arguments: list[str]) -> str | None:
    """The message about the first malformed override: not of the form KEY=VALUE, without a key, or a group without a
    choice.
    """
    for argument in get_args_parser().parse_known_args(arguments)[0].overrides:
        try:
            override = OverridesParser.create().parse_override(argument)
        except ValueError:  # a whole number of thousands of digits
            key = argument.partition("=")[0].lstrip("+")
            return f"{argument[:60]}...: expected {RULES[key].words if key in RULES else 'a shorter number'}"
        except HydraException:
            group, equals, choice = argument.partition("=")
            if equals and (choices := options(group)):
                own = get_args_parser().parse_known_args(arguments)[0].config_dir
                if own and Path(own, group, f"{choice}.yaml").is_file():  # its name alone is not read as it is
                    return f"{argument}: expected a name that Hydra's grammar takes{_in_quotes(argument)}"
                return f"{argument}: expected one of {', '.join(choices)}"
            return f"{argument}: expected KEY=VALUE or GROUP=CHOICE{_in_quotes(argument)}"
        key = override.key_or_group
        if not key:
            return f"{argument}: expected a key or a group before the ="
        if options(key) and not (override.is_delete() or override.is_sweep_override()):
            value = override.value()
            if not isinstance(value, (str, list)):
                return f"{argument}: expected one of {', '.join(options(key))}"
    return None


def _in_quotes(argument: str) -> str:
    """How the shell is given an override whose value Hydra's grammar takes in quotes alone; nothing for a number."""
    key, _, value = argument.partition("=")
    override = f"{key}={quoted(value)}"
    try:
        is_read = value and OverridesParser.create().parse_override(override).value() == value
    except HydraException:
        return ""
    is_text = RULES[key].kind is str if key in RULES else True
    return f"; in quotes: {shlex.quote(override)}" if is_read and is_text else ""


def quoted(value: str) -> str:
    """`value` as Hydra's grammar takes any text: in quotes, those inside behind a backslash."""
    return '"' + re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + m[2].replace('"', '\\"'), value) + '"'


def _override(error: BaseException, arguments: list[str]) -> str:
    text = " ".join(str(error).split())
    text += " " + " ".join(" ".join(str(cause).split()) for cause in _chain(error.__cause__))
    if match := re.search(r"Ambiguous value for argument '(.*?)'", text):
        return _needs_sweep(match[1])
    match = re.search(r"Multiple values for ([\w/]+)\. To override", text)
    if match and any(argument.startswith(f"+{match[1]}=") for argument in arguments):
        return f"+{match[1]}: there is such a group, and its choice is given without the +"
    if match := re.search(r"Error merging override (~\S+)", text):
        return f"{match[1]}: a key cannot be removed, only given another value"
    if match := re.search(r"Error merging override \+([^+=]+)=|Could not append to config.* already at '(.*?)'", text):
        key = match[1] or match[2]
        if key in known_keys(arguments):
            return f"+{key}: there is such a key, and its value is given without the +"
    if match := re.search(r"Could not override '[\w/]+@(\w+)\.", text):  # an override in the defaults of a group's file
        return NO_PACKAGE.format(match[1])
    if match := re.search(r"Could not override '(.*?)'", text):
        return unknown_key(match[1], known_keys(arguments))
    if match := re.search(r"Could not (?:find a match for|append to config|delete from config)[^.]*?'(.*?)'", text):
        return f"{match[1]}: {text.split('.')[0].strip()}"
    if match := re.search(r"Key '(.*?)' (?:is not in struct|not in)", text):
        return unknown_key(match[1], known_keys(arguments))
    return text.strip()


def _needs_sweep(argument: str) -> str:
    """The line about several values, `KEY=A,B`, of one run."""
    group = argument.partition("=")[0].lstrip("+")
    hint = " (one value that is a list: key=[a,b])"
    if options(group) or group in COMPOSED:
        hint = f"; {several(group)}" if group == SEVERAL else ""
    return f"{argument}: a list of values is a sweep and needs -m{hint}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The line about a key that no config has. A key of a group is compared with that group's, or, where there is no
    such group, with all.
    """
    known, (group, _, leaf) = [name for name in known if name != key], key.rpartition(".")
    if group in known:
        if having := [choice for choice in options(group) if leaf in _own_keys(group, choice)]:
            return f"unknown key {key}; {group}={' or '.join(having)} has it"
        inside = [name.removeprefix(f"{group}.") for name in known if name.startswith(f"{group}.")]
        if hint := nearest(leaf, inside, prefix=f"{group}."):
            return f"unknown key {key}{hint}"
    hint = nearest(leaf, known, cutoff=1) or from_habit(leaf) or ("" if group else _elsewhere(key))
    return f"unknown key {key}{hint or nearest(key, [name for name in known if '.' in name] if group else known)}"


def _elsewhere(key: str) -> str:
    """Which choices of the groups bring a key of that name, for one that stands in none of the chosen."""
    found = {}
    for group in ("step", "collect", "hydra/launcher"):
        having = [choice for choice in options(group) if key in _own_keys(group, choice)]
        if having and not key.startswith("_"):
            # A method brings the protocol of its paper along; the step alone would be trained by another's.
            names = [name for name in options("method") if name in having] if group != "hydra/launcher" else []
            chosen = f"method={' or '.join(names)}" if names else f"{group}={' or '.join(having)}"
            found[f"{group.replace('/', '.')}.{key}"] = chosen
    return "".join(f"; {name} is a key of {chosen}" for name, chosen in found.items())


def known_keys(arguments: list[str]) -> list[str]:
    """Every key of the config that the command line's groups make, or of the default one where they make none."""
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    own = get_args_parser().parse_known_args(arguments)[0].config_dir
    search = [f"hydra.searchpath=['file://{Path(own).resolve()}']"] if own else []
    firsts = [argument.split(",")[0] for argument in arguments]
    chosen = [argument for argument in firsts if argument.split("=")[0] in (*COMPOSED, "experiment", "hydra/launcher")]
    try:
        composed = compose([*search, *chosen])
    except (HydraException, OmegaConfBaseException, YAMLError, InputError, ValueError, TypeError):  # dataset=null
        composed = compose([])
    config: Any = OmegaConf.to_container(composed, resolve=False)
    given = [key for key in _flat(config) if key.startswith("hydra.launcher") or not key.startswith("hydra")]
    return [key for key in given if not key.startswith("protocol.") and not key.endswith("_target_")]


def _own_keys(group: str, choice: str) -> Iterable[str]:
    """The keys that a choice of a group brings with it."""
    node: Any = OmegaConf.load(config_dir() / group / f"{choice}.yaml")
    return (str(key) for key in node.get(group, node) if key != "defaults")


def _flat(node: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, child in node.items():
        yield f"{prefix}{key}"
        if isinstance(child, Mapping):
            yield from _flat(child, f"{prefix}{key}.")


def unknown_option(option: str, valid: Iterable[str], following: str = "") -> InputError:
    """The error of an option that Hydra does not have; keys are often given like options, their values `following`."""
    key, _, value = option.lstrip("-").partition("=")
    keys = sorted({*RULES, *(rule.split(".")[0] for rule in RULES), *COMPOSED, "experiment", "repeat"})
    about = nearest(key, keys, cutoff=1) or from_habit(key)
    if about.startswith(":"):
        return InputError(f"unknown option {option}{about}")
    if about or value:
        meant = (re.findall('"(.*?)"', about) or [key])[0]
        return InputError(f"unknown option {option}: a key is given without dashes, {meant}={value or following}")
    return InputError(f"unknown option {option}{nearest(option, valid)}")


def instantiation_error(
    error: InstantiationException, group: str, node: Mapping[str, Any], *, given: tuple[int, Iterable[str]]
) -> InputError:
    """The error of a config node whose target cannot be built, as an InputError. `given`: what it is called with beside
    the node, so many arguments by their places and those by name, which are no keys.
    """
    for cause in _chain(error.__cause__):
        if isinstance(cause, InputError):
            return cause
    target, text = node["_target_"], " ".join(str(error.__cause__ or error).split())
    place = importable({"_target_": target})["_target_"]  # Python knows no public name
    if "Error loading" in text or "Error locating" in text:
        module = target.rpartition(".")[0]
        found = vars(sys.modules.get(place.rpartition(".")[0], object))
        known = [f"{module}.{name}" for name in found if not name.startswith("_")]
        reason = text.partition("': ")[2].partition(" Are you sure")[0]
        return InputError(f"{group}._target_={target}: cannot be loaded ({reason}){nearest(target, known)}")
    match = re.search(r"unexpected keyword argument '(\w+)'", text)
    key = match[1].rstrip("_") if match else [*node, ""][1] if "takes no arguments" in text else ""
    if key in node:
        count, names = given
        taken = {name.rstrip("_") for name in [*inspect.signature(get_object(place)).parameters][count:]}  # from: from_
        arguments = {*node, *taken} - {key, "_target_", "options", *names}
        line = unknown_key(f"{group}.{key}", [group, *sorted(f"{group}.{argument}" for argument in arguments)])
        return InputError(f"{line} ({target} has no such argument)")
    if group == "schedule" and "missing " in text and not inspect.isclass(get_object(place)):
        text += "; a function that gives the lr needs _partial_: true beside its _target_"
    return InputError(f"{group}._target_={target}: {text}")
