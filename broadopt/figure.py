"""broadopt-figure: figures of finished runs, with the numbers behind them and one line that says what is seen."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from broadopt.signals import Stop, loading

with loading():
    from broadopt import streams
    from broadopt.analysis.figures.catalogue import FIGURES
    from broadopt.analysis.figures.request import Request, parse
    from broadopt.devices.threads import let_waiting_threads_sleep
    from broadopt.errors import InputError, Interrupted, RunFailed, printable


@streams.ended_by_ctrl_c()
def main() -> None:
    """Entry point of broadopt-figure; ends the process with the exit code of the contract."""
    streams.prepare(encoding="utf-8")
    let_waiting_threads_sleep()
    try:
        with streams.complete_output("broadopt-figure", closed_pipe=0), Stop():
            print(draw(parse(sys.argv[1:])))
    except Interrupted as signal:
        _leave(f"stopped by {signal}: the same command {_then(sys.argv[1:])}", 75)
    except InputError as error:
        _leave(str(error), 2)
    except RunFailed as error:
        _leave(str(error), 1)


def draw(request: Request) -> str:
    """Measure and draw a figure and write its files; the line that says what is seen. Raises InputError, RunFailed and
    Interrupted.
    """
    from broadopt.analysis.figures.catalogue import function_of
    from broadopt.analysis.figures.output import styled, write

    function = function_of(FIGURES[request.figure])
    with styled(request.style):
        try:
            drawing = function(request)
            paths = write(drawing, request)
        except (InputError, RunFailed):
            raise
        except Exception as error:  # a network of the user's own may raise anything, and torch where memory is short
            raise _unforeseen(error) from error
    print(f"broadopt-figure: wrote {', '.join(map(str, paths))}", file=sys.stderr)
    return drawing.seen


def _unforeseen(error: Exception) -> RunFailed:
    """The failure, in a line, that an error of a kind which nobody foresaw amounts to."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exception(error)
    return RunFailed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (HYDRA_FULL_ERROR=1 shows where)")


def _then(arguments: Sequence[str]) -> str:
    """What the command does when it is given again."""
    entry = FIGURES.get(arguments[0]) if arguments else None
    return "goes on" if entry is not None and entry.resumes else "begins anew"


def _leave(line: str, code: int) -> NoReturn:
    print(f"broadopt-figure: {printable(line)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
