"""The rows of a table of runs or of a paper compared with those of one method: which with which, on which accuracy."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.comparing.lines import (
    OF_THE_METHOD,
    Line,
    completed_lines,
    differing_keys,
    follows,
    group_of,
    protocol_of,
)
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
    """None where there is none of the same data, network and precision, or where the line is the baseline itself."""
    values: Mapping[int, float]
    """By seed, of the runs that did not diverge."""
    difference: Difference | None
    seeds: int | None
    """That it takes to see the difference asked for."""
    named_by: tuple[str, ...] = ()
    """Keys of the config that tell the baseline from others, besides the columns of the table."""


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


def best_alike(
    line: Line,
    lines: Iterable[Line],
    *,
    accuracies: Callable[[Line], Mapping[int, float]],
    stands_in: Callable[[Line], bool] = lambda other: True,
) -> Line | None:
    """Of the `lines` with all settings of `line` that with the highest mean of its `accuracies` by seed; where none has
    them, of those that `stands_in` takes in their place. None where there are none.
    """

    def mean(other: Line) -> float:
        values = accuracies(other).values()
        return statistics.fmean(values) if values else 0.0

    known = list(lines)
    alike = [other for other in known if other.settings == line.settings]
    return max(alike or filter(stands_in, known), key=mean, default=None)


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
    return [_compared(sweep, found, asked, against) for sweep in found]


def _compared(sweep: Sweep, found: Sequence[Sweep], asked: Comparison, against: str) -> list[Compared] | None:
    rivals = _Rivals(sweep, found, asked, against)
    chosen = [rivals.baseline(index) for index in range(len(sweep.lines))]
    if not any(chosen) and not rivals.own:
        return None
    rows = {
        index: (rivals.values(line), rivals.values(best[0]))
        for index, (line, best) in enumerate(zip(sweep.lines, chosen, strict=True))
        if best is not None
    }
    tested = differences(rows, confidence=CONFIDENCE)
    return [
        Compared(
            line,
            best[0] if best else None,
            rivals.values(line),
            tested.get(index),
            seeds_needed(*rows[index], detect=asked.detect) if asked.detect and index in rows else None,
            named_by=best[1] if best else (),
        )
        for index, (line, best) in enumerate(zip(sweep.lines, chosen, strict=True))
    ]


class _Rivals:
    """The lines of the baseline that those of a table can be compared with: of the same data, network and precision,
    in the table; where it has none, of the same protocol too at another budget: the ASAM paper gives SGD twice the
    epochs, so that it costs as much.
    """

    def __init__(self, sweep: Sweep, found: Sequence[Sweep], asked: Comparison, against: str) -> None:
        near = [other for other in found if (other.dataset, other.model) == (sweep.dataset, sweep.model)]
        elsewhere = [line for other in near if other is not sweep for line in other.lines if line.method == against]
        # Together: a key that only another table records counts here at the value it has without being recorded.
        lines = completed_lines([*sweep.lines, *elsewhere])
        self._lines = lines[: len(sweep.lines)]
        self._against, self._metric = against, asked.metric
        self._values: dict[str, dict[int, float]] = {}
        own = [line for line in self._lines if line.method == against]
        self.own = [line for line in own if self.values(line)]
        """Those of the table itself that have values."""
        self._pools = {"": own}  # those elsewhere by their protocol
        for line in lines[len(sweep.lines) :]:
            self._pools.setdefault(protocol_of(line), []).append(line)
        self._apart = {place: differing_keys(pool) for place, pool in self._pools.items()}
        self._by_data: dict[Any, list[Line]] = {}
        for place, pool in self._pools.items():
            for line in pool:
                self._by_data.setdefault((place, line.data), []).append(line)

    def values(self, line: Line) -> dict[int, float]:
        """The accuracies of a line by seed."""
        first = line.group.runs[0]["identity"]
        if first not in self._values:
            self._values[first] = by_seed(line.group.runs, self._metric)
        return self._values[first]

    def baseline(self, index: int) -> tuple[Line, tuple[str, ...]] | None:
        """The best of the lines that agree with one of the table in all that is not the method's own, or of all that
        can be compared where none does, and the keys that it is named by; None where that is the line itself, or where
        there is none.
        """
        line = self._lines[index]
        place = ""
        if (place, line.data) not in self._by_data and line.method != self._against:
            place = protocol_of(line)
        known = [other for other in self._by_data.get((place, line.data), []) if self.values(other)]
        best = best_alike(line, known, accuracies=self.values)
        return None if best is None or best is line else (best, self._named_by(line, best, place))

    def _named_by(self, line: Line, best: Line, place: str) -> tuple[str, ...]:
        """The keys in which the lines that there were to choose from differ, and the settings in which the best of
        them differs from the line, but for those that the protocol's name stands for.
        """
        together = [line, *self._pools[place]]
        settings = [key for key in differing_keys([line, best]) if group_of(key) not in OF_THE_METHOD]
        keys = dict.fromkeys([*self._apart[place], *settings])
        several = len({protocol_of(other) for other in together}) > 1
        return tuple(
            key
            for key in keys
            if not key.endswith("_target_") and not (several and follows(key, together, protocol_of))
        )


@dataclass(frozen=True)
class ComparedCell:
    """A cell of a paper's table beside that of the baseline in its row; accuracies are by seed, of the runs that did
    not diverge.
    """

    row: Row
    column: Column
    values: Mapping[int, float]
    count: str
    """Of the runs, as `_cell_count` has it."""
    baseline: Column
    others: Mapping[int, float]
    """The accuracies that the baseline's column reads."""
    difference: Difference | None
    """None where either has no runs."""


