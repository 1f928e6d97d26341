"""The commands, many of them in one process: what they say of a command line and how they end."""

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from broadopt import export, figure, run
from broadopt import table as tables

MAINS = {
    "broadopt-run": run.main,
    "broadopt-table": tables.main,
    "broadopt-export": export.main,
    "broadopt-figure": figure.main,
}


@contextlib.contextmanager
def captured(cwd: Path) -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """stdout and stderr of a command that is run in this process, in the folder `cwd`."""
    before, root = os.getcwd(), logging.getLogger()
    handlers, argv, environment = root.handlers[:], sys.argv[:], dict(os.environ)
    _forget()
    root.handlers = []
    os.chdir(cwd)
    output, errors = io.StringIO(), io.StringIO()
    output.fileno = errors.fileno = lambda: os.open(os.devnull, os.O_WRONLY)  # type: ignore[method-assign]
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield output, errors
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        root.handlers, sys.argv = handlers, argv
        _forget()


def _forget() -> None:
    """Make Hydra what it is in a process of its own."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def read_csv(path: Path) -> pandas.DataFrame:
    """The rows that a figure has written, below its lines of `#`."""
    return pandas.read_csv(path, comment="#")


def said(program: str, *arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command; whatever else it raises comes out here."""
    code: object = None
    with captured(cwd) as (output, errors):
        os.environ.update(environment)
        sys.argv = [program, *arguments]
        try:
            MAINS[program]()
        except SystemExit as end:
            code = end.code
    return (code if isinstance(code, int) else 0 if code is None else 1), output.getvalue(), errors.getvalue()


def drawn(figure: str, *arguments: object, cwd: Path) -> tuple[pandas.DataFrame, str, str]:
    """The rows of a figure's CSV, the line on stdout, and stderr."""
    code, out, err = said("broadopt-figure", figure, *map(str, arguments), cwd=cwd)
    assert code == 0, err
    assert out.count("\n") == 1
    return read_csv(cwd / f"{figure}.csv"), out, err


def refused(figure: str, *arguments: object, cwd: Path) -> str:
    """The line that broadopt-figure ends with on bad input; nothing is written."""
    code, out, err = said("broadopt-figure", figure, *map(str, arguments), cwd=cwd)
    assert (code, out) == (2, "")
    assert list(cwd.iterdir()) == []
    assert err.startswith("broadopt-figure: ")
    assert err.count("\n") == 1
    return err.removeprefix("broadopt-figure: ").strip()
