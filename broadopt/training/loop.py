"""The loop. It knows steps, collectors, schedules and data by what they do; no method, network or data set is named
here.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from broadopt.data.batches import Data
from broadopt.devices.processes import ALONE, Processes
from broadopt.errors import Interrupted, RunFailed
from broadopt.methods.batch import Batch
from broadopt.methods.batchnorm import reestimate
from broadopt.methods.collect import Collector
from broadopt.methods.step import Step
from broadopt.runs.heartbeat import Standing
from broadopt.seeds import derive
from broadopt.signals import Stop
from broadopt.training.evaluate import log_probabilities, metrics
from broadopt.training.progress import Reporter
from broadopt.training.schedule import Schedule

log = logging.getLogger("broadopt")

AGREE_EVERY = 10
"""Steps between two moments at which several processes ask each other whether to stop or to save, which makes them
wait."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of."""

    model: nn.Module
    step: Step
    collector: Collector
    schedule: Schedule
    data: Data
    seed: int
    budget: float
    label_smoothing: float
    evaluate_every: int
    precision: str
    device: torch.device
    processes: Processes = ALONE
    settings: Mapping[str, Any]
    """How the run is carried out, for its result: precision, memory format, ..."""


@dataclass
class Progress:
    """What a run has done so far; with weights, optimizer and collector it is all that a checkpoint holds."""

    step: int = 0
    gradient_evaluations: int = 0
    train_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    collected: dict[str, dict[str, float]] = field(default_factory=dict)
    collected_at: int = -1
    evaluated_at: int = -1


@dataclass(frozen=True)
class Sums:
    """Of the images of an epoch so far: the sum of their losses, how many were right, and how many there were."""

    loss: float
    hits: int
    images: int


