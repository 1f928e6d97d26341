"""Differences, intervals, corrections and numbers of seeds, against values worked out by hand or by another library."""

import math
import subprocess
import sys

import pytest
from scipy import stats
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from broadopt.analysis.comparing.difference_blocks import _p
from broadopt.analysis.comparing.statistics import (
    MOST_SEEDS,
    Difference,
    _fewest,
    difference,
    differences,
    has_diverged,
    holm,
    interval,
    seeds_needed,
)
from broadopt.analysis.tables.summary import Summary, summarise

SGD = {1: 70.1, 2: 70.5, 3: 69.9}


def test_same_seeds_are_paired() -> None:
    found = difference({1: 71.0, 2: 74.0, 3: 76.0}, {3: 73.0, 1: 70.0, 2: 72.0})
    # The differences by seed are 1, 2 and 3: mean 2, deviation 1, t = 2 / (1 / sqrt 3); Student's distribution with
    # two degrees of freedom has the distribution function 1/2 + t / (2 sqrt(t² + 2)), so 0.975 at sqrt(1.805 / 0.0975).
    t = 2 * math.sqrt(3)
    assert found is not None
    assert (found.mean, found.test, found.n, found.n_baseline) == (2.0, "paired", 3, 3)
    assert found.p == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-12)
    half = math.sqrt(1.805 / 0.0975) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half), rel=1e-12)


@pytest.mark.parametrize("confidence", [0.95, 0.99])
def test_the_interval_of_a_mean_is_students(confidence: float) -> None:
    summary = summarise(SGD.values())
    assert summary is not None
    expected = DescrStatsW(list(SGD.values())).tconfint_mean(alpha=1 - confidence)
    assert interval(summary, confidence=confidence) == pytest.approx(expected, rel=1e-12)


def test_one_run_and_equal_runs_have_no_interval() -> None:
    assert interval(Summary(70.1, None, 1)) is None
    assert interval(Summary(70.1, 0.0, 3)) is None


@pytest.mark.parametrize("seeds", [(1, 2, 3, 4), (4, 5, 6), (1, 2)])
def test_other_seeds_are_compared_as_welch_does(seeds: tuple[int, ...]) -> None:
    ours = {seed: 70.9 + 0.3 * seed - 0.17 * seed**2 for seed in seeds}
    oracle = CompareMeans(DescrStatsW(list(ours.values())), DescrStatsW(list(SGD.values())))
    _, p, _ = oracle.ttest_ind(usevar="unequal")
    found = difference(ours, SGD)
    assert found is not None
    assert (found.test, found.n, found.n_baseline) == ("Welch", len(seeds), 3)
    assert found.p == pytest.approx(p, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(oracle.tconfint_diff(usevar="unequal"), rel=1e-12)
    wide = difference(ours, SGD, confidence=0.99)
    assert wide is not None
    assert (wide.low, wide.high) == pytest.approx(oracle.tconfint_diff(alpha=0.01, usevar="unequal"), rel=1e-12)


def test_one_seed_has_a_difference_and_no_interval() -> None:
    words = "one seed: no interval can be given"
    assert difference({1: 71.5}, {1: 70.0, 2: 71.0}) == Difference(1.0, None, None, None, None, "", 1, 2, words)
    assert difference({}, SGD) is None
    assert difference(SGD, {}) is None


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({1: 1.1, 2: 2.1, 3: 3.1}, {1: 1.0, 2: 2.0, 3: 3.0}),  # 0.1 apart, but for rounding
        ({1: 70.3, 2: 70.3}, {1: 70.2, 2: 70.2}),
        ({4: 70.3, 5: 70.3}, {1: 70.2, 2: 70.2}),
        ({1: 0.0, 2: 0.0}, {1: 0.0, 2: 0.0}),
    ],
)
def test_values_without_spread_give_no_interval(ours: dict[int, float], theirs: dict[int, float]) -> None:
    found = difference(ours, theirs)
    assert found is not None
    assert (found.low, found.high, found.p, found.test) == (None, None, None, "")
    assert found.why_not == "no spread: no interval can be given"


def test_differences_that_rounding_alone_tells_apart_have_no_spread() -> None:
    """By 1e-14, of which a t test would make a p of 1e-28: 1.10 points for each of three seeds is what was measured."""
    ours, theirs = {1: 71.23, 2: 72.41, 3: 73.87}, {1: 70.13, 2: 71.31, 3: 72.77}
    assert len({ours[seed] - theirs[seed] for seed in ours}) > 1
    found = difference(ours, theirs)
    assert found is not None
    assert (found.mean, found.p, found.why_not) == (
        pytest.approx(1.1), None, "no spread: no interval can be given",
    )  # fmt: skip


def test_holms_correction() -> None:
    # Ascending: 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before it.
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1.0, 1.0])
    assert holm([None]) == [None]
    assert holm([]) == []


