"""Predicted probabilities: how far those of two networks are apart, and how well they are calibrated.

Predictions are log-probabilities as `training.evaluate` gives them: float64 [N, C], images by classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor

from broadopt.training.evaluate import BINS, bin_of, metrics


def distance(first: Tensor, second: Tensor) -> float:
    """The mean over images of the L2 norm of the difference of two predictions, in probability: 0 to sqrt(2)."""
    return float(torch.linalg.vector_norm(first.exp() - second.exp(), dim=1).mean())


def agreement(first: Tensor, second: Tensor) -> float:
    """The percentage of images to which two predictions give the same class."""
    return 100 * float((first.argmax(dim=1) == second.argmax(dim=1)).double().mean())


def pairwise(predictions: Sequence[Tensor]) -> list[float]:
    """The distance of every pair of predictions, first with second, first with third, ..."""
    return [distance(first, second) for first, second in combinations(predictions, 2)]


def ensemble(predictions: Sequence[Tensor]) -> Tensor:
    """Log-probabilities of the mean of some predictions, added in their order as FGE adds its members."""
    return reduce(torch.logaddexp, predictions) - math.log(len(predictions))


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Accuracy against confidence in the bins of the expected calibration error (Guo et al. 2017)."""

    accuracy: float
    """Percent."""
    nll: float
    """Mean negative log-likelihood, nats."""
    ece: float
    """Expected calibration error, a fraction: as `training.evaluate` computes it of the same predictions."""
    bins: tuple["Bin", ...]
    """Those that hold images, from the least confidence to the most."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The images whose highest probability lies in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean of the highest probabilities."""
    accuracy: float
    """Fraction that is classified correctly."""


def reliability(log_probabilities: Tensor, labels: Tensor) -> Reliability:
    """Calibration of predictions against labels (int64 [N])."""
    confidence, predicted = (tensor.cpu() for tensor in log_probabilities.max(dim=1))
    confidence, hit = confidence.exp(), (predicted == labels.cpu()).double()
    places = bin_of(confidence)
    counts = torch.bincount(places, minlength=BINS)
    sums, hits = (
        torch.zeros(BINS, dtype=torch.float64).index_add_(0, places, values) for values in (confidence.double(), hit)
    )
    bins = [
        Bin(low=k / BINS, high=(k + 1) / BINS, images=n, confidence=float(sums[k]) / n, accuracy=float(hits[k]) / n)
        for k, n in enumerate(counts.tolist())
        if n
    ]
    return Reliability(**metrics(log_probabilities, labels), bins=tuple(bins))
