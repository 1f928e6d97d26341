"""broadopt-table: the paper's tables and an overview of all runs, made from result files alone."""

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from broadopt.signals import loading

with loading():
    from broadopt import streams
    from broadopt.analysis.tables.options import Comparison, seeds_in_words
    from broadopt.analysis.tables.request import Request, parse
    from broadopt.errors import InputError, nearest, printable
    from broadopt.runs.folders import located, remark, to_be_filled

if TYPE_CHECKING:
    from broadopt.analysis.tables.cells import Context
    from broadopt.analysis.tables.formats import Document
    from broadopt.analysis.tables.match import Compose, Recipes


@streams.ended_by_ctrl_c()
def main() -> None:
    """Entry point of broadopt-table; ends the process with the exit code of the contract."""
    streams.prepare(encoding="utf-8")  # ± and Δ, whatever the locale
    try:
        with streams.complete_output("broadopt-table", closed_pipe=0):  # of --help
            request = parse(sys.argv[1:])
        if request.watch is not None:
            watch(request)
        document, left_out = (per_run if request.comparison.per_run else make)(request)
        _write(document, request.output)
    except BrokenPipeError:
        _leave_closed_pipe()
    except InputError as error:
        print(f"broadopt-table: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    # A CSV and commands have no room for remarks, and a file may be read by nobody for a while.
    if request.output or request.format in ("csv", "json") or request.view == "missing":
        for line in left_out:
            print(f"broadopt-table: {printable(line)}", file=sys.stderr)
    sys.exit(1 if request.strict and any(line.startswith("left out") for line in left_out) else 0)


def watch(request: Request) -> NoReturn:
    """Show the status anew every `request.watch` seconds; Ctrl-C ends the process with 0. Raises InputError."""
    assert request.watch is not None
    clear = "\x1b[2J\x1b[3J\x1b[H" if sys.stdout.isatty() else ""
    try:
        while True:
            document, _ = make(request)
            _write(f"{clear}{time.strftime('%Y-%m-%d %H:%M:%S')}\n\n{document}\n", None)
            time.sleep(request.watch)
    except KeyboardInterrupt:
        sys.exit(0)
    except BrokenPipeError:
        _leave_closed_pipe()


def _leave_closed_pipe() -> NoReturn:
    """End well: whoever read the output, head for example, had enough of it."""
    streams.drop_output()
    sys.exit(0)


def make(request: Request, *, compose: "Compose | None" = None) -> tuple[str, list[str]]:
    """The document as text, and a line on all that is not in it.

    These lines begin with `not counted` (unfinished runs) or `left out` (files that cannot be used). `compose` gives
    the recipes that runs are compared with: broadopt.config.compose.recipe_of by default.
    """
    from broadopt.analysis.tables.match import Recipes
    from broadopt.analysis.tables.stored_recipes import StoredRecipes

    stored = StoredRecipes()
    recipes = Recipes(compose or stored)
    document, remarks = (_table if request.view == "table" else _status)(request, recipes)
    stored.save()
    return document, remarks


def per_run(request: Request) -> tuple[bytes, list[str]]:
    """A row a run and seed in the format asked for, and a line on all that is not in it, as `make`."""
    from broadopt.analysis.comparing import frame

    results, remarks, _ = _read(request)
    table = frame.frame_of(result for result in results if result["state"] == "finished")
    wanted = list(request.comparison.columns) or list(table.columns)
    for name in wanted:
        if name not in table.columns:
            raise InputError(f"--columns {name}: no run has a column of this name{nearest(name, table.columns)}")
    return frame.as_table(table[wanted], request.format), remarks


def _read(request: Request) -> tuple[list[dict[str, Any]], list[str], set[str]]:
    """The results that are asked for, and a line on each that is not counted or cannot be used; last the identities of
    all that have figures, asked for or not.
    """
    from broadopt.analysis.comparing import selection

    results, unusable = selection.read(request.results)
    if request.comparison.at_epoch is not None:
        results = selection.with_going_on(request.results, results)
    remarks = [line for root in request.results for line in remark(root, located(root))]
    known = {result["identity"] for result in results}
    results = selection.select(results, selection.conditions(request.comparison.where))
    compared = ("interrupted", "running") if request.comparison.at_epoch is not None else ()
    return results, remarks + _unfinished(results, compared) + [f"left out: {line}" for line in unusable], known


def _table(request: Request, recipes: "Recipes") -> tuple[str, list[str]]:
    from broadopt.analysis.tables import formats, paper_table, published
    from broadopt.analysis.tables.cells import Context
    from broadopt.config.shipped import paper_dir

    asked = request.comparison
    results, remarks, known = _read(request)
    if request.table == "runs":
        document, problems = _runs(results, recipes, asked)
        remarks += problems
        remarks += _begun(request, known) if asked.at_epoch is not None else []
    else:
        finished = [result for result in results if result["state"] == "finished"]
        context = Context(published.load(request.table, folder=paper_dir()), recipes)
        document = paper_table.build(finished, context=context, metric=asked.metric)
        if asked.against is not None:
            failed = [result for result in results if result["state"] == "failed"]
            document = _with_differences(document, finished, failed, context, asked)
    return formats.FORMATS[request.format](replace(document, remarks=tuple(remarks))), remarks


def _with_differences(
    document: "Document",
    finished: Sequence[dict[str, Any]],
    failed: Sequence[dict[str, Any]],
    context: "Context",
    asked: Comparison,
) -> "Document":
    """A paper's table with the differences to one of its methods below."""
    from broadopt.analysis.comparing.difference_blocks import FIELDS, paper_block
    from broadopt.analysis.tables.cells import fill
    from broadopt.analysis.tables.match import precision

    main, *off = document.blocks
    cells = fill(finished, context=context)
    # Which precision a cell holds is for its finished runs to say.
    by_precision: dict[str, list[dict[str, Any]]] = {}
    for result in failed:
        by_precision.setdefault(precision(result), []).append(result)
    broken = {name: fill(results, context=context) for name, results in by_precision.items()}
    block, records = paper_block(context.table, cells, asked, failed=broken)
    return replace(
        document,
        blocks=(main, block, *off),
        records=(*document.records, *records),
        fields=(*document.fields, *FIELDS),
    )


def _runs(results: Sequence[dict[str, Any]], recipes: "Recipes", asked: Comparison) -> tuple["Document", list[str]]:
    """The tables of runs, and a line on each history that cannot be used."""
    from broadopt.analysis.comparing import frame, runs_table

    problems: list[str] = []

    def histories(result: dict[str, Any]) -> list[dict[str, float]]:
        rows, problem = frame.read_history(result)
        problems.extend([problem] if problem else [])
        return rows

    return runs_table.build(results, recipes=recipes, asked=asked, histories=histories), problems


def _status(request: Request, recipes: "Recipes") -> tuple[str, list[str]]:
    """The status of a table, or the commands that fill it."""
    from broadopt.analysis.status import cells, page, state
    from broadopt.analysis.status.estimate import Estimates
    from broadopt.analysis.tables import formats, published
    from broadopt.config.shipped import paper_dir

    results, remarks = to_be_filled(request.results[0])
    folder = state.look(results)
    remarks += [f"left out: {line}" for line in folder.left_out]
    if not os.path.isdir(results):
        remarks.append(f"results folder {results} {_absent(results)} (yet): every run counts as missing")
    if request.table == "runs":
        found, titles = cells.of_runs(folder, recipes), ("Data", "Network", "Method", "Protocol and what differs")
        caption = f"Every run in {results}."
    else:
        table = published.load(request.table, folder=paper_dir())
        seeds = request.seeds or cells.DEFAULT_SEEDS
        found = cells.of_table(table, folder, recipes, seeds=seeds)
        if request.view == "missing":
            return "".join(f"{line}\n" for line in cells.commands(found, results, request.overrides)), remarks
        several = len({row.dataset for row in table.rows}) > 1
        titles = (*(("Data",) if several else ()), "Network", "Method")
        caption = f"{table.title}: the status of its runs. Seeds {seeds_in_words(seeds)} of each cell (--seeds)."
    estimates = Estimates(folder, tflops=request.tflops)
    document = page.build(found, estimates, table=request.table, titles=titles, caption=caption)
    return formats.FORMATS[request.format](replace(document, remarks=tuple(remarks))), remarks


def _absent(folder: Path) -> str:
    """In which way a folder is not there."""
    return "is not a folder" if os.path.lexists(folder) else "does not exist"


def _begun(request: Request, known: set[str]) -> list[str]:
    """A line on each run that is asked for, is going on, or died, and has left no figures yet."""
    from broadopt.analysis.comparing import selection
    from broadopt.analysis.status import state

    is_wanted = partial(selection.fits, selection.conditions(request.comparison.where))
    folders = [state.look(located(root)) for root in request.results]
    return [line for folder in folders for line in state.without_figures(folder, known, is_wanted)]


def _unfinished(results: Sequence[dict[str, Any]], compared: Sequence[str] = ()) -> list[str]:
    """`not counted: 2 interrupted (folder, folder)`, one line a state that is not `compared`."""
    counts = Counter(result["state"] for result in results if result["state"] not in ("finished", *compared))
    lines = []
    for state, count in sorted(counts.items()):
        folders = [result["folder"] for result in results if result["state"] == state]
        more = f" and {count - 5} more" if count > 5 else ""
        lines.append(f"not counted: {count} {state} ({', '.join(folders[:5])}{more})")
    return lines


def _write(document: str | bytes, output: Path | None) -> None:
    """To stdout or to a file. Raises InputError where it cannot be written, BrokenPipeError where nobody reads on."""
    if output is None:
        try:
            sys.stdout.write(document if isinstance(document, str) else document.decode("utf-8"))
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:  # a full disk behind a redirection
            streams.drop_output()
            raise InputError(f"the table cannot be written: {error.strerror or error}") from error
        return
    from broadopt.files import write_output

    try:
        write_output(output, document.encode("utf-8") if isinstance(document, str) else document)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise InputError(f"--output {output} cannot be written: {getattr(error, 'strerror', None) or error}") from error


if __name__ == "__main__":
    main()
