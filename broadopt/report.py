"""broadopt-report: one HTML file of all that results folders hold, made from result files alone."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from broadopt.signals import loading

with loading():
    from broadopt import streams
    from broadopt.analysis.reporting.request import Request, parse
    from broadopt.errors import InputError, printable

if TYPE_CHECKING:
    from broadopt.analysis.reporting.gathered import Gathered
    from broadopt.analysis.reporting.parts import Section
    from broadopt.analysis.tables.match import Compose

NAMED = 50
"""Files that are left out and named on the page; all are named on stderr."""


@streams.ended_by_ctrl_c()
def main() -> None:
    """Entry point of broadopt-report; ends the process with the exit code of the contract."""
    streams.prepare(encoding="utf-8")
    try:
        with streams.complete_output("broadopt-report", closed_pipe=0):  # of --help
            request = parse(sys.argv[1:])
        page, left_out = make(request)
        _write(page, request.output)
    except BrokenPipeError:  # -o /dev/stdout, behind which somebody has seen enough
        sys.exit(0)
    except InputError as error:
        print(f"broadopt-report: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    for line in left_out:
        print(f"broadopt-report: {printable(line)}", file=sys.stderr)
    sys.exit(1 if request.strict and any(line.startswith("left out") for line in left_out) else 0)


def make(request: Request, *, compose: "Compose | None" = None) -> tuple[str, list[str]]:
    """The page, and a line on each file that is `left out` and each image that is `not shown`.

    `compose` gives the recipes that runs are compared with: broadopt.config.compose.recipe_of by default. Raises
    InputError.
    """
    from broadopt.analysis.reporting import figures, page, papers, runs, sweeps
    from broadopt.analysis.reporting.gathered import Histories, gather
    from broadopt.analysis.reporting.parts import Section
    from broadopt.analysis.reporting.repeating import Repeats
    from broadopt.analysis.tables.match import Recipes
    from broadopt.analysis.tables.stored_recipes import StoredRecipes

    stored = StoredRecipes()
    recipes, histories = Recipes(compose or stored), Histories()
    found = gather(request.results, request.where)
    listed = runs.entries(found, recipes, Repeats(compose or stored))
    against, remark = sweeps.baseline(found, request.against)
    of_sweeps = sweeps.sections(found, recipes, histories, against)
    images, unfit = figures.collect([*request.results, *found.roots])
    left_out = [f"left out: {line}" for line in (*found.left_out, *histories.problems)]
    left_out += [f"not shown: {line}" for line in unfit]
    sections = [
        *papers.sections(found, recipes, request.seeds),
        *_grouped(of_sweeps, remark),
        *([Section("figures", "Images", figures=tuple(images))] if images else ()),
        *(section for section in (runs.unfinished(listed),) if section),
        runs.every(listed),
        *_left_out(left_out),
    ]
    stored.save()
    title = f"broadopt report: {', '.join(map(str, request.results))}"
    return page.render(title, _summary(request, found, runs.totals(listed)), sections), left_out


def _grouped(of_sweeps: Sequence["Section"], remark: str) -> list["Section"]:
    from broadopt.analysis.reporting.parts import Section, count

    if not of_sweeps:
        return []
    words = f"{count(len(of_sweeps) - 1, 'table')}, one a data set, network and budget; a line a recipe."
    return [Section("sweeps", "Sweeps", (words, *([remark] if remark else [])), sections=tuple(of_sweeps))]


def _summary(request: Request, found: "Gathered", totals: str) -> list[str]:
    lines = [totals]
    if found.selected:
        lines.append(f"Only runs with {' and '.join(request.where)}.")
    if found.left_out:
        lines.append("Some files could not be used: they are named at the end.")
    return lines


def _left_out(lines: Sequence[str]) -> list["Section"]:
    from broadopt.analysis.reporting.parts import Section

    more = [f"{len(lines) - NAMED} more: broadopt-report names them all."] if len(lines) > NAMED else []
    return [Section("left-out", "Files left out", (*lines[:NAMED], *more))] if lines else []


def _write(page: str, output: Path) -> None:
    """Raises InputError where it cannot be written, BrokenPipeError where nobody reads on."""
    from broadopt.files import write_output

    try:
        write_output(output, page.encode("utf-8"))
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        hint = f"; expected a file, as {os.path.join(output, 'report.html')}" if os.path.isdir(output) else ""
        raise InputError(f"--output {output} cannot be written: {reason}{hint}") from error


if __name__ == "__main__":
    main()
