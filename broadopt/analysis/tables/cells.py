"""Which runs fill which cell of a paper's table, and what sets the others apart."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.tables.match import Group, Recipes, Result, differences, groups, rank
from broadopt.analysis.tables.published import PaperTable, Row


@dataclass(frozen=True)
class Context:
    """What decides whether a run is on the recipe."""

    table: PaperTable
    recipes: Recipes


@dataclass(frozen=True)
class Cells:
    """The runs of each cell, by row and method, and the groups off the recipe with what differs."""

    on_recipe: Mapping[tuple[Row, str], Group]
    off_recipe: Sequence[tuple[Group, str]]


def fill(results: Iterable[Result], *, context: Context) -> Cells:
    """Each group of finished runs to its cell, or to those off the recipe.

    A cell holds the precision that most of its runs used (fp32 where they are as many); the others are off the recipe.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in context.table.rows:
        rows.setdefault((row.dataset, row.model), []).append(row)
    rivals: dict[tuple[Row, str], list[Group]] = {}
    off = []
    for group in groups(results):
        # Rows of one network differ in what they give beside the experiment: a group is of the one that is nearest.
        near = [(row, _differs(group, row, context=context)) for row in rows.get((group.dataset, group.model), [None])]
        nearest, differs = min(near, key=lambda one: len(one[1]))
        if nearest and not differs:
            rivals.setdefault((nearest, group.method), []).append(group)
        else:
            off.append((group, "; ".join(differs)))
    on = {place: max(candidates, key=_precedence) for place, candidates in rivals.items()}
    for place, candidates in rivals.items():
        held = on[place]
        off += [(group, _instead(group, held)) for group in candidates if group is not held]
    return Cells(on, sorted(off, key=_order))


def _instead(group: Group, held: Group) -> str:
    """Why a group is not in the cell that `held` is in."""
    if group.precision != held.precision:
        return f"precision {group.precision}, its cell holds {held.precision}"
    return "; ".join(differences(held.config, group.config)) or "recorded otherwise than the runs of its cell"


def _precedence(group: Group) -> tuple[int, bool, str]:
    return (len(group.runs), group.precision == "fp32", group.precision)


def _differs(group: Group, row: Row | None, *, context: Context) -> list[str]:
    """The difference from the row's recipe; for another network, data set or protocol from that protocol's own."""
    table, reasons = context.table, []
    if row is None:
        reasons.append("no row of this table")
    elif group.method not in table.methods:
        reasons.append(f"{group.method} is no column of this table")
    if row and group.protocol == table.protocol:
        expected = context.recipes.of_experiment(row.experiment, group.method, row.overrides.get(group.method, ()))
    else:
        reasons += [f"protocol {group.protocol} instead of {table.protocol}"] if row else []
        expected = context.recipes.of_protocol(group)
    return reasons + (["no recipe known for it"] if expected is None else differences(expected, group.config))


def _order(entry: tuple[Group, str]) -> tuple[Any, ...]:
    group, differs = entry
    # Numbers inside the label count as numbers: budget 5 comes before budget 10.
    parts = re.split(r"(\d+(?:\.\d+)?)", differs)
    natural = [(0, float(part), "") if index % 2 else (1, 0.0, part) for index, part in enumerate(parts)]
    return (group.dataset, group.model, rank(group.method), natural, group.precision)
