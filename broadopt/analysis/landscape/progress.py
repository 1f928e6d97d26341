"""How far a measurement is, and the time left, on stderr."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from broadopt.analysis.landscape.store import Point

if TYPE_CHECKING:
    Bar = tqdm[Any]


def bar(over: Iterable[Any] | None = None, *, what: str, unit: str, total: int | None = None, done: int = 0) -> "Bar":
    """tqdm's bar `over` something, or of `total` steps: drawn seldom where stderr is no terminal, since there each
    drawing is a line of its own.
    """
    seconds = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(over, desc=what, total=total, initial=done, unit=unit, file=sys.stderr, mininterval=seconds)


def progress(points: Sequence[Point], *, what: str, done: int = 0) -> Iterator[Point]:
    """The points, with a bar from the beginning; without one where there are none."""
    if points:
        yield from bar(points, what=what, unit="point", total=done + len(points), done=done)
