"""A user's own network, found through PYTHONPATH and --config-dir: small, with BN and dropout.

With HALT="train 20" (or "test 1") in the environment the process stands still in its 20th training pass (its first
test pass), with "init 1" when it makes the network: it makes the file HALT_FILE, in which PID stands for its number,
and goes on when that is removed, so that a test acts at an exact moment; with HALT_UNTIL=SIGTERM it removes the file
itself when that signal has arrived, by whatever way. With HUNGRY="train 20" it asks for more memory
than there is.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

passes: Counter[str] = Counter()


class Small(nn.Module):
    """float [B, 3, 32, 32] -> logits [B, num_classes]."""

    def __init__(self, *, num_classes: int, batch_norm: bool) -> None:
        super().__init__()
        moment("init")
        norm = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), norm, nn.ReLU(), nn.Dropout(0.1))
        self.linear = nn.Linear(8 * 8 * 8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        moment("train" if self.training else "test")
        return self.linear(self.features(images).flatten(1))


class Broken(Small):
    """A network with a mistake in it."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


def moment(kind: str) -> None:
    """A pass of `kind` begins."""
    passes[kind] += 1
    if os.environ.get("HALT") == f"{kind} {passes[kind]}":
        stand_still(Path(os.environ["HALT_FILE"].replace("PID", str(os.getpid()))))
    if os.environ.get("HUNGRY") == f"{kind} {passes[kind]}":
        torch.empty(1 << 50)


def stand_still(file: Path) -> None:
    with removed_by(os.environ.get("HALT_UNTIL"), file):
        file.touch()
        deadline = time.monotonic() + 600  # of a test that was ended by force
        while file.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file} was not removed")
            time.sleep(0.01)


@contextmanager
def removed_by(name: str | None, file: Path) -> Iterator[None]:
    """Inside, a signal of that name removes the file, besides what it does anyway."""
    if name is None:
        yield
        return
    number = signal.Signals[name]
    before = signal.getsignal(number)

    def arrived(number: int, frame: FrameType | None) -> None:
        file.unlink(missing_ok=True)
        if callable(before):
            before(number, frame)

    signal.signal(number, arrived)
    try:
        yield
    finally:
        signal.signal(number, before)
