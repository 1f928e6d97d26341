"""The table of the runs that repeat no cell of a paper's table: never mixed in, each with what differs."""

from collections.abc import Sequence
from typing import Any

from broadopt.analysis.tables.formats import Block
from broadopt.analysis.tables.match import Group
from broadopt.analysis.tables.summary import Summary, collected_keys, reading, summarise, text

CAPTION = (
    "Finished runs that repeat no cell of the table above and are not counted in it, with what differs from the "
    "nearest recipe. Test accuracy in percent, mean ± sample standard deviation (number of seeds)."
)
NOTE = (
    "last: the weights after the last epoch. best: the best epoch on the test set. collected: what SWA or FGE predicts "
    "after so many budgets. last and best are never compared with each other."
)


def off_recipe_block(off: Sequence[tuple[Group, str]]) -> Block:
    """One line a group of runs, with every accuracy that any of them has."""
    readings = _readings(off)
    return Block(
        heading="Runs off the recipe",
        caption=CAPTION,
        header=(
            "Data",
            "Network",
            "Method",
            *(f"{metric} {key}" if key else metric for metric, key in readings),
            "What differs",
        ),
        rows=tuple(
            (group.dataset, group.model, group.method, *map(text, _cells(group, readings)), words)
            for (group, _), words in zip(off, _differences(off), strict=True)
        ),
        labels=0,
        notes=(NOTE,),
    )


def off_recipe_records(off: Sequence[tuple[Group, str]]) -> list[dict[str, Any]]:
    """The same for CSV, under a table name of its own."""
    readings = _readings(off)
    return [
        {
            "table": "off the recipe",
            **place(group),
            "metric": metric,
            "key": key,
            **figures(cell),
            "differs": differs,
        }
        for group, differs in off
        for (metric, key), cell in zip(readings, _cells(group, readings), strict=True)
        if cell
    ]


def _differences(off: Sequence[tuple[Group, str]]) -> list[str]:
    """What differs, with the precision wherever runs of both precisions are in the table and it is not said yet."""
    several = len({group.precision for group, _ in off}) > 1
    return [
        f"{words}; {group.precision}" if several and group.precision not in words else words for group, words in off
    ]


def _readings(off: Sequence[tuple[Group, str]]) -> list[tuple[str, str | None]]:
    keys = collected_keys(run for group, _ in off for run in group.runs)
    return [("last", None), ("best", None), *(("collected", key) for key in keys)]


def _cells(group: Group, readings: Sequence[tuple[str, str | None]]) -> list[Summary | None]:
    return [summarise(reading(run, metric=metric, key=key) for run in group.runs) for metric, key in readings]


def place(group: Group) -> dict[str, Any]:
    """Where a group's records belong in a CSV."""
    names = ("dataset", "model", "method", "protocol", "precision")
    return {**{name: getattr(group, name) for name in names}, "budget": group.config["budget"]}


def figures(cell: Summary | None, *, quantity: str = "test_accuracy") -> dict[str, Any]:
    """A summary as a CSV has it."""
    numbers = {"n": cell.n, "mean": cell.mean, "std": cell.std} if cell else {"n": 0}
    return {"quantity": quantity, **numbers}
