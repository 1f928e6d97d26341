"""The status of a table as a document: one line a cell, then one line a run that is on its way or in trouble."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from broadopt.analysis.status.cells import Cell, Status
from broadopt.analysis.status.estimate import Estimate, Estimates
from broadopt.analysis.status.state import STATES, Record, Run
from broadopt.analysis.tables.formats import Block, Document
from broadopt.devices.rates import SOURCES, shown, together
from broadopt.runs.heartbeat import AGE_LIMIT

FIELDS = (
    *("table", "dataset", "model", "method", "protocol", "budget", "precision", "row", "seed", "state"),
    *("epoch", "epochs", "device_hours_spent", "device_hours_needed", "estimated_from", "words"),
    *("spent_on", "needed_on"),
)
"""The columns of the CSV: one line a run."""

SHOWN = 20
"""Runs of each state that are listed one by one; the CSV lists all."""

NOTES = (
    "running: a process holds the run's lock, on this machine, or its heartbeat on another one is at most "
    f"{AGE_LIMIT:g} seconds old. interrupted and failed runs go on from their checkpoint where there is one.",
    "Device hours are those of training steps; evaluations come on top. Those spent are measured; of those needed the "
    "last column says whether they are measured or derived, and on what. A rate is the median over the runs of the "
    "same network on the kind of device that most of them had.",
)


def build(status: Status, estimates: Estimates, *, table: str, titles: Sequence[str], caption: str) -> Document:
    """`titles`: of what names a cell; `caption`: what is looked at."""
    estimated = [(cell, estimates.of(_wanted(cell)) if _unfinished(cell) else None) for cell in status.cells]
    main = Block(
        heading="",
        caption=f"{caption} {_totals(estimated)}",
        header=(*titles, *STATES, "h spent", "h needed", "estimated from"),
        rows=tuple(_line(cell, estimate) for cell, estimate in estimated),
        labels=len(titles),
        notes=(*status.notes, *_diverged(status.cells), *_mixed(status.cells), *_unknown(estimated), *NOTES)
        if status.cells
        else (),
    )
    listed = [(cell, run) for cell in status.cells for run in cell.runs if run.words]
    blocks = (main, _runs(listed, titles)) if listed else (main,)
    records = tuple(_record(table, cell, run, estimate) for cell, estimate in estimated for run in cell.runs)
    return Document(title=f"Status of {table}", blocks=blocks, records=records, fields=FIELDS)


Estimated = tuple[Cell, Estimate | None]


def _wanted(cell: Cell) -> Record:
    """The config of the runs that a cell lacks: in the precision that it holds, where it has runs."""
    return {**cell.record, "precision": cell.precision or cell.record["precision"]}


def _unfinished(cell: Cell) -> bool:
    return any(run.state != "finished" for run in cell.runs)


def _totals(estimated: Sequence[Estimated]) -> str:
    counts = Counter(run.state for cell, _ in estimated for run in cell.runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "none"
    needed = [(_needed(run, estimate), estimate) for cell, estimate in estimated for run in cell.runs]
    unknown = sum(hours is None for hours, _ in needed)
    open_ = f", and those of {_runs_in_words(unknown)} that are unknown" if unknown else ""
    spent = [
        f"{hours:,.1f} spent (measured) on {kind}"
        for kind, hours in _spent([run for cell, _ in estimated for run in cell.runs]).items()
    ]
    known = [(estimate.kind, estimate.source == "measured", hours) for hours, estimate in needed if estimate and hours]
    return (
        f"{_runs_in_words(sum(counts.values()))}: {states}. Device hours: "
        f"{together(spent) if spent else '0.0 spent (measured)'}, {_needed_in_words(known)}{open_}."
    )


def _needed_in_words(needed: Sequence[tuple[str, bool, float]]) -> str:
    """Hours by kind of device and by whether they rest on a measured rate, in words."""
    parts = []
    for kind in dict.fromkeys(kind for kind, _, _ in needed):
        own = {
            words: sum(hours for of, by_rate, hours in needed if (of, by_rate) == (kind, flag))
            for flag, words in SOURCES.items()
        }
        sources = " and ".join(f"{hours:,.1f} {words}" for words, hours in own.items() if hours)
        parts.append(f"{sum(own.values()):,.1f} needed ({sources}) on {kind}")
    return together(parts) if parts else "0.0 needed"


def _spent(runs: Sequence[Run]) -> dict[str, float]:
    """Hours that runs have spent, by kind of device."""
    hours: dict[str, float] = {}
    for run in runs:
        if run.seconds:
            hours[run.device.kind] = hours.get(run.device.kind, 0.0) + run.seconds / 3600
    return hours


def _runs_in_words(number: int) -> str:
    return f"{number} run" + ("" if number == 1 else "s")


def _needed(run: Run, estimate: Estimate | None) -> float | None:
    """Device hours that a run still takes, None where they are unknown."""
    if run.state == "finished":
        return 0.0
    if estimate is None or estimate.seconds_per_epoch is None:
        return None
    return max(0.0, run.epochs - run.epoch) * estimate.seconds_per_epoch / 3600


def _line(cell: Cell, estimate: Estimate | None) -> tuple[str, ...]:
    needed = [_needed(run, estimate) for run in cell.runs]
    spent = sum(run.seconds for run in cell.runs) / 3600
    counts = [cell.count(state) for state in STATES]
    return (
        *cell.labels,
        *(str(count) if count else "" for count in counts),
        f"{spent:,.1f}" if spent else "",
        "?" if None in needed else shown(sum(filter(None, needed))) if estimate else "",
        estimate.words if estimate else "",
    )


def _diverged(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The line on the runs that failed or ended at chance, by the rule of the tables."""
    words = []
    for cell in cells:
        ended = [run for run in cell.runs if run.state in ("finished", "failed")]
        if count := sum(run.diverged for run in ended):
            words.append(f"{', '.join(cell.labels)}: {count} of {len(ended)} diverged")
    if not words:
        return ()
    return (f"Of the runs that have ended: {'; '.join(words)} (failed, or at chance on the test set at the end).",)


