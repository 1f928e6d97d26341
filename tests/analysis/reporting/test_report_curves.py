"""The points of the page's learning curves."""

from types import SimpleNamespace
from typing import Any

from broadopt.analysis.reporting.curves import _curve
from broadopt.analysis.tables.summary import Summary


def test_a_curve_is_the_mean_over_all_seeds_at_the_epochs_that_all_have_evaluated() -> None:
    accuracies = {1: {1.0: 50.0, 2.0: 60.0, 3.0: 64.0, 4.0: 68.0}, 2: {2.0: 62.0, 4.0: 72.0, 5.0: 90.0}, 3: {}}
    histories = {
        seed: [{"epoch": epoch, "test_accuracy": accuracy} for epoch, accuracy in found.items()] + [{"epoch": 9.0}]
        for seed, found in accuracies.items()
    }
    for order in ((1, 2, 3), (2, 3, 1)):
        line: Any = SimpleNamespace(finished=order)
        found = _curve(line, histories.__getitem__)  # type: ignore[arg-type]
        assert found == [(2.0, Summary(61.0, 2**0.5, 2)), (4.0, Summary(70.0, 8**0.5, 2))]
