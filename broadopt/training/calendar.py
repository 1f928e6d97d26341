"""When something is due in a training: the plan of its whole length, counted in steps."""

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from broadopt.methods.collect import Collector

log = logging.getLogger("broadopt")


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """Steps are counted from 1: step s is the moment right after the s-th update."""

    steps_per_epoch: int
    total_steps: int
    collection_points: frozenset[int]
    """Steps at which the collector takes in the weights."""
    evaluation_points: Mapping[int, tuple[str, ...]]
    """Steps at which the collector predicts, with the names under which the result keeps the figures."""

    @classmethod
    def of(cls, collector: Collector, *, budget: float, steps_per_epoch: int) -> "Calendar":
        """The calendar of a training of `budget` epochs. A moment inside a batch is moved to the nearest step."""

        def step_at(epochs: float) -> int:
            return max(1, math.floor(epochs * steps_per_epoch + 0.5))

        points, moments = collector.evaluation_points(budget), collector.collection_points(budget)
        collection = frozenset(map(step_at, moments))
        if len(collection) < len(moments):
            log.warning("%d collection points fall on %d steps: that many are made", len(moments), len(collection))
        evaluation = defaultdict(list)
        for name, epochs in points.items():
            evaluation[step_at(epochs)].append(name)
        return cls(
            steps_per_epoch=steps_per_epoch,
            total_steps=max(map(step_at, (budget, *points.values()))),
            collection_points=collection,
            evaluation_points={step: tuple(names) for step, names in evaluation.items()},
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
        apart = {*self.collection_points, *self.evaluation_points}
        return ends + sum(not self.ends_epoch(step) for step in apart)

    def is_due(self, step: int) -> bool:
        """Whether anything is due."""
        return step in self.collection_points or step in self.evaluation_points or self.ends_epoch(step)
