"""Every run of a results folder, one a row: its state and the reason for it, its figures, how to repeat it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from broadopt.analysis.reporting.gathered import Gathered
from broadopt.analysis.reporting.parts import Section, Table, count, with_values
from broadopt.analysis.reporting.repeating import MOST, Repeats
from broadopt.analysis.status import cells
from broadopt.analysis.status.state import STATES, Run
from broadopt.analysis.tables.match import Recipes, Result
from broadopt.analysis.tables.summary import cost, longest_key, reading
from broadopt.config.identity import identity_of

HOW = (
    "last: test accuracy in percent of the weights after the last epoch; best: of the best epoch on the test set; "
    "coll.: of what SWA or FGE predicts after the budgets in brackets. One run each.",
    "How to repeat: a finished run is trained again with another results_dir= (or force=true), without which its "
    "stored result is printed; one that did not finish goes on. A run with code of your own also takes trust=MODULE.",
)
EMPTY = (
    "An empty cell: the folder has no config.yaml, and no overrides of this version make the same config, or there are "
    f"more than {MOST} recipes to try."
)


@dataclass(frozen=True)
class Entry:
    """One run: what it is called by, how far it is, its result if it has one, its command."""

    names: tuple[str, ...]
    """Data, network, method; protocol and what differs from it."""
    run: Run
    result: Result | None
    command: str


def entries(found: Gathered, recipes: Recipes, repeats: Repeats) -> list[Entry]:
    """Every run that the folders know of, as the status of `broadopt-table runs` has them."""
    results = {result["identity"]: result for result in found.results}
    listed = []
    for cell in cells.of_runs(found.folder, recipes).cells:
        for run in cell.runs:
            key = identity_of(run.record)
            root, folder = found.place_of(run.record)
            listed.append(Entry(cell.labels, run, results.get(key), repeats.command(run.record, folder, root)))
    return listed


def totals(listed: Sequence[Entry]) -> str:
    """`12 runs: 10 finished, 2 failed.`"""
    counts = Counter(entry.run.state for entry in listed)
    states = ", ".join(f"{counts[state]:,} {state}" for state in STATES if counts[state])
    return f"{count(len(listed), 'run')}: {states}." if listed else "No run."


def unfinished(listed: Sequence[Entry]) -> Section | None:
    """The runs that failed, were interrupted or are running, with the reason; None where there is none."""
    order = ("failed", "interrupted", "missing", "running")
    shown = sorted((one for one in listed if one.run.state in order), key=lambda one: order.index(one.run.state))
    rows = tuple((*one.names[:3], str(one.run.seed), one.run.state, _reason(one), one.command) for one in shown)
    if not rows:
        return None
    table = Table(
        name="unfinished-runs",
        caption="Runs without final figures: none of them counts in any mean.",
        header=("data", "network", "method", "seed", "state", "reason", "how to go on, or repeat"),
        rows=rows,
        heads=4,
        commands=6,
        notes=(EMPTY,) if not all(one.command for one in shown) else (),
    )
    return Section("unfinished", "Failed, interrupted and running", tables=(table,))


def _reason(entry: Entry) -> str:
    return entry.run.words or ("stopped by a signal" if entry.run.state == "interrupted" else "no reason given")


def every(listed: Sequence[Entry]) -> Section:
    """All runs."""
    header = ("data", "network", "method", "seed", "state", "last", "best", "coll.", "epochs", "seconds",
              "protocol and what differs", "how to repeat")  # fmt: skip
    rows = [_row(entry) for entry in listed]
    kept = with_values(header, rows, keep=5)
    table = Table(
        name="all-runs",
        caption="Every run, one a row.",
        header=tuple(header[index] for index in kept),
        rows=tuple(tuple(row[index] for index in kept) for row in rows),
        heads=4,
        commands=kept.index(11) if 11 in kept else None,
        notes=(*HOW, *((EMPTY,) if not all(entry.command for entry in listed) else ())),
    )
    return Section("runs", "All runs", (totals(listed),), tables=(table,))


def _row(entry: Entry) -> tuple[str, ...]:
    result, run = entry.result, entry.run
    figures = ("", "", "", "")
    if result is not None and run.state == "finished":
        key = longest_key([result])
        collected = _percent(reading(result, metric="collected", key=key)) if key else ""
        seconds = cost(result, "train_seconds")
        figures = (
            _percent(reading(result, metric="last")),
            _percent(reading(result, metric="best")),
            f"{collected} ({key})" if collected else "",
            "" if seconds is None else f"{seconds:.0f}",
        )
    epochs = f"{run.epoch:.4g}" if run.state == "finished" else f"{run.epoch:.4g} of {run.epochs:.4g}"
    return (*entry.names[:3], str(run.seed), run.state, *figures[:3], epochs, figures[3], entry.names[3], entry.command)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
