"""Steps recorded once and replayed: CUDA graphs of whole training steps, by hand.

A step of a small network is hundreds of kernels of microseconds each, which the host cannot launch as fast as the
device carries them out. A graph launches them all at once. Recorded are kernels with the addresses of their tensors and
the numbers that the host gave them: what changes from step to step has to come in tensors that stay where they are.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from broadopt.errors import InputError

log = logging.getLogger("broadopt")

WARM_UP = 3
"""Steps made one kernel after the other ahead of the recording: libraries choose their algorithms, and the optimizer
and the step allocate what they keep."""

SYNCHRONISES = "called a synchronizing CUDA operation"
"""In torch's warning at an operation that waits for the device. Switching these warnings on warns too, once a process:
that they do "not yet detect all synchronizing operations"."""

Work = Callable[[Sequence[Tensor]], float]
"""One step on tensors of the device, all of it there; returns the gradients of a batch that it took."""


class Graph(Protocol):
    """Work that is recorded once, then carried out as often as it is replayed."""

    def record(self, work: Callable[[], object]) -> None:
        """Note what `work` does without doing it. Raises RuntimeError where it cannot be."""
        ...

    def replay(self) -> None:
        """Do it."""
        ...

    def warm_up(self, work: Callable[[], float]) -> tuple[float, str]:
        """Do `work` as it is ahead of its recording; returns what it returns, and why it cannot be recorded."""
        ...


class CudaGraph:
    """A CUDA graph. Dropout and the like draw as without it, since the device's generator is registered with the graph
    and seeded ahead of each replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()
        # Of this device: torch's own is of the device that is current when the first graph of the process is recorded.
        self._recording = torch.cuda.Stream(device)
        self._stream = torch.cuda.Stream(device)  # one for all steps of the warm-up: memory is kept for each stream

    def warm_up(self, work: Callable[[], float]) -> tuple[float, str]:
        """On a stream of its own, as the recording will be; what waits for the device there cannot be recorded."""
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with waiting_counted(self._device) as places, torch.cuda.stream(stream):
            passes = work()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        return passes, f"it waits for the device at {places[0]}" if places else ""

    def record(self, work: Callable[[], object]) -> None:
        """See Graph. The heartbeat's thread may go on meanwhile: it launches nothing."""
        stream = torch.cuda.current_stream(self._device)
        try:
            with torch.cuda.graph(self._graph, stream=self._recording, capture_error_mode="thread_local"):
                work()
        except BaseException:  # that of a time limit too: what comes after it draws from the same generator
            torch.cuda.set_stream(stream)  # torch leaves its own current where the recording does not end well
            # A recording that fails leaves the generator believing that it is recorded still: it gets a new state, with
            # the seed that was set for this step, which is then made without a recording.
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            fresh = torch.Generator(self._device)
            fresh.manual_seed(torch.cuda.default_generators[index].initial_seed())
            torch.cuda.default_generators[index].graphsafe_set_state(fresh.graphsafe_get_state())
            raise

    def replay(self) -> None:
        """See Graph."""
        self._graph.replay()


@contextmanager
def waiting_counted(device: torch.device) -> Iterator[list[str]]:
    """Gives a list that holds at the end where the code within waited for a CUDA `device`: file and line, each time."""
    places: list[str] = []
    if device.type != "cuda":
        yield places
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(before)
            places += [f"{one.filename}:{one.lineno}" for one in caught if SYNCHRONISES in str(one.message)]


class Recorder:
    """Carries out one kind of step for batches of `size`: the first WARM_UP as they are, the next is recorded, and from
    then on replayed. Other batches are carried out as they are, and all are where the work cannot be recorded.
    """

    def __init__(self, work: Work, graph: Graph, *, size: int, failed: Callable[[str], None]) -> None:
        """`failed` is given the reason why the work cannot be recorded, once."""
        self._work, self._graph, self._size, self._failed = work, graph, size, failed
        self._buffers: list[Tensor] | None = None
        self._passes: float = 0
        self._left, self._is_possible = WARM_UP, True

    def __call__(self, inputs: Sequence[Tensor]) -> float:
        """One step; returns the gradients of a batch that it took."""
        if not self._is_possible or len(inputs[0]) != self._size:
            return self._work(inputs)
        if self._left:
            self._left -= 1
            passes, reason = self._graph.warm_up(lambda: self._work(inputs))
            self._passes = self._passes or passes
            if passes != self._passes:
                reason = f"it took {self._passes} gradients at one step and {passes} at another"
            if reason:
                self._give_up(reason)
            return passes
        if self._buffers is None:
            buffers, reason = [torch.empty_like(tensor) for tensor in inputs], ""
            try:
                self._graph.record(lambda: self._work(buffers))
            except RuntimeError as error:
                reason = cause(error)
            if reason:  # not within the handler: the frames of its traceback hold the memory of the failed step
                self._give_up(reason)
                return self._work(inputs)
            self._buffers = buffers
        for buffer, tensor in zip(self._buffers, inputs, strict=True):
            buffer.copy_(tensor)
        self._graph.replay()
        return self._passes

    def _give_up(self, reason: str) -> None:
        self._is_possible = False
        self._failed(reason)


def cause(error: BaseException) -> str:
    """The first sentence of the error that came first: torch raises another where it ends a recording that is broken,
    which says no more than that.
    """
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return " ".join(str(error).split()).partition(". ")[0] or type(error).__name__


def choose(
    name: str,
    device: torch.device,
    *,
    processes: int,
    own_code: bool,
    compiled: bool,
    is_repeatable: bool,
    is_fused: bool,
) -> bool:
    """Whether steps are recorded: auto does where it is sure to work, on one GPU with broadopt's own networks and
    steps. Why what is asked for is not done is said.

    is_repeatable: each step is the same work. is_fused: the optimizer takes its learning rate as a tensor. Raises
    InputError for true without a GPU.
    """
    if name == "false" or (name == "auto" and device.type != "cuda"):
        return False
    if device.type != "cuda":
        raise InputError(f"graphs=true: expected a CUDA device, this run is on {device}")
    reasons = {
        "several processes share each batch": processes > 1,
        "the step does not say that all its steps are the same work (is_repeatable)": not is_repeatable,
        "the optimizer is not fused, and takes the learning rate as a number": not is_fused,
        "code of your own may wait for the device (graphs=true tries it)": own_code and name == "auto",
        "torch.compile makes the kernels (graphs=true records them)": compiled and name == "auto",
    }
    for reason, holds in reasons.items():
        if holds:
            say_why_not(name, reason)
            return False
    return True


def say_why_not(name: str, reason: str) -> None:
    """The line on a run whose steps are not recorded."""
    log.warning("graphs=%s: steps are not recorded as a CUDA graph: %s", name, reason)
