"""The rows of a table of runs or of a paper compared with those of one method: which with which, on which accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broadopt.analysis.comparing.keys import label
from broadopt.analysis.comparing.lines import OF_THE_METHOD, Line, protocol_of
from broadopt.analysis.comparing.statistics import Difference, differences, has_diverged, seeds_needed
from broadopt.analysis.comparing.sweep import Sweep
from broadopt.analysis.tables.cells import Cells
from broadopt.analysis.tables.match import Result
from broadopt.analysis.tables.options import Comparison
from broadopt.analysis.tables.paper_table import value
from broadopt.analysis.tables.published import Column, PaperTable, Row
from broadopt.analysis.tables.summary import longest_key, reading
from broadopt.errors import InputError, nearest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Compared:
    """A line beside the one that it is compared with."""

    line: Line
    baseline: Line | None
    """None where there is none, or where the line is the baseline itself."""
    values: Mapping[int, float]
    """By seed, of the runs that did not diverge."""
    difference: Difference | None
    seeds: int | None
    """That it takes to see the difference asked for."""


def reported(result: Result, metric: str | None) -> float | None:
    """The accuracy of a run that is compared, in percent: `metric`, or where that is None what its collector predicts
    after the most budgets, and that of the last weights of a run without one.
    """
    key = longest_key([result])
    if metric is None:
        metric = "last" if key is None else "collected"
    return reading(result, metric=metric, key=key)


def by_seed(runs: Sequence[Result], metric: str | None) -> dict[int, float]:
    """The accuracies of the runs that finished and did not diverge."""
    known = {run["seed"]: reported(run, metric) for run in runs if run["state"] == "finished" and not has_diverged(run)}
    return {seed: value for seed, value in sorted(known.items()) if value is not None}


def compare(found: Sequence[Sweep], asked: Comparison) -> list[list[Compared] | None]:
    """The lines of each table beside those of the method `asked.against`, p values corrected over the table; None for
    a table without anything to compare with, and for all where none is asked for. Raises InputError where no table
    has the method.
    """
    against = asked.against
    if against is None:
        return [None for _ in found]
    methods = list(dict.fromkeys(line.method for sweep in found for line in sweep.lines if line.finished))
    if against not in methods:
        there = f"; there are {', '.join(methods)}{nearest(against, methods)}" if methods else ""
        raise InputError(f"--against {against}: no finished run of this method{there}")
    return [_compared(sweep, _rivals(sweep, found, against), asked) for sweep in found]


def _rivals(sweep: Sweep, found: Sequence[Sweep], against: str) -> list[Line]:
    """The lines of the baseline in a table; where it has none, those of the same data, network and protocol at another
    budget: the ASAM paper gives SGD twice the epochs, so that it costs as much.
    """
    own = [line for line in sweep.lines if line.method == against]
    protocols = {protocol_of(line) for line in sweep.lines}
    return own or [
        line
        for other in found
        if (other.dataset, other.model) == (sweep.dataset, sweep.model)
        for line in other.lines
        if line.method == against and protocol_of(line) in protocols
    ]


def _compared(sweep: Sweep, rivals: Sequence[Line], asked: Comparison) -> list[Compared] | None:
    values = {id(line): by_seed(line.group.runs, asked.metric) for line in (*sweep.lines, *rivals)}
    rivals = [line for line in rivals if values[id(line)]]
    if not rivals:
        return None
    baselines = {id(line): _baseline(sweep, line, rivals, values) for line in sweep.lines}
    rows = {
        id(line): (values[id(line)], values[id(other)])
        for line in sweep.lines
        if (other := baselines[id(line)]) is not None
    }
    tested = differences(rows, confidence=CONFIDENCE)
    return [
        Compared(
            line,
            baselines[id(line)],
            values[id(line)],
            tested.get(id(line)),
            seeds_needed(*rows[id(line)], detect=asked.detect) if asked.detect and id(line) in rows else None,
        )
        for line in sweep.lines
    ]


def _baseline(
    sweep: Sweep, line: Line, rivals: Sequence[Line], values: Mapping[int, Mapping[int, float]]
) -> Line | None:
    """The best of the baseline's lines that agree with a line in all that is not the method's own, or of all of them
    where none does; None where that is the line itself.
    """
    # Not the columns: which of them are shown must not change what is compared.
    keys = [key for key in sweep.differing if key.split(".")[0] not in OF_THE_METHOD]
    alike = [other for other in rivals if all(label(other.value(key)) == label(line.value(key)) for key in keys)]

    def mean(other: Line) -> float:
        found = values[id(other)].values()
        return sum(found) / len(found)

    best = max(alike or rivals, key=mean)
    return None if best is line else best


def baseline_column(table: PaperTable, column: Column, against: str) -> Column:
    """The column of the baseline that `column` is compared with: one that reads the same accuracy, where there is any;
    last and best are not compared where the paper has both.
    """
    columns = [one for one in table.columns if one.method == against]
    return next((one for one in columns if one.metric == column.metric), columns[-1])


def cell_by_seed(row: Row, column: Column, cells: Cells, asked: Comparison) -> dict[int, float]:
    """The accuracies that a column of a paper's table reads, by seed, of the cell's runs that did not diverge."""
    group = cells.on_recipe.get((row, column.method))
    runs = [run for run in group.runs if not has_diverged(run)] if group else []
    values = {run["seed"]: value(run, column, asked.metric) for run in runs}
    return {seed: found for seed, found in values.items() if found is not None}


def cell_count(row: Row, column: Column, n: int, cells: Cells, failed: Mapping[str, Cells]) -> str:
    """`n`, or "n of k" where k runs of a cell have ended; `failed`: those that failed, by the precision that a cell
    holds.
    """
    place = (row, column.method)
    finished = cells.on_recipe.get(place)
    if finished is None:
        return str(n)
    alike = failed.get(finished.precision)
    broken = alike.on_recipe.get(place) if alike else None
    ended = len(finished.runs) + (len(broken.runs) if broken else 0)
    return str(n) if n == ended else f"{n} of {ended}"
