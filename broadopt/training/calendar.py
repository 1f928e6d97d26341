"""When something is due in a training: the plan of its whole length, counted in steps."""

import logging
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import partial

from broadopt.methods.collect import Collector, EverySteps
from broadopt.methods.steps.sharp_steps import nearest_step

log = logging.getLogger("broadopt")


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """Steps are counted from 1: step s is the moment right after the s-th update."""

    steps_per_epoch: int
    total_steps: int
    collection_points: Mapping[str, Set[int]]
    """By collector, the steps at which it takes in the weights."""
    updates: Mapping[str, range]
    """The same of those that take them in at every step, or every few, which is a part of these steps."""
    evaluation_points: Mapping[int, tuple[tuple[str, str], ...]]
    """Steps at which a collector predicts: which one, and the budgets spent."""

    @classmethod
    def of(cls, collectors: Mapping[str, Collector], *, budget: float, steps_per_epoch: int) -> "Calendar":
        """The calendar of a training of `budget` epochs. A moment inside a batch is moved to the nearest step."""
        step_at = partial(nearest_step, steps_per_epoch=steps_per_epoch)
        evaluation = defaultdict(list)
        for name, collector in collectors.items():
            for spent, epochs in collector.evaluation_points(budget).items():
                evaluation[step_at(epochs)].append((name, spent))
        total = max([step_at(budget), *evaluation])
        collection: dict[str, Set[int]] = {}
        updates: dict[str, range] = {}
        for name, collector in collectors.items():
            moments = collector.collection_points(budget)
            if isinstance(moments, EverySteps):
                updates[name] = range(step_at(moments.start), step_at(moments.end) + 1, moments.steps)
                continue
            collection[name] = frozenset(map(step_at, moments))
            if len(collection[name]) < len(moments):
                log.warning(
                    "%d collection points fall on %d steps: that many are made", len(moments), len(collection[name])
                )
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=total,
            collection_points=collection,
            updates=updates,
            evaluation_points={step: tuple(due) for step, due in evaluation.items()},
        )

    @property
    def epochs(self) -> float:
        """Length of the training."""
        return self.total_steps / self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether a row of the history is due: at the end of an epoch, and of the training inside one."""
        return step > 0 and (step % self.steps_per_epoch == 0 or step == self.total_steps)

    @property
    def moments(self) -> int:
        """The number of steps at which anything is due."""
        ends = -(-self.total_steps // self.steps_per_epoch)
        apart = set(self.evaluation_points).union(*self.collection_points.values())
        return ends + sum(not self.ends_epoch(step) for step in apart)

    def is_due(self, step: int) -> bool:
        """Whether anything is due, updates apart."""
        return (
            step in self.evaluation_points
            or self.ends_epoch(step)
            or any(step in points for points in self.collection_points.values())
        )
