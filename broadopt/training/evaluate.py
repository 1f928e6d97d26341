"""Predictions of a network on held-out images, and what is reported of them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

BINS = 15


@torch.no_grad()
def log_probabilities(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: torch.autocast,
    before_batch: Callable[[], None],
) -> Tensor:
    """The network's log-probabilities in evaluation mode, float64 [N, C], on the device of the images.

    `before_batch` is called ahead of each batch and may raise to end the evaluation; the network's mode is restored in
    any case.
    """
    training = model.training
    model.eval()
    outputs = []
    try:
        for images, _ in batches:
            before_batch()
            with autocast:
                logits = model(images)
            outputs.append(torch.log_softmax(logits.double(), dim=1))
    finally:
        model.train(training)
    return torch.cat(outputs)


def metrics(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy (percent), nll (mean negative log-likelihood, nats) and ece (fraction) of log-probabilities [N, C]
    against labels [N].
    """
    confidence, predicted = log_probabilities.max(dim=1)
    hit = predicted == labels
    nll = -log_probabilities.gather(1, labels[:, None]).mean()
    accuracy = 100 * hit.sum().double() / len(hit)  # rounded once: 78.99, not 78.99000000000001
    values = torch.stack([accuracy, nll, calibration_error(confidence.exp(), hit)])
    return dict(zip(("accuracy", "nll", "ece"), values.tolist(), strict=True))


def calibration_error(confidence: Tensor, hit: Tensor) -> Tensor:
    """Expected calibration error with 15 bins of equal width: sum over bins of (n_b / n) |accuracy_b - mean
    confidence_b| (Guo et al. 2017).

    confidence: float [N] in [0, 1]; hit: bool [N]. Bins are closed above, as in the paper. Returns a scalar.
    """
    bins = (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, bins, hit.double() - confidence.double())
    return gap.abs().sum() / len(confidence)
