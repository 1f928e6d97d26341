"""Which steps of a training are sharp, and how many gradients a whole training takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadopt.errors import InputError

if TYPE_CHECKING:  # what only reads results counts with this module, and does not import torch
    from torch import Tensor

NEVER = 2**62
"""A step that no training reaches."""


def nearest_step(epochs: float, steps_per_epoch: int) -> int:
    """The step, counted from 1, that is nearest to a moment; of two that are as near the later."""
    # A little more: 0.7 * 3 epochs of 5 steps are 10.499999999999998, and 10.5 where the moment was rounded before.
    return max(1, math.floor((epochs + 1e-9) * steps_per_epoch + 0.5))


@dataclass(frozen=True, kw_only=True)
class Course:
    """A whole training, as far as its cost hangs on it."""

    steps: int
    steps_per_epoch: int
    steps_per_budget: float
    batch_size: int
    last_batch: int
    """Images of the last batch of an epoch."""

    @classmethod
    def of(cls, *, images: int, batch_size: int, budget: float, epochs: float) -> "Course":
        """`epochs` epochs of `images` images each."""
        steps_per_epoch = -(-images // batch_size)
        return cls(
            steps=nearest_step(epochs, steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            steps_per_budget=budget * steps_per_epoch,
            batch_size=batch_size,
            last_batch=images - (steps_per_epoch - 1) * batch_size,
        )


@dataclass(frozen=True, kw_only=True)
class SharpSteps:
    """The steps from `start` budgets on, until `end` budgets are spent, whose number (from 0) is a multiple of `every`.

    A pure function of a step's number: nothing to store and nothing to resume. Raises InputError for values out of
    range.
    """

    start: float = 0.0
    end: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise InputError(f"step.from={self.start}: expected a number of budgets >= 0")
        if self.end is not None and not self.end > self.start:
            raise InputError(f"step.until={self.end}: expected more budgets than step.from={self.start}, or null")
        if self.every < 1:
            raise InputError(f"step.every={self.every}: expected a whole number of steps >= 1")

    def among(self, steps_per_budget: float) -> range:
        """The numbers of these steps."""
        # Less a little: 0.29 budgets of 100 steps are 28.999999999999996 of them, and begin with step 29.
        first, last = math.ceil(self.start * steps_per_budget - 1e-6), NEVER
        if self.end is not None:
            last = math.ceil(self.end * steps_per_budget - 1e-6)
        return range(-(-first // self.every) * self.every, last, self.every)

    def include(self, closure: "Callable[[], Tensor]") -> bool:
        """Whether the step on this batch is one of them. Raises TypeError where the batch does not say which it is."""
        if self == ALWAYS:
            return True
        batch: Any = closure
        if getattr(batch, "step", None) is None:  # not by its class, whose module imports this one
            raise TypeError(
                "step.from, step.until and step.every need to know how far the training is: "
                "a broadopt.methods.batch.Batch with its step and steps_per_budget"
            )
        return batch.step in self.among(batch.steps_per_budget)

    def count(self, course: Course, weight: Callable[[int], float] = lambda images: 1) -> float:
        """The sum, over these steps of a training, of the `weight` of a batch of so many images."""
        mine, epoch = self.among(course.steps_per_budget), course.steps_per_epoch
        last = sum(step in mine for step in range(epoch - 1, course.steps, epoch))
        return (self.before(course) - last) * weight(course.batch_size) + last * weight(course.last_batch)

    def before(self, course: Course) -> int:
        """How many of these steps a training has; of one of any length at once, and in numbers of any size."""
        mine = self.among(course.steps_per_budget)
        return max(0, -(-(min(mine.stop, course.steps) - mine.start) // mine.step))


ALWAYS = SharpSteps()


def gradients(step: Any, course: Course) -> float:
    """Gradients of a batch in a whole training, as `counted`. Raises InputError for a step.from of one budget or more
    that the training never comes to.
    """
    sharp_steps = getattr(step, "sharp_steps", None)
    if isinstance(sharp_steps, SharpSteps) and sharp_steps.start >= 1 and sharp_steps.count(course) == 0:
        raise InputError(_never_begins(sharp_steps.start, course))
    return counted(step, course)


def counted(step: Any, course: Course) -> float:
    """Gradients of a batch in a training or its first part: as the step counts them itself, by a method
    `gradients(course)`, else `passes` a step.
    """
    own = getattr(step, "gradients", None)
    return course.steps * step.passes if own is None else own(course)


def _never_begins(start: float, course: Course) -> str:
    epochs = course.steps_per_budget / course.steps_per_epoch
    words = (
        f"step.from={start:g}: it is counted in budgets, and the training ends after "
        f"{course.steps / course.steps_per_budget:.3g}"
    )
    # Whoever gives more than one budget means epochs, where the budget has as many.
    return words + (f"; {start / epochs:.3g} are {start:g} of {epochs:g} epochs" if start < epochs else "")


def gradients_a_step(step: Any, course: Course) -> float:
    """The mean of `gradients` over the steps, an integer where it is a whole number."""
    return quotient(gradients(step, course), course.steps) if course.steps else step.passes


def quotient(count: float, each: int) -> float:
    """count / each, as an integer where it is a whole number."""
    found = count / each
    return int(found) if found == int(found) else found
