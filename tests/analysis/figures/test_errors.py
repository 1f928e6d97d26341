"""The standard errors and expectations that figures state, worked out by hand or by simulation."""

import math
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
import torch
from matplotlib.figure import Figure

from broadopt.analysis.figures.averages import _seen_trajectories
from broadopt.analysis.figures.calibration import Measured, _draw_reliability
from broadopt.analysis.figures.surfaces.lines import Rise, plus_minus, rises
from broadopt.analysis.landscape.distances import around_mean
from broadopt.analysis.landscape.probabilities import Bin, Reliability


def test_rises_on_both_sides_of_a_run_have_the_error_of_their_difference() -> None:
    """Errors are 0.3 below a distance of 2 and 0.4 from there on; "stored" is no point of the line."""
    rows: list[dict[str, Any]] = [
        {"kind": "line", "distance": tick, "train_objective": tick**2, "train_loss_se": 0.3 if tick < 2 else 0.4}
        for tick in (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    ]
    rows.append({"kind": "stored", "distance": 0.0, "train_objective": 99.0, "train_loss_se": 9.0})
    table = pandas.DataFrame(rows)
    assert rises(table, "train_objective", at=0.0, other=4.0, reach=2.0) == Rise(4.0, 4.0, 0.5)
    # From the other end, between points: 6.5 and 30.5, less 16.
    assert rises(table, "train_objective", at=4.0, other=0.0, reach=1.5) == Rise(-9.5, 14.5, math.hypot(0.4, 0.4))


def test_a_mean_over_directions_has_its_standard_error() -> None:
    assert plus_minus(pandas.Series([1.0, 2.0, 3.0, 6.0])) == " ± 1.1"  # the deviation, sqrt(14 / 3), over 2
    assert plus_minus(pandas.Series([1.0])) == ""


def test_the_bars_of_a_reliability_diagram_are_binomial_and_its_shares_those_of_all_images() -> None:
    bins = (
        Bin(low=0.2, high=0.4, images=4, confidence=0.3, accuracy=0.5),  # too few for a point above
        Bin(low=0.4, high=0.6, images=64, confidence=0.5, accuracy=0.25),
        Bin(low=0.6, high=0.8, images=12, confidence=0.75, accuracy=0.75),
    )
    found = Reliability(accuracy=0.0, nll=0.0, nll_error=0.0, ece=0.0, ece_error=0.0, bins=bins)
    one: Any = Measured(run=SimpleNamespace(label="SGD"), found=found, stored={})  # type: ignore[arg-type]
    upper, lower = Figure().subplots(2, 1)
    _draw_reliability(upper, lower, one, {"color": "k"})
    (bars,) = upper.containers[0][2]
    drawn = [(segment[0][0], segment[0][1], segment[1][1]) for segment in bars.get_segments()]
    half = 100 * math.sqrt(0.25 * 0.75 / 64), 100 * math.sqrt(0.25 * 0.75 / 12)
    expected = [(50.0, 25 - half[0], 25 + half[0]), (75.0, 75 - half[1], 75 + half[1])]
    assert [pytest.approx(one) for one in expected] == drawn
    assert lower.lines[0].get_xydata().tolist() == [pytest.approx([x, y]) for x, y in ((30, 5), (50, 80), (70, 15))]


@pytest.mark.parametrize("count", [3, 4, 20])
def test_independent_iterates_have_the_ratio_of_distances_that_is_said_to_be_expected(count: int) -> None:
    drawn = torch.randn(count, 100_000, generator=torch.Generator().manual_seed(count))
    around = pandas.DataFrame({"run": "SWA", **around_mean(drawn)})
    ratio = around["from_others"].mean() / around["from_mean"].mean()
    assert f", a ratio of {ratio:.2f} (independent iterates: {ratio:.2f})." in _seen_trajectories([around])
