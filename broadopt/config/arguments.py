"""What is made of the command line before Hydra reads it."""

import re
from argparse import Namespace
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from broadopt.config.habits import about_choice
from broadopt.config.messages import quoted, unknown_option
from broadopt.config.rules import RULES, expanded
from broadopt.config.shipped import config_dir, options
from broadopt.errors import InputError


def prepared(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it. Raises InputError for an option that is unknown or without its value, and
    for a glob without a choice.
    """
    ordered = [_with_home(argument) for argument in options_first(arguments)]
    parsed = parsed_arguments(ordered)
    folders = sum(argument.partition("=")[0] in ("--config-dir", "-cd") for argument in ordered)
    if folders > 1 or parsed.config_dir == "":
        raise InputError(f"--config-dir: expected one folder, found {folders if folders > 1 else 'an empty name'}")
    wanted = " ".join(parsed.overrides)
    if parsed.shell_completion and not re.fullmatch("(install|uninstall|query)=(bash|zsh|fish)", wanted):
        raise InputError("-sc: expected install=SHELL, uninstall=SHELL or query=SHELL, of bash, zsh and fish")
    return [quoted_path(expand_glob(argument, parsed.config_dir), sweep=parsed.multirun) for argument in ordered]


def _with_home(argument: str) -> str:
    option, _, path = argument.partition("=")
    return f"{option}={expanded(path, option)}" if option == "--config-dir" and path else argument


def quoted_path(argument: str, *, sweep: bool) -> str:
    """`data_dir=/data/été` with quotes around a path that Hydra's grammar has no room for, or reads as something else:
    what is typed for a path means nothing else. The paths of a `sweep` are separated by their commas.
    """
    key, _, path = argument.partition("=")
    rule = RULES.get(key.lstrip("+"))
    if rule is None or not rule.is_path or not path:
        return argument
    with suppress(HydraException, ValueError):  # ValueError: a whole number of thousands of digits
        if _is_read_as_typed(OverridesParser.create().parse_override(argument), path, sweep=sweep):
            return argument
    paths = path.split(",") if sweep else [path]
    return f"{key}={','.join(map(quoted, paths))}"


def _is_read_as_typed(parsed: Override, path: str, *, sweep: bool) -> bool:
    """Whether Hydra's reading of a path is left as it is: it is in quotes, or no number, and outside a sweep the text
    itself and not several values.
    """
    if parsed.is_sweep_override():
        return sweep or parsed.value_type is not ValueType.SIMPLE_CHOICE_SWEEP
    value = parsed.value()
    if isinstance(value, str):
        return sweep or value == path or path[0] in "'\""
    return isinstance(value, bool) or not isinstance(value, int | float)


def options_first(arguments: list[str]) -> list[str]:
    """The command line with its options ahead of its overrides: Hydra takes them in no other order. Raises InputError
    for an unknown option or one without its value.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise InputError(message)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    known, late = parser.parse_known_args(arguments)
    for option in late:
        if option.startswith("-"):
            after = arguments[arguments.index(option) + 1 :][:1]
            following = next((word for word in after if not word.startswith("-") and "=" not in word), "")
            raise unknown_option(option, option_names(), following)
    overrides = [*known.overrides, *late]
    return [argument for argument in arguments if argument not in overrides] + overrides


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line is one that carries out a sweep, not one that shows something."""
    return bool(parsed_arguments(arguments).multirun) and not _shows(arguments)


def _shows(arguments: list[str]) -> bool:
    found = parsed_arguments(arguments)
    return any((found.help, found.hydra_help, found.cfg, found.info, found.shell_completion))


def ignored_folders(arguments: list[str]) -> list[str]:
    """A line on each given key by which other programs of Hydra's name the folder of their results."""
    given = [] if _shows(arguments) else parsed_arguments(arguments).overrides
    return [
        f"{key}: only Hydra's own files go there; results go below results_dir, to a folder named by the recipe"
        for key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
        if any(override.partition("=")[0].lstrip("+") == key for override in given)
    ]


def expand_glob(argument: str, own: str | None = None) -> str:
    """`experiment=glob(table3/*)` as a list of its choices: Hydra's own glob does not look into folders. The choices
    are those of broadopt and of the folder `own` that --config-dir names. Raises InputError for none.
    """
    match = re.fullmatch(r"(\+*)([\w/]+)=glob\(([^(),]+)\)", argument)
    if match is None or not (valid := choices(match[2], own)):
        return argument
    added, group, pattern = match[1], match[2], match[3].strip("'\"")
    found = [choice for choice in valid if fnmatchcase(choice, pattern)]
    if not found:
        hint = about_choice(group, pattern, valid)
        raise InputError(f"{argument}: no {group} matches; expected some of {', '.join(valid)}{hint}")
    return f"{added}{group}={','.join(found)}"


def choices(group: str, own: str | None) -> list[str]:
    """What may be chosen of a group, in broadopt's configs or in the folder `own`."""
    folder = Path(own or config_dir(), group)
    return sorted({*options(group), *(str(path.relative_to(folder))[:-5] for path in folder.rglob("*.yaml"))})


def parsed_arguments(arguments: list[str]) -> Namespace:
    """Hydra's reading of a command line: options and overrides."""
    from hydra._internal.utils import get_args_parser

    found: Namespace = get_args_parser().parse_known_args(arguments)[0]
    return found


def option_names() -> list[str]:
    """Every option that Hydra's command line has, as --multirun and -m."""
    from hydra._internal.utils import get_args_parser

    return [name for action in get_args_parser()._actions for name in action.option_strings]
