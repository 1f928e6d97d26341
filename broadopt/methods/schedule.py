"""The learning rate as a pure function of the epochs elapsed: nothing to step, nothing to store, nothing to resume."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from broadopt.config.rules import NEEDED_BY_TAIL, TAKEN_BY_SHAPE
from broadopt.errors import InputError, RunFailed, nearest, printable

SHAPES = tuple(TAKEN_BY_SHAPE)
FALLING = ("triangle", "sawtooth")
"""Tails that fall from `high` to `low`."""
NO_NUMBER = (TypeError, ValueError, RuntimeError, OverflowError)
"""What float() raises for None, an array or a tensor of several elements, and an integer that is too large."""


def learning_rate(schedule: Callable[..., Any], epochs: float, *, step: float = 0.0) -> float:
    """What a schedule, of whoever's making, gives for the step after `epochs` epochs, as a plain number: a checkpoint
    takes none of NumPy's. Raises RunFailed for anything but a finite number, and InputError for what is no schedule.
    """
    if not callable(schedule):
        found = printable(" ".join(str(schedule).split()))[:100]
        raise InputError(f"schedule: its _target_ gives {found}; a function that gives the lr needs _partial_: true")
    given = schedule(epochs, step=step)
    try:
        lr = math.nan if isinstance(given, str | bytes) else float(given)
    except NO_NUMBER:
        lr = math.nan
    if not math.isfinite(lr):
        found, epoch = printable(" ".join(str(given).split()))[:100], math.floor(epochs + 1e-9) + 1
        raise RunFailed(f"schedule: the lr that it gives in epoch {epoch} is {found}; expected a finite number")
    return lr


def at_rest(schedule: Callable[..., Any], budget: float, points: Mapping[str, float]) -> str:
    """The line about evaluation `points`, in epochs by name, that lie behind epochs in which the lr is 0 throughout;
    empty where there are none.
    """
    idle: list[float] = []
    for begin, end in pairwise(sorted({0.0, budget, *points.values()})):
        last = max(begin, math.ceil(end - 1e-9) - 1.0)
        if not any(learning_rate(schedule, epochs) for epochs in (begin, (begin + last) / 2, last)):
            idle += [begin, end]
    names = [name for name, epoch in points.items() if epoch in idle[1::2]]
    if not names:
        return ""
    return (
        f"schedule: the lr is 0 from epoch {idle[0]:g} to {idle[-1]:g}, so that no weight changes before the "
        f"evaluation points {', '.join(names)}; expected none after that, or a schedule that goes on"
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A decay, and from `start` budgets on a tail in its place.

    With t = epochs elapsed / (decay_over * budget), the decay runs from lr to decay_to:

        constant  lr
        linear    lr until t = 0.5, a line to decay_to until t = 0.9, then decay_to (default lr / 100)  SWA code
        cosine    decay_to + (lr - decay_to) (1 + cos(pi t)) / 2, to t = 1 (default decay_to 0)          ASAM code
        steps     lr, lr / 10 from t = 0.5, lr / 100 from t = 0.75                                       PyramidNet code

    The decay changes once an epoch unless `per_step`. Its first epoch, or step, has the number `count_from`: 0 in most
    codes, 1 in those of FGE (train.py: epoch in 1..epochs) and Shake-Shake (train.lua:206-213: iterations).

    The tail counts cycles of `cycle` budgets from its start, u in [0, 1) within one:

        constant  high
        triangle  high -> low over the first half of the cycle, back to high over the second    FGE code, utils.py:18-25
        sawtooth  high -> low over the cycle, then the jump back                                SWA, alpha(i)
        replay    the decay from `replay_from` on, as long as a cycle, again and again          SWA of Shake-Shake

    In the first `warmup` budgets all this is multiplied by a line from 0 to 1, which each step ends higher: the n-th of
    N steps has n / N of the lr (Goyal et al. 2017, "Accurate, Large Minibatch SGD", 2.2).

    lr, high, low, decay_to in the optimizer's units; budget in epochs; start, cycle, decay_over, replay_from
    and warmup in budgets. Raises InputError for an unknown shape or tail, a tail without its values, or a replay from
    where the decay has ended.
    """

    lr: float
    budget: float
    shape: str
    per_step: bool = False
    count_from: int = 0
    decay_over: float = 1.0
    decay_to: float | None = None
    tail: str | None = None
    start: float = math.inf
    high: float | None = None
    low: float | None = None
    cycle: float | None = None
    replay_from: float | None = None
    warmup: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError(
                f"schedule.shape={self.shape}: expected one of {', '.join(SHAPES)}{nearest(str(self.shape), SHAPES)}"
            )
        if self.tail is None:
            return
        if self.tail not in NEEDED_BY_TAIL:
            hint = nearest(str(self.tail), list(NEEDED_BY_TAIL))
            raise InputError(f"schedule.tail={self.tail}: expected one of {', '.join(NEEDED_BY_TAIL)}{hint}")
        for name in NEEDED_BY_TAIL[self.tail]:
            value, least = getattr(self, name), ">= 0" if name == "replay_from" else "> 0"
            if not isinstance(value, (int, float)) or value < 0 or (value == 0 and least == "> 0"):
                found = "null" if value is None else value
                raise InputError(f"schedule.{name}={found}: schedule.tail={self.tail} needs a number {least}")
        if self.tail in FALLING and (self.low or 0.0) > (self.high or 0.0):
            raise InputError(f"schedule.low={self.low:g}: expected at most schedule.high={self.high:g}")
        if self.tail == "replay" and self.shape != "constant" and (self.replay_from or 0.0) >= self.decay_over:
            raise InputError(
                f"schedule.replay_from={self.replay_from:g}: the decay that is replayed is at its end by then; "
                f"expected less than schedule.decay_over={self.decay_over:g}"
            )

    def __call__(self, epochs: float, *, step: float = 0.0) -> float:
        """The learning rate of the step that begins after `epochs` epochs (a fraction inside an epoch).

        `step` is a step's length in epochs. It matters where steps are counted from 1: in the sawtooth, whose last
        alpha(i) is low exactly, and in a decay with `per_step` and `count_from` 1.
        """
        warm = self._epochs(self.warmup)
        if epochs < warm - 1e-9:
            return self._without_warmup(epochs, step) * min((epochs + step) / warm, 1.0)
        return self._without_warmup(epochs, step)

    def joints(self) -> list[int]:
        """Whole epochs after which the formula goes on by another piece: a constant begins to fall, a decay steps down,
        the tail begins. Of a decay as if its first number were 0: one that is counted from 1 leaves the same lr an
        epoch earlier at most, so that both have it until there.
        """
        tail = math.inf if self.tail is None else self._epochs(self.start)
        shares = {"linear": (0.5,), "steps": (0.5, 0.75)}.get(self.shape, ())
        moments = [share * self._epochs(self.decay_over) for share in shares]
        # One that changes once an epoch has its old value to the end of the epoch in which a joint lies.
        whole = [math.floor(moment + 1e-9) if self.per_step else math.ceil(moment - 1e-9) for moment in moments]
        whole = [*(epoch for epoch in whole if epoch < tail), *([] if tail == math.inf else [math.floor(tail + 1e-9)])]
        return sorted({epoch for epoch in whole if epoch > 0})

    def without_tail(self) -> "Schedule":
        """The schedule that has the same lr up to the start of the tail, and its decay from there on."""
        return replace(self, tail=None, start=math.inf, high=None, low=None, cycle=None, replay_from=None)

    def is_constant_in(self, epoch: int) -> bool:
        """Whether all steps of epoch number `epoch`, from 0, have one lr for certain."""
        return not self.per_step and epoch >= self._epochs(self.warmup) and self.is_before_tail(epoch)

    def is_before_tail(self, epoch: int) -> bool:
        """Whether epoch number `epoch`, from 0, is at its end when the tail begins."""
        return self.tail is None or epoch + 1 <= self._epochs(self.start)

    def _without_warmup(self, epochs: float, step: float) -> float:
        if self.tail is not None and epochs >= self._epochs(self.start):
            return self._tail(epochs, step)
        return self._decay(self._counted(epochs, step))

    def _counted(self, epochs: float, step: float) -> float:
        """The time that the decay's formula is given for the step after `epochs` epochs."""
        if self.per_step:
            return epochs + self.count_from * step
        return math.floor(epochs + 1e-9) + self.count_from  # replayed, epoch 3 may come as 2.9999999999

    def _epochs(self, budgets: float) -> float:
        return round(budgets * self.budget, 9)  # 0.805 * 200 is 161 and not a little more

    def _decay(self, epochs: float) -> float:
        over = self._epochs(self.decay_over)
        t = epochs / over if over > 0 else 1.0
        if self.shape == "constant":
            return self.lr
        if self.shape == "steps":
            return self.lr * (1.0 if t < 0.5 else 0.1 if t < 0.75 else 0.01)
        if self.shape == "cosine":
            low = self.decay_to or 0.0
            return low + (self.lr - low) * (1 + math.cos(math.pi * min(t, 1.0))) / 2
        low = self.lr / 100 if self.decay_to is None else self.decay_to
        return self.lr - (self.lr - low) * min(max((t - 0.5) / 0.4, 0.0), 1.0)

    def _tail(self, epochs: float, step: float) -> float:
        high, low, cycle = self.high or 0.0, self.low or 0.0, (self.cycle or 1.0) * self.budget
        if self.tail == "constant":
            return high
        cycles = (epochs - self._epochs(self.start)) / cycle
        u = max(cycles - math.floor(cycles + 1e-9), 0.0)  # 2.9999999999 is the third jump, not the step before it
        if self.tail == "replay":
            return self._decay(self._counted(self._epochs(self.replay_from or 0.0) + u * cycle, step))
        fallen = min(u + step / cycle, 1.0) if self.tail == "sawtooth" else 1 - abs(2 * u - 1)
        return high - (high - low) * fallen
