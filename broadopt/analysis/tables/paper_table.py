"""A paper's table with broadopt's runs beside the published values."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.tables.cells import Cells, Context, fill
from broadopt.analysis.tables.formats import Block, Document
from broadopt.analysis.tables.match import Group, Result
from broadopt.analysis.tables.off_recipe import figures, off_recipe_block, off_recipe_records
from broadopt.analysis.tables.published import Column, Metric, PaperTable, Published, Row
from broadopt.analysis.tables.summary import Summary, has_diverged, reading, signed, summarise, text

DATA_TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
WORDS = {
    "last": "the weights after the last epoch",
    "best": "the best epoch on the test set",
    "collected": "what SWA or FGE predicts after the budgets named",
}


@dataclass(frozen=True)
class Cell:
    """One cell: ours, the paper's, and the difference of the means where both are the same kind of number."""

    column: Column
    ours: Summary | None
    paper: Published
    difference: float | None


def build(results: Iterable[Result], *, context: Context, metric: Metric | None = None) -> Document:
    """The paper's table, and below it the runs off its recipes. `metric`, where given, is read in every column."""
    table = context.table
    cells = fill(results, context=context)
    filled = {row: [_cell(row, column, cells, metric) for column in table.columns] for row in table.rows}
    several = len({row.dataset for row in table.rows}) > 1
    main = Block(
        heading="",
        caption=_caption(cells, table=table, metric=metric),
        header=(*(("Data",) if several else ()), "Network", "", *(column.title for column in table.columns)),
        rows=tuple(line for row in table.rows for line in _lines(row, filled[row], several=several)),
        labels=3 if several else 2,
        notes=(
            *_notes(cells, table=table, metric=metric),
            *(f"{note.text} ({note.certainty})" for note in table.footnotes),
        ),
    )
    records = [_record(table, row, cell, cells, metric) for row in table.rows for cell in filled[row]]
    off = cells.off_recipe
    blocks = (main, off_recipe_block(off)) if off else (main,)
    return Document(title=table.title, blocks=blocks, records=(*records, *off_recipe_records(off)))


def _cell(row: Row, column: Column, cells: Cells, metric: Metric | None) -> Cell:
    group = cells.on_recipe.get((row, column.method))
    ours = summarise(value(result, column, metric) for result in group.runs) if group else None
    paper = row.cells[column.name]
    comparable = metric in (None, column.metric)
    return Cell(column, ours, paper, ours.mean - paper.mean if comparable and ours and paper.mean is not None else None)


def value(result: Result, column: Column, metric: Metric | None) -> float | None:
    """The accuracy of a run that a column reads, or `metric` where that is given; None where the run has none."""
    read = metric or column.metric
    # Last and best belong to the whole run: of SWA's three columns they fit the one whose budgets the run spent.
    if read != "collected" and column.key and abs(result["epochs"] / result["budget"] - float(column.key)) > 0.02:
        return None
    return reading(result, metric=read, key=column.key)


def _lines(row: Row, cells: list[Cell], *, several: bool) -> list[tuple[str, ...]]:
    """Up to three lines a row: broadopt's numbers, the paper's, and the difference where there is one."""
    name = (DATA_TITLES[row.dataset], row.name) if several else (row.name,)
    lines = [
        (*name, "broadopt", *(text(cell.ours) for cell in cells)),
        (*name, "paper", *(_published(cell.paper) for cell in cells)),
        (*name, "Δ", *("" if cell.difference is None else signed(cell.difference) for cell in cells)),
    ]
    return lines if any(cell.difference is not None for cell in cells) else lines[:2]


def _published(cell: Published) -> str:
    if cell.mean is None:
        return "–"
    return text(Summary(cell.mean, cell.std, 0), n=0)


