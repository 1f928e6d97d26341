"""The rows of a table compared with those of a method: which with which, on which accuracy, and how it is shown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broadopt.comparing.keys import label
from broadopt.comparing.lines import OF_THE_METHOD, Line
from broadopt.comparing.statistics import Difference, differences, has_diverged, seeds_needed
from broadopt.comparing.sweep import Sweep
from broadopt.errors import InputError, nearest
from broadopt.tables.formats import Block
from broadopt.tables.match import Result
from broadopt.tables.options import Comparison
from broadopt.tables.summary import collected_keys, reading, signed, summarise, text

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Compared:
    """A line beside the one that it is compared with."""

    line: Line
    baseline: Line | None
    """None where there is none, or where the line is the baseline itself."""
    values: Mapping[int, float]
    """By seed, of the runs that did not diverge."""
    difference: Difference | None
    seeds: int | None
    """That it takes to see the difference asked for."""


def reported(result: Result, metric: str | None) -> float | None:
    """The accuracy of a run that is compared, in percent: `metric`, or where that is None what its collector predicts
    after the most budgets, and that of the last weights of a run without one.
    """
    keys = collected_keys([result])
    if metric is None:
        metric = "collected" if keys else "last"
    return reading(result, metric=metric, key=keys[-1] if keys else None)


def by_seed(runs: Sequence[Result], metric: str | None) -> dict[int, float]:
    """The accuracies of the runs that finished and did not diverge."""
    known = {run["seed"]: reported(run, metric) for run in runs if run["state"] == "finished" and not has_diverged(run)}
    return {seed: value for seed, value in sorted(known.items()) if value is not None}


def compare(found: Sequence[Sweep], asked: Comparison) -> list[list[Compared] | None]:
    """The lines of each table beside those of the method `asked.against`, p values corrected over the table; None for
    a table without that method, and for all where none is asked for. Raises InputError where no table has it.
    """
    against = asked.against
    if against is None:
        return [None for _ in found]
    methods = list(dict.fromkeys(line.method for sweep in found for line in sweep.lines if line.finished))
    if against not in methods:
        there = f"; there are {', '.join(methods)}{nearest(against, methods)}" if methods else ""
        raise InputError(f"--against {against}: no finished run of this method{there}")
    return [_compared(sweep, asked) for sweep in found]


def _compared(sweep: Sweep, asked: Comparison) -> list[Compared] | None:
    values = {id(line): by_seed(line.group.runs, asked.metric) for line in sweep.lines}
    rivals = [line for line in sweep.lines if line.method == asked.against and values[id(line)]]
    if not rivals:
        return None
    baselines = {id(line): _baseline(sweep, line, rivals, values) for line in sweep.lines}
    rows = {
        id(line): (values[id(line)], values[id(other)])
        for line in sweep.lines
        if (other := baselines[id(line)]) is not None
    }
    tested = differences(rows, confidence=CONFIDENCE)
    return [
        Compared(
            line,
            baselines[id(line)],
            values[id(line)],
            tested.get(id(line)),
            seeds_needed(*rows[id(line)], detect=asked.detect) if asked.detect and id(line) in rows else None,
        )
        for line in sweep.lines
    ]


def _baseline(
    sweep: Sweep, line: Line, rivals: Sequence[Line], values: Mapping[int, Mapping[int, float]]
) -> Line | None:
    """The best of the baseline's lines that agree with a line in all that is not the method's own, or of all of them
    where none does; None where that is the line itself.
    """
    keys = [key for key in sweep.columns if key.split(".")[0] not in OF_THE_METHOD]
    alike = [other for other in rivals if all(label(other.value(key)) == label(line.value(key)) for key in keys)]

    def mean(other: Line) -> float:
        found = values[id(other)].values()
        return sum(found) / len(found)

    best = max(alike or rivals, key=mean)
    return None if best is line else best


def name_of(sweep: Sweep, line: Line) -> str:
    """A line in a sentence."""
    return line.name(sweep.columns)


def difference_block(sweep: Sweep, compared: Sequence[Compared], asked: Comparison) -> Block:
    """The differences of one table; nothing in it is set in bold, whatever its p value."""
    several = len({id(one.baseline) for one in compared if one.baseline}) > 1
    which = asked.metric or "what each method reports (collected after the most budgets, else last)"
    tested = sum(one.difference is not None and one.difference.p is not None for one in compared)
    header = [
        "method",
        *sweep.columns,
        "n",
        "accuracy",
        f"Δ to {asked.against}",
        "95 % interval",
        "p",
        "p (Holm)",
        "test",
    ]
    header += [f"seeds for {asked.detect:g}"] if asked.detect else []
    header += ["compared with"] if several else []
    return Block(
        heading="",
        caption=f"Difference of the means to {asked.against} in percentage points of test accuracy: {which}.",
        header=tuple(header),
        rows=tuple(tuple(_row(sweep, one, asked, several)) for one in compared),
        labels=0,
        notes=tuple(_notes(sweep, compared, asked, tested)),
    )


def _row(sweep: Sweep, one: Compared, asked: Comparison, several: bool) -> list[str]:
    found, runs = one.difference, one.line.ended
    n = str(len(one.values)) if len(one.values) == runs else f"{len(one.values)} of {runs}"
    cells = [one.line.method, *(label(one.line.value(key)) for key in sweep.columns), n]
    cells += [text(summarise(one.values.values()), n=len(one.values))]
    cells += shown(found)
    if asked.detect:
        cells.append("" if one.seeds is None else str(one.seeds))
    if several:
        cells.append("" if one.baseline is None else name_of(sweep, one.baseline))
    return cells


def shown(found: Difference | None) -> list[str]:
    """A difference in five cells: itself, interval, p, p after Holm's correction, test."""
    if found is None:
        return [""] * 5
    interval = "" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"
    return [signed(found.mean), interval, _p(found.p), _p(found.p_holm), found.test]


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _notes(sweep: Sweep, compared: Sequence[Compared], asked: Comparison, tested: int) -> list[str]:
    return [
        "p: two-sided t test, paired by seed where both have the same seeds, else Welch's (unequal variances). "
        f"p (Holm): corrected for {tested} test{'s' * (tested != 1)}, those of this table; the interval is not.",
        *without_interval([(name_of(sweep, one.line), one.difference) for one in compared]),
        *_left_out(sweep, compared),
        *power_note(asked),
    ]


