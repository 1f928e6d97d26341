"""A number of each run, and what a table says of several: mean, sample standard deviation, count."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.tables.match import Result
from broadopt.runs.objective import evaluation_point, longest

CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
"""Of the data sets whose number of classes is fixed; that of an image folder is not recorded."""

COARSE = 20
"""Superclasses of CIFAR-100."""

NEAR_CHANCE = 0.005
"""Share of the way from chance to 100 % up to which an accuracy counts as chance: 10.45 % of ten classes."""


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (n - 1; None for one run) of n runs."""

    mean: float
    std: float | None
    n: int


def summarise(values: Iterable[float | None]) -> Summary | None:
    """The summary of those values that exist; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    return Summary(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def reading(result: Result, *, metric: str, key: str | None = None, quantity: str = "test_accuracy") -> float | None:
    """`quantity` of one run: of its last weights, its best epoch, or what it had collected after `key` budgets.

    None where the run does not have it, or where it is not finite.
    """
    figures: Any = result["metrics"].get(metric) or {}
    if metric == "collected":
        figures = figures.get(key) or {}
    return _finite(figures.get(quantity))


def cost(result: Result, quantity: str) -> float | None:
    """`quantity` of result["cost"], None where it was not measured."""
    return _finite(result["cost"].get(quantity))


def has_moved(environment: Mapping[str, Any]) -> bool:
    """Whether a run went on with another GPU, other threads or instructions than it had begun with: its seconds are
    those of no one machine.
    """
    machines = environment.get("carried_out_on")
    return isinstance(machines, list) and len(machines) > 1


def _finite(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def collected_keys(results: Iterable[Result]) -> list[str]:
    """The evaluation points of the runs' collectors: `1`, `1.25`, ..., ascending, and then those of further collectors
    on the same run, `ema 1`.
    """
    found = {key for result in results for key in result["metrics"].get("collected") or {}}
    return sorted(found, key=evaluation_point)


def longest_key(results: Iterable[Result]) -> str | None:
    """Of these the one by which the runs report what they collected; None where none did."""
    return longest(collected_keys(results))


def text(summary: Summary | None, *, digits: int = 2, n: int | None = None) -> str:
    """`72.50 ± 0.20 (3)`; one run shows no ±, no run nothing. A count equal to `n`, said elsewhere, is left out."""
    if summary is None:
        return ""
    spread = "" if summary.std is None else f" ± {summary.std:.{digits}f}"
    return f"{summary.mean:.{digits}f}{spread}" + ("" if summary.n == n else f" ({summary.n})")


def signed(difference: float) -> str:
    """`+0.12`, `-0.12`; what rounds to zero carries no sign."""
    shown = f"{difference:+.2f}"
    return "0.00" if float(shown) == 0 else shown


def has_diverged(result: Result) -> bool:
    """Whether a run ended without having learned: it failed, or its last weights are at chance on the test set."""
    if result["state"] == "failed":
        return True
    is_coarse, last = result["config"]["dataset"].get("coarse", False), result["metrics"]["last"]
    classes = COARSE if is_coarse else CLASSES.get(result["dataset"])
    if result["state"] != "finished" or classes is None or not last:
        return False
    chance = 100 / classes
    return bool(last["test_accuracy"] <= chance + NEAR_CHANCE * (100 - chance))
