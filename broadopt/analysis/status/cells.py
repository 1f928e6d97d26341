"""Which runs a table consists of, how far each is, and the commands that would fill what is missing."""

import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from broadopt.analysis.status.state import Folder, Record, Run, run_of
from broadopt.analysis.tables.match import Group, Recipes, differences, rank, show
from broadopt.analysis.tables.published import PaperTable, Row
from broadopt.config.identity import identity_of
from broadopt.config.messages import quoted
from broadopt.config.run_config import Recipe

DEFAULT_SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Cell:
    """What one cell of a table is made of; `labels` name it."""

    labels: tuple[str, ...]
    record: Record
    """The recorded config, of any seed."""
    precision: str | None
    """That of its runs; None where it has none yet."""
    overrides: tuple[str, ...]
    runs: tuple[Run, ...]
    """One a seed that is asked for."""
    row: str = ""

    def count(self, state: str) -> int:
        """How many of its runs are in `state`."""
        return sum(run.state == state for run in self.runs)


@dataclass(frozen=True)
class Status:
    """All cells of a table, and what is said below them."""

    cells: tuple[Cell, ...]
    notes: tuple[str, ...]


def of_table(table: PaperTable, folder: Folder, recipes: Recipes, *, seeds: Sequence[int]) -> Status:
    """The cells of a paper's table that it has a value for, with the runs of `seeds`."""
    cells, unpublished, known = [], [], _known(folder)
    others: Counter[int] = Counter()
    rivals: list[str] = []
    for row, method in ((row, method) for row in table.rows for method in table.methods):
        recipe = recipes.of_experiment(row.experiment, method, row.overrides.get(method, ()))
        if recipe is None:
            continue
        if not _is_published(table, row, method):
            unpublished.append(f"{row.name} {method.upper()}")
            continue
        there = _there(folder, known, recipe)
        cell = _cell(table, row, method, recipe, there, folder, seeds)
        cells.append(cell)
        others.update(seed for (seed, _), run in there.items() if seed not in seeds and run.state == "finished")
        rivals += [
            f"{' '.join(cell.labels)} seed {seed} ({precision}, its cell holds {cell.precision})"
            for (seed, precision), run in sorted(there.items())
            if precision != cell.precision and seed in seeds
        ]
    return Status(tuple(cells), tuple(_notes(unpublished, others, rivals)))


def _is_published(table: PaperTable, row: Row, method: str) -> bool:
    return any(row.cells[column.name].mean is not None for column in table.columns if column.method == method)


Known = Mapping[tuple[str, ...], Sequence[tuple[str, Record]]]
"""Identities and recorded configs of a folder's runs, by data set, network, method and protocol."""


def _known(folder: Folder) -> Known:
    known = defaultdict(list)
    for key, record in folder.records():
        known[_names(record)].append((key, record))
    return known


def _names(record: Record) -> tuple[str, ...]:
    return (record["dataset"]["name"], record["model"]["name"], record["method"], record["protocol"])


def _there(folder: Folder, known: Known, recipe: Record) -> dict[tuple[int, str], Run]:
    """The runs of a recipe that a folder knows of, by seed and precision."""
    found = {}
    for key, record in known.get(_names(recipe), ()):
        place = (record["seed"], record["precision"])
        if record == {**recipe, "seed": place[0], "precision": place[1]}:
            found[place] = run_of(folder, record, key)
    return found


def _cell(
    table: PaperTable,
    row: Row,
    method: str,
    recipe: Mapping[str, Any],
    there: Mapping[tuple[int, str], Run],
    folder: Folder,
    seeds: Sequence[int],
) -> Cell:
    precision = _precision(there)
    runs = []
    for seed in seeds:
        # Without any run of the cell the precision is still open: a run that has left no figures may be of either.
        wanted = [{**recipe, "seed": seed, "precision": name} for name in _precisions(precision)]
        tried = [run_of(folder, record, identity_of(record)) for record in wanted]
        runs.append(next((run for run in tried if run.state != "missing"), tried[0]))
    several = len({row.dataset for row in table.rows}) > 1
    return Cell(
        labels=(*((row.dataset,) if several else ()), row.name, method.upper()),
        record=recipe,
        precision=precision,
        overrides=(f"experiment={row.experiment}", f"method={method}", *row.overrides.get(method, ())),
        runs=tuple(runs),
        row=row.name,
    )


