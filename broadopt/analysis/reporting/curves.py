"""Learning curves of a sweep: the mean over the seeds of a line, epoch by epoch, with a band of one deviation."""

import math
from collections.abc import Sequence

from broadopt.analysis.comparing.costs import evaluated
from broadopt.analysis.comparing.keys import distinct
from broadopt.analysis.comparing.sweep import Line as Recipe
from broadopt.analysis.comparing.sweep import Sweep
from broadopt.analysis.reporting.gathered import Histories
from broadopt.analysis.reporting.parts import Chart, Line, Tick, count
from broadopt.analysis.tables.summary import Summary, summarise

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 44, 470, 8, 246
"""The box of the axes, in the units of the drawing."""

MOST_LINES = 8
"""More cannot be told apart."""

MOST_POINTS = 100
"""Of a curve: as many as the drawing has room for."""

Curve = list[tuple[float, Summary]]
"""By epoch."""


def chart(name: str, sweep: Sweep, histories: Histories) -> Chart | None:
    """The learning curves of a sweep; None where no line has two evaluated epochs."""
    curves = {id(line): _curve(line, histories) for line in sweep.lines}
    known = [line for line in sweep.lines if len(curves[id(line)]) > 1]
    if not known:
        return None
    chosen = _chosen(known)
    drawn = [curves[id(line)] for line in chosen]
    names = [f"{name} (n = {curve[-1][1].n})" for name, curve in zip(_names(sweep, chosen), drawn, strict=True)]
    end = max(curve[-1][0] for curve in drawn)
    low, high = _range(drawn, end)
    cut = min(summary.mean for curve in drawn for _, summary in curve) < low
    ups = _ticks(low, high)
    return Chart(
        name=name,
        title=f"Test accuracy over epochs: {sweep.heading}",
        description=" ".join(_in_words(words, curve) for words, curve in zip(names, drawn, strict=True)),
        lines=tuple(
            Line(words, *_drawn(curve, end, low, high), style=style)
            for style, (words, curve) in enumerate(zip(names, drawn, strict=True))
        ),
        across=tuple(Tick(_x(value, end), f"{value:g}") for value in _ticks(0, end)),
        up=tuple(Tick(_y(value, low, high), f"{value:g}") for value in ups),
        caption=_caption(drawn, len(known) - len(chosen), low if cut else None),
    )


def _curve(line: Recipe, histories: Histories) -> Curve:
    """Means at the epochs that all finished runs of a line have evaluated; those of one history at least."""
    of_runs = [found for run in line.finished if (found := evaluated(histories(run)))]
    if not of_runs:
        return []
    common = set.intersection(*map(set, of_runs))
    curve = [(epoch, summarise(one[epoch] for one in of_runs)) for epoch in sorted(common)]
    return [(epoch, summary) for epoch, summary in curve if summary is not None]


def _chosen(lines: Sequence[Recipe]) -> list[Recipe]:
    """The best line of each method by its last weights, then the next best of all, in the order of the table."""

    def height(line: Recipe) -> float:
        summary = line.summary("last")
        return -math.inf if summary is None else summary.mean

    ranked = sorted(lines, key=height, reverse=True)
    first = {line.method: line for line in reversed(ranked)}.values()
    wanted = [*(line for line in ranked if line in first), *(line for line in ranked if line not in first)]
    kept = {id(line) for line in wanted[:MOST_LINES]}
    return [line for line in lines if id(line) in kept]


def _names(sweep: Sweep, lines: Sequence[Recipe]) -> list[str]:
    """What tells the lines that are drawn apart: the method alone where that does."""
    columns = [key for key in sweep.columns if len(distinct(line.value(key) for line in lines)) > 1]
    methods = [line.method for line in lines]
    short = len(set(methods)) == len(methods)
    return [line.method if short else line.name(columns) for line in lines]


def _range(curves: Sequence[Curve], end: float) -> tuple[float, float]:
    """From the lowest mean after the first fifth of the epochs: the first ones would press the others together."""
    later = [summary for curve in curves for epoch, summary in curve if epoch > end / 5]
    low = min(summary.mean - (summary.std or 0) for summary in later)
    high = max(summary.mean + (summary.std or 0) for summary in later)
    room = max(high - low, 1) / 20
    return max(0.0, low - room), min(100.0, high + room)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, four to eight of them."""
    rough = (high - low) / 5
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    return [step * index for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _x(epoch: float, end: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * epoch / end, 1)


def _y(accuracy: float, low: float, high: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * (accuracy - low) / (high - low), 1)


def _drawn(curve: Curve, end: float, low: float, high: float) -> tuple[str, str]:
    """The points of a mean and of its band; no band for one seed."""
    kept = _thinned(curve)
    points = [f"{_x(epoch, end):g},{_y(summary.mean, low, high):g}" for epoch, summary in kept]
    spread = [(epoch, summary.mean, summary.std) for epoch, summary in kept if summary.std is not None]
    upper = [f"{_x(epoch, end):g},{_y(mean + std, low, high):g}" for epoch, mean, std in spread]
    lower = [f"{_x(epoch, end):g},{_y(mean - std, low, high):g}" for epoch, mean, std in spread]
    return " ".join(points), " ".join([*upper, *reversed(lower)])


def _thinned(curve: Curve) -> Curve:
    """Every so many epochs, the last among them."""
    step = math.ceil(len(curve) / MOST_POINTS)
    return curve[(len(curve) - 1) % step :: step]


def _in_words(name: str, curve: Curve) -> str:
    (first, begin), (last, end) = curve[0], curve[-1]
    return f"{name}: {begin.mean:.2f} % after epoch {first:g}, {end.mean:.2f} % after epoch {last:g}."


def _caption(curves: Sequence[Curve], left_out: int, cut: float | None) -> str:
    bands = any(summary.std is not None for curve in curves for _, summary in curve)
    words = ["Test accuracy in percent of the plain weights over epochs: mean over n seeds"]
    words[0] += ", the band is one sample standard deviation to each side." if bands else "."
    if max(map(len, curves)) > MOST_POINTS:
        words.append("Of long runs not every epoch is drawn.")
    if cut is not None:
        words.append(f"The axis begins at {cut:.0f} %: earlier epochs are below it.")
    if left_out:
        verb = "is" if left_out == 1 else "are"
        words.append(
            f"{count(left_out, 'line')} of the table {verb} not drawn: drawn are the best of each method by last, then "
            "the next best."
        )
    return " ".join(words)
