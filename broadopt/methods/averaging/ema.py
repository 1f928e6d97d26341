"""EMA: the exponential moving average of the weights, Polyak and Juditsky's average with the distant past forgotten."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.batchnorm import statistics
from broadopt.methods.collect import EverySteps, Passes, Predict, Reestimate, check_start, copy_of, evaluation_budgets

BN = ("reestimate", "own")


class MovingAverage:
    """The exponential moving average of the weights, w_EMA <- d w_EMA + (1 - d) w, at each update; the first update
    copies the weights (Tarvainen and Valpola 2017, "Mean teachers are better role models", eq. 1; for averages of SGD
    in general Polyak and Juditsky 1992).

    Exactly one of decay, d itself, and half_life, the epochs after which a weight has half its share: between updates
    that are e epochs apart d = 2^(-e / half_life), whatever the batch size. start: budgets spent at the first update.
    every: steps between two updates. budgets: the evaluation points.

    bn: the BN statistics of the network that is evaluated. `reestimate`: computed anew on training images, as for SWA.
    `own`: the running means and variances are averaged at the same moments by the same formula as the weights, which
    costs no pass over the data; they are means over networks near the averaged one, not its own.
    """

    is_ensemble = False
    copies_network = True

    def __init__(
        self,
        *,
        decay: float | None = None,
        half_life: float | None = None,
        start: float = 0.0,
        every: int = 1,
        bn: str = "reestimate",
        budgets: Sequence[float] = (1,),
    ) -> None:
        if (decay is None) == (half_life is None):
            found = ["null" if value is None else value for value in (decay, half_life)]
            raise InputError(
                f"collect.decay={found[0]} and collect.half_life={found[1]}: expected a number for exactly one of them"
            )
        if decay is not None and not 0 <= decay < 1:
            raise InputError(f"collect.decay={decay}: expected a number from 0 to below 1")
        if half_life is not None and not half_life > 0:
            raise InputError(f"collect.half_life={half_life}: expected a number of epochs > 0")
        if every < 1:
            raise InputError(f"collect.every={every}: expected a whole number of steps >= 1")
        if bn not in BN:
            raise InputError(f"collect.bn={bn}: expected one of {', '.join(BN)}")
        self.budgets = evaluation_budgets(budgets)
        check_start(start, self.budgets)
        self.decay, self.half_life, self.start, self.every, self.bn = decay, half_life, start, every, bn
        self.members = 0
        self.average: list[Tensor] = []
        self._model: nn.Module | None = None
        self._tensors: list[Tensor] = []

    def collection_points(self, budget: float) -> EverySteps:
        """Every `every` steps from `start` to the last evaluation point, with which the average is complete."""
        start, end = round(self.start * budget, 9), round(self.budgets[-1] * budget, 9)
        return EverySteps(start=start, end=end, steps=self.every)

    def evaluation_points(self, budget: float) -> dict[str, float]:
        """One for each budget of `budgets`."""
        return {f"{value:g}": value * budget for value in self.budgets}

    def passes(self, budget: float) -> Passes:
        """At each evaluation point one network."""
        count = len(self.budgets)
        return Passes(held_out=count, training=count if self.bn == "reestimate" else 0)

    @torch.no_grad()
    def update(self, model: nn.Module, *, epochs: float) -> None:
        """Move the average towards the weights, `epochs` after the last update; the first update copies them."""
        if model is not self._model:  # to look through the modules at every step would cost more than the update
            self._model, self._tensors = model, self._averaged(model)
        now = self._tensors
        if not self.average:
            self.average = [torch.empty_like(tensor) for tensor in now]
        if self.members == 0:
            torch._foreach_copy_(self.average, now)
        else:
            torch._foreach_lerp_(self.average, now, 1 - self._decay(epochs))
        self.members += 1

    def _decay(self, epochs: float) -> float:
        if self.decay is not None:
            return self.decay
        assert self.half_life is not None
        return float(2 ** (-epochs / self.half_life))

    def collect(self, model: nn.Module, predict: Predict) -> None:
        """Never called: `update` is."""
        raise NotImplementedError

    def _averaged(self, model: nn.Module) -> list[Tensor]:
        weights: list[Tensor] = list(model.parameters())
        return weights + statistics(model) if self.bn == "own" else weights

    def network(self, model: nn.Module, reestimate: Reestimate) -> nn.Module:
        """A copy of `model` with the averaged weights, and with BN statistics as `bn` says."""
        copy = copy_of(model)
        with torch.no_grad():
            torch._foreach_copy_(self._averaged(copy), self.average)
        if self.bn == "reestimate":
            reestimate(copy)
        return copy

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate) -> dict[str, Tensor]:
        """What the averaged network predicts."""
        return predict(self.network(model, reestimate))

    def state_dict(self) -> dict[str, Any]:
        """The average and the number of updates."""
        return {"members": self.members, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.members, self.average = state["members"], list(state["average"])
