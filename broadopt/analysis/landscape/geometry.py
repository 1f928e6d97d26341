"""Points, lines and planes in the space of the weights; vectors are flat, as networks.py makes them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from broadopt.errors import InputError

FLAT = 1e-4
"""Of the longest side: three points whose third lies nearer to the line through the others span no plane."""


@dataclass(frozen=True)
class Plane:
    """The plane w = origin + x u + y v with orthonormal u, v, float32 [P] each."""

    origin: Tensor
    u: Tensor
    v: Tensor

    @classmethod
    def through(cls, first: Tensor, second: Tensor, third: Tensor) -> "Plane":
        """The plane through three points [P], the first at (0, 0), the second at (|second - first|, 0), the third above
        the x axis (Garipov et al. 2018, section "Mode connectivity", the Gram-Schmidt construction of their figures).

        Raises InputError where they lie on a line.
        """
        # In float64: where two points are near each other, the float32 rounding of their difference tilts the basis.
        along, aside = (point.double() - first.double() for point in (second, third))
        length = along.norm()
        u = along / length.clamp_min(torch.finfo(torch.float64).tiny)
        rest = aside - (aside @ u) * u
        rest = rest - (rest @ u) * u  # once more: the first time leaves what was rounded away
        height = rest.norm()
        if not float(height) > FLAT * max(float(length), float(aside.norm())) or not float(length) > 0:
            raise InputError(
                f"the three points lie on a line (sides {float(length):.3g} and {float(aside.norm()):.3g}, height "
                f"{float(height):.3g}): expected three that span a plane"
            )
        return cls(first, u.float(), (rest / height).float())

    def coordinates(self, point: Tensor) -> tuple[float, float]:
        """(x, y) of the point of the plane that is nearest to `point` [P]."""
        away = point.double() - self.origin.double()
        return float(away @ self.u.double()), float(away @ self.v.double())

    def at(self, x: float, y: float) -> Tensor:
        """The weights at (x, y), float32 [P]."""
        return self.origin + x * self.u + y * self.v


@dataclass(frozen=True)
class Line:
    """The line w = origin + t u with |u| = 1; t is the signed distance from the origin."""

    origin: Tensor
    u: Tensor

    @classmethod
    def through(cls, first: Tensor, second: Tensor) -> "Line":
        """The line on which `first` [P] is at t = 0 and `second` at t = |second - first|. Raises InputError where they
        are equal.
        """
        along = second.double() - first.double()
        length = float(along.norm())
        if not length > 0:
            raise InputError("the two points are equal: expected two that span a line")
        return cls(first, (along / length).float())

    def at(self, t: float) -> Tensor:
        """The weights at the signed distance t, float32 [P]."""
        return self.origin + t * self.u


def directions(count: int, dimension: int, *, seed: int) -> list[Tensor]:
    """`count` independent directions, uniform on the unit sphere, float32 [dimension] each, on the CPU: a Gaussian
    vector over its norm. The first k are the same for any count.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(dimension, generator=generator, dtype=torch.float64) for _ in range(count))
    return [(vector / vector.norm()).float() for vector in drawn]


def evenly(least: float, most: float, count: int) -> list[float]:
    """`count` numbers from `least` to `most` in equal steps."""
    if count == 1:
        return [(least + most) / 2]
    return [least + (most - least) * number / (count - 1) for number in range(count)]


def distance(first: Tensor, second: Tensor) -> float:
    """The Euclidean distance of two points [P], summed in float64."""
    return math.sqrt(float((first.double() - second.double()).square().sum()))
