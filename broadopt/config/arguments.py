"""What is made of the command line before Hydra reads it."""

import re
from fnmatch import fnmatchcase
from typing import NoReturn

from broadopt.config.messages import unknown_option
from broadopt.config.shipped import config_dir, options
from broadopt.errors import InputError


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
            raise unknown_option(option, [name for action in parser._actions for name in action.option_strings])
    overrides = [*known.overrides, *late]
    return [argument for argument in arguments if argument not in overrides] + overrides


def is_sweep(arguments: list[str]) -> bool:
    """Whether the command line is one that carries out a sweep, not one that shows something."""
    from hydra._internal.utils import get_args_parser

    found = get_args_parser().parse_known_args(arguments)[0]
    shows = (found.help, found.hydra_help, found.cfg, found.info, found.shell_completion)
    return bool(found.multirun) and not any(shows)


def expand_glob(argument: str) -> str:
    """`experiment=glob(table3/*)` as a list of its choices: Hydra's own glob does not look into folders. Raises
    InputError for none.
    """
    match = re.fullmatch(r"(\w+)=glob\(([^(),]+)\)", argument)
    if match is None or not (config_dir() / match[1]).is_dir():
        return argument
    choices = [choice for choice in options(match[1]) if fnmatchcase(choice, match[2].strip("'\""))]
    if not choices:
        raise InputError(f"{argument}: no {match[1]} matches; expected some of {', '.join(options(match[1]))}")
    return f"{match[1]}={','.join(choices)}"
