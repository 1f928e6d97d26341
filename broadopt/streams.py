"""The standard streams of a command, whatever they lead to: nowhere, to a full disk, to a closed pipe, or to a terminal
that knows few characters.

A message that cannot be written ends no run. Neither does what a run prints, which is in its folder as well; the
command ends with a line about it and 1. A closed pipe ends it quietly.
"""

import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from broadopt.errors import AS_FOUND, ClosedPipe

STREAMS = (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY))
"""By their descriptors."""


class Waiting(io.FileIO):
    """A descriptor to write to, which waits for its reader also where somebody has set it to O_NONBLOCK: ssh, node and
    others leave a terminal so.
    """

    def write(self, data: Any) -> int:
        """As FileIO of a descriptor that blocks."""
        while (written := super().write(data)) is None:
            select.select([], [self], [])
        return written


class Messages(Waiting):
    """A descriptor to write to, which drops what does not go there."""

    failure: OSError | None = None
    """Why something was dropped, the first time."""

    def write(self, data: Any) -> int:
        """As Waiting, but raises nothing."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


class Output(Messages):
    """The same for what was asked for: a closed pipe is reported, once."""

    def write(self, data: Any) -> int:
        """As Waiting; raises BrokenPipeError, the first time, and nothing else."""
        known = self.failure
        written = super().write(data)
        if known is None and isinstance(self.failure, BrokenPipeError):
            raise self.failure
        return written


def prepare(*, encoding: str | None = None) -> None:
    """Make the streams fit to be used, ahead of all that is said. Closed ones lead nowhere, stderr takes any message,
    and characters that a stream does not know are written by `bytes_as_found`. `encoding`: of stdout, where it is
    not the locale's.
    """
    for number, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file that is opened would have this number, and what is printed would go into it.
            os.set_inheritable(os.open(os.devnull, mode), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if mode == os.O_RDONLY else "w", closefd=False))
    stdout = _over(sys.stdout, 1, Waiting, encoding=encoding)
    if stdout is sys.stdout and isinstance(stdout, io.TextIOWrapper):  # what has been put in the place of the real one
        stdout.reconfigure(encoding=encoding, errors=AS_FOUND)
    sys.stdout = stdout
    sys.stderr = _over(sys.stderr, 2, Messages)


@contextmanager
def complete_output(command: str, *, closed_pipe: int) -> Iterator[None]:
    """Within the block what is printed may get lost; at its end that is an error of the `command`: a line and exit
    code 1, or nothing but the code `closed_pipe`, unless it ends with another already.
    """
    before, end = sys.stdout, None
    sys.stdout = stream = _over(before, 1, Output)
    try:
        yield
    except SystemExit as error:
        end = error
    except (BrokenPipeError, ClosedPipe):
        end = SystemExit(closed_pipe)
    finally:
        with suppress(BrokenPipeError):
            stream.flush()
        sys.stdout = before
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    failure = raw.failure if isinstance(raw, Output) else None
    if failure is not None and (end is None or not end.code):
        if isinstance(failure, BrokenPipeError):
            sys.exit(closed_pipe)
        print(f"{command}: stdout cannot be written: {failure.strerror or failure}", file=sys.stderr)
        sys.exit(1)
    if end is not None:
        raise end


@contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Within the block, or the function that this decorates, Ctrl-C ends the process with 130, as it ends what a shell
    runs: where there is nothing to save.
    """
    try:
        yield
    except KeyboardInterrupt:
        drop_output()
        sys.exit(130)


def drop_output() -> None:
    """What is left to be written to stdout goes nowhere: on its way to the end Python would write it, and complain of
    what cannot be written or wait for who does not read.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _over(stream: TextIO, number: int, kind: type[io.FileIO], *, encoding: str | None = None) -> TextIO:
    """`stream` with a descriptor of that `kind`; one that something else has put in the place of the real stays."""
    if type(stream) is not io.TextIOWrapper or _descriptor(stream) != number:
        return stream
    stream.flush()  # what was printed before comes first
    return io.TextIOWrapper(
        io.BufferedWriter(kind(number, "w", closefd=False)),
        encoding=encoding or stream.encoding,
        errors=AS_FOUND,
        line_buffering=stream.line_buffering or number == 2,
        write_through=stream.write_through,
    )


def _descriptor(stream: TextIO) -> int | None:
    """The number of a stream's descriptor; None of one in memory."""
    try:
        return stream.fileno()
    except io.UnsupportedOperation:
        return None
