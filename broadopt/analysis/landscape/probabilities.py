"""Predicted probabilities: those of a run, how far those of two networks are apart, and how well they are calibrated.

Predictions are log-probabilities as `training.evaluate` gives them: float64 [N, C], images by classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations

import torch
from torch import Tensor, nn

from broadopt.analysis.landscape import distances
from broadopt.analysis.landscape.images import in_batches
from broadopt.analysis.landscape.networks import (
    is_ensemble,
    is_mean_of_collected,
    member_moments,
    put,
    reported,
    snapshot,
)
from broadopt.analysis.landscape.runs import Run
from broadopt.data.batches import evaluated_at_once
from broadopt.devices.device import autocast
from broadopt.errors import InputError
from broadopt.methods.batchnorm import reestimate, statistics
from broadopt.seeds import derive
from broadopt.training.evaluate import BINS, bin_of, calibration_error, log_probabilities, metrics

RESAMPLES = 200
"""Bootstrap samples of the images, from which the standard error of a calibration error is taken."""


def of_network(model: nn.Module, images: Tensor, *, context: torch.autocast) -> Tensor:
    """What a network in evaluation mode predicts for images (float [N, 3, 32, 32], normalised), batched as a training
    evaluates, so that the same device gives the same bits.
    """
    batches = ((part, part) for part in images.split(evaluated_at_once(images.device)))
    return log_probabilities(model, batches, autocast=context, before_batch=lambda: None)


def of_run(run: Run, images: Tensor, *, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """What a run reports, predicted anew: by its last weights or by SWA's average, and by the mean of FGE's members
    from their snapshots. Raises InputError where the run has not kept them.
    """
    context = autocast(run.recipe.precision, images.device)

    def predicted(model: nn.Module) -> Tensor:
        there = model.to(device=images.device, memory_format=memory_format)  # type: ignore[call-overload]
        return of_network(there, images, context=context)

    if not is_ensemble(run):
        return predicted(reported(run).model)
    if not is_mean_of_collected(run):
        raise InputError(
            f"{run.folder}: {run.recipe.method} does not predict by the networks that it collected, so that it cannot "
            "be done anew from what is kept; expected a run of FGE, or one that reports a single network"
        )
    # One by one: all networks at once need many times the memory of their predictions.
    return ensemble([predicted(snapshot(run, step).model) for step, _ in member_moments(run)])


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
class Predictions:
    """Predicts for the test images with any weights of one network, BN re-estimated at each."""

    model: nn.Module
    test: Tensor
    """float [N, 3, 32, 32], normalised, on the network's device; as `train`."""
    train: Tensor
    """What BN statistics are re-estimated on."""
    batch_size: int
    """Of the passes in which they are."""
    seed: int
    """Of dropout in these."""

    @property
    def has_bn(self) -> bool:
        """Whether there are BN statistics to be re-estimated."""
        return bool(statistics(self.model))

    def at(self, weights: Tensor) -> Tensor:
        """Log-probabilities of the network with `weights` [P], float64 [N, C]."""
        put(self.model, weights)
        torch.manual_seed(derive(self.seed, "figure statistics"))  # the same dropout in every pass over the images
        reestimate(self.model, in_batches(self.train, self.batch_size))
        # In float32, whatever the run was trained in: in bf16 small distances are those of the rounding.
        float32 = torch.autocast(self.test.device.type, enabled=False)
        return of_network(self.model, self.test, context=float32)


def at_spread(predict: Callable[[Tensor], Tensor], weights: Tensor, share: float, *, swa: Tensor) -> dict[str, float]:
    """Distances of what is predicted (log-probabilities [N, C]) with w_i(t) = mean + t (w_i - mean), among themselves
    and of their ensemble from the mean's, `swa`, which is that of every t. `weights`: w_i, float [n, P]; `share`: t.
    """
    predictions = [predict(row) for row in distances.contracted(weights, share)]
    pairs = torch.tensor(pairwise(predictions), dtype=torch.float64)
    same = [agreement(first, second) for first, second in combinations(predictions, 2)]
    together = ensemble(predictions)
    return {
        "share": share,
        "delta": share * distances.spread(weights),
        "among": float(pairs.mean()),
        "among_std": float(pairs.std(correction=1)) if len(pairs) > 1 else 0.0,
        "against_swa": distance(together, swa),
        "same_class_among": math.fsum(same) / len(same),
        "same_class_as_swa": agreement(together, swa),
    }


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Accuracy against confidence in the bins of the expected calibration error (Guo et al. 2017)."""

    accuracy: float
    """Percent."""
    nll: float
    """Mean negative log-likelihood, nats."""
    nll_error: float
    """Its standard error over the images."""
    ece: float
    """Expected calibration error, a fraction: as `training.evaluate` computes it of the same predictions."""
    ece_error: float
    """Its standard error, by the bootstrap."""
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


def reliability(predictions: Tensor, labels: Tensor, *, seed: int = 1) -> Reliability:
    """Calibration of predictions against labels (int64 [N]); `seed`: of the bootstrap."""
    predictions, labels = predictions.cpu(), labels.cpu()
    confidence, predicted = predictions.max(dim=1)
    confidence, hit = confidence.exp(), (predicted == labels).double()
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
    losses = -predictions.gather(1, labels[:, None])
    error = float(losses.std(correction=1)) / math.sqrt(len(losses)) if len(losses) > 1 else math.nan
    return Reliability(
        **metrics(predictions, labels), nll_error=error, ece_error=_bootstrap(confidence, hit, seed), bins=tuple(bins)
    )


def _bootstrap(confidence: Tensor, hit: Tensor, seed: int) -> float:
    """The standard deviation of the calibration error over samples of the images, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(len(hit), (len(hit),), generator=generator) for _ in range(RESAMPLES))
    return float(
        torch.stack([calibration_error(confidence[sample], hit[sample]) for sample in drawn]).std(correction=1)
    )