class Training:
    """One run: `run` trains from where `progress` stands; `state_dict` is exact at any moment between two batches."""

    def __init__(self, parts: Parts, *, stop: Stop, reporter: Reporter) -> None:
        self.parts, self.stop, self.reporter = parts, stop, reporter
        self.progress = Progress()
        self.steps_per_epoch = parts.data.steps_per_epoch
        readouts = parts.collector.evaluation_points(parts.budget)
        self.total_steps = max(self._step_at(epochs) for epochs in (parts.budget, *readouts.values()))
        moments = parts.collector.collection_points(parts.budget)
        self.moments = {self._step_at(epochs) for epochs in moments}
        if len(self.moments) < len(moments):
            log.warning(
                "%d moments of collecting fall on %d steps: that many are made", len(moments), len(self.moments)
            )
        self.readouts: dict[int, list[str]] = defaultdict(list)
        for name, epochs in readouts.items():
            self.readouts[self._step_at(epochs)].append(name)
        self.forward = parts.processes.parallel(parts.model, parts.device)
        self.autocast = torch.autocast(parts.device.type, torch.bfloat16, enabled=parts.precision == "bf16")
        self._reset_sums()
        self.lr = parts.schedule(0.0)
        self.last_loss = torch.full((), math.nan, device=parts.device)
        self.measured_rate = 0.0

    def _step_at(self, epochs: float) -> int:
        return max(1, math.floor(epochs * self.steps_per_epoch + 0.5))

    def _reset_sums(self) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.parts.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=self.parts.device)
        self.images = 0

    @property
    def epochs(self) -> float:
        """Epochs trained so far."""
        return self.progress.step / self.steps_per_epoch

    @property
    def images_per_second(self) -> float:
        """Images trained on, per second spent in training steps."""
        seconds = self.progress.train_seconds
        return self.epochs * self.parts.data.train_size / seconds if seconds > 0 else 0.0

    def standing(self) -> Standing:
        """Where the run is, from any thread: no device is waited for."""
        size, rate = self.parts.data.train_size, self.measured_rate
        return Standing(self.progress.step, self.total_steps, self.steps_per_epoch, size, rate)

    def run(self, save: Callable[[], None], *, minutes: float) -> None:
        """Train to the end, calling `save` every `minutes`.

        Raises Interrupted, after a `save`, when a signal has arrived, and RunFailed when the loss is no longer finite.
        """
        size = self.parts.data.train_size
        epochs = self.total_steps / self.steps_per_epoch
        self.reporter.start(images=round(epochs * size), done=round(self.epochs * size), epochs=epochs)
        try:
            self._due_now()
            saved = began = time.monotonic()
            while self.progress.step < self.total_steps:
                epoch, first = divmod(self.progress.step, self.steps_per_epoch)
                for images, labels in self.parts.data.train(epoch, first):
                    self._train_on(images, labels)
                    if self._is_due(self.progress.step):
                        self._clock(began)
                        self._due_now()
                        began = time.monotonic()
                    signal, is_time = self._asked(time.monotonic() - saved >= 60 * minutes)
                    if signal is not None:
                        self._clock(began)
                        raise Interrupted(signal)
                    if is_time:
                        self._clock(began)
                        save()
                        saved = began = time.monotonic()
                    if self.progress.step == self.total_steps:
                        break
        except (Interrupted, BrokenPipeError):  # the latter: the reader of the output, head for example, has left
            save()
            raise
        finally:
            self.reporter.close()

    def _asked(self, is_time: bool) -> tuple[str | None, bool]:
        """The signal to stop for, None without, and whether to save; the same in every process."""
        processes = self.parts.processes
        if processes.count == 1:
            return self.stop.requested, is_time
        if self.progress.step % AGREE_EVERY:
            return None, False
        signals, times = zip(*processes.gathered((self.stop.requested, is_time)), strict=True)
        return next(filter(None, signals), None), any(times)

    def _clock(self, began: float) -> None:
        if self.parts.device.type == "cuda":
            torch.cuda.synchronize(self.parts.device)
        self.progress.train_seconds += time.monotonic() - began
        self.measured_rate = self.images_per_second  # exact at this moment only: later steps are not yet in the seconds

    def _train_on(self, images: Tensor, labels: Tensor) -> None:
        parts, progress = self.parts, self.progress
        lr = parts.schedule(self.epochs, step=1 / self.steps_per_epoch)
        for group in parts.step.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(self._noise("noise"))
        share = parts.processes.share(len(labels))
        weight = parts.processes.weight(share.stop - share.start, len(labels))
        gradient = partial(self._gradient, weight=weight)
        batch = Batch(images[share], labels[share], gradient, lambda: parts.processes.local(self.forward))
        loss = parts.step(batch)
        progress.step += 1
        progress.gradient_evaluations += batch.passes
        self.lr = lr
        self.loss_sum += loss.double() * len(batch.labels)
        self.images += len(batch.labels)
        self.last_loss = torch.where(loss.isfinite(), loss, self.last_loss)
        self.reporter.batch(math.ceil(self.epochs), len(labels), lambda: self._means([self._sums()]))

    def _noise(self, purpose: str) -> int:
        """The seed of the noise of this step, another one in each process."""
        rank = self.parts.processes.rank
        return derive(self.parts.seed, f"{purpose} {rank}" if rank else purpose, self.progress.step)

    def _gradient(self, images: Tensor, labels: Tensor, first: bool, *, weight: float) -> Tensor:
        with self.autocast:
            logits = self.forward(images)
        loss = functional.cross_entropy(logits.float(), labels, label_smoothing=self.parts.label_smoothing)
        (loss if weight == 1 else loss * weight).backward()
        if first:
            self._count_hits(logits.detach(), labels)
        return loss.detach()

    def _count_hits(self, logits: Tensor, labels: Tensor) -> None:
        classes = labels if labels.dim() == 1 else labels.argmax(dim=1)  # CutMix gives a share to each class
        self.hits += (logits.argmax(dim=1) == classes).sum()

    def _sums(self) -> Sums:
        """Of the current epoch so far, of this process's images; waits for the device."""
        return Sums(float(self.loss_sum), int(self.hits), self.images)

    def _means(self, sums: Sequence[Sums]) -> tuple[float, float]:
        """Mean loss and accuracy in percent."""
        images = sum(one.images for one in sums)
        return sum(one.loss for one in sums) / images, 100 * sum(one.hits for one in sums) / images

    def _is_due(self, step: int) -> bool:
        return (
            step in self.moments
            or step in self.readouts
            or step % self.steps_per_epoch == 0
            or step == self.total_steps
        )

    def _due_now(self) -> None:
        """Collect, evaluate and read out what is due at this step and not yet done: a run resumed in the middle of
        these does the rest.
        """
        progress, step = self.progress, self.progress.step
        if step in self.moments and progress.collected_at < step:
            self.check_finite()
            self.parts.collector.collect(self.parts.model, self._predict)
            progress.collected_at = step
        if step and (step % self.steps_per_epoch == 0 or step == self.total_steps) and progress.evaluated_at < step:
            self._end_epoch()
        for name in self.readouts.get(step, []):
            if name not in progress.collected:
                outputs = self.parts.collector.predict(self.parts.model, self._predict, self._reestimate)
                read = {"epochs": self.epochs, "members": float(self.parts.collector.members)}
                progress.collected[name] = self._metrics(outputs) | read

    def _end_epoch(self) -> None:
        self.check_finite()
        loss, accuracy = self._means(self.parts.processes.gathered(self._sums()))
        row = {"epoch": self.epochs, "lr": self.lr, "train_loss": loss, "train_accuracy": accuracy}
        if self.progress.step == self.total_steps or round(self.epochs) % self.parts.evaluate_every == 0:
            row |= self._metrics(self._predict(self.parts.model))
        self.progress.history.append(row)
        self.progress.evaluated_at = self.progress.step
        self._reset_sums()
        self.reporter.row(row, self.images_per_second)

    def check_finite(self) -> None:
        """Raise RunFailed where the epoch's loss so far or a weight is not finite; waits for the device."""
        weights = [weight.detach() for weight in self.parts.model.parameters()]
        norms = torch.stack(torch._foreach_norm(weights))
        if not math.isfinite(float(self.loss_sum + norms.sum())):
            place = self.where()
            raise RunFailed(
                f"the loss or a weight is not finite in epoch {place['epoch']} at lr {self.lr:g}; "
                f"last finite loss: {place['last_finite_loss']}"
            )

    def where(self) -> dict[str, float | None]:
        """Where the training stands: epoch (counted from 1), lr and the last finite loss of a batch, None if there was
        none.
        """
        loss = float(self.last_loss)
        return {
            "epoch": math.ceil(self.epochs),
            "lr": self.lr,
            "last_finite_loss": loss if math.isfinite(loss) else None,
        }

    def _predict(self, model: nn.Module) -> dict[str, Tensor]:
        processes, data = self.parts.processes, self.parts.data
        processes.take_from_first(list(model.buffers()))
        outputs = {
            split: log_probabilities(model, batches, autocast=self.autocast, before_batch=self._obey)
            for split, batches in data.held_out(processes.share).items()
        }
        return {split: processes.whole(outputs[split], len(labels)) for split, labels in data.targets().items()}

    def _metrics(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        targets = self.parts.data.targets()
        values = {
            f"{split}_{name}": value
            for split, output in outputs.items()
            for name, value in metrics(output, targets[split]).items()
        }
        if not all(map(math.isfinite, values.values())):
            raise RunFailed(
                f"the outputs on held-out images are not finite after epoch {self.epochs:g} at lr {self.lr:g}"
            )
        return values

    def _reestimate(self, model: nn.Module) -> None:
        def batches() -> Any:
            for images, _ in self.parts.data.statistics(self.progress.step):
                self._obey()
                yield images

        torch.manual_seed(self._noise("statistics"))
        with self.autocast:
            reestimate(model, batches(), self.parts.processes)

    def _obey(self) -> None:
        """Leave an evaluation at a signal; several processes leave together, after a step."""
        if self.parts.processes.count == 1:
            self.stop.check()

    def network(self) -> nn.Module:
        """What the finished run reports, where it is one network."""
        return self.parts.collector.network(self.parts.model, self._reestimate)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and plain values."""
        parts = self.parts
        return {
            "model": parts.model.state_dict(),
            "optimizer": parts.step.optimizer.state_dict(),
            "collector": parts.collector.state_dict(),
            "progress": vars(self.progress),
            "sums": parts.processes.gathered(vars(self._sums())),
            "last": {"loss": self.last_loss, "lr": self.lr},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        parts, sums = self.parts, state["sums"][self.parts.processes.rank]
        parts.model.load_state_dict(state["model"])
        parts.step.optimizer.load_state_dict(state["optimizer"])
        parts.collector.load_state_dict(state["collector"])
        self.progress = Progress(**state["progress"])
        self.loss_sum.fill_(sums["loss"])
        self.hits.fill_(sums["hits"])
        self.images = sums["images"]
        self.last_loss, self.lr = state["last"]["loss"], state["last"]["lr"]
        self.measured_rate = self.images_per_second
