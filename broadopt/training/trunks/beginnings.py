"""The beginning of a run as a recipe of its own: all that decides the weights after its first epochs."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from broadopt.config.identity import identity_of
from broadopt.config.instantiate import collectors_of, instantiated
from broadopt.config.own_code import own_code
from broadopt.config.run_config import DatasetConfig, Recipe
from broadopt.data.datasets import size
from broadopt.errors import InputError
from broadopt.methods.schedule import Schedule, learning_rate
from broadopt.training.calendar import Calendar

LEFT_OUT = ("method", "collect", "schedule", "code")
"""Keys of a recorded config that a beginning is without: the method is a name, the collectors have taken nothing yet,
the schedule counts by the learning rates that it has given, and code by what is left of it."""

WITH_CODE = ("dataset", "model", "augmentation", "step", "optimizer")
"""Keys of a config whose targets' code a beginning depends on."""


class Rates:
    """The learning rates of a schedule, as hashes of all steps up to each whole epoch."""

    def __init__(self, schedule: Any, steps_per_epoch: int) -> None:
        self._schedule, self._steps = schedule, steps_per_epoch
        self._hashes = [hashlib.sha256()]

    def digest(self, epochs: int) -> str:
        """SHA-256 (64 hex digits) of the lr of every step of the first `epochs` epochs, as little-endian float64."""
        while len(self._hashes) <= epochs:
            self._hashes.append(self._with_epoch(len(self._hashes) - 1))
        return self._hashes[epochs].hexdigest()

    def _with_epoch(self, epoch: int) -> "hashlib._Hash":
        """The hash of all epochs up to number `epoch`, from 0. A sweep has many schedules that decay alike, and a
        million steps take seconds: what is known of another one, or of a whole epoch, is not asked for once more.
        """
        if type(self._schedule) is Schedule and self._schedule.is_before_tail(epoch):
            alike = _decay(self._schedule.without_tail(), self._steps)
            if alike is not self:
                alike.digest(epoch + 1)
                return alike._hashes[epoch + 1]
        found = self._hashes[epoch].copy()
        found.update(self._lrs(epoch))
        return found

    def _lrs(self, epoch: int) -> bytes:
        steps = self._steps
        if type(self._schedule) is Schedule and self._schedule.is_constant_in(epoch):
            return struct.pack("<d", learning_rate(self._schedule, float(epoch), step=1 / steps)) * steps
        # As training/stepping.py asks for the lr of a step, to the last bit.
        of_epoch = range(epoch * steps, (epoch + 1) * steps)
        lrs = [learning_rate(self._schedule, step / steps, step=1 / steps) for step in of_epoch]
        return struct.pack(f"<{steps}d", *lrs)


@cache
def _decay(schedule: Schedule, steps_per_epoch: int) -> Rates:
    """Those of a schedule without a tail."""
    return Rates(schedule, steps_per_epoch)


@dataclass(frozen=True)
class Beginnings:
    """The beginnings of one run, one for each number of whole epochs up to which no collector has taken anything."""

    recipe: Recipe
    calendar: Calendar
    schedule: Any
    rates: Rates

    @classmethod
    def of(cls, recipe: Recipe, calendar: Calendar | None = None) -> "Beginnings":
        """Those of a recipe. Without its `calendar` the size of its data set is looked up. Raises InputError."""
        if calendar is None:
            images = _images(json.dumps(recipe.dataset.values())) - recipe.dataset.validation
            if images <= 0:
                raise InputError(f"dataset.validation={recipe.dataset.validation}: no image is left to train on")
            collectors, steps = collectors_of(recipe.collect), -(-images // recipe.batch_size)
            calendar = Calendar.of(collectors, budget=recipe.budget, steps_per_epoch=steps)
        node = json.dumps(recipe.schedule, sort_keys=True)
        return cls(recipe, calendar, _schedule_of(node), _rates_of(node, calendar.steps_per_epoch))

    @cached_property
    def taken_from(self) -> int:
        """Whole epochs at whose end the collectors of the run have taken and predicted nothing: what is due right then,
        they do after the run has begun from there.
        """
        points = [min(steps) for steps in self.calendar.collection_points.values() if steps]
        points += list(self.calendar.evaluation_points)
        # Updates are a part of their steps: whoever begins at a step has left out those of this step.
        points += [steps[0] - 1 for steps in self.calendar.updates.values() if steps]
        return min([self.calendar.total_steps, *points]) // self.calendar.steps_per_epoch

    @property
    def collects(self) -> bool:
        """Whether anything is ever collected."""
        return bool(any(self.calendar.collection_points.values()) or any(self.calendar.updates.values()))

    def exists(self, epochs: int) -> bool:
        """Whether the state after `epochs` epochs is decided by a beginning alone. The last row of a run is always
        evaluated, that of another run in the same epoch only where it is due.
        """
        is_last = self.steps(epochs) == self.calendar.total_steps
        is_evaluated = not is_last or epochs % self.recipe.evaluate_every == 0
        return 1 <= epochs <= self.taken_from and is_evaluated

    def steps(self, epochs: int) -> int:
        """Steps of so many epochs."""
        return epochs * self.calendar.steps_per_epoch

    @cached_property
    def left(self) -> Sequence[int]:
        """Epochs after which the run leaves its state, ascending: where others can leave its course."""
        joints: Sequence[float] = getattr(self.schedule, "joints", tuple)()
        ends = [int(self.recipe.budget)] if self.recipe.budget == int(self.recipe.budget) else []
        starts = [self.taken_from] if self.collects else []
        return tuple(epochs for epochs in sorted({*map(int, joints), *starts, *ends}) if self.exists(epochs))

    @cached_property
    def common(self) -> Mapping[str, Any]:
        """What of the recorded config all beginnings of the run have."""
        kept = {key: value for key, value in self.recipe.record().items() if key not in LEFT_OUT}
        values = self.recipe.values()
        code = own_code([values[key] for key in WITH_CODE])
        return kept | ({"code": code} if code else {})

    def record(self, epochs: int) -> dict[str, Any]:
        """The recorded config of one of them."""
        return {**self.common, "epochs": epochs, "lr_sha256": self.rates.digest(epochs)}

    def identity(self, epochs: int) -> str:
        """SHA-256 (64 hex digits) by which it is known, as a run is by that of its recorded config."""
        return identity_of(self.record(epochs))


@cache
def _schedule_of(node: str) -> Any:
    """The schedule of a config's node in JSON, which most runs of a sweep share with others."""
    return instantiated("schedule", json.loads(node))


@cache
def _rates_of(node: str, steps_per_epoch: int) -> Rates:
    return Rates(_schedule_of(node), steps_per_epoch)


@cache
def _images(dataset: str) -> int:
    """Training images, those held out included, of a DatasetConfig's values in JSON: looked up once for a sweep."""
    return size(DatasetConfig.of(json.loads(dataset))).train


def in_epochs(*counts: int) -> str:
    """`1 epoch`, `81 and 161 epochs`."""
    shown = [str(count) for count in counts]
    return f"{' and '.join([', '.join(shown[:-1])] * (len(shown) > 1) + shown[-1:])} epoch{'s' * (counts[-1] != 1)}"