def _mixed(cells: Sequence[Cell]) -> tuple[str, ...]:
    """The line on the cells whose hours spent are of several kinds of devices."""
    words = []
    for cell in cells:
        spent = _spent(cell.runs)
        if len(spent) > 1:
            parts = together(f"{hours:,.1f} on {kind}" for kind, hours in spent.items())
            words.append(f"{', '.join(cell.labels)}: {parts}")
    return (f"h spent on devices of several kinds: {'; '.join(words)}.",) if words else ()


def _unknown(estimated: Sequence[Estimated]) -> tuple[str, ...]:
    if not any(estimate and estimate.source == "unknown" for _, estimate in estimated):
        return ()
    return ("?: no run of this network has measured its rate yet, and its floating-point operations are not known.",)


def _runs(listed: Sequence[tuple[Cell, Run]], titles: Sequence[str]) -> Block:
    shown, more = [], []
    for state in ("failed", "finished", "interrupted", "missing", "running"):  # those that need someone come first
        entries = [entry for entry in listed if entry[1].state == state]
        shown += entries[:SHOWN]
        more += [f"{len(entries) - SHOWN} more are {state}"] if len(entries) > SHOWN else []
    return Block(
        heading="Runs",
        caption="",
        header=(*titles, "seed", "state", "where it is"),
        rows=tuple((*cell.labels, str(run.seed), run.state, run.words) for cell, run in shown),
        labels=0,
        notes=(f"{', '.join(more)}: --format csv lists every run.",) if more else (),
    )


def _record(table: str, cell: Cell, run: Run, estimate: Estimate | None) -> dict[str, Any]:
    record = cell.record
    return {
        "table": table,
        "dataset": record["dataset"]["name"],
        "model": record["model"]["name"],
        **{key: record[key] for key in ("method", "protocol", "budget")},
        "precision": cell.precision,
        "row": cell.row,
        "seed": run.seed,
        "state": run.state,
        "epoch": run.epoch,
        "epochs": run.epochs,
        "device_hours_spent": run.seconds / 3600,
        "device_hours_needed": _needed(run, estimate),
        "estimated_from": estimate.source if estimate and run.state != "finished" else None,
        "words": run.words,
        "spent_on": run.device.kind if run.seconds else None,
        "needed_on": estimate.kind or None if estimate and run.state != "finished" else None,
    }
