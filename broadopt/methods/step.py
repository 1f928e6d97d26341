"""How one batch changes the weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.batch import Batch
from broadopt.methods.batchnorm import keep_statistics
from broadopt.methods.steps.layers import LAYERS, only_these, parameters_of
from broadopt.methods.steps.sharp_steps import ALWAYS, Course, SharpSteps, quotient

Closure = Callable[[], Tensor]
"""One forward and backward pass on the current batch: returns the mean loss, a detached scalar, and adds to every
`.grad`.
"""

Perturbation = Callable[[Sequence[Tensor], list[Tensor]], list[Tensor]]
"""(weights, gradients) -> perturbation, one tensor a weight; it may overwrite the gradients, which are not used again.
"""

Correction = Callable[[Closure, Sequence[Tensor], list[Tensor]], None]
"""(closure, weights, their gradients at w) -> nothing; it changes the `.grad`s, which hold grad L(w + eps). Called at
w, where the noise of the first pass comes again. One that makes passes says in `passes` how many, and in `one_process`
why several processes cannot share its batches.
"""


class Step(Protocol):
    """One update of the weights. Its whole state is that of `optimizer`.

    A step whose cost varies may have a method `gradients(course)`: those of a batch in a whole training.
    """

    optimizer: torch.optim.Optimizer
    passes: int  # gradients a step, at most

    def __call__(self, closure: Closure) -> Tensor:
        """Update the weights once; returns the loss at the weights before the update."""
        ...


class Plain:
    """w <- optimizer(w, grad L(w)): one gradient a step."""

    passes = 1
    is_repeatable = True  # each step is the same work on the device: it may be recorded once and replayed

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def __call__(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        loss = closure()
        self.optimizer.step()
        return loss


class SharpnessAware:
    """w <- optimizer(w, grad L(w + eps)), eps = perturbation(w, grad L(w)): two gradients of one batch a step.

    The optimizer sees the unperturbed weights, so momentum and weight decay act once and outside the perturbation
    (ASAM, Algorithm 1). The weights are restored from a copy, bit for bit. Parameters without a gradient are neither
    perturbed nor updated.

    bn: which passes move the running statistics of BN, "both" or only the "first" (Google's SAM). noise: dropout and
    the like in the second pass draw anew ("fresh") or repeat the first pass's draw ("replay", Google's SAM).

    perturbation: where several processes share a batch, eps is that of the whole batch ("global") or each process's
    own, of its share ("share"). chunk: the same for parts of m images on one device, w <- optimizer(w, sum of n_c / n
    grad L_c(w + eps_c)): m-sharpness (SAM, section 4.1). It takes a second copy of the weights' size, for the sum, and
    each chunk is normalised by its own BN statistics.

    What makes it cheaper. from_ and until: the step is plain before and after so many budgets (late SAM: Zhou et al.
    2025, "Sharpness-Aware Minimization Efficiently Selects Flatter Minima Late in Training"). every: it is plain but
    for every k-th step. ascent: the share of the images whose gradient gives eps; the loss that it returns is theirs.
    layers: which parameters are perturbed, "all" or those of the "normalisation" layers (SAM-ON: Mueller et al. 2023,
    "Normalization Layers Are All That Sharpness-Aware Minimization Needs"); the first pass then leaves out the
    gradients of all other weights. correction: what is made of grad L(w + eps) before the update.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        epsilon: Perturbation,
        *,
        bn: str = "both",
        noise: str = "fresh",
        perturbation: str = "global",
        chunk: int | None = None,
        from_: float = 0.0,
        until: float | None = None,
        every: int = 1,
        ascent: float = 1.0,
        layers: str = "all",
        correction: Correction | None = None,
    ) -> None:
        _one_of("bn", bn, "both", "first")
        _one_of("noise", noise, "fresh", "replay")
        _one_of("perturbation", perturbation, "global", "share")
        _one_of("layers", layers, *LAYERS)
        if chunk is not None and chunk < 1:
            raise InputError(f"step.chunk={chunk}: expected a whole number of images >= 1, or null")
        if not 0 < ascent <= 1:
            raise InputError(f"step.ascent={ascent}: expected a share of the batch above 0, at most 1")
        if ascent < 1 and noise == "replay":
            raise InputError(
                f"step.noise=replay: with step.ascent={ascent:g} it draws for fewer images; expected fresh"
            )
        self.passes: int = 2 + getattr(correction, "passes", 0)
        self.model, self.optimizer, self.epsilon, self.correction = model, optimizer, epsilon, correction
        self.bn, self.noise, self.perturbation, self.chunk, self.ascent = bn, noise, perturbation, chunk, ascent
        self.sharp_steps = SharpSteps(start=from_, end=until, every=every)
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.perturbed = parameters_of(model, layers)
        self.one_process = self._for_one_process(layers)
        # Recorded is one kind of step; the generator's state cannot be taken and set back by what is recorded.
        same = self.sharp_steps == ALWAYS and ascent == 1 and correction is None
        self.is_repeatable = same and noise == "fresh"
        # The one extra copy of the weights, kept to spare its allocation at every step.
        self._copies: dict[Tensor, Tensor] = {}

    def _for_one_process(self, layers: str) -> str:
        """Why several processes cannot share its batches; nothing where they can."""
        if self.ascent < 1:
            return f"step.ascent={self.ascent:g}: the first images of a batch are those of one device; expected 1"
        if layers != "all" and self.perturbation == "global":
            return f"step.layers={layers}: its first pass averages no gradients; expected step.perturbation=share"
        return str(getattr(self.correction, "one_process", ""))

    def __call__(self, closure: Closure) -> Tensor:
        if self.sharp_steps.include(closure):
            loss = self.gradient(closure)
        else:
            self.optimizer.zero_grad()
            loss = closure()
        self.optimizer.step()
        return loss

    def gradients(self, course: Course) -> float:
        """Gradients of a batch in a whole training."""
        return course.steps + self.sharp_steps.count(course, self.share)

    def share(self, images: int) -> float:
        """What a sharp step on so many images takes besides a gradient of the whole batch, in such gradients."""
        sizes = [images] if self.chunk is None else [self.chunk] * (images // self.chunk) + [images % self.chunk]
        ascended = sum(self._part(size) for size in sizes if size)
        return quotient((self.passes - 1) * ascended, images)

    def _part(self, images: int) -> int:
        return max(1, round(self.ascent * images))

    def gradient(self, closure: Closure) -> Tensor:
        """Leave grad L(w + eps), corrected, in every `.grad`; returns L(w)."""
        return self._gradient(closure) if self.chunk is None else self._mean_over_chunks(closure, self.chunk)

    def _gradient(self, closure: Closure) -> Tensor:
        self.optimizer.zero_grad()
        noise = _generator(self.parameters[0].device)
        drawn_from = noise.get_state() if self.noise == "replay" or self.correction is not None else None
        loss = self._first_pass(closure)
        weights = [parameter for parameter in self.parameters if parameter.grad is not None]
        # Times 1 is a copy in one kernel for all.
        before = [] if self.correction is None else list(torch._foreach_mul(_gradients(weights), 1))
        with moved(weights, self._perturbation(weights), self._copies):
            self.optimizer.zero_grad()  # the descent step is on grad L(w + eps) alone
            if drawn_from is not None and self.noise == "replay":
                noise.set_state(drawn_from)  # networks draw their backward noise in the forward pass: both are replayed
            with keep_statistics(self.model) if self.bn == "first" else nullcontext():
                closure()
        if self.correction is not None and drawn_from is not None:
            drawn_to = noise.get_state()
            noise.set_state(drawn_from)
            self.correction(closure, weights, before)
            noise.set_state(drawn_to)
        return loss

    def _first_pass(self, closure: Closure) -> Tensor:
        with self._local(closure), only_these(self.perturbed, among=self.parameters):
            if self.ascent == 1:
                return closure()
            if not isinstance(closure, Batch):
                raise TypeError("step.ascent needs a closure that can be taken apart: a broadopt.methods.batch.Batch")
            return closure.first(self._part(len(closure.labels)))

    def _local(self, closure: Closure) -> AbstractContextManager[None]:
        if isinstance(closure, Batch) and self.perturbation == "share":
            return closure.local()
        return nullcontext()

    def _mean_over_chunks(self, closure: Closure, chunk: int) -> Tensor:
        if not isinstance(closure, Batch):
            raise TypeError("step.chunk needs a closure that can be taken apart: a broadopt.methods.batch.Batch")
        losses, total = [], dict[Tensor, Tensor]()
        for share, part in closure.split(chunk):
            losses.append(share * self._gradient(part))  # shares: the last chunk may be smaller
            gradients = {weight: weight.grad for weight in self.parameters if weight.grad is not None}
            # A weight that took no part in a chunk (stochastic depth) has no gradient there, which counts as 0.
            known = [weight for weight in gradients if weight in total]
            found = {weight: gradient for weight, gradient in gradients.items() if weight not in total}
            if known:
                torch._foreach_add_([total[one] for one in known], [gradients[one] for one in known], alpha=share)
            if found:
                torch._foreach_mul_(list(found.values()), share)
                total |= found  # the tensors themselves: zero_grad lets go of them
        for weight, gradient in total.items():
            weight.grad = gradient
        return torch.stack(losses).sum()

    @torch.no_grad()
    def _perturbation(self, weights: list[Tensor]) -> list[Tensor]:
        return self.epsilon(weights, _gradients(weights))


def _gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]


@contextmanager
def moved(weights: list[Tensor], perturbation: list[Tensor], copies: dict[Tensor, Tensor]) -> Iterator[None]:
    """Inside, the weights are w + perturbation; afterwards w again, bit for bit, also when a signal ends the pass: what
    is saved then are the weights themselves. `copies` holds one of each weight from step to step.
    """
    with torch.no_grad():
        for weight in weights:
            if weight not in copies:
                copies[weight] = torch.empty_like(weight)
        # Restored from a copy: w + eps - eps is not w in floating point, and the error would grow step by step.
        kept = [copies[weight] for weight in weights]
        if weights:
            torch._foreach_copy_(kept, weights)
            torch._foreach_add_(weights, perturbation)
    del perturbation  # its memory is that of the pass
    try:
        yield
    finally:
        with torch.no_grad():
            if weights:
                torch._foreach_copy_(weights, kept)


def _one_of(key: str, value: str, *names: str) -> None:
    if value not in names:
        raise InputError(f"step.{key}={value}: expected {', '.join(names[:-1])} or {names[-1]}")


def _generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]
    return torch.default_generator
