"""Differences to a method as blocks of a table; nothing in them is set in bold, whatever its p value."""

from collections.abc import Mapping, Sequence
from typing import Any

from broadopt.analysis.comparing.against import CONFIDENCE, Compared, ComparedCell, compare_cells
from broadopt.analysis.comparing.keys import label
from broadopt.analysis.comparing.lines import Line
from broadopt.analysis.comparing.statistics import Difference, has_diverged, seeds_needed
from broadopt.analysis.comparing.sweep import Sweep
from broadopt.analysis.tables.cells import Cells
from broadopt.analysis.tables.formats import Block
from broadopt.analysis.tables.options import Comparison
from broadopt.analysis.tables.paper_table import DATA_TITLES
from broadopt.analysis.tables.published import PaperTable
from broadopt.analysis.tables.summary import collected_keys, signed, summarise, text
from broadopt.runs.objective import evaluation_point


def name_of(sweep: Sweep, line: Line, also: Sequence[str] = ()) -> str:
    """A line in a sentence, with the keys in `also`, and its budget where that is not the table's."""
    budget = float(line.config["budget"])
    return line.name([*dict.fromkeys((*sweep.columns, *also))]) + (
        "" if budget == sweep.budget else f", budget {budget:g}"
    )


def difference_block(sweep: Sweep, compared: Sequence[Compared], asked: Comparison) -> Block:
    """The differences of one table of runs."""
    other = {id(one.baseline) for one in compared if one.baseline is not None}
    several = len(other) > 1 or sum(one.line.method == asked.against for one in compared) != 1
    which = asked.metric or "what each method reports (collected after the most budgets, else last)"
    header = ["method", *sweep.columns, "n", "accuracy", *titles(asked)]
    header += ["compared with"] if several else []
    return Block(
        heading="",
        caption=f"Difference of the means to {asked.against} in percentage points of test accuracy: {which}.",
        header=tuple(header),
        rows=tuple(tuple(_row(sweep, one, asked, several)) for one in compared),
        labels=0,
        notes=tuple(_notes(sweep, compared, asked)),
    )


def _row(sweep: Sweep, one: Compared, asked: Comparison, several: bool) -> list[str]:
    found, runs = one.difference, one.line.ended
    n = str(len(one.values)) if len(one.values) == runs else f"{len(one.values)} of {runs}"
    cells = [one.line.method, *(label(one.line.value(key)) for key in sweep.columns), n]
    cells += [text(summarise(one.values.values()), n=len(one.values))]
    cells += shown(found)
    if asked.detect:
        cells.append("" if one.seeds is None else str(one.seeds))
    if several:
        cells.append("" if one.baseline is None else name_of(sweep, one.baseline, one.named_by))
    return cells


def titles(asked: Comparison) -> list[str]:
    """The columns of a difference."""
    found = [f"Δ to {asked.against}", f"{100 * CONFIDENCE:g} % interval", "p", "p (Holm)", "test"]
    return found + ([f"seeds for {asked.detect:g}"] if asked.detect else [])


def shown(found: Difference | None) -> list[str]:
    """A difference in five cells: itself, interval, p, p after Holm's correction, test."""
    if found is None:
        return [""] * 5
    interval = "" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"
    return [signed(found.mean), interval, _p(found.p), _p(found.p_holm), found.test]


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(sweep: Sweep, compared: Sequence[Compared], asked: Comparison) -> list[str]:
    return [
        test_note([one.difference for one in compared]),
        *without_interval([(name_of(sweep, one.line), one.difference) for one in compared]),
        *without_baseline(sweep, compared, asked),
        *_left_out(sweep, compared),
        *_not_compared(sweep, compared, asked),
        *power_note(asked),
    ]


def test_note(found: Sequence[Difference | None]) -> str:
    """Which tests were made, and what their p values were corrected for."""
    tested = sum(one is not None and one.p is not None for one in found)
    return (
        "p: two-sided t test, paired by seed where both have the same seeds, else Welch's (unequal variances). "
        f"p (Holm): corrected for {tested} test{'s' * (tested != 1)}, those of this table; the interval is not."
    )


def without_interval(rows: Sequence[tuple[str, Difference | None]]) -> list[str]:
    """A line for each reason why rows have no interval."""
    reasons: dict[str, list[str]] = {}
    for name, found in rows:
        if found is not None and found.why_not:
            reasons.setdefault(found.why_not, []).append(name)
    return [f"{'; '.join(names)}: {why}." for why, names in reasons.items()]


def without_baseline(sweep: Sweep, compared: Sequence[Compared], asked: Comparison) -> list[str]:
    """The line on runs for which there is nothing to compare with."""
    lacking = [one.line for one in compared if one.baseline is None and one.line.method != asked.against]
    names = "; ".join(name_of(sweep, line) for line in lacking)
    return (
        [f"No run of {asked.against} of the same data, network and precision to compare with: {names}."]
        if lacking
        else []
    )


def power_note(asked: Comparison) -> list[str]:
    """What the column of `--detect` is."""
    if not asked.detect:
        return []
    return [
        f"seeds for {asked.detect:g}: of each of the two methods, to find a true difference of {asked.detect:g} "
        "percentage points with a probability of 80 % at p = 0.05, with the spread of these runs and no correction."
    ]