def _precisions(precision: str | None) -> tuple[str, ...]:
    return ("fp32", "bf16") if precision is None else (precision,)


def _precision(there: Mapping[tuple[int, str], Run]) -> str | None:
    """The precision that a cell holds, as the table decides it: that of most finished runs, fp32 where they are as
    many; where none is finished, that of most others.
    """
    for states in (("finished",), ("running", "interrupted", "failed")):
        counts = Counter(precision for (_, precision), run in there.items() if run.state in states)
        if counts:
            return max(counts, key=lambda name: (counts[name], name == "fp32"))
    return None


def _notes(unpublished: Sequence[str], others: Mapping[int, int], rivals: Sequence[str]) -> Iterator[str]:
    if unpublished:
        yield f"Not asked for, since the paper has no value: {', '.join(unpublished)}."
    if others:
        seeds = ", ".join(map(str, sorted(others)[:10])) + (", ..." if len(others) > 10 else "")
        yield (
            f"Finished runs of other seeds, which the table counts as well: {sum(others.values())} (seeds {seeds}); "
            "--seeds says which are asked for."
        )
    if rivals:
        more = f" and {len(rivals) - 10} more" if len(rivals) > 10 else ""
        yield f"In another precision than their cell, and no part of it: {', '.join(rivals[:10])}{more}."


def of_runs(folder: Folder, recipes: Recipes) -> Status:
    """Every run of a folder, a cell for each config without its seed."""
    together: dict[str, list[tuple[str, Record]]] = {}
    for key, record in folder.records():
        alike = identity_of({key: value for key, value in record.items() if key != "seed"})
        together.setdefault(alike, []).append((key, record))
    cells = [_group(records, folder, recipes) for records in together.values()]
    return Status(tuple(sorted(cells, key=lambda cell: (cell.labels[:2], rank(cell.labels[2]), cell.labels))), ())


def _group(records: Sequence[tuple[str, Record]], folder: Folder, recipes: Recipes) -> Cell:
    first = records[0][1]
    dataset, model, method, protocol = _names(first)
    group = Group(dataset, model, method, protocol, precision=first["precision"], config=first, runs=())
    expected = recipes.of_protocol(group)
    differs = ["no recipe known"] if expected is None else differences(expected, first)
    budget = [] if any(line.startswith("budget ") for line in differs) else [f"budget {show(first['budget'])}"]
    runs = [run_of(folder, record, key) for key, record in records]
    return Cell(
        labels=(dataset, model, method, "; ".join([protocol, *budget, *differs, first["precision"]])),
        record=first,
        precision=first["precision"],
        overrides=(),
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
    )


def commands(status: Status, results_dir: Path, overrides: Sequence[str]) -> list[str]:
    """A line of shell for every run that is neither finished nor running; `overrides` are added to each.

    The precision of a cell that has runs is given: only with it does a run fill that cell. With trunk=share among the
    overrides trunks come first.
    """
    given = [override for override in overrides if not override.startswith("precision=")]
    asked = [override for override in overrides if override.startswith("precision=")]
    lines, records = [], []
    for cell in status.cells:
        for run in cell.runs:
            if run.state in ("finished", "running"):
                continue
            known = cell.precision or (run.record["precision"] if run.state == "interrupted" else None)
            precision = [f"precision={known}"] if known else asked
            words = [*cell.overrides, f"seed={run.seed}", *precision, *place(results_dir), *given]
            lines.append(shlex.join(["broadopt-run", *words]))
            records.append({**run.record, "precision": known or "auto"})
    return [lines[index] for index in _trunks_first(records)] if "trunk=share" in given else lines


def place(results_dir: Path) -> list[str]:
    """The override that names a results folder; none for the default one."""
    if results_dir == Path("results"):
        return []
    path = str(results_dir)
    is_plain = re.fullmatch(r"[\w./+-]+", path)
    return [f"results_dir={path if is_plain else quoted(path)}"]


def _trunks_first(records: Sequence[Record]) -> list[int]:
    """The places of recorded configs in the order in which a sweep carries out runs that share trunks."""
    from broadopt.training.trunks.order import beginnings_of, ordered  # imports torch

    return [start.run for start in ordered(beginnings_of(map(Recipe.of_record, records)))]
