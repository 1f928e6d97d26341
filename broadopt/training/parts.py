"""What a training is made of, and where it stands."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from broadopt.data.batches import Data
from broadopt.devices.graphs import Graph
from broadopt.devices.processes import ALONE, Processes
from broadopt.methods.collect import Collector
from broadopt.methods.schedule import Schedule
from broadopt.methods.step import Step
from broadopt.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of."""

    model: nn.Module
    step: Step
    collector: Collector
    schedule: Schedule
    data: Data
    seed: int
    budget: float
    label_smoothing: float
    evaluate_every: int
    precision: str
    device: torch.device
    processes: Processes = ALONE
    settings: dict[str, Any]
    """How the run is carried out, for its result: precision, memory format, ..."""
    graph: Callable[[], Graph] | None = None
    """What makes the graph that steps are recorded in; None where they are not recorded."""
    size: Mapping[str, int] = field(default_factory=dict)
    """What estimates of cost need, for its result: parameters, macs (multiply-adds of a forward pass on one image),
    images_per_epoch, passes (gradients a step).
    """

    @property
    def autocast(self) -> torch.autocast:
        """The context of every forward pass: bf16 products where the precision is bf16, nothing otherwise."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def noise_seed(self, purpose: str, step: int) -> int:
        """The seed of what a pass draws (dropout and the like) at a step, another one in each process.

        It is set anew ahead of each step, so that a resumed run draws what an undisturbed one does.
        """
        rank = self.processes.rank
        return derive(self.seed, f"{purpose} {rank}" if rank else purpose, step)


@dataclass
class Progress:
    """What a run has done so far; with weights, optimizer and collector it is all that a checkpoint holds."""

    step: int = 0
    gradient_evaluations: int = 0
    train_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    collected: dict[str, dict[str, float]] = field(default_factory=dict)
    collected_at: int = -1
    evaluated_at: int = -1
    machines: list[dict[str, Any]] = field(default_factory=list)
    """What the rounding of float sums depends on, of each kind of machine that carried the run out, in their order."""
