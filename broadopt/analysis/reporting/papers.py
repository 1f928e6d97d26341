"""The published tables beside the runs that repeat their recipes, a row a published value."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broadopt.analysis.comparing.statistics import interval
from broadopt.analysis.reporting.gathered import Gathered
from broadopt.analysis.reporting.parts import Section, Table, count
from broadopt.analysis.reporting.repeating import runs_to_do
from broadopt.analysis.status import cells as status
from broadopt.analysis.tables import paper_table, published
from broadopt.analysis.tables.cells import Context, fill
from broadopt.analysis.tables.match import Recipes
from broadopt.analysis.tables.paper_table import DATA_TITLES
from broadopt.analysis.tables.published import Column, PaperTable, Row
from broadopt.analysis.tables.summary import Summary, signed, text
from broadopt.config.shipped import paper_dir

TABLES = ("table1", "table3")

HEADER = (
    *("data", "network", "method", "which", "n", "broadopt", "95 % interval", "Δ"),
    *("paper", "paper n", "precision"),
)

INTERVAL = (
    "95 % interval: of the mean of broadopt's runs, by Student's t over n seeds; one seed has none. It takes no "
    "account of the spread of the paper's own runs."
)


def sections(found: Gathered, recipes: Recipes, seeds: Sequence[int]) -> list[Section]:
    """A section a paper."""
    return [_section(name, found, recipes, seeds) for name in TABLES]


def _section(name: str, found: Gathered, recipes: Recipes, seeds: Sequence[int]) -> Section:
    context = Context(published.load(name, folder=paper_dir()), recipes)
    table = context.table
    document = paper_table.build(found.finished, context=context)
    main = document.blocks[0]
    records = [record for record in document.records if record["table"] == table.name]
    rows = [
        _row(row, column, record)
        for (row, column), record in zip(_places(table), records, strict=True)
        if record["n"] or record["paper_mean"] is not None
    ]
    shown = Table(
        name=f"{name}-values",
        caption=f"{table.title}: test accuracy in percent, broadopt's runs beside the published values.",
        header=HEADER,
        rows=tuple(rows),
        heads=3,
        notes=(*main.notes, INTERVAL),
    )
    paragraphs = [main.caption, *_off_recipe(found, context)]
    if not any(record["n"] for record in records):
        # What was not run is not shown as if it had been: the published values alone are a click away.
        return Section(name, table.title, tuple(paragraphs), folded=(shown,))
    # Of a selection it is not known what is missing: what was not selected is.
    to_do, remark = (None, ()) if found.selected else _to_do(table, found, recipes, seeds)
    tables = (shown, to_do) if to_do and to_do.rows else (shown,)
    return Section(name, table.title, (*paragraphs, *remark), tables=tables)


def _places(table: PaperTable) -> list[tuple[Row, Column]]:
    """Rows and columns in the order of a paper table's records."""
    return [(row, column) for row in table.rows for column in table.columns]


def _row(row: Row, column: Column, record: Mapping[str, Any]) -> tuple[str, ...]:
    which = f"{record['metric']} {record['key'] or ''}".strip()
    ours = Summary(record["mean"], record["std"], record["n"]) if record["n"] else None
    paper = row.cells[column.name]
    theirs = text(Summary(paper.mean, paper.std, 0), n=0) if paper.mean is not None else ""
    return (
        DATA_TITLES[row.dataset],
        row.name,
        column.title,
        which,
        str(ours.n) if ours else "",
        text(ours, n=ours.n if ours else None),
        _interval(ours),
        "" if record["difference"] is None else signed(record["difference"]),
        theirs,
        "" if paper.runs is None or not theirs else str(paper.runs),
        record["precision"] or "",
    )


def _interval(ours: Summary | None) -> str:
    ends = None if ours is None else interval(ours)
    return "" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"


def _off_recipe(found: Gathered, context: Context) -> list[str]:
    runs = sum(len(group.runs) for group, _ in fill(found.finished, context=context).off_recipe)
    if not runs:
        return []
    verb = "repeats" if runs == 1 else "repeat"
    return [f"{count(runs, 'finished run')} {verb} no cell of this table: see the sweeps, which say what differs."]


def _to_do(table: PaperTable, found: Gathered, recipes: Recipes, seeds: Sequence[int]) -> tuple[Table, tuple[str, ...]]:
    """The runs that cells which have any run still lack, and a sentence on the cells that have none."""
    cells = status.of_table(table, found.folder, recipes, seeds=seeds).cells
    begun = [cell for cell in cells if cell.count("missing") < len(cell.runs)]
    rows = [
        (" ".join(cell.labels[:-1]), cell.labels[-1], str(run.seed), run.state, run.words or "not run yet", command)
        for cell, run, command in runs_to_do(begun, found)
    ]
    shown = Table(
        name=f"{table.name}-missing",
        caption=f"{table.title}: runs that begun cells still lack.",
        header=("network", "method", "seed", "state", "reason", "what to type"),
        rows=tuple(rows),
        heads=3,
        commands=5,
    )
    untouched = len(cells) - len(begun)
    if not untouched:
        return shown, ()
    place = "" if found.roots[0] == Path("results") else f" --results {shlex.quote(str(found.roots[0]))}"
    remark = f"{count(untouched, 'cell')} of {len(cells)} without any run: broadopt-table {table.name} --missing{place}"
    return shown, (f"{remark} prints the commands.",)
