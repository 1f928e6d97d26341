import math
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from broadopt.analysis.landscape import distances
from broadopt.errors import InputError

SQUARE = torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0]])


def test_the_corners_of_a_square_from_its_middle_and_from_each_other() -> None:
    assert distances.mean(SQUARE).tolist() == [1.0, 1.0]
    assert distances.from_point(SQUARE, distances.mean(SQUARE)).tolist() == [math.sqrt(2)] * 4
    side, diagonal = 2.0, 2 * math.sqrt(2)
    assert distances.from_each_other(SQUARE)[0].tolist() == [0.0, side, diagonal, side]
    assert torch.equal(distances.from_each_other(SQUARE), distances.from_each_other(SQUARE).T)


def test_the_spread_is_the_largest_distance_from_the_mean() -> None:
    assert distances.spread(torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]])) == pytest.approx(10 / 3, rel=1e-15)
    assert distances.spread(SQUARE[:1]) == 0


def test_what_lies_close_together_keeps_its_digits() -> None:
    """Inner products in float32 would give 0 for two points that are 2^-20 apart at a distance of 1000."""
    near = torch.full((2, 4), 512.0)
    near[1, 0] += 2.0**-14
    assert distances.from_each_other(near)[0, 1].item() == 2.0**-14


def test_vectors_are_stacked_without_being_held_all_at_once() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def rows() -> Iterator[torch.Tensor]:
        for number in range(5):
            alive = [one for one in made if one() is not None]
            assert len(alive) <= 1
            row = torch.full((3,), float(number))
            made.append(weakref.ref(row))
            yield row
            del row

    assert torch.equal(distances.stacked(rows(), 5), torch.arange(5.0)[:, None].expand(5, 3))
    assert len(made) == 5


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_contracting_scales_every_distance_and_leaves_the_mean(share: float) -> None:
    smaller = torch.stack(list(distances.contracted(SQUARE, share)))
    assert distances.mean(smaller).tolist() == [1.0, 1.0]
    assert torch.equal(distances.from_each_other(smaller), share * distances.from_each_other(SQUARE))
    assert smaller.dtype == SQUARE.dtype


@pytest.mark.parametrize("slope", [1.0, 2.0, -0.5])
def test_a_power_law_is_found_again(slope: float) -> None:
    x = [0.1, 0.2, 0.5, 1.0, 3.0]
    law = distances.power_law(x, [4.0 * value**slope for value in x])
    assert (law.slope, law.factor) == (pytest.approx(slope, abs=1e-14), pytest.approx(4, rel=1e-14))
    assert law.error == pytest.approx(0, abs=1e-13)


def test_the_standard_error_of_the_slope_is_that_of_scipy() -> None:
    from scipy import stats

    x, y = [0.3, 0.5, 1.1, 2.0, 2.2, 9.0], [0.2, 0.6, 0.9, 2.5, 1.9, 10.0]
    law, expected = distances.power_law(x, y), stats.linregress(np.log(x), np.log(y))
    assert law.slope == pytest.approx(expected.slope, rel=1e-12)
    assert law.error == pytest.approx(expected.stderr, rel=1e-12)
    assert math.log(law.factor) == pytest.approx(expected.intercept, rel=1e-12)
    assert str(law) == f"{expected.slope:.2f} ± {expected.stderr:.2f}"


def test_two_points_have_a_slope_without_an_error() -> None:
    law = distances.power_law([1.0, 2.0], [1.0, 4.0])
    assert (law.slope, law.error, str(law)) == (pytest.approx(2), None, "2.00")


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1.0], [1.0], "expected two different spreads at least, found 1"),
        ([1.0, 1.0], [1.0, 2.0], "expected two different spreads at least, found 1"),
        ([1.0, 2.0], [0.0, 2.0], "expected positive numbers"),
        ([1.0, 2.0], [1.0, math.inf], "expected positive numbers"),
    ],
)
def test_points_without_a_slope_are_refused(x: list[float], y: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        distances.power_law(x, y)
