"""Distances of weight vectors from their mean and from each other, and the power law that a quantity follows.

Weights: one float vector of P parameters a network, stacked to [n, P]. All distances are Euclidean, computed in
float64.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from broadopt.errors import InputError


def stacked(rows: Iterable[Tensor], count: int) -> Tensor:
    """`count` vectors [P] as [count, P], each put in its place before the next but one is made: a list of them would
    take the memory of all of them a second time.
    """
    found = torch.empty(0)
    for place, row in enumerate(rows):
        if place == 0:
            found = row.new_empty(count, len(row))
        found[place] = row
    return found


def mean(weights: Tensor) -> Tensor:
    """The mean of weights [n, P], float64 [P]: that of n iterates, or what SWA would average."""
    total = torch.zeros(weights.shape[1], dtype=torch.float64, device=weights.device)
    for row in weights:  # row by row: a float64 copy of them all takes twice their memory
        total += row
    return total / len(weights)


def from_point(weights: Tensor, point: Tensor) -> Tensor:
    """The distance of each of the weights [n, P] from a point [P]; float64 [n]."""
    # Subtracted, not through inner products: |a|^2 + |b|^2 - 2ab loses every digit where a is near b.
    return torch.stack([torch.linalg.vector_norm(row.double() - point.double()) for row in weights])


def from_each_other(weights: Tensor) -> Tensor:
    """The distances between all pairs of weights [n, P]; float64 [n, n], symmetric, zero on the diagonal."""
    return torch.stack([from_point(weights, row) for row in weights])


def spread(weights: Tensor) -> float:
    """Delta, the largest distance of weights [n, P] from their mean (SWA paper, section 3.5)."""
    return float(from_point(weights, mean(weights)).max())


def contracted(weights: Tensor, share: float) -> Iterator[Tensor]:
    """w_i(t) = mean + t (w_i - mean) for t = `share`: the constellation of weights [n, P] with t times its spread, one
    vector [P] after the other, since all at once take as much memory as the weights.
    """
    centre = mean(weights)
    for row in weights:
        yield (centre + share * (row.double() - centre)).to(row.dtype)


def around_mean(weights: Tensor) -> dict[str, list[float]]:
    """Of iterates [n, P] in their order, n numbers each: their distance from the mean of all, from the others (mean)
    and from the one before (none for the first), that of their running mean from the mean of all, and their norm.
    """
    centre, apart = mean(weights), from_each_other(weights)
    total, running = torch.zeros_like(centre), []
    for count, row in enumerate(weights, start=1):
        total += row
        running.append(float((total / count - centre).norm()))
    return {
        "from_mean": from_point(weights, centre).tolist(),
        "from_others": (apart.sum(dim=1) / (len(weights) - 1)).tolist(),
        "from_previous": [math.nan, *torch.diagonal(apart, 1).tolist()],
        "running_mean_from_mean": running,
        "norm": from_point(weights, torch.zeros_like(centre)).tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """y = factor x^slope, fitted by least squares to the logarithms of both."""

    slope: float
    error: float | None
    """Standard error of the slope; None for two points, which every line meets."""
    factor: float

    def __str__(self) -> str:
        return f"{self.slope:.2f}" if self.error is None else f"{self.slope:.2f} ± {self.error:.2f}"


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw:
    """The power law through points with x > 0 and y > 0. Raises InputError for fewer than two different x, or for a
    point that has no logarithm.
    """
    if len(set(x)) < 2:
        raise InputError(f"a slope: expected two different spreads at least, found {len(set(x))}")
    if not all(math.isfinite(value) and value > 0 for value in (*x, *y)):
        raise InputError("a slope on log axes: expected positive numbers, found one that is zero or not finite")
    across, up = np.log(np.array(x)), np.log(np.array(y))
    centred = across - across.mean()
    squares = float(centred @ centred)
    slope = float(centred @ up) / squares
    left = up - up.mean() - slope * centred
    error = math.sqrt(float(left @ left) / (len(x) - 2) / squares) if len(x) > 2 else None
    return PowerLaw(slope=slope, error=error, factor=math.exp(float(up.mean()) - slope * float(across.mean())))
