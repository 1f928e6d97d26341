"""One run on several processes: torchrun starts them, each has a device of its own and its share of every batch.

The gradients are averaged by torch's DistributedDataParallel while the backward pass runs. What is written, printed and
decided is the first process's; running statistics of BN are those that it has seen.
"""

import hashlib
import io
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import DistStoreError, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from broadopt.errors import InputError

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""For the others: as long as the first may wait for a run folder. torchrun ends them all where one has died."""

PATIENCE = timedelta(seconds=30)
"""For the others to come to the end of a run that has failed in this process: far more than there is between processes
of which all have met the same failure."""


FIRST_SPEAKS = timedelta(seconds=10)
"""For the first to say why a run has failed, which it has to write into the result before."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as seen by the one of number `rank`. Every method but `share`, `dealt` and `local` has to
    be called by all of them at the same point; alone, they do nothing.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share(self, length: int) -> slice:
        """This process's part of `length` things in a row; the parts differ by one in size at most."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def weight(self, own: int, whole: int) -> float:
        """What the mean over `own` things counts for, so that the mean over the processes is that over `whole`."""
        return own * self.count / whole

    def dealt(self, things: Iterable[T]) -> Iterator[T]:
        """Every `count`-th of `things`."""
        return islice(things, self.rank, None, self.count)

    def parallel(self, model: nn.Module, device: torch.device) -> nn.Module:
        """`model` with its gradients averaged over the processes in each backward pass."""
        if self.count == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        with (
            warnings.catch_warnings()
        ):  # the option's successor is not in the older versions of torch that broadopt takes
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def local(self, model: nn.Module) -> AbstractContextManager[None]:
        """Inside, passes of a `parallel` model leave the gradient of this process's share."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()

    def whole(self, part: Tensor, length: int) -> Tensor:
        """The tensor [length, ...] of whose rows every process has its `share`."""
        if self.count == 1:
            return part
        made = part.new_zeros(length, *part.shape[1:])
        made[self.share(length)] = part
        distributed.all_reduce(made)
        return made

    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite `tensors` by the first process's."""
        for tensor in tensors if self.count > 1 else ():
            distributed.broadcast(tensor, src=0)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor], *, weight: float) -> None:
        """Overwrite floating-point `tensors` by their mean over the processes, each counted by its `weight`."""
        if self.count == 1:
            return
        total = sum(self.gathered(weight))
        for tensor in tensors:
            tensor.mul_(weight / total)
            distributed.all_reduce(tensor)

    def gathered(self, value: T) -> list[T]:
        """Every process's plain `value`, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def from_first(self, value: T, device: torch.device | None = None) -> T:
        """The first process's `value`: plain, or with tensors, which come to each process's `device`."""
        if self.count == 1:
            return value
        buffer = io.BytesIO()
        torch.save(value if self.is_first else None, buffer)
        contents = [buffer.getvalue()]
        distributed.broadcast_object_list(contents, src=0)
        found: T = torch.load(io.BytesIO(contents[0]), map_location=device, weights_only=True)
        return found


ALONE = Processes()
"""One process, without torchrun."""


def asked_for() -> int:
    """The number of processes that torchrun has started, 1 without it. Raises InputError where a part of what torchrun
    sets is missing: whether this process is one of several then cannot be known.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 1
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"):
        found = os.environ.get(name)
        if found is None or not found.isdigit():
            shown = "is not set" if found is None else f"is {found!r}"
            raise InputError(
                f"{name} {shown}, but TORCHELASTIC_RUN_ID is set: expected all variables of torchrun, or none of them"
            )
    return int(os.environ["WORLD_SIZE"])


def rank() -> int:
    """This process's number among them."""
    return int(os.environ["RANK"]) if asked_for() > 1 else 0


def device_of(name: str) -> str:
    """The device of this process: under torchrun, auto and cuda are the GPU of its number on the machine.

    Raises InputError for a device that several processes would share.
    """
    if asked_for() == 1 or name == "cpu" or not torch.cuda.is_available():
        return name
    if name.startswith("cuda:"):
        raise InputError(f"device={name}: {asked_for()} processes cannot share a GPU; expected auto, cuda or cpu")
    return f"cuda:{os.environ['LOCAL_RANK']}"


def join(device: torch.device) -> Processes:
    """The processes of this command, connected: by NCCL and Gloo between GPUs, by Gloo between CPUs."""
    count = asked_for()
    if count == 1:
        return ALONE
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    return Processes(rank(), count)


_runs = itertools.count()


def have_all_ended(*, failed: bool) -> bool:
    """To be called by each process at the end of each run: whether all are there, so that they can begin the next one
    together. It is looked at where the run has `failed`: by then the others may wait, in the midst of it, for this one.
    """
    count, run = asked_for(), next(_runs)
    if count == 1:
        return True
    store = _store()
    store.set(f"{run} {rank()}", "ended")
    if not failed:
        return True
    try:
        store.wait([f"{run} {one}" for one in range(count)], PATIENCE)
    except DistStoreError:
        store.set("over", "yes")
    return not store.check(["over"])


def is_said_by_first(line: str) -> bool:
    """Whether the first process says this line, so that this one, another, need not. To be called by each process that
    has it to say.
    """
    if asked_for() == 1:
        return False
    key = f"said {hashlib.sha256(line.encode(errors='backslashreplace')).hexdigest()}"
    if rank() == 0:
        _store().set(key, "yes")
        return False
    try:
        _store().wait([key], FIRST_SPEAKS)
    except DistStoreError:
        return False
    return True


@cache
def _store() -> Store:
    """What all processes can read and write, whatever they are waiting for: torchrun's."""
    store, _, _ = next(rendezvous("env://", timeout=LONGEST_WAIT))
    return PrefixStore("ends of runs", store)
