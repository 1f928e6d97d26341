"""Rows of a long measurement, each on the disk as soon as it is there: the same measurement goes on from them."""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_bytes

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor

KEY = "measured: "
"""What the line of a CSV begins with that holds the key of its measurement."""

LIMIT = 256 * MEBIBYTE

Point = Mapping[str, float | str]
Row = dict[str, float | str]


def key_of(facts: Mapping[str, Any], vectors: Sequence["Tensor"] = ()) -> str:
    """16 hexadecimal digits over all that decides the numbers of a measurement: plain `facts` and the weights."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for vector in vectors:
        digest.update(vector.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


class Store:
    """The rows of a measurement, kept in `OUTPUT.partial.csv` while it goes on.

    A row is known by its `columns`, the coordinates of its point. Rows of an earlier start, and of a finished
    `OUTPUT.csv`, are taken over where their key is the same; others are measured anew.
    """

    def __init__(self, output: Path, *, key: str, columns: Sequence[str]) -> None:
        """Read what is there. Raises InputError where the partial file cannot be written."""
        self.key, self.columns = key, tuple(columns)
        self.path = partial(output)
        self._rows: dict[tuple[str, ...], Row] = {}
        finished = output.with_name(f"{output.name}.csv")
        for path in (finished, self.path):
            for row in _read(path, key):
                if all(column in row for column in self.columns):
                    self._rows[self._name(row)] = row
        self._begun = False

    def row(self, point: Point, measure: Callable[[], "Mapping[str, Any] | DataclassInstance"]) -> Row:
        """The row of a point: known, or measured now (a dataclass or a mapping of plain values) and written."""
        name = self._name(point)
        if name not in self._rows:
            values = measure()
            found: Row = {**point, **(asdict(values) if is_dataclass(values) else values)}
            self._append(found)
            self._rows[name] = found
        return self._rows[name]

    def knows(self, point: Point) -> bool:
        """Whether a point is measured already."""
        return self._name(point) in self._rows

    def _name(self, point: Point) -> tuple[str, ...]:
        return tuple(str(point.get(column, "")) for column in self.columns)

    def _append(self, row: Row) -> None:
        try:
            if not self._begun:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                known = list(self._rows.values())
                header = list(dict.fromkeys([*(name for one in [*known, row] for name in one)]))
                with self.path.open("w", newline="", encoding="utf-8") as file:
                    file.write(f"# {KEY}{self.key}\n")
                    self._writer(file, header).writeheader()
                    self._writer(file, header).writerows(known)
                self._header, self._begun = header, True
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file, self._header).writerow(row)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error

    @staticmethod
    def _writer(file: Any, header: Sequence[str]) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, header, lineterminator="\n", restval="", extrasaction="ignore")


def partial(output: Path) -> Path:
    """Where the rows of a measurement for `output` are kept while it goes on."""
    return output.with_name(f"{output.name}.partial.csv")


def _read(path: Path, key: str) -> list[Row]:
    """The whole rows of a CSV with this key; none of a file that is missing, damaged or of another measurement."""
    try:
        text = read_bytes(path, limit=LIMIT).decode("utf-8")
    except (OSError, ValueError):  # it is measured anew
        return []
    whole = text[: text.rfind("\n") + 1].splitlines()  # a process may have been killed within a line
    comments = [line for line in whole if line.startswith("#")]
    if f"# {KEY}{key}" not in comments:
        return []
    rows = csv.DictReader(line for line in whole if not line.startswith("#"))
    return [
        {name: _value(value) for name, value in row.items() if name is not None and value is not None}
        for row in rows
        if None not in row and None not in row.values()
    ]


def _value(text: str) -> float | str:
    """A number where it is one; floats are written so that they come back bit for bit."""
    try:
        value = float(text)
    except ValueError:
        return math.nan if text == "" else text
    return int(text) if text.lstrip("-").isdecimal() else value
