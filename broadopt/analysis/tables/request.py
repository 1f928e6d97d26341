"""What the command line of broadopt-table asks for."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from broadopt.analysis.tables import options
from broadopt.analysis.tables.options import METRICS, Comparison, nearest_listed, one_of, parse_seeds, positive
from broadopt.config.rules import RULES, checked, expanded
from broadopt.config.run_config import EXECUTION
from broadopt.config.shipped import paper_dir
from broadopt.errors import InputError, nearest

TABLES = ("table1", "table3", "label_noise", "runs")
FORMATS = ("markdown", "latex", "csv", "html")
ADDED = tuple(
    key for key in RULES if key == "precision" or (key.partition(".")[0] in EXECUTION and key != "results_dir")
)
"""Keys that --missing adds to its commands: the run remains one of the table. Its results folder is --results."""

OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep")
"""Beginnings of keys that a command with -m takes, and one of --missing, a single run, does not."""

LONGEST_WATCH = 86_400
"""Seconds between two looks: a day."""

HELP = """\
table1   Table 1 of the SWA paper: SGD, FGE and SWA; SGD by its last weights, FGE and SWA by what they collected
table3   Table 3 of the ASAM paper: SGD, SAM and ASAM by their best epoch, as the paper reports it
label_noise  SGD, SAM and ASAM by the share of wrong training labels, beside the tables of the SAM and ASAM papers
runs     every finished run of the folder, also those that belong to no paper's table

