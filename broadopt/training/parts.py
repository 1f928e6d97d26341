"""What a training is made of, and where it stands."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from broadopt.data.batches import Data
from broadopt.devices.device import autocast
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
    """The run's own: what it predicts at last is what the run reports."""
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
    also: Mapping[str, Collector] = field(default_factory=dict)
    """Collectors beside the run's own, by name: evaluated in columns of their own."""
    graph: Callable[[], Graph] | None = None
    """What makes the graph that steps are recorded in; None where they are not recorded."""
    graphs: str = "true"
    """What was asked for where there is a graph: auto or true."""
    size: Mapping[str, float | None] = field(default_factory=dict)
    """What estimates of cost need, for its result: parameters, macs (multiply-adds of a forward pass on one image),
    images_per_epoch, passes (gradients a step, in the mean over the whole training); None where it is not known.
    """

    @property
    def collectors(self) -> Mapping[str, Collector]:
        """All of them, the run's own under the empty name."""
        return {"": self.collector, **self.also}

    @property
    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        return autocast(self.precision, self.device)

    def noise_seed(self, purpose: str, step: int) -> int:
        """The seed of what a pass draws (dropout and the like) at a step, another one in each process.

        It is set anew ahead of each step, so that a resumed run draws what an undisturbed one does.
        """
        rank = self.processes.rank
        return derive(self.seed, f"{purpose} {rank}" if rank else purpose, step)

    def tensors(self) -> dict[str, Tensor]:
        """Every floating-point tensor of the state of network, optimizer and collectors, by a name for people."""
        states = {"": self.model.state_dict(), "optimizer": self.step.optimizer.state_dict()["state"]}
        states |= {f"collector {name}".strip(): one.state_dict() for name, one in self.collectors.items()}
        return {
            name: tensor
            for place, state in states.items()
            for name, tensor in _named_tensors(state, place)
            if tensor.is_floating_point() and tensor.numel()
        }


@dataclass
class Progress:
    """What a run has done so far; with weights, optimizer and collector it is all that a checkpoint holds."""

    step: int = 0
    gradient_evaluations: float = 0
    train_seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    collected: dict[str, dict[str, float]] = field(default_factory=dict)
    collected_at: int = -1
    """The last collection point that is done."""
    also_collected_at: dict[str, int] = field(default_factory=dict)
    """The same of each collector beside the run's own."""
    evaluated_at: int = -1
    machines: list[dict[str, Any]] = field(default_factory=list)
    """What the rounding of float sums depends on, of each kind of machine that carried the run out, in their order."""
    deterministic: bool | None = None
    """Whether all of it was trained with deterministic algorithms; None where that was not noted."""
    trunk: dict[str, Any] = field(default_factory=dict)
    """The trunk that the run has begun from, as its result names it; empty where it has trained all itself."""

    def last_collected(self, name: str) -> int:
        """The last collection point of a collector that is done; -1 before the first."""
        return self.also_collected_at.get(name, -1) if name else self.collected_at

    def note_collected(self, name: str, step: int) -> None:
        """That a collector's collection point is done."""
        if name:
            self.also_collected_at[name] = step
        else:
            self.collected_at = step


def _named_tensors(node: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(node, Tensor):
        yield name, node
    elif isinstance(node, Mapping):
        for key, item in node.items():
            yield from _named_tensors(item, f"{name} {key}".strip())
    elif isinstance(node, (list, tuple)):
        for position, item in enumerate(node):
            yield from _named_tensors(item, f"{name} {position}")
