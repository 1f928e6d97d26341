"""FGE: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs"."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.collect import Passes, Predict, Reestimate, number_of_points


class SnapshotEnsemble:
    """The mean of the softmax outputs of snapshots at the minima of a cyclical learning rate (FGE code,
    fge.py:103-108).

    start: budgets spent when the cycles begin; the weights there are no member. cycle: budgets a cycle. The minimum,
    and with it the snapshot, lies in the middle of each cycle; the cycles end with the budget. Members use their own
    running BN statistics. Kept is the logarithm of the running sum of their softmax outputs, not the snapshots, so more
    members need no more memory.
    """

    is_ensemble = True

    def __init__(self, *, start: float, cycle: float | None) -> None:
        if not 0 <= start < 1:
            raise InputError(f"collect.start={start}: expected a share of the budget from 0 to below 1")
        if cycle is None or not 0 < cycle <= 1 - start + 1e-9:
            found, most = "null" if cycle is None else cycle, f"{1 - start:g} (1 - start)"
            raise InputError(f"collect.cycle={found}: expected a share of the budget above 0, at most {most}")
        self.start, self.cycle = start, cycle
        self.members = 0
        self.total: dict[str, Tensor] = {}

    def collection_points(self, budget: float) -> list[float]:
        """The middles of the cycles."""
        cycles = number_of_points(round((1 - self.start) / self.cycle, 6))  # (1 - 0.8) / 0.01 is 19.999999999999996
        return [(self.start + (k + 0.5) * self.cycle) * budget for k in range(cycles)]

    def evaluation_points(self, budget: float) -> dict[str, float]:
        """One, when the budget is spent."""
        return {"1": budget}

    def passes(self, budget: float) -> Passes:
        """One network at each collection point, as the training has it."""
        return Passes(held_out=len(self.collection_points(budget)), training=0)

    def collect(self, model: nn.Module, predict: Predict) -> None:
        """Add the network's probabilities to the sum."""
        outputs = predict(model)
        # Summed as logarithms: a probability that is 0 in float64 still has a logarithm, and the NLL needs it.
        self.total = (
            {split: torch.logaddexp(self.total[split], output) for split, output in outputs.items()}
            if self.total
            else outputs
        )
        self.members += 1

    def network(self, model: nn.Module, reestimate: Reestimate | None = None) -> nn.Module:
        """Never called: the members' outputs are kept, not their weights."""
        raise NotImplementedError

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate | None = None) -> dict[str, Tensor]:
        """The logarithm of the members' mean probabilities."""
        return {split: total - math.log(self.members) for split, total in self.total.items()}

    def state_dict(self) -> dict[str, Any]:
        """The sum and the number of members in it."""
        return {"members": self.members, "total": self.total}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.members, self.total = state["members"], dict(state["total"])
