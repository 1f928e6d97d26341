"""What is made of the command line before Hydra reads it."""

import re
from argparse import Namespace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from broadopt.config.habits import about_choice
from broadopt.config.messages import unknown_option
from broadopt.config.shipped import config_dir, options
from broadopt.errors import InputError


def prepared(arguments: list[str]) -> list[str]:
    """The command line as Hydra takes it. Raises InputError for an option that is unknown or without its value, and
    for a glob without a choice.
    """
    ordered = options_first(arguments)
    own = _parsed(ordered).config_dir
    return [expand_glob(argument, own) for argument in ordered]


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
            names = [name for action in parser._actions for name in action.option_strings]
            raise unknown_option(option, names, following)
    overrides = [*known.overrides, *late]
    return [argument for argument in arguments if argument not in overrides] + overrides


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line is one that carries out a sweep, not one that shows something."""
    found = _parsed(arguments)
    shows = (found.help, found.hydra_help, found.cfg, found.info, found.shell_completion)
    return bool(found.multirun) and not any(shows)


def expand_glob(argument: str, own: str | None = None) -> str:
    """`experiment=glob(table3/*)` as a list of its choices: Hydra's own glob does not look into folders. The choices
    are those of broadopt and of the folder `own` that --config-dir names. Raises InputError for none.
    """
    match = re.fullmatch(r"([\w/]+)=glob\(([^(),]+)\)", argument)
    if match is None or not (valid := choices(match[1], own)):
        return argument
    pattern = match[2].strip("'\"")
    found = [choice for choice in valid if fnmatchcase(choice, pattern)]
    if not found:
        hint = about_choice(match[1], pattern, valid)
        raise InputError(f"{argument}: no {match[1]} matches; expected some of {', '.join(valid)}{hint}")
    return f"{match[1]}={','.join(found)}"


def choices(group: str, own: str | None) -> list[str]:
    """What may be chosen of a group, in broadopt's configs or in the folder `own`."""
    folder = Path(own or config_dir(), group)
    return sorted({*options(group), *(str(path.relative_to(folder))[:-5] for path in folder.rglob("*.yaml"))})


def _parsed(arguments: list[str]) -> Namespace:
    from hydra._internal.utils import get_args_parser

    found: Namespace = get_args_parser().parse_known_args(arguments)[0]
    return found
