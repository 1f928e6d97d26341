"""broadopt-table: the paper's tables and an overview of all runs, made from result files alone."""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from broadopt.errors import InputError, nearest

if TYPE_CHECKING:
    from broadopt.tables.match import Compose
    from broadopt.tables.published import Metric

TABLES = ("table1", "table3", "runs")
METRICS = ("last", "best", "collected")
FORMATS = ("markdown", "latex", "csv", "html")
REQUIRED = (
    "identity",
    "state",
    "dataset",
    "model",
    "method",
    "protocol",
    "seed",
    "config",
    "epochs",
    "budget",
    "metrics",
    "cost",
    "environment",
)

HELP = """\
table1   Table 1 of the SWA paper: SGD, FGE and SWA; SGD by its last weights, FGE and SWA by what they collected
table3   Table 3 of the ASAM paper: SGD, SAM and ASAM by their best epoch, as the paper reports it
runs     every finished run of the folder, also those that belong to no paper's table

the numbers:
  broadopt   mean ± sample standard deviation (number of seeds) of the finished runs that repeat
             the recipe of the row
  paper      the published value; its source, cell by cell, is in results/paper/*.yaml
  Δ          mean of broadopt minus mean of the paper
  last       test accuracy of the weights after the last epoch
  best       test accuracy of the best epoch, chosen on the test set; never to be compared with last
  collected  test accuracy of SWA's averaged weights or FGE's ensemble after 1, 1.25 or 1.5 budgets

A run that differs from its recipe (fewer epochs, other data) stands in a table of its own, with what differs.

exit codes: 0 written; 1 with --strict, where a result file was left out; 2 bad usage or input
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in the form of all of broadopt's: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see broadopt-table --help")


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    table: str
    results: Path
    metric: "Metric | None"
    format: str
    output: Path | None
    strict: bool


def main() -> None:
    """Entry point of broadopt-table; ends the process with the exit code of the contract."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # ± and Δ, whatever the locale
    try:
        request = parse(sys.argv[1:])
        document, left_out = make(request)
        _write(document, request.output)
    except InputError as error:
        print(f"broadopt-table: {error}", file=sys.stderr)
        sys.exit(2)
    # A CSV has no room for remarks, and a file may be read by nobody for a while.
    if request.output or request.format == "csv":
        for line in left_out:
            print(f"broadopt-table: {line}", file=sys.stderr)
    sys.exit(1 if request.strict and any(line.startswith("left out") for line in left_out) else 0)


def parse(arguments: Sequence[str]) -> Request:
    """The command line, checked. Raises InputError."""
    parser = Parser(
        prog="broadopt-table",
        description="Tables of finished runs beside the published numbers.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", help="table1, table3 or runs")
    parser.add_argument(
        "--results", metavar="DIR", default="results", help="the folder that holds runs/ (default: results)"
    )
    parser.add_argument("--metric", help="last, best or collected in every column, instead of what the paper reports")
    parser.add_argument("--format", default="markdown", help="markdown (default), latex, csv or html")
    parser.add_argument("--output", metavar="FILE", help="write there, in one move, instead of to the terminal")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a result file could not be used")
    given = parser.parse_args(arguments)
    _one_of("table", given.table, TABLES)
    _one_of("--format", given.format, FORMATS)
    if given.metric is not None:
        _one_of("--metric", given.metric, METRICS)
        if given.table == "runs":
            raise InputError("--metric is for table1 and table3: runs shows last, best and collected")
    output = Path(given.output) if given.output else None
    return Request(given.table, Path(given.results), given.metric, given.format, output, given.strict)


def _one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InputError(f'{name} "{value}" is none of {", ".join(valid)}{nearest(value, valid)}')


def make(request: Request, *, compose: "Compose | None" = None) -> tuple[str, list[str]]:
    """The document as text, and a line on all that is not in it.

    These lines begin with `not counted` (unfinished runs) or `left out` (files that cannot be used). `compose` gives
    the recipes that runs are compared with: broadopt.config.recipe unless told otherwise.
    """
    from broadopt import config
    from broadopt.results import read_all
    from broadopt.tables import formats, paper_table, published, runs_table
    from broadopt.tables.cells import Context
    from broadopt.tables.match import Recipes

    if not request.results.is_dir():
        raise InputError(
            f"results folder {request.results} does not exist: --results names the folder that holds runs/"
        )
    results, unusable = read_all(request.results)
    complete = [result for result in results if not _lacks(result)]
    unusable += [f"{result['folder']}: without {', '.join(_lacks(result))}" for result in results if _lacks(result)]
    finished = [result for result in complete if result["state"] == "finished"]
    remarks = _unfinished(complete) + [f"left out: {line}" for line in sorted(unusable)]
    recipes = Recipes(compose or config.recipe, methods=config.config_dir() / "method")
    if request.table == "runs":
        document = runs_table.build(finished, recipes=recipes)
    else:
        table = published.load(request.table, folder=config.paper_dir())
        document = paper_table.build(finished, context=Context(table, recipes), metric=request.metric)
    return formats.FORMATS[request.format](replace(document, remarks=tuple(remarks))), remarks


def _lacks(result: dict[str, Any]) -> list[str]:
    return [key for key in REQUIRED if key not in result]


def _unfinished(results: Sequence[dict[str, Any]]) -> list[str]:
    """`not counted: 2 interrupted (folder, folder)`, one line a state."""
    counts = Counter(result["state"] for result in results if result["state"] != "finished")
    lines = []
    for state, count in sorted(counts.items()):
        folders = [result["folder"] for result in results if result["state"] == state]
        more = f" and {count - 5} more" if count > 5 else ""
        lines.append(f"not counted: {count} {state} ({', '.join(folders[:5])}{more})")
    return lines


def _write(document: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(document)
        sys.stdout.flush()
        return
    from broadopt.checkpoint import replacing

    try:
        with replacing(output) as file:
            file.write(document.encode("utf-8"))
    except OSError as error:
        raise InputError(f"--output {output} cannot be written: {error.strerror or error}") from error