def without_interval(rows: Sequence[tuple[str, Difference | None]]) -> list[str]:
    """A line for each reason why rows have no interval."""
    reasons: dict[str, list[str]] = {}
    for name, found in rows:
        if found is not None and found.why_not:
            reasons.setdefault(found.why_not, []).append(name)
    return [f"{'; '.join(names)}: {why}." for why, names in reasons.items()]


def power_note(asked: Comparison) -> list[str]:
    """What the column of `--detect` is."""
    if not asked.detect:
        return []
    return [
        f"seeds for {asked.detect:g}: of each of the two methods, to find a true difference of {asked.detect:g} "
        "percentage points with a probability of 80 % at p = 0.05, with the spread of these runs and no correction."
    ]


def _left_out(sweep: Sweep, compared: Sequence[Compared]) -> list[str]:
    """The line on runs that failed or diverged, as the footnotes of papers have it."""
    words = []
    for one in compared:
        ended = [run for run in one.line.group.runs if run["state"] in ("finished", "failed")]
        failed = sum(run["state"] == "failed" for run in ended)
        chance = sum(has_diverged(run) for run in ended) - failed
        parts = [f"{count} {word}" for count, word in ((failed, "failed"), (chance, "ended at chance")) if count]
        words += [f"{name_of(sweep, one.line)}: {' and '.join(parts)} of {len(ended)}"] if parts else []
    return [f"n of k: k runs ended, and the differences are those of n. {'; '.join(words)}."] if words else []


def difference_record(one: Compared | None, asked: Comparison) -> list[dict[str, Any]]:
    """The same for a CSV."""
    if one is None or one.difference is None or one.baseline is None:
        return []
    found = one.difference
    return [
        {
            "quantity": "difference",
            "metric": asked.metric or "reported",
            "n": found.n,
            "mean": found.mean,
            "against": one.baseline.method,
            "low": found.low,
            "high": found.high,
            "p": found.p,
            "p_holm": found.p_holm,
            "test": found.test,
        }
    ]
