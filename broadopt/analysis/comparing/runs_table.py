"""All runs of a folder, side by side where they share data set, network and budget."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

from broadopt.analysis.comparing import costs, difference_blocks
from broadopt.analysis.comparing.against import Compared, compare
from broadopt.analysis.comparing.costs import AlongTraining, History, asked_columns, asked_records
from broadopt.analysis.comparing.difference_blocks import difference_block, difference_record, name_of, without_baseline
from broadopt.analysis.comparing.keys import ABSENT, label
from broadopt.analysis.comparing.lines import HELD_OUT, held_out
from broadopt.analysis.comparing.statistics import has_diverged
from broadopt.analysis.comparing.sweep import Line, Sweep, sweeps
from broadopt.analysis.tables.formats import FIELDS, Block, Document
from broadopt.analysis.tables.match import Recipes, Result, whole
from broadopt.analysis.tables.off_recipe import figures, place
from broadopt.analysis.tables.options import Comparison
from broadopt.analysis.tables.summary import collected_keys, cost, longest_key, reading, summarise, text
from broadopt.runs.objective import evaluation_point

CALIBRATION = ("test_nll", "test_ece")

NOTES = (
    "last: the weights after the last epoch. best: the best epoch on the test set. collected (coll.): what SWA (the "
    "mean of the weights) or FGE (the mean of the predictions) predicts after that many budgets; its NLL and ECE are "
    "those of the longest. best is chosen on the test set: it is never compared with last or collected.",
    "Accuracy and ECE in percent, NLL in nats: mean ± sample standard deviation over n seeds; one run has no ±. "
    "n of k: of k runs that have ended n finished. gradients: evaluations, each of a batch; img/s: images a second in "
    "training; seconds: those of training; all are medians.",
)
FURTHER = (
    "coll. with a name: what that collector predicts on the same run; the run reports what the first of its collectors "
    "predicts, without a name."
)
RATIO = (
    "x sgd: the median run's seconds over those of SGD in the same table, on the same device, in the same precision, "
    "with as many threads and processes, the same compile, deterministic and graphs, and the same settings but for lr, "
    "label smoothing and the like, which cost nothing; empty where there is none."
)


def build(
    results: Iterable[Result],
    *,
    recipes: Recipes,
    asked: Comparison | None = None,
    histories: Callable[[Result], History] = lambda result: (),
) -> Document:
    """Three blocks a table: accuracies, calibration, cost; and one of differences where `asked` says against what.

    `results`: of every state; those that are neither finished nor failed count where `asked.at_epoch` is given alone.
    `histories` gives the history of a result. Raises InputError for a key or a method that there is not.
    """
    asked = asked or Comparison()
    states = ("finished", "failed") if asked.at_epoch is None else ("finished", "failed", "interrupted", "running")
    found = sweeps(
        [result for result in results if result["state"] in states],
        recipes=recipes,
        columns=asked.columns,
        sort=asked.sort,
    )
    compared = compare(found, asked)
    blocks: list[Block] = []
    records: list[dict[str, Any]] = []
    of_costs: dict[str, None] = {}  # said once, below all tables
    for sweep, differences in zip(found, compared, strict=True):
        extra = AlongTraining(sweep, asked, histories)
        several = any(one.baseline for one in differences or ())
        blocks += [_accuracies(sweep, extra, () if several else _alone(sweep, differences, asked))]
        if differences and several:
            blocks.append(difference_block(sweep, differences, asked))
        costs_block = _costs(sweep, extra)
        blocks += [_calibration(sweep), replace(costs_block, notes=())]
        of_costs |= dict.fromkeys(costs_block.notes)
        for line, one in zip(sweep.lines, differences or repeat(None), strict=False):
            records += _records(sweep, line, one, extra)
    caption, notes = ("", (*NOTES, *of_costs)) if blocks else ("No finished run.", ())
    closing = Block(heading="", caption=caption, header=(), rows=(), labels=0, notes=notes)
    keys = dict.fromkeys(key for sweep in found for key in sweep.columns if key not in FIELDS)
    more = difference_blocks.FIELDS if asked.against else ()
    return Document(title="Runs", blocks=(*blocks, closing), records=tuple(records), fields=(*FIELDS, *more, *keys))


def _alone(sweep: Sweep, differences: Sequence[Compared] | None, asked: Comparison) -> tuple[str, ...]:
    """The line on a table without any difference."""
    if asked.against is None:
        return ()
    if differences is None:
        return (f"No run of {asked.against} here to compare with.",)
    return tuple(without_baseline(sweep, differences, asked))


def _labels(sweep: Sweep, line: Line) -> tuple[str, ...]:
    return (line.method, *(label(line.value(key)) for key in sweep.columns))


def _count(line: Line) -> str:
    return str(len(line.finished)) if line.ended == len(line.finished) else f"{len(line.finished)} of {line.ended}"


def _accuracies(sweep: Sweep, extra: AlongTraining, notes: tuple[str, ...]) -> Block:
    keys = collected_keys(sweep.runs)
    also = any(evaluation_point(key)[0] for key in keys)
    epoch = () if extra.asked.at_epoch is None else (_epoch_title(extra.epoch),)
    held = ("held out",) if any(value is not None for line in sweep.lines for value in held_out(line)) else ()
    return Block(
        heading=sweep.heading,
        caption=f"{sweep.shared}." if sweep.shared else "",
        header=("method", *sweep.columns, "n", "last", "best", *(f"coll. {key}" for key in keys), *held, *epoch),
        rows=tuple(
            (
                *_labels(sweep, line),
                _count(line),
                _cell(line, "last", None),
                _cell(line, "best", None),
                *(_cell(line, "collected", key) for key in keys),
                *(text(summarise(held_out(line)), n=len(line.finished)) for _ in held),
                *(text(summarise(extra.at_epoch(line)), n=len(line.finished)) for _ in epoch),
            )
            for line in sweep.lines
        ),
        labels=0,
        notes=(*sweep.notes, *_at_chance(sweep), *([HELD_OUT] if held else []), *([FURTHER] if also else []), *notes),
    )


def _epoch_title(epoch: float | None) -> str:
    return "no common epoch" if epoch is None else f"epoch {epoch:g}"


def _at_chance(sweep: Sweep) -> list[str]:
    """A line on the finished runs that have learned nothing, which count in the means above."""
    counts = [(line, sum(map(has_diverged, line.finished))) for line in sweep.lines]
    words = [f"{count} of {len(line.finished)} of {name_of(sweep, line)}" for line, count in counts if count]
    return [f"Finished at chance, and counted: {'; '.join(words)}."] if words else []


def _calibration(sweep: Sweep) -> Block:
    collected = ("collected",) if collected_keys(sweep.runs) else ()
    rows = []
    for line in sweep.lines:
        longest = longest_key(line.finished)
        cells = [_cell(line, metric, longest, name) for metric in ("last", *collected) for name in CALIBRATION]
        rows.append((*_labels(sweep, line), *cells))
    titles = [f"{metric} {name}" for metric in ("last", "coll.")[: 1 + len(collected)] for name in ("NLL", "ECE")]
    return Block(
        heading="",
        caption="Calibration of the same runs.",
        header=("method", *sweep.columns, *titles),
        rows=tuple(rows),
        labels=0,
    )


def _costs(sweep: Sweep, extra: AlongTraining) -> Block:
    ratios = [_ratio(sweep, line, extra.asked) for line in sweep.lines]
    header = ["epochs", "gradients", "img/s", "seconds"]
    rows = []
    for line in sweep.lines:
        epochs = [run["epochs"] for run in line.finished]
        counts = (_median(line, name) for name in ("gradient_evaluations", "images_per_second", "train_seconds"))
        rows.append([*_labels(sweep, line), f"{statistics.median(epochs):.4g}" if epochs else "", *counts])
    notes = []
    if any(ratios):
        header.append("x sgd")
        rows = [[*row, f"{ratio:.2f}" if ratio else ""] for row, ratio in zip(rows, ratios, strict=True)]
        notes.append(RATIO)
    for titles, cells, note in asked_columns(sweep, extra):
        header += titles
        rows = [[*row, *more] for row, more in zip(rows, cells, strict=True)]
        notes.append(note)
    return Block(
        heading="",
        caption="Cost of the same runs.",
        header=("method", *sweep.columns, *header),
        rows=tuple(map(tuple, rows)),
        labels=0,
        notes=tuple(notes),
    )


def _ratio(sweep: Sweep, line: Line, asked: Comparison) -> float | None:
    return costs.time_ratio(line.finished, costs.baseline_runs(sweep, line, asked, method="sgd"))


def _cell(line: Line, metric: str, key: str | None, quantity: str = "test_accuracy") -> str:
    values = [reading(run, metric=metric, key=key, quantity=quantity) for run in line.finished]
    if quantity == "test_ece":  # a fraction in the files
        values = [None if value is None else 100 * value for value in values]
    return text(summarise(values), digits=3 if quantity == "test_nll" else 2, n=len(line.finished))


def _median(line: Line, quantity: str) -> str:
    known = [value for run in line.finished if (value := cost(run, quantity)) is not None]
    return f"{statistics.median(known):.0f}" if known else ""


def _records(sweep: Sweep, line: Line, compared: Compared | None, extra: AlongTraining) -> list[dict[str, Any]]:
    """One record a number, for CSV."""
    runs = line.finished
    values = {key: line.value(key) for key in sweep.columns if key not in FIELDS}
    keys = {
        key: whole(value) if isinstance(value, (list, tuple)) else value
        for key, value in values.items()
        if value is not ABSENT
    }
    differs = "; ".join(text for key, text in (line.differs or {}).items() if key != "budget")
    shared = {"table": "runs", **place(line.group), **keys}
    shared["differs"] = "no recipe known to compare with" if line.differs is None else differs
    readings = [("last", None), ("best", None), *(("collected", key) for key in collected_keys(runs))]
    records: list[dict[str, Any]] = []
    for metric, key in readings:
        for quantity in ("test_accuracy", *CALIBRATION):
            summary = summarise(reading(run, metric=metric, key=key, quantity=quantity) for run in runs)
            records += (
                [{**shared, "metric": metric, "key": key, **figures(summary, quantity=quantity)}] if summary else []
            )
    if held := summarise(held_out(line)):
        records.append({**shared, "metric": "held out", **figures(held, quantity="validation_accuracy")})
    for quantity in ("images_per_second", "train_seconds", "gradient_evaluations"):
        records.append({**shared, **figures(summarise(cost(run, quantity) for run in runs), quantity=quantity)})
    records += [
        {**shared, "quantity": "time_ratio", "mean": ratio} for ratio in [_ratio(sweep, line, extra.asked)] if ratio
    ]
    records += [{**shared, **record} for record in asked_records(line, extra)]
    return records + [{**shared, **record} for record in difference_record(sweep, compared, extra.asked)]
