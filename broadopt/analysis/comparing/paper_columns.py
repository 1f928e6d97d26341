"""Which columns of a paper's table are compared, with which of the baseline's, and the accuracies behind them."""

from collections.abc import Mapping

from broadopt.analysis.comparing.statistics import has_diverged
from broadopt.analysis.tables.cells import Cells
from broadopt.analysis.tables.options import Comparison
from broadopt.analysis.tables.paper_table import value
from broadopt.analysis.tables.published import Column, PaperTable, Row


def compared_columns(table: PaperTable, asked: Comparison) -> list[Column]:
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


def baseline_column(table: PaperTable, row: Row, column: Column, cells: Cells, asked: Comparison) -> Column:
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
    return next((one for one in (*same, usual, *columns) if cell_by_seed(row, one, cells, asked)), (*same, usual)[0])


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
