"""How a run shows itself: a progress line on a terminal, else one plain line an epoch, and a history that grows."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from broadopt.files import reason
from broadopt.runs import history
from broadopt.trackers.live import Tracking

log = logging.getLogger("broadopt")

Means = Callable[[], tuple[float, float]]
"""Mean loss and accuracy in percent of the epoch so far; calling it waits for the device."""


KeepHistory = Callable[[Sequence[Mapping[str, float]]], None]
"""Takes all rows of a history so far."""


class HistoryFile:
    """history.csv in a run's folder, replaced in one move at every epoch, so that curves can be watched."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._warned = folder, False

    def __call__(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write `rows`. What cannot be written is only warned of, once: the file that counts is written at the end, and
        a full disk may have room again by then.
        """
        try:
            history.write(self._folder, rows)
        except OSError as error:
            if not self._warned:
                log.warning("%s: %s; the run goes on", self._folder / "history.csv", reason(error))
            self._warned = True


class Reporter(Protocol):
    """Shows a run to the person who started it."""

    def start(self, *, images: int, done: int, epochs: float) -> None:
        """The run has `images` to train on in all its epochs together, `done` of them are behind it."""
        ...

    def batch(self, epoch: int, images: int, means: Means) -> None:
        """One more batch of `images` is trained."""
        ...

    def row(self, row: dict[str, float], images_per_second: float) -> None:
        """A row of the history is complete."""
        ...

    def close(self) -> None:
        """The run has ended."""
        ...


def reporter(tracking: Tracking, *, is_first: bool) -> Reporter:
    """The one that suits where the output goes; the trackers of the run are sent each row as well. Of several processes
    the first alone has one.
    """
    if not is_first:
        return Silent()
    return Tracked(ProgressLine() if sys.stderr.isatty() else EpochLines(), tracking)


class Tracked:
    """Another reporter, and trackers beside it."""

    def __init__(self, shown: Reporter, tracking: Tracking) -> None:
        self.start, self.batch, self.close = shown.start, shown.batch, shown.close
        self.shown, self.tracking = shown, tracking

    def row(self, row: dict[str, float], images_per_second: float) -> None:
        """Send it, ahead of showing it, which a closed pipe ends."""
        self.tracking.rows([row])
        self.shown.row(row, images_per_second)


class ProgressLine:
    """Loss and accuracy of the epoch, images/s and time left on one line; the loss is read once a second, since reading
    it waits for the device.
    """

    def __init__(self) -> None:
        self.bar: tqdm | None = None
        self.read_at = 0.0
        self.epochs = 0.0
        self.tested = ""

    def start(self, *, images: int, done: int, epochs: float) -> None:
        """Draw the line."""
        self.epochs = epochs
        self.bar = tqdm(total=images, initial=done, unit=" images", unit_scale=True, dynamic_ncols=True, smoothing=0.1)

    def batch(self, epoch: int, images: int, means: Means) -> None:
        """Move it on."""
        assert self.bar is not None
        self.bar.update(images)
        if time.monotonic() - self.read_at < 1:
            return
        self.read_at = time.monotonic()
        loss, accuracy = means()
        self.bar.set_description(f"epoch {epoch}/{self.epochs:g}", refresh=False)
        self.bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1f} %{self.tested}", refresh=False)

    def row(self, row: dict[str, float], images_per_second: float) -> None:
        """Show the newest test accuracy from now on."""
        if "test_accuracy" in row:
            self.tested = f", test {row['test_accuracy']:.2f} %"

    def close(self) -> None:
        """Leave the line as it is."""
        if self.bar is not None:
            self.bar.close()


class Silent:
    """Shows nothing: of several processes the first speaks."""

    def start(self, *, images: int, done: int, epochs: float) -> None:
        """Nothing to draw."""

    def batch(self, epoch: int, images: int, means: Means) -> None:
        """Nothing."""

    def row(self, row: dict[str, float], images_per_second: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class EpochLines:
    """One line an epoch on stdout."""

    def __init__(self) -> None:
        self.epochs = 0.0

    def start(self, *, images: int, done: int, epochs: float) -> None:
        """Nothing to draw."""
        self.epochs = epochs

    def batch(self, epoch: int, images: int, means: Means) -> None:
        """Nothing."""

    def row(self, row: dict[str, float], images_per_second: float) -> None:
        """Print it."""
        tested = "".join(
            f", {name.replace('_', ' ')} {row[name]:.2f} %"
            for name in ("validation_accuracy", "test_accuracy")
            if name in row
        )
        print(
            f"epoch {row['epoch']:g}/{self.epochs:g}: lr {row['lr']:.4g}, train loss {row['train_loss']:.4f}, "
            f"train accuracy {row['train_accuracy']:.2f} %{tested}, {images_per_second:.0f} images/s",
            flush=True,
        )

    def close(self) -> None:
        """Nothing."""
