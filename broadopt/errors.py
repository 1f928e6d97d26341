"""The ways in which a run ends early, each with its exit code."""

from collections.abc import Iterable


class InputError(Exception):
    """Bad config, bad input or missing data, found before anything is trained: one line, exit code 2."""


class RunFailed(Exception):
    """The run itself failed (non-finite loss, disk full): state "failed", exit code 1."""


class LeftToAnother(Exception):
    """Another process is on the run, which so is not finished by this one: exit code 3."""


class Interrupted(BaseException):
    """A signal asked the run to stop: exit code 75. Like KeyboardInterrupt it passes through `except Exception`, so it
    ends a sweep.
    """


def printable(text: str) -> str:
    """`text` on one line, each character that cannot be printed as Python writes it: no line break and no terminal
    escape of a file or a name that anyone may have made comes through.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def nearest(word: str, valid: Iterable[str]) -> str:
    """A hint for an unknown `word`: `; did you mean "x"?`, or nothing where no valid name is close."""
    import difflib

    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""
