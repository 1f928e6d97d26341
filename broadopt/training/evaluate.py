"""Predictions of a network on held-out images, and what is reported of them."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from broadopt.devices.modes import mode
from broadopt.errors import RunFailed
from broadopt.methods.batchnorm import reestimate
from broadopt.signals import Stop
from broadopt.training.parts import Parts

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

    `before_batch` is called ahead of each batch and may raise to end the evaluation; the modes of the network's modules
    are restored in any case.
    """
    outputs = []
    with mode(model, training=False):
        for images, _ in batches:
            before_batch()
            with autocast:
                logits = model(images)
            outputs.append(torch.log_softmax(logits.double(), dim=1))
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
    gap = torch.zeros(BINS, dtype=torch.float64, device=confidence.device)
    gap.index_add_(0, bin_of(confidence), hit.double() - confidence.double())
    return gap.abs().sum() / len(confidence)


def bin_of(confidence: Tensor) -> Tensor:
    """The bin, int64 [N] from 0 to 14, of each confidence in [0, 1]: ((k / 15, (k + 1) / 15], and 0 in the first."""
    return (confidence * BINS).ceil().long().sub_(1).clamp_(0, BINS - 1)


class Evaluator:
    """Evaluates networks on the held-out images of a run."""

    def __init__(self, parts: Parts, *, stop: Stop) -> None:
        self.parts, self.stop, self.autocast = parts, stop, parts.autocast

    def predict(self, model: nn.Module) -> dict[str, Tensor]:
        """Log-probabilities (float64 [N, C]) by split. Raises Interrupted at a signal."""
        processes, data = self.parts.processes, self.parts.data
        processes.take_from_first(list(model.buffers()))  # BN's statistics are those of the first process
        outputs = {
            split: log_probabilities(model, batches, autocast=self.autocast, before_batch=self._obey)
            for split, batches in data.held_out(processes.share).items()
        }
        return {split: processes.whole(outputs[split], len(labels)) for split, labels in data.targets().items()}

    def metrics(self, outputs: dict[str, Tensor], *, where: str) -> dict[str, float]:
        """`test_accuracy` (percent), `test_nll` (nats), `test_ece` (fraction) and those of the validation images, of
        what `predict` returns. Raises RunFailed, naming `where`, unless all are finite.
        """
        targets = self.parts.data.targets()
        values = {
            f"{split}_{name}": value
            for split, output in outputs.items()
            for name, value in metrics(output, targets[split]).items()
        }
        if not all(map(math.isfinite, values.values())):
            raise RunFailed(f"the outputs on held-out images are not finite {where}")
        return values

    def reestimate(self, model: nn.Module, *, step: int) -> None:
        """Compute the BN statistics of `model` anew on the training images, as they are drawn at `step`. Raises
        Interrupted at a signal.
        """

        def batches() -> Iterator[Tensor]:
            for images, _ in self.parts.data.statistics(step):
                self._obey()
                yield images

        # A generator of Data.statistics begins with this seed as well. What dropout draws by it on a CPU has no part in
        # what is drawn for the images, and another seed would change the figures of networks with dropout.
        torch.manual_seed(self.parts.noise_seed("statistics", step))
        reestimate(model, batches(), self.parts.processes, autocast=self.autocast)

    def _obey(self) -> None:
        """Leave at a signal. Several processes go on: they agree to leave after a step, all at the same one."""
        if self.parts.processes.count == 1:
            self.stop.check()
