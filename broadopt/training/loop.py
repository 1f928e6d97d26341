"""The loop. It knows steps, collectors, schedules and data by what they do; no method, network or data set is named
here.
"""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import Interrupted, RunFailed
from broadopt.methods.collect import Collector, StepCollector, copy_of
from broadopt.methods.steps.optimizers import lay_out_as_weights
from broadopt.runs.heartbeat import Position
from broadopt.seeds import derive
from broadopt.signals import Stop
from broadopt.training.calendar import Calendar
from broadopt.training.evaluate import Evaluator
from broadopt.training.parts import Parts, Progress
from broadopt.training.progress import KeepHistory, Reporter
from broadopt.training.stepping import Stepper, means

KeepWeights = Callable[[nn.Module, int], None]
"""Keeps a network as it is after a step, counted from 1; 0 is the start."""

AGREE_EVERY = 10
"""Steps between two moments at which several processes ask each other whether to stop or to save, which makes them
wait."""


class Training:
    """One run: `run` trains from where `progress` stands; `state_dict` is exact at any moment between two batches."""

    def __init__(
        self,
        parts: Parts,
        *,
        stop: Stop,
        reporter: Reporter,
        keep_history: KeepHistory | None = None,
        keep_weights: KeepWeights | None = None,
    ) -> None:
        """`keep_history` is given all rows so far whenever there is a new one; `keep_weights` the network at the start
        and whenever something is due.
        """
        self.parts, self.stop, self.reporter = parts, stop, reporter
        self.keep_history, self.keep_weights = keep_history, keep_weights
        self.progress = Progress()
        self.calendar = Calendar.of(parts.collectors, budget=parts.budget, steps_per_epoch=parts.data.steps_per_epoch)
        self.stepper = Stepper(parts)
        self.evaluator = Evaluator(parts, stop=stop)
        self.measured_rate = 0.0
        """Images a second on this kind of device."""
        self.elsewhere = (0.0, 0.0)
        """Epochs and seconds that were trained on another kind."""
        self.closed_pipe: BrokenPipeError | None = None
        """That of the first of several processes, which has not ended yet because of it."""
        self.leave: Mapping[int, Callable[[], None]] = {}
        """What is to be done at the end of an epoch after all that is due there, by its step."""

    @property
    def epochs(self) -> float:
        """Epochs trained so far."""
        return self.progress.step / self.calendar.steps_per_epoch

    @property
    def images_per_second(self) -> float:
        """Images trained on, per second spent in training steps."""
        seconds = self.progress.train_seconds
        return self.epochs * self.parts.data.train_size / seconds if seconds > 0 else 0.0

    def position(self) -> Position:
        """Where the run is, from any thread: no device is waited for."""
        return Position(
            step=self.progress.step,
            steps=self.calendar.total_steps,
            steps_per_epoch=self.calendar.steps_per_epoch,
            images_per_epoch=self.parts.data.train_size,
            images_per_second=self.measured_rate,
            trunk_epochs=self.progress.trunk.get("epochs", 0),
            epochs_elsewhere=self.elsewhere[0],
        )

    def run(self, save: Callable[[], None], *, minutes: float) -> None:
        """Train to the end, calling `save` every `minutes`.

        Raises Interrupted, after a `save`, when a signal has arrived, and RunFailed when the loss is no longer finite.
        """
        size, total = self.parts.data.train_size, self.calendar.total_steps
        copies = any(getattr(collector, "copies_network", False) for collector in self.parts.collectors.values())
        self.reporter.start(
            images=round(self.calendar.epochs * size), done=round(self.epochs * size), epochs=self.calendar.epochs
        )
        try:
            self._do_what_is_due()  # a run that stopped in the middle of it does the rest first
            saved = began = time.monotonic()
            while self.progress.step < total:
                epoch, first = divmod(self.progress.step, self.calendar.steps_per_epoch)
                for inputs in self.parts.data.inputs(epoch, first):
                    self.train_on(*inputs)
                    if copies:  # tried once: most of the training would be lost where it fails at an evaluation
                        copy_of(self.parts.model)
                        copies = False
                    if self.calendar.is_due(self.progress.step):
                        self._clock(began)
                        self._do_what_is_due()
                        began = time.monotonic()
                    signal, is_time = self._asked(time.monotonic() - saved >= 60 * minutes)
                    if signal is not None:
                        self._clock(began)
                        raise Interrupted(signal)
                    if is_time:
                        self._clock(began)
                        save()
                        saved = began = time.monotonic()
                    if self.progress.step == total:
                        break
        except (Interrupted, BrokenPipeError):  # the latter: stdout is a closed pipe, as behind `| head`
            save()
            if self.closed_pipe is not None:
                raise self.closed_pipe from None
            raise
        finally:
            self.reporter.close()

    def train_on(self, *inputs: Tensor) -> None:
        """Make the next step, on what Data.inputs gives of a batch, or on its images and labels."""
        self.progress.gradient_evaluations += self.stepper.train_on(*inputs, step=self.progress.step)
        self.progress.step += 1
        self._update()
        self.reporter.batch(math.ceil(self.epochs), len(inputs[0]), self._means_of_epoch)

    def _update(self) -> None:
        """The part that collectors have in a step; on the device alone, as the rest of the step."""
        for name, steps in self.calendar.updates.items():
            if self.progress.step in steps:
                collector = self.parts.collectors[name]
                assert isinstance(collector, StepCollector)
                collector.update(self.parts.model, epochs=steps.step / self.calendar.steps_per_epoch)

    def _asked(self, is_time: bool) -> tuple[str | None, bool]:
        """The signal to stop for, None without, and whether to save; the same in every process."""
        processes = self.parts.processes
        if processes.count == 1:
            return self.stop.requested, is_time
        if self.progress.step % AGREE_EVERY:
            return None, False
        requested = self.stop.requested or ("a closed pipe" if self.closed_pipe else None)
        signals, times = zip(*processes.gathered((requested, is_time)), strict=True)
        return next(filter(None, signals), None), any(times)

    def _clock(self, began: float) -> None:
        """Add the time since `began` to that of the training steps, which first have to have ended."""
        if self.parts.device.type == "cuda":
            torch.cuda.synchronize(self.parts.device)
        self.progress.train_seconds += time.monotonic() - began
        self.measured_rate = self._rate()  # exact at this moment only: later steps are not yet in the seconds

    def _rate(self) -> float:
        epochs, seconds = self.epochs - self.elsewhere[0], self.progress.train_seconds - self.elsewhere[1]
        return epochs * self.parts.data.train_size / seconds if seconds > 0 else 0.0

    def _means_of_epoch(self) -> tuple[float, float]:
        return means([self.stepper.sums()])

    def _do_what_is_due(self) -> None:
        """Collect and evaluate what is due at this step and not yet done.

        `progress` notes each part as soon as it is done, since a signal may end any evaluation: the resumed run then
        does the rest and nothing twice.
        """
        progress, step = self.progress, self.progress.step
        if self.keep_weights is not None and (step == 0 or self.calendar.is_due(step)):
            self.keep_weights(self.parts.model, step)
        for name, points in self.calendar.collection_points.items():
            if step in points and progress.last_collected(name) < step:
                self.check_finite()
                torch.manual_seed(derive(self.parts.seed, f"collection {name}", step))
                self.parts.collectors[name].collect(self.parts.model, self.evaluator.predict)
                progress.note_collected(name, step)
        if self.calendar.ends_epoch(step) and progress.evaluated_at < step:
            self._end_epoch()
        for name, spent in self.calendar.evaluation_points.get(step, ()):
            key = f"{name} {spent}".strip()  # as result.json has it
            if key not in progress.collected:
                progress.collected[key] = self._evaluated(self.parts.collectors[name])
        if step in self.leave:
            self.leave[step]()

    def _evaluated(self, collector: Collector) -> dict[str, float]:
        """What a collector predicts with, held against the labels. All processes draw the same."""
        torch.manual_seed(derive(self.parts.seed, "collector", self.progress.step))
        outputs = collector.predict(self.parts.model, self.evaluator.predict, self.reestimate)
        figures = self.evaluator.metrics(outputs, where=self._where())
        return figures | {"epochs": self.epochs, "members": float(collector.members)}

    def _end_epoch(self) -> None:
        self.check_finite()
        loss, accuracy = means(self.parts.processes.gathered(self.stepper.sums()))
        row = {"epoch": self.epochs, "lr": self.stepper.lr, "train_loss": loss, "train_accuracy": accuracy}
        at_end = self.progress.step == self.calendar.total_steps
        if at_end or round(self.epochs) % self.parts.evaluate_every == 0:
            torch.manual_seed(self.parts.noise_seed("evaluation", self.progress.step))
            row |= self.evaluator.metrics(self.evaluator.predict(self.parts.model), where=self._where())
        self.progress.history.append(row)
        self.progress.evaluated_at = self.progress.step
        self.stepper.reset_sums()
        if self.keep_history is not None:
            self.keep_history(self.progress.history)
        try:
            self.reporter.row(row, self.images_per_second)
        except BrokenPipeError as error:
            if self.parts.processes.count == 1:
                raise
            self.closed_pipe = error  # the others are in their next step already: all leave when they agree to

    def reestimate(self, model: nn.Module) -> None:
        """Compute the BN statistics of `model` anew, as this run does at this step."""
        self.evaluator.reestimate(model, step=self.progress.step)

    def network(self) -> nn.Module:
        """What the finished run reports, where it is one network: with the BN statistics that it was evaluated with at
        its last evaluation point, though others may have gone on after it.
        """
        own = [step for step, due in self.calendar.evaluation_points.items() if any(name == "" for name, _ in due)]
        step = max(own, default=self.progress.step)
        return self.parts.collector.network(self.parts.model, partial(self.evaluator.reestimate, step=step))

    def check_finite(self) -> None:
        """Raise RunFailed, naming what it is, where the loss of the epoch so far or a number that a checkpoint holds is
        not finite: a weight, a BN statistic, the optimizer's state, an average. Waits for the device, once where all
        is finite. Called by all processes together, and all raise the same.
        """
        if reason := next(filter(None, self.parts.processes.gathered(self._not_finite())), ""):
            raise RunFailed(reason)

    def _not_finite(self) -> str:
        """What is not finite in this process, and where; empty where all is."""
        what = self.stepper.not_finite({name: tensor.detach() for name, tensor in self.parts.tensors().items()})
        if what is None:
            return ""
        place = self.place()
        return (
            f"{what} is not finite in epoch {place['epoch']} at lr {self.stepper.lr:g}; "
            f"last finite loss: {place['last_finite_loss']}"
        )

    def place(self) -> dict[str, float | None]:
        """Where a failure happened: epoch (counted from 1), lr and the last finite loss of a batch, None if there was
        none, or the device that has it does nothing more.
        """
        try:
            loss = float(self.stepper.last_loss)
        except RuntimeError:  # every call repeats the error that has broken a GPU's context
            loss = math.nan
        return {
            "epoch": math.ceil(self.epochs),
            "lr": self.stepper.lr,
            "last_finite_loss": loss if math.isfinite(loss) else None,
        }

    def _where(self) -> str:
        return f"after epoch {self.epochs:g} at lr {self.stepper.lr:g}"

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: tensors and plain values."""
        parts = self.parts
        return {
            "model": parts.model.state_dict(),
            "optimizer": parts.step.optimizer.state_dict(),
            "collector": parts.collector.state_dict(),
            "also": {name: one.state_dict() for name, one in parts.also.items()},
            "progress": vars(self.progress),
            **self.stepper.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        parts = self.parts
        parts.model.load_state_dict(state["model"])
        parts.step.optimizer.load_state_dict(state["optimizer"])
        lay_out_as_weights(parts.step.optimizer)
        parts.collector.load_state_dict(state["collector"])
        for name, one in parts.also.items():
            one.load_state_dict(state["also"][name])
        self.progress = Progress(**state["progress"])
        self.stepper.load_state_dict(state)
        self.measured_rate = self._rate()

    def measure_from_here(self) -> None:
        """Measure the rate without the epochs so far, which were trained on another kind of device."""
        self.elsewhere, self.measured_rate = (self.epochs, self.progress.train_seconds), 0.0
