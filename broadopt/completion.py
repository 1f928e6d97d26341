"""Tab completion of both commands: what a shell is given when the tab key is hit."""

import os
from collections.abc import Mapping, Sequence
from glob import escape, glob
from itertools import pairwise

from broadopt.config.arguments import choices, option_names, parsed_arguments
from broadopt.config.compose import COMPOSED
from broadopt.config.messages import known_keys
from broadopt.config.rules import RULES
from broadopt.config.shipped import SEVERAL, names_of, options

SHELLS = ("bash", "zsh", "fish")

BASH = """\
_{name}() {{
  local words='{words}'
  COMPREPLY=()
  case "${{COMP_WORDS[COMP_CWORD-1]}}" in
{cases}
    {files}) return ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _{name} {command}"""


def script(
    shell: str,
    command: str,
    *,
    words: Sequence[str],
    options: Sequence[str],
    values: Mapping[str, Sequence[str]],
    files: Sequence[str],
) -> str:
    """What a `shell` evaluates to complete `command` by `words` and `options`, and behind an option by its `values`, or
    by `files` behind those that take a path.
    """
    if shell == "fish":
        arguments = {option: f" -x -a '{' '.join(values[option])}'" if option in values else "" for option in options}
        lines = [f"complete -c {command} -l {option[2:]}{given}" for option, given in arguments.items()]
        return "\n".join([f"complete -c {command} -a '{' '.join(words)}'", *lines])
    cases = [f"    {option}) words='{' '.join(known)}' ;;" for option, known in values.items()]
    text = BASH.format(
        name=command.replace("-", "_"),
        command=command,
        words=" ".join([*words, *options]),
        cases="\n".join(cases),
        files="|".join(files),
    )
    bridge = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
    return bridge * (shell == "zsh") + text


def completion(arguments: list[str], line: str) -> str | None:
    """What the shell is given for `-sc query=SHELL`: the suggestions behind the command line `line`; None for another
    command.
    """
    parsed = parsed_arguments(arguments)
    if not parsed.shell_completion or not parsed.overrides[0].startswith("query="):
        return None
    return ("\n" if parsed.overrides[0] == "query=fish" else " ").join(suggestions(line))


def suggestions(line: str) -> list[str]:
    """What the last word of the command line `line` may become, sorted: an option, a key, the choice of a group, the
    value of a key, a path.
    """
    words = line.split()[1:]
    word = "" if line.endswith(" ") or not words else words.pop()
    own = _own_folder(words)
    key, equals, value = word.partition("=")
    if equals:
        return _values(key, value, own)
    if word.startswith("-"):
        return sorted(name for name in option_names() if name.startswith(word))
    prefix, word = word[: len(word) - len(word.lstrip("+"))], word.lstrip("+")
    # Of the options this one alone decides what there is; another may still lack its value, which Hydra would refuse.
    overrides = [given for given in words if not given.startswith("-")]
    known = known_keys([*overrides, "--config-dir", own] if own else overrides)
    groups = [name for name in (*COMPOSED, "experiment", "hydra/launcher") if options(name)]
    nodes = {name for name in known if any(other.startswith(f"{name}.") for other in known)}
    names = {f"{name}." if name in nodes else f"{name}=" for name in known}
    names |= {f"{name}=" for name in (*groups, "repeat")}
    depth = word.count(".")
    return sorted(f"{prefix}{name}" for name in names if name.startswith(word) and name.rstrip(".").count(".") == depth)


def _own_folder(words: Sequence[str]) -> str | None:
    """What --config-dir gives on a command line that is not finished."""
    found = None
    for option, following in pairwise([*words, ""]):
        name, equals, value = option.partition("=")
        if name in ("--config-dir", "-cd"):
            found = (value if equals else following) or found
    return found


def _values(key: str, typed: str, own: str | None) -> list[str]:
    """The overrides of `key` whose value begins with what is `typed`; of a list of values the last is completed."""
    name, (ahead, comma, last) = key.lstrip("+"), typed.rpartition(",")
    rule = RULES.get(name)
    found = choices(name, own)
    if name == SEVERAL and "+" in last:
        chosen = last.rpartition("+")[0]
        found = [f"{chosen}+{choice}" for choice in found if choice not in ("none", *names_of(chosen))]
    if not found and rule is not None:
        found = list(rule.names)
    if name == "repeat" or (rule is not None and rule.is_path):
        last = os.path.expanduser(last)
        found += [f"{place}/" if os.path.isdir(place) else place for place in glob(f"{escape(last)}*")]
    return sorted(f"{key}={ahead}{comma}{value}" for value in found if value.startswith(last))
