"""What the command line of broadopt-report asks for."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from broadopt.analysis.status.cells import DEFAULT_SEEDS
from broadopt.analysis.tables.options import parse_seeds
from broadopt.analysis.tables.request import Parser
from broadopt.config.rules import expanded
from broadopt.errors import InputError

HELP = """\
The page has both papers' tables with the published values, every sweep with its learning curves and costs, the runs
that failed, were interrupted, are running or are missing, and the command that repeats each run. It loads nothing
from elsewhere; sorting and filtering need JavaScript, reading does not.

exit codes: 0 written; 1 with --strict, where a result file or a history was left out; 2 bad usage or input; 130 Ctrl-C
"""


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    results: tuple[Path, ...]
    output: Path
    where: tuple[str, ...] = ()
    against: str | None = None
    """The method that the others are compared with; None: SGD, where it is possible."""
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    strict: bool = False


def parse(arguments: Sequence[str]) -> Request:
    """The command line, checked. Raises InputError."""
    parser = Parser(
        prog="broadopt-report",
        description="One HTML file of all that a results folder holds.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "results", metavar="RESULTS", nargs="*",
        help="the folder that holds runs/ (default: results); of several all together, each run once",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="written in one move (default: report.html)"
    )
    parser.add_argument(
        "--where", metavar="KEY=VALUE", action="append", default=[],
        help="only runs whose config has this value, or one of several: --where method=sgd,sam; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--against", metavar="METHOD", help="the method that differences are taken to (default: sgd, where it was run)"
    )
    parser.add_argument(
        "--seeds", help="which seeds a cell of a paper's table is to have, as 1-5 or 1,2,7 (default: 1-3)"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a result or history could not be used")
    given = parser.parse_intermixed_args(arguments)
    for word in (*given.results, given.output):
        if not word:
            raise InputError("an empty name: expected a results folder, and behind -o a file")
    for word in given.results:
        if "=" in word and not os.path.isdir(word):
            raise InputError(f"{word}: expected a results folder; runs are selected by --where {word}")
    return Request(
        results=tuple(Path(expanded(folder, "RESULTS")) for folder in given.results or ["results"]),
        output=Path(expanded(given.output, "--output")),
        where=tuple(given.where),
        against=given.against,
        seeds=parse_seeds(given.seeds) if given.seeds else DEFAULT_SEEDS,
        strict=given.strict,
    )
