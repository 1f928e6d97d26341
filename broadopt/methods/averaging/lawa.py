"""LAWA, latest weight averaging.

Kaddour 2022, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging".
"""

import math

from broadopt.errors import InputError
from broadopt.methods.swa import WeightAverage


class LatestAverage(WeightAverage):
    """The uniform mean of the weights at the ends of the latest k epochs, w_LAWA = (1/k) sum_{i = E-k+1}^{E} w_i
    (section 2), at the end of the budget, E.

    latest: k; where the budget has fewer epochs, all of them. An epoch that the end of the budget cuts short counts.
    Since it is known from the beginning which weights are meant, a running mean of them takes the place of a queue of
    k networks. BN statistics are re-estimated, as for SWA.
    """

    def __init__(self, *, latest: int) -> None:
        if latest < 1:
            raise InputError(f"collect.latest={latest}: expected a whole number of epochs >= 1")
        super().__init__(start=0.0, budgets=(1,))
        self.latest = latest

    def collection_points(self, budget: float) -> list[float]:
        """The ends of the latest epochs, the last of them that of the budget."""
        last = math.ceil(round(budget, 9))
        return [*(float(epoch) for epoch in range(max(1, last - self.latest + 1), last)), budget]
