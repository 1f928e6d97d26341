"""What broadopt-table can be asked about the runs of a folder: which of them, in which order, compared with what."""

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadopt.errors import InputError, as_typed, nearest

if TYPE_CHECKING:
    from broadopt.analysis.tables.published import Metric

METRICS = ("last", "best", "collected")
NAMES = ("where", "columns", "sort", "per_run", "against", "detect", "reach", "at_epoch", "equal_cost")
"""The options here, as argparse has them."""

PER_RUN_FORMATS = ("csv", "json", "parquet")
EQUAL_COSTS = ("gradients", "seconds")

INSTEAD = {
    **dict.fromkeys(("o", "out", "outfile", "file"), "--output"),
    **dict.fromkeys(("dir", "folder", "path", "resultsdir", "r"), "--results"),
    **dict.fromkeys(("f", "fmt", "md", "markdown", "tex", "latex", "csv", "html"), "--format"),
    **dict.fromkeys(("filter", "select", "only"), "--where"),
    **dict.fromkeys(("baseline", "versus", "vs", "compare"), "--against"),
    **dict.fromkeys(("order", "orderby", "sortby"), "--sort"),
    **dict.fromkeys(("perseed", "raw", "json", "parquet"), "--per-run"),
    **dict.fromkeys(("swa", "1"), "table1"),
    **dict.fromkeys(("asam", "sam", "3"), "table3"),
    **dict.fromkeys(("noise", "labelnoise", "table4", "table6"), "label_noise"),
    **dict.fromkeys(("all", "results", "list"), "runs"),
    **{"md": "markdown", "tex": "latex", "htm": "html"},
}
"""What people type for an option, a table or a format, as `nearest` compares names."""


@dataclass(frozen=True)
class Comparison:
    """How runs are selected, arranged and compared."""

    where: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    sort: tuple[str, ...] = ()
    per_run: bool = False
    against: str | None = None
    """The method that the others are compared with."""
    metric: "Metric | None" = None
    """The accuracy that is compared; None: what each run reports."""
    detect: float | None = None
    """A difference in percentage points, for which the seeds that it takes are worked out."""
    reach: float | None = None
    """A test accuracy in percent, to which epochs and seconds are counted."""
    at_epoch: float | None = None
    """An epoch at which unfinished runs are compared too; 0: the last that all have."""
    equal_cost: str | None = None
    """gradients or seconds: the accuracy at which they are those of the baseline."""


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to broadopt-table's."""
    parser.add_argument(
        "--where", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
        help="only runs whose config has these values: step.rho=0.05,0.5 method=sam; none: the key is not there",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="KEY", nargs="+", action="extend", default=[],
        help="runs: keys of the config to show instead of those in which the runs differ",
    )  # fmt: skip
    parser.add_argument(
        "--sort", metavar="KEY", nargs="+", action="extend", default=[],
        help="runs: sorted by keys of the config, or from the highest by last, best or collected",
    )  # fmt: skip
    parser.add_argument(
        "--per-run", action="store_true", help="runs: a row a run and seed, as csv (default), json or parquet"
    )
    parser.add_argument(
        "--against", metavar="METHOD",
        help="the difference of every row to METHOD's, with 95 %% confidence interval and p value (Holm's correction)",
    )  # fmt: skip
    parser.add_argument(
        "--detect", metavar="D", help="with --against: the seeds it takes to see a difference of D percentage points"
    )
    parser.add_argument("--reach", metavar="A", help="runs: epochs and seconds to a test accuracy of A percent")
    parser.add_argument(
        "--at-epoch", metavar="N", nargs="?", const="last",
        help="runs: unfinished runs too, all compared at epoch N, or at the last that all of a table have",
    )  # fmt: skip
    parser.add_argument(
        "--equal-cost", metavar="QUANTITY", nargs="?", const="gradients",
        help="runs: accuracy when as many gradients (default) or seconds are spent as by sgd, or by --against's METHOD",
    )  # fmt: skip


def comparison(given: argparse.Namespace) -> Comparison:
    """The options, checked. Raises InputError."""
    runs = given.table == "runs"
    for option in ("columns", "sort", "per_run", "reach", "at_epoch", "equal_cost"):
        if getattr(given, option) and not runs:
            raise InputError(f"--{option.replace('_', '-')} is for runs: a paper's table has its own form")
    if given.metric is not None:
        one_of("--metric", given.metric, METRICS)
    if given.detect is not None and given.against is None:
        raise InputError("--detect goes with --against: a difference is one to a method")
    if given.equal_cost is not None:
        one_of("--equal-cost", given.equal_cost, EQUAL_COSTS)
    if given.per_run:
        _per_run(given)
    at_epoch = given.at_epoch
    return Comparison(
        where=tuple(given.where),
        columns=_listed(given.columns),
        sort=_listed(given.sort),
        per_run=given.per_run,
        against=given.against,
        metric=given.metric,
        detect=None if given.detect is None else positive("--detect", given.detect, most=100),
        reach=None if given.reach is None else positive("--reach", given.reach, most=100),
        at_epoch=0.0 if at_epoch == "last" else None if at_epoch is None else positive("--at-epoch", at_epoch),
        equal_cost=given.equal_cost,
    )


def _per_run(given: argparse.Namespace) -> None:
    if given.format not in (None, *PER_RUN_FORMATS):
        raise InputError(f"--per-run is written as {', '.join(PER_RUN_FORMATS)}, not as {given.format}")
    if given.format == "parquet" and not given.output:
        raise InputError("--format parquet is binary: --output FILE says where to")
    for option in ("against", "detect", "reach", "at_epoch", "equal_cost", "sort", "metric"):
        if getattr(given, option):
            raise InputError(f"--{option.replace('_', '-')} does not go with --per-run: rows of single runs")


def _listed(words: Sequence[Any]) -> tuple[str, ...]:
    """Words that are separated by blanks or by commas, each once."""
    return tuple(dict.fromkeys(part for word in words for part in word.split(",") if part))


def positive(option: str, text: str, *, most: float = math.inf) -> float:
    """A number > 0. Raises InputError, which names the option."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= most or value == math.inf:
        limit = f" and <= {most:g}" if most < math.inf else ""
        raise InputError(f"{option} {text}: expected a number > 0{limit}")
    return value


def one_of(name: str, value: str, valid: tuple[str, ...]) -> None:
    """Raise InputError where a value is not one of these."""
    if value not in valid:
        raise InputError(f'{name} "{value}" is none of {", ".join(valid)}{nearest_listed(value, valid)}')


def nearest_listed(word: str, valid: Sequence[str]) -> str:
    """The hint of `nearest`, or of INSTEAD; none where several are equally near, since all are listed already."""
    meant = INSTEAD.get(as_typed(word))
    hint = f'; did you mean "{meant}"?' if meant in valid else nearest(word, valid)
    return "" if " or " in hint else hint


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `1-5` or `1,2,7` names, ascending. Raises InputError."""
    seeds: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,19})(?:-(\d{1,19}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not 0 <= last - first < 100_000:
            raise InputError(f"--seeds {text}: expected whole numbers and ranges of them, as 1-5 or 1,2,7")
        seeds.update(range(first, last + 1))
    return tuple(sorted(seeds))


def seeds_in_words(seeds: Sequence[int]) -> str:
    """`1-3, 7` for 1, 2, 3, 7."""
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    return ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in zip(starts, ends, strict=True)
    )