def test_p_values_are_corrected_over_the_rows_that_were_tested() -> None:
    one, two = {1: 71.0, 2: 71.2, 3: 71.5}, {1: 71.0, 2: 71.2, 3: 71.5, 4: 70.0}
    found = differences({"one": (one, SGD), "two": (two, SGD), "single": ({1: 73.0}, SGD), "none": ({}, SGD)})
    assert list(found) == ["one", "two", "single"]
    first, second = stats.ttest_rel(list(one.values()), list(SGD.values())).pvalue, found["two"].p
    assert second is not None
    assert first < second
    assert (found["one"].p_holm, found["two"].p_holm) == pytest.approx((2 * first, max(2 * first, second)))
    assert found["single"].p_holm is None


def spread(deviation: float, *, mean: float = 70.0, first: int = 1) -> dict[int, float]:
    """Three values of this mean and sample standard deviation."""
    return {first: mean - deviation, first + 1: mean, first + 2: mean + deviation}


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_seeds_needed_of_two_samples_are_those_of_the_textbook(effect: float, seeds: int) -> None:
    # Cohen 1988, table 2.4.1, as computed exactly today: two-sided level 0.05, power 0.80.
    assert seeds_needed(spread(2.0, first=4), spread(2.0), detect=2 * effect) == seeds


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_of_pairs_are_those_of_the_textbook(effect: float, seeds: int) -> None:
    baseline = {1: 70.0, 2: 70.4, 3: 69.7}
    ours = {seed: baseline[seed] + apart for seed, apart in zip(baseline, (0.0, 2.0, 4.0), strict=True)}
    assert seeds_needed(ours, baseline, detect=2 * effect) == seeds


@pytest.mark.parametrize("detect", [0.05, 0.3, 1.0, 3.0, 5.0, 20.0])
def test_seeds_needed_are_the_fewest_with_that_power(detect: float) -> None:
    needed = seeds_needed(spread(0.8, first=9), spread(0.6), detect=detect)
    assert needed is not None

    def power(seeds: int) -> float:
        freedom = 2 * seeds - 2
        noncentrality = detect / math.sqrt((0.8**2 + 0.6**2) / 2) * math.sqrt(seeds / 2)
        return float(stats.nct.sf(stats.t.isf(0.025, freedom), freedom, noncentrality))

    assert power(needed) >= 0.8
    assert needed == 2 or power(needed - 1) < 0.8


def test_seeds_needed_are_unknown_without_spread_or_beyond_any_number_of_seeds() -> None:
    assert seeds_needed({1: 70.0}, SGD, detect=1.0) is None
    assert seeds_needed({1: 70.0, 2: 70.0}, {3: 70.0, 4: 70.0}, detect=1.0) is None
    assert seeds_needed(spread(50.0, first=7), spread(50.0), detect=0.01) is None


@pytest.mark.parametrize("fewest", [2, 3, 4, 5, 65_536, 65_537, MOST_SEEDS - 1, MOST_SEEDS, MOST_SEEDS + 1])
def test_the_fewest_seeds_are_searched_up_to_the_most(fewest: int) -> None:
    asked: list[int] = []

    def enough(seeds: int) -> bool:
        asked.append(seeds)
        return seeds >= fewest

    assert _fewest(enough) == (fewest if fewest <= MOST_SEEDS else None)
    assert max(asked) <= MOST_SEEDS


@pytest.mark.parametrize(
    ("dataset", "accuracy", "diverged"),
    [
        ("cifar10", 10.0, True),
        ("cifar10", 10.45, True),
        ("cifar10", 10.46, False),
        ("cifar100", 1.0, True),
        ("cifar100", 1.5, False),
        ("image_folder", 1.0, False),  # how many classes it has is not recorded
    ],
)
def test_a_run_at_chance_has_diverged(dataset: str, accuracy: float, diverged: bool) -> None:
    result = {"state": "finished", "dataset": dataset, "metrics": {"last": {"test_accuracy": accuracy}}}
    result["config"] = {"dataset": {"name": dataset}}
    assert has_diverged(result) is diverged
    assert has_diverged({**result, "state": "failed"}) is True
    assert has_diverged({**result, "state": "interrupted"}) is False


def test_statsmodels_absent_is_one_line() -> None:
    program = """
import sys
sys.modules["statsmodels"] = sys.modules["statsmodels.stats"] = None
from broadopt.analysis.comparing.statistics import holm
from broadopt.errors import InputError
try:
    holm([0.1])
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "--against needs statsmodels: pip install '.[statistics]' in the checkout\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, ""), (0.0, "< 0.001"), (0.00099, "< 0.001"), (0.001, "0.001"), (0.0044, "0.004"), (0.9996, "1.000")],
)
def test_p_values_have_three_digits_and_small_ones_their_bound(value: float | None, shown: str) -> None:
    assert _p(value) == shown
