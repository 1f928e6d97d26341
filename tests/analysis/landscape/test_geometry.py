"""Lines and planes in weight space, on points whose coordinates are known."""

import math

import pytest
import torch

from broadopt.analysis.landscape.geometry import Line, Plane, directions, distance, evenly
from broadopt.errors import InputError

ORIGIN, EAST, NORTH_EAST = torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 5, 3]), torch.tensor([1.0, 4, 7])


def test_a_plane_has_its_points_where_they_are() -> None:
    plane = Plane.through(ORIGIN, EAST, NORTH_EAST)
    assert plane.u.tolist() == [0, 1, 0]
    assert plane.v.tolist() == [0, 0, 1]
    assert [plane.coordinates(point) for point in (ORIGIN, EAST, NORTH_EAST)] == [(0, 0), (3, 0), (2, 4)]
    assert plane.at(2, 4).tolist() == NORTH_EAST.tolist()


def test_a_plane_in_many_dimensions_is_orthonormal_and_keeps_distances() -> None:
    points = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(0))
    points[2] = points[1] + 1e-2 * points[2]  # nearly on the line, where one step of Gram-Schmidt would tilt the basis
    plane = Plane.through(*points)
    u, v = plane.u.double(), plane.v.double()
    assert float(u.norm()) == pytest.approx(1, abs=1e-6)
    assert float(v.norm()) == pytest.approx(1, abs=1e-6)
    assert float(u @ v) == pytest.approx(0, abs=1e-6)
    for point in points:
        assert distance(plane.at(*plane.coordinates(point)), point) < 1e-3
    assert math.dist(plane.coordinates(points[1]), plane.coordinates(points[2])) == pytest.approx(
        distance(points[1], points[2]), rel=1e-5
    )


@pytest.mark.parametrize("third", [ORIGIN, EAST, (ORIGIN + EAST) / 2, 3 * EAST - 2 * ORIGIN], ids=str)
def test_points_on_a_line_span_no_plane(third: torch.Tensor) -> None:
    with pytest.raises(InputError, match="the three points lie on a line"):
        Plane.through(ORIGIN, EAST, third)


def test_equal_points_span_neither() -> None:
    with pytest.raises(InputError, match="the three points lie on a line"):
        Plane.through(ORIGIN, ORIGIN, EAST)
    with pytest.raises(InputError, match="the two points are equal"):
        Line.through(ORIGIN, ORIGIN.clone())


def test_a_quadratic_on_a_line_and_on_a_plane() -> None:
    """f(w) = |w|^2 / 2 along w = a + t u is (|a|^2 + 2 t <a, u> + t^2) / 2."""
    line = Line.through(ORIGIN, NORTH_EAST)
    slope = float(ORIGIN @ (NORTH_EAST - ORIGIN)) / distance(ORIGIN, NORTH_EAST)
    for t in (-2.0, 0.0, 1.5, distance(ORIGIN, NORTH_EAST)):
        assert float(line.at(t).square().sum()) / 2 == pytest.approx((14 + 2 * t * slope + t * t) / 2, rel=1e-6)
    plane = Plane.through(ORIGIN, EAST, NORTH_EAST)
    assert float(plane.at(1, -2).square().sum()) / 2 == (1 + 9 + 1) / 2


def test_directions_are_of_length_one_and_do_not_depend_on_their_number() -> None:
    three, five = directions(3, 1000, seed=1), directions(5, 1000, seed=1)
    assert all(torch.equal(first, second) for first, second in zip(three, five, strict=False))
    assert [float(one.double().norm()) for one in five] == pytest.approx([1] * 5, abs=1e-6)
    assert abs(float(five[0] @ five[1])) < 0.15
    assert not torch.equal(three[0], directions(1, 1000, seed=2)[0])


def test_numbers_are_evenly_spaced_and_have_both_ends() -> None:
    assert evenly(-1, 2, 4) == [-1, 0, 1, 2]
    assert evenly(0, 1, 1) == [0.5]
