"""What the page consists of, as plain values: sections of paragraphs, tables and charts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

TALL = 60
"""Rows."""

_NUMBER = re.compile(r"(< ?)?[-+−]?\d")


@dataclass(frozen=True)
class Table:
    """One table; nothing in a cell is markup."""

    name: str
    """Its id on the page."""
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    heads: int = 1
    """How many leading columns name the row."""
    notes: tuple[str, ...] = ()
    commands: int | None = None
    """The column that holds commands to type."""

    @property
    def is_tall(self) -> bool:
        """Whether it is longer than one likes to scroll past, so that it scrolls by itself."""
        return len(self.rows) > TALL

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of each column `command`, `number`, `words` (long texts) or `name`."""
        return tuple(map(self._kind, range(len(self.header))))

    def _kind(self, index: int) -> str:
        if index == self.commands:
            return "command"
        cells = [row[index] for row in self.rows if row[index]]
        if index >= self.heads and cells and all(map(_NUMBER.match, cells)):
            return "number"
        return "words" if max(map(len, cells), default=0) > 30 else "name"


@dataclass(frozen=True)
class Line:
    """A curve: its name, where its points are drawn, and where the band around it is, if there is one."""

    name: str
    points: str
    band: str
    style: int
    """Which colour and dashes it has."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it says."""

    place: float
    words: str


@dataclass(frozen=True)
class Chart:
    """Learning curves in a box of `broadopt.analysis.reporting.curves`."""

    name: str
    title: str
    description: str
    """What is drawn, in words."""
    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    caption: str


@dataclass(frozen=True)
class Figure:
    """An image that a results folder holds, as a data URI."""

    name: str
    source: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    figures: tuple[Figure, ...] = ()
    folded: tuple[Table, ...] = ()
    """Tables behind a click."""
    sections: tuple["Section", ...] = ()


def count(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def with_values(header: Sequence[str], rows: Sequence[Sequence[str]], keep: int) -> list[int]:
    """The columns of which any row has a value, and those up to `keep`."""
    return [index for index in range(len(header)) if index < keep or any(row[index] for row in rows)]
