"""SWAG: Maddox et al. 2019, "A Simple Baseline for Bayesian Uncertainty in Deep Learning"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.collect import Passes, Predict, Reestimate, copy_of
from broadopt.methods.swa import WeightAverage

Weights = list[Tensor]


class GaussianAverage:
    """The mean of the softmax outputs of networks that are drawn from a Gaussian around the SWA average (Algorithm 1).

    Over the n weights collected so far, with their mean w_SWA, and element by element:

        Sigma_diag = (1/n) sum w_i^2 - w_SWA^2                  the diagonal of their covariance
        D          = the latest K of w_i - w_SWA,i              w_SWA,i: the mean of the first i (section 3.3)
        w          = w_SWA + (Sigma_diag / 2)^(1/2) z_1 + D z_2 / (2 (K - 1))^(1/2)       z_1, z_2 ~ N(0, I)  (eq. 1)
        w          = w_SWA + Sigma_diag^(1/2) z_1                                        rank 0, SWAG-diagonal

    rank: K, 0 or at least 2; fewer deviations are used as if K were their number. samples: networks drawn, each with BN
    statistics re-estimated. start, cycle, budgets: as for SWA, when weights are collected and predicted with.

    Sigma_diag is kept as a sum of squared deviations from the running mean (Welford), which is the same number: the
    difference of two moments of float32 weights would lose the digits of a small variance.
    """

    is_ensemble = True
    copies_network = True

    def __init__(
        self,
        *,
        start: float,
        cycle: float | None = None,
        budgets: Sequence[float] = (1,),
        rank: int = 20,
        samples: int = 30,
    ) -> None:
        if rank < 0 or rank == 1:
            raise InputError(f"collect.rank={rank}: expected 0, the diagonal alone, or a whole number >= 2")
        if samples < 1:
            raise InputError(f"collect.samples={samples}: expected a whole number of networks >= 1")
        self.mean = WeightAverage(start=start, cycle=cycle, budgets=budgets)
        self.rank, self.samples = rank, samples
        self.squares: Weights = []
        self.deviations: list[Weights] = []
        self.collection_points, self.evaluation_points = self.mean.collection_points, self.mean.evaluation_points

    @property
    def members(self) -> int:
        """The number of weights collected so far."""
        return self.mean.members

    def passes(self, budget: float) -> Passes:
        """At each evaluation point `samples` networks, each with BN statistics of its own."""
        count = len(self.evaluation_points(budget)) * self.samples
        return Passes(held_out=count, training=count)

    @torch.no_grad()
    def collect(self, model: nn.Module, predict: Predict | None = None) -> None:
        """Take the parameters into both moments and among the latest deviations."""
        weights: Weights = list(model.parameters())
        if not self.squares:
            self.squares = [torch.zeros_like(weight) for weight in weights]
        before = list(torch._foreach_sub(weights, self.mean.average)) if self.members else []
        self.mean.collect(model)
        after = list(torch._foreach_sub(weights, self.mean.average))
        if before:
            torch._foreach_addcmul_(self.squares, before, after)  # (w - mean before) (w - mean after): Welford
        if self.rank:
            self.deviations = [*self.deviations, after][-self.rank :]

    def network(self, model: nn.Module, reestimate: Reestimate) -> nn.Module:
        """Never called: it predicts with several networks."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(self, seed: int) -> Weights:
        """The weights of one network. Drawn on the CPU, so that they are the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [mean.clone() for mean in self.mean.average]
        for weights, squares in zip(drawn, self.squares, strict=True):
            variance = squares / self.members / (2 if self.rank else 1)
            weights.addcmul_(variance.sqrt(), _normal(weights.shape, generator).to(weights))
        held = len(self.deviations)
        scale = math.sqrt(2 * max(held - 1, 1))  # the first deviation is zero, so that a lone one adds nothing
        for deviation, z in zip(self.deviations, _normal((held,), generator).tolist(), strict=True):
            torch._foreach_add_(drawn, deviation, alpha=z / scale)
        return drawn

    def predict(self, model: nn.Module, predict: Predict, reestimate: Reestimate) -> dict[str, Tensor]:
        """The logarithm of the mean probabilities of `samples` networks."""
        # All seeds ahead of the first network: to re-estimate its statistics seeds torch's own generator anew.
        seeds = torch.randint(2**63 - 1, (self.samples,)).tolist()
        total: dict[str, Tensor] = {}
        network = copy_of(model)
        for seed in seeds:
            with torch.no_grad():
                torch._foreach_copy_(list(network.parameters()), self.sample(seed))
            reestimate(network)
            outputs = predict(network)
            total = {split: torch.logaddexp(total[split], outputs[split]) for split in total} or outputs
        return {split: output - math.log(self.samples) for split, output in total.items()}

    def state_dict(self) -> dict[str, Any]:
        """The mean, the sums of squared deviations, and the latest deviations."""
        return {"mean": self.mean.state_dict(), "squares": self.squares, "deviations": self.deviations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`."""
        self.mean.load_state_dict(state["mean"])
        self.squares, self.deviations = list(state["squares"]), [list(one) for one in state["deviations"]]


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    # In float64 whatever the weights are: the draws of a float32 network are those of its float64 twin, rounded.
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)
