"""Steps that are recorded and replayed make the training that steps one after the other make, bit for bit.

On the CPU the recording is a twin that replays by calling: buffers, learning rate, sums and the state of a checkpoint
are those of a graph. What CUDA records is looked at where there is a GPU, here and by scripts/gpu_check.py.
"""

import copy
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from broadopt.config.compose import compose, run_config
from broadopt.devices.device import set_flags
from broadopt.devices.graphs import WARM_UP, CudaGraph, choose, waiting_counted
from broadopt.errors import InputError, Interrupted
from broadopt.methods.asam import asam
from broadopt.methods.collect import Collector, Nothing
from broadopt.methods.fge import SnapshotEnsemble
from broadopt.methods.sam import sam
from broadopt.methods.schedule import Schedule
from broadopt.methods.step import Plain
from broadopt.methods.swa import WeightAverage
from broadopt.signals import Stop
from broadopt.training.loop import Training

sys.path.append(str(Path(__file__).parents[1] / "methods"))
import short_training
from short_training import CPU, TinyNet

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from gpu_exact import CalledGraph

METHODS: dict[str, tuple[Callable[..., Any], Callable[[], Collector]]] = {
    "sgd": (Plain, Nothing),
    "sam": (lambda model, optimizer: sam(model, optimizer, rho=0.05), Nothing),
    "asam": (lambda model, optimizer: asam(model, optimizer, rho=0.5), Nothing),
    "swa": (Plain, lambda: WeightAverage(start=0.5, budgets=[1])),
    "fge": (Plain, lambda: SnapshotEnsemble(start=0.5, cycle=0.25)),
}
FULL = 9
"""Batches of 16 in 3 epochs of 58 images; each epoch ends with one of 10."""
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop and flip": {},
    "Cutout and CutMix": {"cutout": 8, "cutmix": 0.5},
    "AutoAugment": {"autoaugment": True},
}