def _caption(cells: Cells, *, table: PaperTable, metric: Metric | None) -> str:
    data = " and ".join(dict.fromkeys(DATA_TITLES[row.dataset] for row in table.rows))
    readers: dict[str, dict[str, None]] = {}
    for column in table.columns:
        readers.setdefault(metric or column.metric, {})[column.method.upper()] = None
    reads = "; ".join(f"{name} ({WORDS[name]}) for {', '.join(methods)}" for name, methods in readers.items())
    sentences = [
        f"{table.title}: test accuracy in percent on the test set of {data}, "
        "mean ± sample standard deviation (number of seeds).",
        f"broadopt reads {reads}{', as --metric asks' if metric else ', as the paper does'}.",
        "Δ: mean of broadopt minus mean of the paper.",
    ]
    others = [f"{column.title} ({column.metric})" for column in table.columns if metric not in (None, column.metric)]
    if others:
        sentences.append(f"The paper's values are another kind of number, so Δ is left out: {', '.join(others)}.")
    return " ".join([*sentences, _seeds(cells)])


def _seeds(cells: Cells) -> str:
    counts = sorted(len(group.runs) for group in cells.on_recipe.values())
    if not counts:
        return "No run of these recipes yet."
    span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
    return f"{_count(sum(counts), 'run')}, {span} {'seed' if span == '1' else 'seeds'} a cell."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _notes(cells: Cells, *, table: PaperTable, metric: Metric | None) -> list[str]:
    missing = [note for column in table.columns if (note := _missing(cells, column, metric))]
    return missing + _at_chance(cells) + (_precisions(cells, table) if cells.on_recipe else [])


def _at_chance(cells: Cells) -> list[str]:
    """A note on the runs that finished without having learned, which count in the means above."""
    counts = [(*place, sum(map(has_diverged, group.runs)), len(group.runs)) for place, group in cells.on_recipe.items()]
    words = [
        f"{count} of {_count(runs, 'run')} of {row.name} {DATA_TITLES[row.dataset]} {method.upper()}"
        for row, method, count, runs in counts
        if count
    ]
    return [f"Finished at chance on the test set, and counted: {'; '.join(words)}."] if words else []


def _precisions(cells: Cells, table: PaperTable) -> list[str]:
    counts = Counter(group.precision for group in cells.on_recipe.values() for _ in group.runs)
    runs = ", ".join(f"{name} in {_count(number, 'run')}" for name, number in sorted(counts.items()))
    notes = [f"Precision of the runs in the table: {runs}; the paper used {table.precision}. No cell mixes them."]
    for precision in sorted(counts) if len(counts) > 1 else []:
        places = [
            f"{row.name} {DATA_TITLES[row.dataset]} {method.upper()}"
            for (row, method), group in cells.on_recipe.items()
            if group.precision == precision
        ]
        notes.append(f"In {precision}: {', '.join(places)}.")
    return notes


def _missing(cells: Cells, column: Column, metric: Metric | None) -> str | None:
    """A note on the runs that should fill a cell of the column and lack its number."""
    read = metric or column.metric
    groups = [
        group
        for (row, method), group in cells.on_recipe.items()
        # Where the paper itself has no value, a run need not have one.
        if method == column.method and (metric or row.cells[column.name].mean is not None)
    ]
    values = [value(result, column, metric) for group in groups for result in group.runs]
    missing = values.count(None)
    if not missing:
        return None
    whole = (
        " (last and best belong to a whole run, not to a part of its budgets)"
        if read != "collected" and column.key
        else ""
    )
    return (
        f"{column.title}: {missing} of {_count(len(values), 'run')} without {read}{whole}, not counted in this column."
    )


def _record(table: PaperTable, row: Row, cell: Cell, cells: Cells, metric: Metric | None) -> dict[str, Any]:
    column = cell.column
    group: Group | None = cells.on_recipe.get((row, column.method))
    return {
        "table": table.name,
        "dataset": row.dataset,
        "model": row.model,
        "method": column.method,
        "protocol": table.protocol,
        "budget": row.budget[column.method],
        "precision": group.precision if group else None,
        "row": row.name,
        "column": column.title,
        "metric": metric or column.metric,
        "key": column.key,
        **figures(cell.ours),
        "paper_metric": column.metric,
        "paper_mean": cell.paper.mean,
        "paper_std": cell.paper.std,
        "difference": cell.difference,
    }