def _left_out(sweep: Sweep, compared: Sequence[Compared]) -> list[str]:
    """The line on runs that failed or diverged, as the footnotes of papers have it."""
    words = []
    for one in compared:
        ended = [run for run in one.line.group.runs if run["state"] in ("finished", "failed")]
        failed = sum(run["state"] == "failed" for run in ended)
        chance = sum(has_diverged(run) for run in ended) - failed
        parts = [f"{count} {word}" for count, word in ((failed, "failed"), (chance, "ended at chance")) if count]
        words += [f"{name_of(sweep, one.line)}: {' and '.join(parts)} of {len(ended)}"] if parts else []
    return [f"n of k: k runs ended, and the differences are those of n. {'; '.join(words)}."] if words else []


def _not_compared(sweep: Sweep, compared: Sequence[Compared], asked: Comparison) -> list[str]:
    """The line on runs with several collectors, of which a run reports what the first predicts."""
    if asked.metric not in (None, "collected"):
        return []
    words: dict[str, None] = {}
    for line in (line for one in compared for line in (one.line, one.baseline) if line is not None):
        further = dict.fromkeys(evaluation_point(key)[0] for key in collected_keys(line.finished))
        further.pop("", None)  # the run's own collector
        words |= {f"{name_of(sweep, line)}: {', '.join(further)}": None} if further else {}
    return [f"Not compared: what further collectors predict on the same runs ({'; '.join(words)})."] if words else []


def difference_record(sweep: Sweep, one: Compared | None, asked: Comparison) -> list[dict[str, Any]]:
    """The same for a CSV."""
    if one is None or one.difference is None or one.baseline is None:
        return []
    other = name_of(sweep, one.baseline, one.named_by)
    record = _numbers(one.difference, one.baseline.method, asked.metric or "reported", compared_with=other)
    return [{**record, "seeds_needed": one.seeds}]


FIELDS = ("against", "compared_with", "low", "high", "p", "p_holm", "test", "seeds_needed")
"""Of a record of a difference, beside those of any other."""


def _numbers(found: Difference, against: str, metric: str, *, compared_with: str) -> dict[str, Any]:
    place: dict[str, Any] = {"quantity": "difference", "metric": metric, "against": against}
    place |= {"compared_with": compared_with, "n": found.n, "mean": found.mean}
    return place | {name: getattr(found, name) for name in ("low", "high", "p", "p_holm", "test")}


def paper_block(
    table: PaperTable, cells: Cells, asked: Comparison, *, failed: Mapping[str, Cells]
) -> tuple[Block, list[dict[str, Any]]]:
    """The differences of the filled cells of a paper's table to those of one method in the same row, and as records for
    CSV. `failed`: the same cells filled with the runs that failed, by their precision, which are counted. Raises
    InputError where the method is no column.
    """
    compared = compare_cells(table, cells, asked, failed)
    found = [(one, one.difference) for one in compared if one.difference is not None]
    to = {one.baseline.title for one in ([one for one, _ in found] or compared)}
    differ, several = len(to) > 1, len({row.dataset for row in table.rows}) > 1
    name = str(asked.against) if differ else to.pop()
    header = [*(("Data",) if several else ()), "Network", "Method", "n", "accuracy", *titles(asked)]
    header += ["compared with"] if differ else []
    names = [f"{one.row.name} {DATA_TITLES[one.row.dataset]} {one.column.title}" for one, _ in found]
    differences = [difference for _, difference in found]
    notes = [test_note(differences), *without_interval(list(zip(names, differences, strict=True)))]
    notes += [PAPER_COUNTS] if any(" of " in one.count for one, _ in found) else []
    block = Block(
        heading=f"Differences to {name}",
        caption="Differences of the means of broadopt's runs above, in percentage points of test accuracy."
        if found
        else f"No row has runs of {name} and of another method.",
        header=tuple(header),
        rows=tuple(tuple(_paper_row(*each, asked, several=several, differ=differ)) for each in found),
        labels=2 if several else 1,
        notes=(*notes, *power_note(asked)) if found else (),
    )
    return block, [_paper_record(table, *each, asked) for each in found]


def _paper_row(one: ComparedCell, found: Difference, asked: Comparison, *, several: bool, differ: bool) -> list[str]:
    cells = [DATA_TITLES[one.row.dataset]] if several else []
    cells += [one.row.name, one.column.title, one.count, text(summarise(one.values.values()), n=len(one.values))]
    cells += shown(found)
    if asked.detect:
        seeds = seeds_needed(one.values, one.others, detect=asked.detect)
        cells.append("" if seeds is None else str(seeds))
    if differ:
        cells.append(one.baseline.title)
    return cells


def _paper_record(table: PaperTable, one: ComparedCell, found: Difference, asked: Comparison) -> dict[str, Any]:
    row, column = one.row, one.column
    place: dict[str, Any] = {"table": table.name, "dataset": row.dataset, "model": row.model, "method": column.method}
    place |= {"protocol": table.protocol, "row": row.name, "column": column.title, "key": column.key}
    metric = asked.metric or column.metric
    return place | _numbers(found, str(asked.against), metric, compared_with=one.baseline.title)


PAPER_COUNTS = (
    "n of k: k runs of the cell ended, and the differences are those of n; the others failed or ended at chance."
)
