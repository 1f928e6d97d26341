"""What is evaluated besides the last weights."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from broadopt.errors import InputError, RunFailed

Predict = Callable[[nn.Module], dict[str, Tensor]]
"""Log of the class probabilities of a network on each held-out split: {"test": float64 [N, C], ...}."""

Reestimate = Callable[[nn.Module], None]
"""Computes a network's BN statistics anew on training batches, in place."""


MOST_POINTS = 1_000_000
"""Collection points of a run; more is a slip in collect.cycle."""


def number_of_points(count: float) -> int:
    """`count` rounded down, 0 for a negative one. Raises InputError for more than MOST_POINTS."""
    if not count <= MOST_POINTS:
        raise InputError(f"collect.cycle: gives {count:.4g} collection points; expected {MOST_POINTS:,} at most")
    return max(0, int(count))


@dataclass(frozen=True, kw_only=True)
class EverySteps:
    """Collection points that are too many to be listed: the step at `start` epochs, and each `steps` steps after it, up
    to `end` epochs.
    """

    start: float
    end: float
    steps: int


@dataclass(frozen=True)
class Passes:
    """Forward passes that a collector makes in a whole run; a network is evaluated by one over the held-out images."""

    held_out: int
    """Over all held-out images."""
    training: int
    """Over all training images, for BN statistics."""


class Collector(Protocol):
    """Collects weights or predictions at its collection points and predicts with them at its evaluation points; never
    changes the training.

    One that collects at each epoch's end or more seldom lists its collection points. One that collects at every step,
    or every few, is a `StepCollector`. One that predicts with a copy of the network says so, `copies_network = True`: a
    network that cannot be copied then ends the run after its first step, and not at the first evaluation point.
    """

    is_ensemble: bool
    """Whether it predicts with more than one network."""

    def collection_points(self, budget: float) -> list[float] | EverySteps:
        """The moments at which `collect` is due, in epochs, ascending, for a budget in epochs."""
        ...

    def evaluation_points(self, budget: float) -> dict[str, float]:
        """The moments at which `predict` is due, in epochs, by the budgets spent ("1", "1.25", ...). The training ends
        with the last of them, or with the budget where that is later.
        """
        ...

    def collect(self, model: nn.Module, predict: Predict) -> None:
        """Take in the weights as they are now."""
        ...

    def network(self, model: nn.Module, reestimate: Reestimate) -> nn.Module:
        """The network that predicts what the run reports; not called where `is_ensemble`."""
        ...

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate) -> dict[str, Tensor]:
        """Log-probabilities of what was collected, as `predict` gives them; `model` gives the network its form and is
        left as it is. torch's own generator has been seeded by the run's seed and the step: what is drawn repeats.
        """
        ...

    @property
    def members(self) -> int:
        """The number of weights collected so far."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: tensors, numbers and strings."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        ...


@runtime_checkable
class CountedCollector(Collector, Protocol):
    """A collector that says ahead of a run what its evaluations take, for `plan=true`."""

    def passes(self, budget: float) -> Passes:
        """The passes of a run of `budget` epochs whose network has BN."""
        ...


@runtime_checkable
class StepCollector(Collector, Protocol):
    """A collector whose collection points are `EverySteps`. Its `update` is a part of the training steps, and called
    in place of `collect`.
    """

    def update(self, model: nn.Module, *, epochs: float) -> None:
        """Take in the weights as they are now, `epochs` after the last time. It must neither predict nor read a number
        from the device, which would have to be waited for.
        """
        ...


def evaluation_budgets(budgets: Sequence[float]) -> tuple[float, ...]:
    """collect.budgets, the evaluation points of a collector. Raises InputError unless they are positive and ascend."""
    if not budgets or any(not 0 < value <= 1000 for value in budgets) or list(budgets) != sorted(set(budgets)):
        raise InputError(f"collect.budgets={list(budgets)}: expected numbers > 0, at most 1000, in ascending order")
    return tuple(budgets)


def check_start(start: float, budgets: Sequence[float]) -> None:
    """Raise InputError unless something is collected by the first evaluation point."""
    if not 0 <= start <= budgets[0]:
        raise InputError(
            f"collect.start={start}: expected 0 to {budgets[0]:g}, the first evaluation point of collect.budgets"
        )


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a network. Raises RunFailed, naming the part, where one keeps a tensor of its last pass with what its
    gradient needs, of which PyTorch makes no copy.
    """
    try:
        return deepcopy(model)
    except RuntimeError as error:
        kept = [
            f"{type(module).__name__} {name}".strip()
            for name, module in model.named_modules()
            if any(isinstance(value, Tensor) and not value.is_leaf for value in vars(module).values())
        ]
        if not kept:
            raise
        raise RunFailed(
            f"model: {kept[0]} keeps a tensor of its last pass, so that the network cannot be copied, as its collector "
            "needs; expected none, and of weight_norm and spectral_norm those of torch.nn.utils.parametrizations"
        ) from error


class Nothing:
    """Only the last weights are evaluated."""

    is_ensemble = False
    members = 0

    def collection_points(self, budget: float) -> list[float]:
        """None."""
        return []

    def evaluation_points(self, budget: float) -> dict[str, float]:
        """None."""
        return {}

    def passes(self, budget: float) -> Passes:
        """None."""
        return Passes(0, 0)

    def collect(self, model: nn.Module, predict: Predict) -> None:
        """Never called."""

    def network(self, model: nn.Module, reestimate: Reestimate) -> nn.Module:
        """The last weights."""
        return model

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate) -> dict[str, Tensor]:
        """Never called."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""
