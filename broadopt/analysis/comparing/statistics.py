"""Whether two sets of runs differ, by how much, and how many seeds it takes to see it.

All formulas are those of scipy and statsmodels; here it is decided which of them fits. Values are by seed, in the unit
of the figure compared (test accuracy: percentage points).
"""

import bisect
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev, variance
from typing import Any, TypeVar

from broadopt.analysis.tables.summary import Summary
from broadopt.analysis.tables.summary import has_diverged as has_diverged
from broadopt.errors import InputError

Row = TypeVar("Row", bound=Hashable)

MOST_SEEDS = 100_000
"""More seeds than anyone will run."""


@dataclass(frozen=True)
class Difference:
    """Mean of some runs minus mean of a baseline's, with what is known of its error."""

    mean: float
    low: float | None
    high: float | None
    """The ends of the confidence interval; None where there is none."""
    p: float | None
    """Two-sided, of the hypothesis that there is no difference."""
    p_holm: float | None
    """The same after Holm's correction over the rows that were compared together."""
    test: str
    """`paired` (t test of the differences seed by seed), `Welch` (unequal variances), or empty."""
    n: int
    n_baseline: int
    why_not: str = ""
    """Why there is no interval."""


def difference(
    values: Mapping[int, float], baseline: Mapping[int, float], *, confidence: float = 0.95
) -> Difference | None:
    """The difference of two sets of runs, each a figure by seed; None where one of them is empty.

    Paired by seed where both have the same seeds, which give every method the same initial weights and batches; else
    Welch's t test. No interval is given for one seed, nor where the values have no spread.
    """
    if not values or not baseline:
        return None
    ours, theirs = list(values.values()), list(baseline.values())
    apart = math.fsum(ours) / len(ours) - math.fsum(theirs) / len(theirs)
    without = Difference(apart, None, None, None, None, "", len(ours), len(theirs))
    if min(len(ours), len(theirs)) < 2:
        return replace(without, why_not="one seed: no interval can be given")
    seeds = sorted(values)
    paired = seeds == sorted(baseline)
    spread = [values[seed] - baseline[seed] for seed in seeds] if paired else [*_centred(ours), *_centred(theirs)]
    # Rounding leaves equal differences apart by some 1e-14, of which a test would make a certainty.
    if max(spread) - min(spread) <= 1e-9 * max(map(abs, [*ours, *theirs, 1e-300])):
        return replace(without, why_not="no spread: no interval can be given")
    test = _paired(values, baseline) if paired else _welch(ours, theirs)
    interval = test.confidence_interval(confidence)
    return replace(
        without,
        low=float(interval.low),
        high=float(interval.high),
        p=float(test.pvalue),
        test="paired" if paired else "Welch",
    )


def interval(summary: Summary, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """The confidence interval of a mean, by Student's t; None for one run, or where the values have no spread."""
    from scipy import stats

    if not summary.std:
        return None
    half = float(stats.t.ppf((1 + confidence) / 2, summary.n - 1)) * summary.std / math.sqrt(summary.n)
    return summary.mean - half, summary.mean + half


def _paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Any:
    from scipy import stats

    return stats.ttest_rel([values[seed] for seed in values], [baseline[seed] for seed in values])


def _welch(ours: Sequence[float], theirs: Sequence[float]) -> Any:
    from scipy import stats

    return stats.ttest_ind(ours, theirs, equal_var=False)


def _centred(values: Sequence[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    return [value - mean for value in values]


def differences(
    rows: Mapping[Row, tuple[Mapping[int, float], Mapping[int, float]]], *, confidence: float = 0.95
) -> dict[Row, Difference]:
    """The difference of every row, its figures and its baseline's by seed, with p values corrected over all of them.

    Rows without runs, or without a baseline's, are left out. Raises InputError where statsmodels is not installed.
    """
    found = {
        row: compared
        for row, (values, baseline) in rows.items()
        if (compared := difference(values, baseline, confidence=confidence)) is not None
    }
    corrected = holm([one.p for one in found.values()])
    return {row: replace(one, p_holm=p) for (row, one), p in zip(found.items(), corrected, strict=True)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p values after Holm's correction; a None stays one and is not counted. Raises InputError without statsmodels."""
    multitest = _statsmodels("multitest")
    known = [p for p in p_values if p is not None]
    corrected = iter(multitest.multipletests(known, method="holm")[1].tolist() if known else [])
    return [None if p is None else next(corrected) for p in p_values]


def seeds_needed(
    values: Mapping[int, float],
    baseline: Mapping[int, float],
    *,
    detect: float,
    power: float = 0.8,
    alpha: float = 0.05,
) -> int | None:
    """How many seeds each of the two needs, so that a true difference of `detect` is found with a probability of
    `power` by a two-sided t test at level `alpha`: of the differences by seed where both have the same seeds, else of
    two independent samples, with the spread seen so far.

    None where that is not known: with one seed, without any spread, or beyond MOST_SEEDS. Raises InputError without
    statsmodels.
    """
    if min(len(values), len(baseline)) < 2:
        return None
    tests = _statsmodels("power")
    if sorted(values) == sorted(baseline):
        spread, test = stdev(values[seed] - baseline[seed] for seed in values), tests.TTestPower()
    else:
        variances = [variance(side.values()) for side in (values, baseline)]
        spread, test = math.sqrt(sum(variances) / 2), tests.TTestIndPower()
    if spread <= 1e-9 * detect:
        return None

    def enough(seeds: int) -> bool:
        # The upper half of the two-sided test: a difference that is found with the wrong sign is not found, and for
        # the lower half, which is next to nothing, scipy's noncentral t has no number where the effect is large.
        return bool(test.power(detect / spread, seeds, alpha / 2, alternative="larger") >= power)

    return _fewest(enough)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds from 2 to MOST_SEEDS that is enough; None where none is.

    Doubled until it is, then searched below: the solver of statsmodels fails for few seeds.
    """
    least, most = 2, 2
    while not enough(most):
        if most == MOST_SEEDS:
            return None
        least, most = most + 1, min(2 * most, MOST_SEEDS)
    return least + bisect.bisect_left(range(least, most + 1), True, key=enough)


def _statsmodels(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"statsmodels.stats.{module}")
    except ImportError as error:
        raise InputError("--against needs statsmodels: pip install '.[statistics]' in the checkout") from error