def compare_cells(
    table: PaperTable, cells: Cells, asked: Comparison, failed: Mapping[str, Cells]
) -> list[ComparedCell]:
    """The cells of a paper's table beside those of the method `asked.against` in the same row, each by the accuracy
    that its column reads, p values corrected over all. `failed`: the cells filled with the runs that failed, by their
    precision. Raises InputError where the method is no column.
    """
    if asked.against not in table.methods:
        known = ", ".join(table.methods)
        hint = nearest(str(asked.against), table.methods)
        raise InputError(f"--against {asked.against}: expected one of {known}{hint}")
    places = [(row, column) for row in table.rows for column in _compared_columns(table, asked)]
    baselines = {place: _baseline_column(table, *place, cells, asked) for place in places}
    values = {
        (row, column): (_cell_by_seed(row, column, cells, asked), _cell_by_seed(row, baseline, cells, asked))
        for (row, column), baseline in baselines.items()
    }
    tested = differences(values, confidence=CONFIDENCE)
    return [
        ComparedCell(
            row=row,
            column=column,
            values=ours,
            count=_cell_count(row, column, len(ours), cells, failed),
            baseline=baselines[row, column],
            others=others,
            difference=tested.get((row, column)),
        )
        for (row, column), (ours, others) in values.items()
    ]


def _compared_columns(table: PaperTable, asked: Comparison) -> list[Column]:
    """The columns of all methods but the baseline. With `asked.metric`, which is read in all of them, one of those that
    the paper gives of the same runs, as SAM's last and best: the one of this metric, where there is any.
    """
    columns = [column for column in table.columns if column.method != asked.against]
    if asked.metric is None:
        return columns
    chosen: dict[tuple[str, str | None], Column] = {}
    for column in columns:
        place = (column.method, column.key)
        if place not in chosen or (column.metric == asked.metric != chosen[place].metric):
            chosen[place] = column
    return [column for column in columns if column is chosen[column.method, column.key]]


def _baseline_column(table: PaperTable, row: Row, column: Column, cells: Cells, asked: Comparison) -> Column:
    """The column of the baseline that `column` is compared with: one that reads the same accuracy, where there is any;
    last and best are not compared where the paper has both. Of a run with several columns (SWA's budgets) last and best
    stand in the one whose budgets it spent.
    """
    columns = [one for one in table.columns if one.method == asked.against]
    wanted = asked.metric or column.metric
    usual = next((one for one in columns if one.metric == column.metric), columns[-1])
    if asked.metric is None or wanted == "collected":
        return usual
    same = [one for one in columns if one.metric == wanted]
    return next((one for one in (*same, usual, *columns) if _cell_by_seed(row, one, cells, asked)), (*same, usual)[0])


def _cell_by_seed(row: Row, column: Column, cells: Cells, asked: Comparison) -> dict[int, float]:
    """The accuracies that a column of a paper's table reads, by seed, of the cell's runs that did not diverge."""
    group = cells.on_recipe.get((row, column.method))
    runs = [run for run in group.runs if not has_diverged(run)] if group else []
    values = {run["seed"]: value(run, column, asked.metric) for run in runs}
    return {seed: found for seed, found in values.items() if found is not None}


def _cell_count(row: Row, column: Column, n: int, cells: Cells, failed: Mapping[str, Cells]) -> str:
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
