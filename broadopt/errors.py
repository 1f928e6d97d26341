"""The ways in which a run ends early, each with its exit code."""

import codecs
import re
from collections.abc import Iterable


class InputError(Exception):
    """Bad config, bad input or missing data, found before anything is trained: one line, exit code 2."""


class UnreadableData(InputError):
    """The data of a run cannot be used, and so by no other run that has the same."""


OF_NO_USE = "; no run with these data can be carried out"
"""What is said behind the reason in a sweep, and by what a launcher knows it."""


class RunFailed(Exception):
    """The run itself failed (non-finite loss, disk full): state "failed", exit code 1."""


class DeviceLost(RunFailed):
    """The run failed, and its GPU does nothing more for this process: what is left of a sweep needs a new one."""


class LeftToAnother(Exception):
    """Another process is on the run, which so is not finished by this one: exit code 3."""


class Interrupted(BaseException):
    """A signal asked the run to stop: exit code 75. Like KeyboardInterrupt it passes through `except Exception`, so it
    ends a sweep.
    """


class Stopped(Exception):
    """`Interrupted` as a process of somebody's launcher reports it to the command."""


class ClosedPipe(BaseException):
    """stdout is a closed pipe, as behind `| head`: ends a command quietly, past whoever reports exceptions."""


def printable(text: str) -> str:
    """`text` on one line, each character that cannot be printed as Python writes it: no line break and no terminal
    escape of a file or a name that anyone may have made comes through.
    """
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


AS_FOUND = "as_found"
"""The way in which codecs write what has no place in an encoding, by `bytes_as_found`."""


def bytes_as_found(error: UnicodeError) -> tuple[bytes, int]:
    """For codecs: bytes of a path that were not to be decoded come out as they were, any other character that has no
    place in an encoding as Python writes it.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    written = (
        bytes([ord(character) - 0xDC00])
        if 0xDC80 <= ord(character) <= 0xDCFF
        else character.encode("ascii", "backslashreplace")
        for character in text
    )
    return b"".join(written), error.end


codecs.register_error(AS_FOUND, bytes_as_found)


def as_typed(name: str) -> str:
    """`name` as it is compared with what people type: without letter case, dashes and underscores."""
    return name.lower().replace("-", "").replace("_", "")


def nearest(word: str, valid: Iterable[str], *, prefix: str = "", cutoff: float = 0.63) -> str:
    """A hint for an unknown `word`: `; did you mean "x"?`, up to three where several are equally near, each behind
    `prefix`; nothing where no valid name is close, since a wrong guess is worse than none.

    A name that is the same but for letter case and dashes is nearer than all others, then comes one of another group,
    then one that begins with the word.
    """
    import difflib

    def likeness(name: str) -> float:
        typed, whole = as_typed(word), as_typed(name)
        if typed == whole:
            return 2
        if typed == re.split("[./]", whole)[-1]:
            return 1
        if len(typed) >= 3 and whole.startswith(typed):
            return 0.9
        return difflib.SequenceMatcher(None, typed, whole).ratio()

    scores = {name: likeness(name) for name in valid}
    best = max(scores.values(), default=0)
    close = sorted(name for name, score in scores.items() if score == best)
    if not word or best < cutoff or len(close) > 3:
        return ""
    *others, last = (f'"{prefix}{name}"' for name in close)
    return f"; did you mean {', '.join(others)}{' or ' * bool(others)}{last}?"


def is_lack_of_memory(error: BaseException | None) -> bool:
    """torch raises OutOfMemoryError on a GPU and a plain RuntimeError on a CPU."""
    return error is not None and bool(
        isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error)
    )