the numbers:
  broadopt   mean ± sample standard deviation (number of seeds) of the finished runs that repeat
             the recipe of the row
  paper      the published value; its source, cell by cell, is in
             {papers}/*.yaml
  Δ          mean of broadopt minus mean of the paper
  last       test accuracy of the weights after the last epoch
  best       test accuracy of the best epoch, chosen on the test set; never to be compared with last
  collected  test accuracy of SWA's averaged weights or FGE's ensemble after 1, 1.25 or 1.5 budgets

A run that differs from its recipe (fewer epochs, other data) is in a table of its own, with what differs.

status:
  --status          of each cell the runs that are finished, running, interrupted, failed and missing, and device hours
  --watch           the same, anew every few seconds until Ctrl-C
  --missing         the commands that fill the table, one a line; OVERRIDEs are added to each: precision, hydra.KEY
                    and the keys that say how a run is carried out (device, data_dir, checkpoint.predictor, ...):
                    broadopt-table table3 --missing data_dir=/data/cifar | sh

tab completion:  eval "$(broadopt-table --completion bash)"   (or zsh; broadopt-table --completion fish | source)

exit codes: 0 written; 1 with --strict, where a result file or a history was left out; 2 bad usage or input; 130 Ctrl-C
"""


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in the form of all of broadopt's: one line."""

    def error(self, message: str) -> NoReturn:
        if unknown := re.match(r"unrecognized arguments: (-\S+)", message):
            hint = nearest_listed(unknown[1].partition("=")[0], long_options(self))
            raise InputError(f"unknown option {unknown[1]}{hint or f'; see {self.prog} --help'}")
        raise InputError(f"{message}; see {self.prog} --help")


class Completion(argparse.Action):
    """--completion SHELL: prints what a shell evaluates to complete a command by its `words` and options (those of the
    parser where none are given), and behind an option by its `known` values, or by paths behind those of `files`.
    """

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        words: Sequence[str],
        files: Sequence[str],
        known: Mapping[str, Sequence[str]] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(option_strings, dest, metavar="SHELL", help="tab completion for bash, zsh or fish")
        self.words, self.files, self.known, self.options = words, files, known or {}, options

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> None:
        """Raise InputError for a shell that is not known, else end the process with 0."""
        from broadopt.completion import SHELLS, script  # imports Hydra, which --help does not need

        one_of("--completion", values, SHELLS)
        offered = {**self.known, "--completion": SHELLS}
        names = self.options or long_options(parser)
        command = parser.prog.split()[0]
        print(script(values, command, words=self.words, options=names, values=offered, files=self.files))
        parser.exit()


def long_options(parser: argparse.ArgumentParser) -> list[str]:
    """The options of a parser that begin with two dashes, in its order."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    table: str
    results: tuple[Path, ...]
    """One or more; status and commands are of the first."""
    format: str
    output: Path | None
    strict: bool
    view: str = "table"
    """`table`, `status` or `missing`."""
    seeds: tuple[int, ...] | None = None
    tflops: float | None = None
    watch: float | None = None
    """Seconds between two looks."""
    overrides: tuple[str, ...] = ()
    comparison: Comparison = field(default_factory=Comparison)


def parse(arguments: Sequence[str]) -> Request:
    """The command line, checked. Raises InputError."""
    parser = _parser()
    given = parser.parse_intermixed_args(arguments)
    view = "status" if given.status or given.watch else "missing" if given.missing else "table"
    if not given.table:
        parser.error("the following arguments are required: TABLE")
    one_of("table", given.table, TABLES)
    if given.format in ("json", "parquet") and not given.per_run:
        raise InputError(f"--format {given.format} goes with runs --per-run, which writes a row a run")
    if given.format is not None and not given.per_run:
        one_of("--format", given.format, FORMATS)
    comparison = options.comparison(given)
    _fits(given, view)
    return Request(
        given.table,
        tuple(Path(expanded(folder, "--results")) for folder in given.results or ["results"]),
        given.format or ("csv" if given.per_run else "markdown"),
        Path(expanded(given.output, "--output")) if given.output else None,
        given.strict,
        view=view,
        seeds=parse_seeds(given.seeds) if given.seeds else None,
        tflops=positive("--tflops", given.tflops) if given.tflops else None,
        watch=positive("--watch", given.watch, most=LONGEST_WATCH) if given.watch else None,
        overrides=_overrides(given.overrides),
        comparison=comparison,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="broadopt-table",
        description="Tables of finished runs beside the published numbers.",
        epilog=HELP.format(papers=paper_dir()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("table", metavar="TABLE", nargs="?", default="", help="table1, table3, label_noise or runs")
    parser.add_argument(
        "--results", metavar="DIR", action="append",
        help="the folder that holds runs/ (default: results); given several times, all of them together",
    )  # fmt: skip
    parser.add_argument("--metric", help="last, best or collected in every column, instead of what the paper reports")
    parser.add_argument("--format", help="markdown (default), latex, csv or html; with --per-run csv, json or parquet")
    parser.add_argument("--output", metavar="FILE", help="write there, in one move, instead of to the terminal")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a result or history could not be used")
    parser.add_argument("overrides", metavar="OVERRIDE", nargs="*", help="with --missing: added to each command")
    views = parser.add_mutually_exclusive_group()
    views.add_argument("--status", action="store_true", help="how far the runs of each cell are")
    views.add_argument("--missing", action="store_true", help="the commands that would fill the table")
    views.add_argument(
        "--watch", metavar="SECONDS", nargs="?", const="10", help="--status, anew every SECONDS (default: 10)"
    )
    parser.add_argument(
        "--seeds", help="with --status or --missing: which seeds a cell is to have, as 1-5 or 1,2,7 (default: 1-3)"
    )
    parser.add_argument(
        "--tflops",
        metavar="X",
        help="with --status: 10^12 operations a second of a device, for networks that no run has measured (default: "
        "what the network, or the nearest one of its class, reached on an H100, else a tenth of that card's bf16 peak)",
    )
    options.add(parser)
    formats = tuple(dict.fromkeys((*FORMATS, *options.PER_RUN_FORMATS)))
    known = {"--format": formats, "--metric": METRICS, "--equal-cost": options.EQUAL_COSTS}
    parser.add_argument("--completion", action=Completion, words=TABLES, known=known, files=("--results", "--output"))
    return parser


def _fits(given: argparse.Namespace, view: str) -> None:
    """Raise InputError where an option belongs to another view than the one that is asked for."""
    runs = given.table == "runs"
    if runs and given.metric is not None and given.against is None:
        raise InputError("--metric is for the papers' tables: runs shows last, best and collected")
    if runs and (view == "missing" or given.seeds):
        raise InputError(f"{'--missing' if view == 'missing' else '--seeds'} is for the papers' tables: no paper says "
                         "what runs there should be")  # fmt: skip
    unfit = {
        **{f"--{name.replace('_', '-')}": getattr(given, name) and view != "table" for name in options.NAMES},
        "--metric": given.metric and view != "table",
        "--results given twice": len(given.results or ()) > 1 and view != "table",
        "--format": given.format and view == "missing",
        "--output": given.output and given.watch,
        "--seeds": given.seeds and view == "table",
        "--tflops": given.tflops and view != "status",
        " ".join(given.overrides): given.overrides and view != "missing",
    }
    for word in given.overrides if view != "missing" else ():
        key, equals, _ = word.partition("=")
        hint = (
            nearest_listed(f"--{key}", ("--results", "--output", "--format", "--metric", "--seeds")) if equals else ""
        )
        if hint or os.path.isdir(word):
            raise InputError(f"{word}: expected an option{hint or f'; the folder of results is --results {word}'}")
        if equals and key not in ADDED and not key.startswith("hydra"):
            raise InputError(f"{word}: expected an option; runs are selected by --where {word}")
    for option in (option for option, given_in_vain in unfit.items() if given_in_vain):
        shown = "--watch" if given.watch else f"--{view}" if view != "table" else "a table of results"
        raise InputError(f"{option} does not go with {shown}; see broadopt-table --help")


def _overrides(given: Sequence[str]) -> tuple[str, ...]:
    """The overrides, each checked, and all together as the run checks them. Raises InputError."""
    found = tuple(map(_override, given))
    words: dict[str, list[str]] = {}
    for text in found:
        words.setdefault(text.partition("=")[0], []).append(text)
    known = [text for key, own in words.items() if key in ADDED and "${" not in "".join(own) for text in own]
    if known:
        from broadopt.config.arguments import quoted_path
        from broadopt.config.compose import compose, run_config

        run_config(compose([quoted_path(text, sweep=False) for text in known]))
    return found


def _override(text: str) -> str:
    """An override that may be added to a printed command: it must not make it another run, nor one that is refused."""
    key = text.partition("=")[0]
    if "=" not in text or not (key in ADDED or key.startswith(("hydra.", "hydra/"))):
        hint = nearest(key, ADDED) or "; --results names it" * (key == "results_dir")
        raise InputError(f"{text}: expected KEY=VALUE with one of {', '.join(ADDED)} or hydra.KEY{hint}")
    if key.startswith(OF_SWEEPS):
        raise InputError(f"{text}: that is for the runs of a sweep, and each of these commands is a single run")
    if key in ADDED and "${" not in text:  # what an interpolation stands for, the run will see
        _check_value(key, text)
    return text


def _check_value(key: str, text: str) -> None:
    """Raise InputError for an override whose value broadopt-run would not take."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from broadopt.config.arguments import quoted_path

    try:
        override = OverridesParser.create().parse_override(quoted_path(text, sweep=False))
    except HydraException as error:
        raise InputError(f"{text}: expected {RULES[key].words}") from error
    if override.is_sweep_override():
        raise InputError(f"{text}: several values are a sweep, and each of these commands is a single run")
    group, _, leaf = key.rpartition(".")
    checked({group: {leaf: override.value()}} if group else {leaf: override.value()})
