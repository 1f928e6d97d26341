"""The tables of `broadopt-table runs` as sections of the page: each with its curves, and operations among its costs."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace

from broadopt.analysis.comparing import runs_table
from broadopt.analysis.comparing.sweep import Sweep, sweeps
from broadopt.analysis.reporting.curves import chart
from broadopt.analysis.reporting.gathered import Gathered, Histories
from broadopt.analysis.reporting.parts import Section, Table, with_values
from broadopt.analysis.status.estimate import Estimates
from broadopt.analysis.tables.formats import Block
from broadopt.analysis.tables.match import Recipes
from broadopt.analysis.tables.options import Comparison

ACCURACY = "Test accuracy in percent, mean ± sample standard deviation over n seeds."
OPERATIONS = (
    "PFLOPs: 10^15 floating-point operations of all gradients of one run, counted from the multiply-adds of the "
    "network (two operations each, a gradient as three forward passes), not measured."
)
NOT_INSTALLED = "Differences to SGD need statsmodels: pip install '.[statistics]' in the checkout."


def baseline(found: Gathered, asked: str | None) -> tuple[str | None, str]:
    """The method that differences are taken to, and why there is none although SGD was run."""
    if asked is not None:
        return asked, ""
    methods = {result["method"] for result in found.finished}
    if "sgd" not in methods or len(methods) == 1:
        return None, ""
    return ("sgd", "") if importlib.util.find_spec("statsmodels") else (None, NOT_INSTALLED)


def sections(found: Gathered, recipes: Recipes, histories: Histories, against: str | None) -> list[Section]:
    """A section a data set, network and budget; and one of what their numbers are. Raises InputError."""
    document = runs_table.build(found.results, recipes=recipes, asked=Comparison(against=against), histories=histories)
    compared = [result for result in found.results if result["state"] in ("finished", "failed")]
    *groups, closing = _groups(document.blocks)
    estimates = Estimates(found.folder, tflops=None)
    made = [
        _section(f"sweep-{number}", blocks, sweep, histories, estimates)
        for number, (blocks, sweep) in enumerate(zip(groups, sweeps(compared, recipes=recipes), strict=True), start=1)
    ]
    return [*made, Section("numbers", "What the numbers are", closing[0].notes)] if made else []


def _groups(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks of each table of runs, and what stands below them all."""
    *above, closing = blocks
    together: list[list[Block]] = []
    for block in above:
        if block.heading:
            together.append([])
        together[-1].append(block)
    return [*together, [closing]]


def _section(name: str, blocks: Sequence[Block], sweep: Sweep, histories: Histories, estimates: Estimates) -> Section:
    first, *others, costs = blocks
    shared = f" Differing from the recipe: {first.caption}" if first.caption else ""
    tables = [replace(first, caption=f"{ACCURACY}{shared}"), *others, _with_operations(costs, sweep, estimates)]
    drawn = chart(f"{name}-curves", sweep, histories)
    return Section(
        name,
        first.heading,
        tables=tuple(_tables(name, tables)),
        charts=(drawn,) if drawn else (),
    )


def _tables(name: str, blocks: Sequence[Block]) -> Iterator[Table]:
    for number, block in enumerate(blocks, start=1):
        # A column that no line has a figure for, as p values of single seeds, says nothing.
        kept = with_values(block.header, block.rows, keep=1)
        header, *rows = (tuple(row[index] for index in kept) for row in (block.header, *block.rows))
        yield Table(f"{name}-{number}", block.caption, header, tuple(rows), notes=block.notes)


def _with_operations(costs: Block, sweep: Sweep, estimates: Estimates) -> Block:
    """The costs with the operations of a run, where any is known."""
    flops = [estimates.flops(line.group.config) for line in sweep.lines]
    if not any(flops):
        return costs
    cells = [f"{value / 1e15:,.4g}" if value else "" for value in flops]
    rows = tuple((*row, cell) for row, cell in zip(costs.rows, cells, strict=True))
    return replace(costs, header=(*costs.header, "PFLOPs"), rows=rows, notes=(*costs.notes, OPERATIONS))
