"""One step of a training: a batch, its learning rate and its noise; and the sums of an epoch's losses and hits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from broadopt.devices.device import seed_noise
from broadopt.devices.graphs import Recorder, say_why_not
from broadopt.methods.batch import Batch
from broadopt.methods.schedule import learning_rate
from broadopt.methods.steps.optimizers import is_fused, recordable
from broadopt.methods.steps.products import sums_of_norms
from broadopt.training.parts import Parts


@dataclass(frozen=True)
class Sums:
    """Of the images of an epoch so far: the sum of their losses, how many were right, and how many there were."""

    loss: float
    hits: int
    images: int


def means(sums: Sequence[Sums]) -> tuple[float, float]:
    """Mean loss and accuracy in percent, over the sums of several processes."""
    images = sum(one.images for one in sums)
    return sum(one.loss for one in sums) / images, 100 * sum(one.hits for one in sums) / images


class Stepper:
    """Trains on one batch after the other. Its sums stay on the device: nothing in a step waits for it."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.forward = parts.processes.parallel(parts.model, parts.device)
        self.autocast = parts.autocast
        self.lr = learning_rate(parts.schedule, 0.0)
        # These stay where they are: a recorded step knows their addresses.
        self.last_loss = torch.full((), math.nan, device=parts.device)
        """The last finite loss of a batch; NaN before the first."""
        # float64, so that the plain number in a checkpoint restores it bit for bit.
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=parts.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=parts.device)
        self.images = 0
        self._number = self._seen = 0
        self._lr = self._lr_on_device()
        self._recorder: Recorder | None = None
        if parts.graph is not None:
            size, failed = parts.data.batch_size, self._not_recorded
            self._recorder = Recorder(self._make_step, parts.graph(), size=size, failed=failed)

    def _lr_on_device(self) -> Tensor | None:
        """What holds the learning rate where a step may be recorded: a number would be recorded as it is. All steps on
        a GPU take it from there, recorded or not, since it is rounded to the float32 that the optimizer's kernel reads;
        an optimizer that is not fused may not take a tensor at all.
        """
        device = self.parts.device
        if not is_fused(self.parts.step.optimizer):
            return None
        if device.type == "cuda":
            return torch.zeros((), dtype=torch.float32, device=device)
        return torch.zeros((), dtype=torch.float64, device=device) if self.parts.graph is not None else None

    def _not_recorded(self, reason: str) -> None:
        self.parts.settings["graphs"] = False
        say_why_not(self.parts.graphs, reason)

    def reset_sums(self) -> None:
        """Begin an epoch."""
        self.loss_sum.zero_()
        self.hits.zero_()
        self.images = 0

    def train_on(self, *inputs: Tensor, step: int) -> float:
        """Update the weights once, by the whole batch that is step number `step` (from 0), of which `inputs` are what
        Data.inputs gives, or its images and labels; returns the gradients of a batch that it took.
        """
        parts = self.parts
        epoch = parts.data.steps_per_epoch
        self.lr = learning_rate(parts.schedule, step / epoch, step=1 / epoch)
        if self._lr is not None:
            self._lr.fill_(self.lr)
        seed_noise(parts.noise_seed("noise", step), parts.device)
        share = parts.processes.share(len(inputs[0]))
        # A step that is not replayed says itself how many images its loss is of, and may ask for its number.
        self._number, self._seen = step, share.stop - share.start
        passes = self._make_step(inputs) if self._recorder is None else self._recorder(inputs)
        self.images += self._seen
        for group in parts.step.optimizer.param_groups:
            group["lr"] = self.lr  # a plain number in every checkpoint
        return passes

    def _make_step(self, inputs: Sequence[Tensor]) -> float:
        """What a step does on the device, all of it, so that it can be recorded."""
        parts = self.parts
        for group in parts.step.optimizer.param_groups:
            group["lr"] = self.lr if self._lr is None else self._lr
        images, labels = parts.data.batch(*inputs)
        share = parts.processes.share(len(labels))
        weight = parts.processes.weight(share.stop - share.start, len(labels))
        gradient = partial(self._gradient, weight=weight)
        batch = Batch(
            images[share],
            labels[share],
            gradient,
            lambda: parts.processes.local(self.forward),
            step=self._number,
            steps_per_budget=parts.budget * parts.data.steps_per_epoch,
            curvature=self._curvature,
        )
        is_recording = parts.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        with recordable(parts.step.optimizer) if is_recording else nullcontext():
            loss = parts.step(batch)
        self.loss_sum += loss.double() * batch.images_seen
        self._seen = batch.images_seen
        self.last_loss.copy_(torch.where(loss.isfinite(), loss, self.last_loss))
        return batch.passes

    def _loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and logits."""
        with self.autocast:
            logits = self.forward(images)
        # The loss in float32 at least: in bf16 a softmax over 100 classes keeps two digits.
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return functional.cross_entropy(exact, labels, label_smoothing=self.parts.label_smoothing), logits

    def _gradient(self, images: Tensor, labels: Tensor, first: bool, *, weight: float) -> Tensor:
        loss, logits = self._loss(images, labels)
        (loss if weight == 1 else loss * weight).backward()
        if first:  # the second pass of SAM is at other weights
            self._count_hits(logits.detach(), labels)
        return loss.detach()

    def _curvature(
        self,
        images: Tensor,
        labels: Tensor,
        outer: Sequence[Tensor],
        inner: Sequence[Tensor],
        vectors: Sequence[Tensor],
    ) -> list[Tensor]:
        slopes = torch.autograd.grad(self._loss(images, labels)[0], inner, create_graph=True)
        found = torch.autograd.grad(slopes, outer, vectors, allow_unused=True)
        return [torch.zeros_like(weight) if term is None else term for weight, term in zip(outer, found, strict=True)]

    def _count_hits(self, logits: Tensor, labels: Tensor) -> None:
        classes = labels if labels.dim() == 1 else labels.argmax(dim=1)  # CutMix gives a share to each class
        self.hits += (logits.argmax(dim=1) == classes).sum()

    def sums(self) -> Sums:
        """Of the current epoch so far, of this process's images; waits for the device."""
        return Sums(float(self.loss_sum), int(self.hits), self.images)

    def not_finite(self, tensors: Mapping[str, Tensor]) -> str | None:
        """The name of the first of `tensors` that is not finite, "the loss" where one of the epoch so far is not; None
        where all are. Waits for the device, once where all are finite.
        """
        # A 2-norm can overflow by itself; the maximum of the absolute values cannot, but takes a CPU 20 times as long.
        if self._are_finite(tensors.values(), order=2) or self._are_finite(tensors.values(), order=math.inf):
            return None
        largest = {name: torch.linalg.vector_norm(tensor, math.inf) for name, tensor in tensors.items()}
        return next((name for name, value in largest.items() if not math.isfinite(float(value))), "the loss")

    def _are_finite(self, tensors: Iterable[Tensor], *, order: float) -> bool:
        """Whether norms of these and the sum of the epoch's losses are."""
        sums = sums_of_norms(tensors, order=order)
        sums[self.loss_sum.device] = sums.get(self.loss_sum.device, 0) + self.loss_sum
        return all(math.isfinite(float(one)) for one in sums.values())

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimizer. Called by all processes together."""
        sums = self.parts.processes.gathered(asdict(self.sums()))
        return {"sums": sums, "last": {"loss": self.last_loss.clone(), "lr": self.lr}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        sums = state["sums"][self.parts.processes.rank]
        self.loss_sum.fill_(sums["loss"])
        self.hits.fill_(sums["hits"])
        self.images = sums["images"]
        self.last_loss.copy_(state["last"]["loss"])
        self.lr = state["last"]["lr"]