class CountedGraph(CalledGraph):
    """Counts what is asked of it, and checks that the work always finds the same tensors."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def record(self, work: Callable[[], object]) -> None:
        self.records += 1
        super().record(work)

    def replay(self) -> None:
        self.replays += 1
        super().replay()


class Failing(CalledGraph):
    def record(self, work: Callable[[], object]) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing. And more")


class EndedBadly(CalledGraph):
    """As torch ends a recording that is broken: with an error of its own after the one that broke it."""

    def record(self, work: Callable[[], object]) -> None:
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing. Compile with ...")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Waiting(CalledGraph):
    def warm_up(self, work: Callable[[], int]) -> tuple[int, str]:
        return work(), "it waits for the device at my_net.py:7"


def training(
    method: str,
    *,
    graph: Any = None,
    graphs: str = "true",
    augmentation: str = "crop and flip",
    device: torch.device = CPU,
    stop: Any = None,
) -> Training:
    step, collector = METHODS[method]
    return short_training.training(
        collector(),
        budget=3,
        step=step,
        augmentation=AUGMENTATIONS[augmentation],
        device=device,
        stop=stop,
        schedule=Schedule(lr=0.05, budget=3, shape="cosine", per_step=True),
        label_smoothing=0.1,
        settings={"graphs": graph is not None},
        graph=graph,
        graphs=graphs,
    )


def run(made: Training) -> Training:
    made.run(lambda: None, minutes=60)
    return made


def assert_same(one: Training, other: Training) -> None:
    """Weights, BN statistics, momenta, sums and every figure."""
    mine, others = (
        made.state_dict() | {"progress": {**vars(made.progress), "train_seconds": 0.0}} for made in (one, other)
    )
    flat: list[list[Any]] = [[], []]

    def flatten(node: Any, found: list[Any]) -> None:
        if isinstance(node, dict):
            for key in node:
                found.append(key)
                flatten(node[key], found)
        elif isinstance(node, list | tuple):
            for item in node:
                flatten(item, found)
        else:
            found.append(node)

    flatten(mine, flat[0])
    flatten(others, flat[1])
    assert len(flat[0]) == len(flat[1]) > 50
    for own, its in zip(*flat, strict=True):
        assert type(own) is type(its)
        assert torch.equal(own, its) if isinstance(own, Tensor) else own == its or (own != own and its != its)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_training_of_recorded_steps_is_the_plain_one(method: str, augmentation: str) -> None:
    made: list[CountedGraph] = []

    def graph() -> CountedGraph:
        made.append(CountedGraph())
        return made[-1]

    plain = run(training(method, augmentation=augmentation))
    recorded = run(training(method, augmentation=augmentation, graph=graph))
    assert_same(plain, recorded)
    assert [(one.records, one.replays) for one in made] == [(1, FULL - WARM_UP)]
    assert recorded.progress.gradient_evaluations == 12 * plain.parts.step.passes
    assert recorded.parts.settings == {"graphs": True}


class StopAt(Stop):
    """Asks to stop at the check of that number."""

    def __init__(self, number: int) -> None:
        self.left = number
        super().__init__()

    @property
    def requested(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.left == 0 else None

    @requested.setter
    def requested(self, value: str | None) -> None: ...


@pytest.mark.parametrize("first", [CountedGraph, None])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_with_recorded_steps_from_whatever_steps_it_was_made_of(method: str, first: Any) -> None:
    states: list[Any] = []
    begun = training(method, graph=first, stop=StopAt(7))
    with pytest.raises(Interrupted):
        begun.run(lambda: states.append(copy.deepcopy(begun.state_dict())), minutes=60)
    assert 0 < begun.progress.step < 12
    resumed = training(method, graph=CountedGraph)
    resumed.load_state_dict(states[-1])
    assert_same(run(training(method)), run(resumed))
    groups = states[-1]["optimizer"]["param_groups"]
    assert [type(group["lr"]) for group in groups] == [float]


@pytest.mark.parametrize("graphs", ["auto", "true"])
@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (Failing, "CUDA error: operation not permitted when stream is capturing"),
        (EndedBadly, "CUDA error: operation not permitted when stream is capturing"),
        (Waiting, "it waits for the device at my_net.py:7"),
    ],
)
def test_what_cannot_be_recorded_is_said_once_and_trained_without(
    graph: Any, reason: str, graphs: str, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = run(training("asam", graph=graph, graphs=graphs))
    assert_same(run(training("asam")), recorded)
    assert caplog.messages == [f"graphs={graphs}: steps are not recorded as a CUDA graph: {reason}"]
    assert recorded.parts.settings == {"graphs": False}


class Unsteady(Plain):
    """Two gradients at every second step."""

    calls = 0

    def __call__(self, closure: Callable[[], Tensor]) -> Tensor:
        self.calls += 1
        if self.calls % 2 == 0:
            closure()
        return super().__call__(closure)


def test_steps_that_differ_are_not_recorded(caplog: pytest.LogCaptureFixture) -> None:
    METHODS["unsteady"] = (Unsteady, Nothing)
    try:
        plain, recorded = run(training("unsteady")), run(training("unsteady", graph=CountedGraph))
    finally:
        del METHODS["unsteady"]
    assert_same(plain, recorded)
    assert recorded.progress.gradient_evaluations == 12 + 6
    assert [line.partition(": ")[2] for line in caplog.messages] == [
        "steps are not recorded as a CUDA graph: it took 1 gradients at one step and 2 at another"
    ]


FINE: dict[str, Any] = {"processes": 1, "own_code": False, "compiled": False, "is_repeatable": True, "is_fused": True}


@pytest.mark.parametrize(
    ("name", "device", "facts", "chosen", "reason"),
    [
        ("auto", "cuda", {}, True, ""),
        ("true", "cuda", {}, True, ""),
        ("false", "cuda", {}, False, ""),
        ("auto", "cpu", {}, False, ""),
        ("false", "cpu", {}, False, ""),
        ("auto", "cuda", {"processes": 2}, False, "several processes share each batch"),
        ("true", "cuda", {"processes": 2}, False, "several processes share each batch"),
        ("auto", "cuda", {"own_code": True}, False, "code of your own may wait for the device (graphs=true tries it)"),
        ("true", "cuda", {"own_code": True}, True, ""),
        ("auto", "cuda", {"compiled": True}, False, "torch.compile makes the kernels (graphs=true records them)"),
        ("true", "cuda", {"compiled": True}, True, ""),
        (
            "true",
            "cuda",
            {"is_fused": False},
            False,
            "the optimizer is not fused, and takes the learning rate as a number",
        ),
        (
            "true",
            "cuda",
            {"is_repeatable": False},
            False,
            "the step does not say that all its steps are the same work (is_repeatable)",
        ),
    ],
)
def test_when_steps_are_recorded(
    name: str, device: str, facts: dict[str, Any], chosen: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose(name, torch.device(device), **{**FINE, **facts}) is chosen
    expected = [f"graphs={name}: steps are not recorded as a CUDA graph: {reason}"] if reason else []
    assert caplog.messages == expected


def test_a_graph_that_is_asked_for_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="graphs=true: expected a CUDA device, this run is on cpu"):
        choose("true", CPU, **FINE)


def test_a_replayed_draw_of_the_second_pass_is_not_recorded() -> None:
    model = TinyNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Plain.is_repeatable
    assert sam(model, optimizer, rho=0.1).is_repeatable
    assert not sam(model, optimizer, rho=0.1, noise="replay").is_repeatable


def test_the_key_takes_words_and_flags() -> None:
    for given, meant in (("true", "true"), ("false", "false"), ("auto", "auto")):
        assert run_config(compose([f"graphs={given}"])).execution.graphs == meant


def test_waiting_for_the_device_is_counted_and_the_notice_of_the_count_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own words, as an H100 with torch 2.11 gave them: the first switch to "warn" of a process warns of itself,
    and every recording was given up for it.
    """
    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    modes: list[Any] = []

    def switch(mode: Any) -> None:
        modes.append(mode)
        if mode == "warn":
            warnings.warn(notice, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", switch)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    device = torch.device("cuda", 0)
    with waiting_counted(device) as places:
        pass
    assert places == []

    def waits() -> None:
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp)", stacklevel=1)
        raise KeyError

    with pytest.raises(KeyError), waiting_counted(device) as places:
        waits()
    assert [place.rsplit(":", 1)[0] for place in places] == [__file__]
    assert modes == ["warn", 0, "warn", 0]
    with waiting_counted(CPU) as places:
        pass
    assert (places, len(modes)) == ([], 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("method", METHODS)
def test_a_cuda_graph_makes_the_training_of_plain_steps_bit_for_bit(method: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    set_flags("fp32", deterministic=True)
    try:
        plain = run(training(method, device=device))
        recorded = training(method, device=device, graph=lambda: CudaGraph(device))
        assert_same(plain, run(recorded))
        assert recorded.parts.settings == {"graphs": True}
    finally:
        set_flags("fp32", deterministic=False)
    assert math.isfinite(recorded.progress.history[-1]["train_loss"])
