"""SWA: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.collect import (
    Passes,
    Predict,
    Reestimate,
    check_start,
    copy_of,
    evaluation_budgets,
    number_of_points,
)


class WeightAverage:
    """The running mean of the weights, w_SWA <- (w_SWA n + w) / (n + 1) (Algorithm 1); the starting weights count once.

    start: budgets spent at the first average. cycle: budgets between two averaged weights; None averages at the end of
    every epoch, from the first that is complete at `start` (SWA code, train.py:154-156). budgets: the evaluation
    points. Only parameters are averaged; the network that is evaluated is a copy whose BN statistics are re-estimated,
    so an evaluation leaves the training as it is.
    """

    is_ensemble = False
    copies_network = True

    def __init__(self, *, start: float, cycle: float | None = None, budgets: Sequence[float] = (1, 1.25, 1.5)) -> None:
        self.budgets = evaluation_budgets(budgets)
        check_start(start, self.budgets)
        if cycle is not None and cycle <= 0:
            raise InputError(f"collect.cycle={cycle}: expected a number of budgets > 0, or null")
        self.start, self.cycle = start, cycle
        self.members = 0
        self.average: list[Tensor] = []

    def collection_points(self, budget: float) -> list[float]:
        """Ends of epochs from `start` on, that of the first at the earliest, or of cycles; also the first evaluation
        point where none comes before it.
        """
        start, end = round(self.start * budget, 9), round(self.budgets[-1] * budget, 9)  # 0.805 * 200 is 161
        every, first = (1.0, float(max(1, math.ceil(start)))) if self.cycle is None else (self.cycle * budget, start)
        count = number_of_points(round((end - first) / every, 6) + 1)
        moments = [first + k * every for k in range(count)]
        earliest = round(self.budgets[0] * budget, 9)
        return moments if moments and moments[0] <= earliest else [earliest, *moments]

    def evaluation_points(self, budget: float) -> dict[str, float]:
        """One for each budget of `budgets`."""
        return {f"{value:g}": value * budget for value in self.budgets}

    def passes(self, budget: float) -> Passes:
        """At each evaluation point one network, with BN statistics of its own."""
        return Passes(held_out=len(self.budgets), training=len(self.budgets))

    @torch.no_grad()
    def collect(self, model: nn.Module, predict: Predict | None = None) -> None:
        """Take the parameters into the mean; the first call copies them."""
        weights: list[Tensor] = list(model.parameters())
        if not self.average:
            self.average = [torch.empty_like(weight) for weight in weights]
        if self.members == 0:
            torch._foreach_copy_(self.average, weights)
        else:
            # mean + (w - mean) / (n + 1): in place, and exact where w equals the mean
            torch._foreach_lerp_(self.average, weights, 1 / (self.members + 1))
        self.members += 1

    def network(self, model: nn.Module, reestimate: Reestimate) -> nn.Module:
        """A copy of `model` with the averaged weights and with BN statistics of its own."""
        copy = copy_of(model)
        with torch.no_grad():
            torch._foreach_copy_(list(copy.parameters()), self.average)
        reestimate(copy)
        return copy

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate) -> dict[str, Tensor]:
        """The averaged network's log-probabilities."""
        return predict(self.network(model, reestimate))

    def state_dict(self) -> dict[str, Any]:
        """The mean and the number of weights in it."""
        return {"members": self.members, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.members, self.average = state["members"], list(state["average"])
