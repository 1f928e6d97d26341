"""What has become of a run elsewhere: that of another command, by its exit code and by what it has printed; that of the
other processes of torchrun, by what they have told each other.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from broadopt.errors import OF_NO_USE, InputError, LeftToAnother, RunFailed, Stopped, UnreadableData, printable

if TYPE_CHECKING:
    from broadopt.launchers.sweep import Planned

CRASHES = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)
"""Signals that a process gets for what it does itself: given again, the command would end in the same way."""

NOT_STARTED = (126, 127)
"""Exit codes of a shell, and of env, for a command that cannot be executed, or is not there."""

FROM_TORCHRUN = re.compile(r"(\[rank\d+\]: ?)?\[?[IWE]\d{4} \d\d:\d\d:")
"""The beginning of a line in torch's own log."""


@dataclass(frozen=True)
class Ended:
    """What has become of a run that was carried out elsewhere: its exit code, and where its output is."""

    planned: "Planned"
    code: int | None
    """None where it has not come to an end of its own."""
    output: Path | None
    """None where it was never handed over, as the launcher has said."""
    said: str = ""
    """What the scheduler says of its end."""

    def last_line(self) -> str:
        """Of what it wrote on stderr or stdout; nothing where that is nothing. What torchrun says last, that a process
        has ended, counts only where the process has not said why.
        """
        text = self.output.read_text(errors="replace") if self.output and self.output.exists() else ""
        last, *before = [*filter(str.strip, reversed(text.splitlines())), ""]
        if FROM_TORCHRUN.match(last):
            own = next((line for line in before if not FROM_TORCHRUN.match(line)), "")
            return own if own.startswith("broadopt-run: ") else last
        return last

    def is_for_its_data(self) -> bool:
        """Whether it was refused for data that no run can use."""
        return self.code == 2 and self.last_line().endswith(OF_NO_USE)

    def line(self) -> str:
        """Why it has ended, as far as that is known, and where there is more; empty of a run never handed over."""
        if self.output is None:
            return ""
        said = f"{self.said}: " * bool(self.said)
        if not self.output.exists():
            return f"{said}nothing was printed to {self.output}"
        last = self.last_line()
        return said + (f"{last.removeprefix('broadopt-run: ')} (see {self.output})" if last else f"see {self.output}")


def goes_on(code: int | None) -> bool:
    """Whether the same command goes on with a run of this exit code: it was interrupted, or ended by a signal from
    outside, as a process or a shell reports one.
    """
    return code is None or code == 75 or (code < 0 and -code not in CRASHES) or 128 < code < 128 + signal.NSIG


def what_became(ended: Ended | None) -> Exception:
    """Of a run that has not finished, as the exception that it would have raised here."""
    if ended is None:  # its result was there, and is there no more
        return Stopped("its result has gone")
    refused = UnreadableData if ended.is_for_its_data() else InputError
    kinds: dict[int | None, Callable[[str], Exception]] = {1: RunFailed, 2: refused, 3: LeftToAnother}
    if ended.code in kinds:
        return kinds[ended.code](ended.line())
    if ended.code is None or goes_on(ended.code):
        return Stopped(ended.line())
    if ended.code == 0:
        return RunFailed(f"it has ended well, but the results folder of the sweep has no result of it: {ended.line()}")
    if ended.code < 0:
        return RunFailed(f"ended by {signal.Signals(-ended.code).name}: {ended.line()}")
    could_not = "the command could not be started, " * (ended.code in NOT_STARTED)
    return RunFailed(f"{could_not}exit code {ended.code}: {ended.line()}")


def in_a_sweep(error: Exception) -> str:
    """The line about a failure of one of several runs."""
    line = printable(str(error))
    return line + OF_NO_USE * (isinstance(error, UnreadableData) and OF_NO_USE not in line)


def is_shared(error: Exception, other: Exception) -> bool:
    """Whether two runs have failed by the same data."""
    return isinstance(error, UnreadableData) and isinstance(other, UnreadableData) and str(error) == str(other)


def is_first() -> bool:
    """Whether this process, of those that torchrun may have started, is the one that speaks."""
    return os.environ.get("TORCHELASTIC_RUN_ID") is None or os.environ.get("RANK", "0") == "0"


def speaks(line: str) -> bool:
    """Whether this process is to say why a run has failed: the first of those that torchrun has started says what all
    of them have met, any other what is its own alone.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from broadopt.devices.processes import is_said_by_first  # imports torch

    try:
        return not is_said_by_first(line)
    except (InputError, RuntimeError):  # variables that are not torchrun's, or its store has gone
        return is_first()


@contextmanager
def in_step(*, sweep: bool) -> Iterator[None]:
    """Within the block a run is carried out. Where torchrun has given the sweep to several processes and the run fails
    in one alone, the sweep ends in all of them, with 1: the others wait for that one in the midst of the run, and would
    meet it in the next.
    """
    if not sweep or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    try:
        yield
    except (InputError, RunFailed):
        _end(failed=True)
        raise
    except LeftToAnother:  # as the first process has told the others
        _end(failed=False)
        raise
    _end(failed=False)


def _end(*, failed: bool) -> None:
    from broadopt.devices.processes import have_all_ended  # imports torch

    with suppress(InputError):  # of variables that are not torchrun's, as the run has said
        if have_all_ended(failed=failed):
            return
        line = "one of the processes has failed alone: the sweep ends here; the same command goes on with it"
        print(f"broadopt-run: {line}", file=sys.stderr, flush=True)
        sys.exit(1)
