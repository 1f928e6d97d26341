"""Rows of a long measurement, each on the disk as soon as it is there: the same measurement goes on from them."""

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadopt.config.own_code import own_code
from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, read_bytes, replacing

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from torch import Tensor, device

    from broadopt.config.run_config import Recipe

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


def device_fact(where: "device") -> dict[str, str]:
    """What a key says of the device: nothing of a CPU, whose keys thereby are those of earlier versions."""
    return {} if where.type == "cpu" else {"device": where.type}


def code_fact(recipes: "Iterable[Recipe]") -> dict[str, dict[str, str]]:
    """What a key says of the code beside broadopt's, as it is now, that measures runs of these recipes: nothing
    where there is none, whose keys thereby are those of earlier versions.
    """
    found: dict[str, str] = {}
    for recipe in recipes:
        found |= own_code([dict(node) for node in (recipe.model.target, recipe.dataset.target, recipe.augmentation)])
    return {"code": found} if found else {}


class Store:
    """The rows of a measurement, kept in `OUTPUT.partial.csv` while it goes on.

    A row is known by its `columns`, the coordinates of its point. Rows of an earlier start, and of a finished
    `OUTPUT.csv`, are taken over where their key is the same. A finished one of another key is replaced at the end.
    """

    def __init__(self, output: Path, *, key: str, columns: Sequence[str]) -> None:
        """Read what is there. Raises InputError where the partial file is of another measurement, whose rows may have
        taken hours.
        """
        self.key, self.columns = key, tuple(columns)
        self.path = partial(output)
        self._rows: dict[tuple[str, ...], Row] = {}
        finished = output.with_name(f"{output.name}.csv")
        for path in (finished, self.path):
            found, rows = _read(path)
            if path == self.path and found not in (key, None):
                raise InputError(f"{path} holds another measurement; -o names another output, or remove it")
            for row in rows if found == key else []:
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
        return tuple(_same(point.get(column, "")) for column in self.columns)

    def _append(self, row: Row) -> None:
        try:
            if not self._begun:
                self._begin(row)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                self._writer(file, self._header).writerow(row)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def _begin(self, row: Row) -> None:
        """Write what is known, with room for the columns of `row`, in one move: a process that is killed loses none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        known = list(self._rows.values())
        self._header = list(dict.fromkeys(name for one in [*known, row] for name in one))
        text = io.StringIO()
        text.write(f"# {KEY}{self.key}\n")
        self._writer(text, self._header).writeheader()
        self._writer(text, self._header).writerows(known)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode())
        self._begun = True

    @staticmethod
    def _writer(file: Any, header: Sequence[str]) -> "csv.DictWriter[str]":
        return csv.DictWriter(file, header, lineterminator="\n", restval="", extrasaction="ignore")


def partial(output: Path) -> Path:
    """Where the rows of a measurement for `output` are kept while it goes on."""
    return output.with_name(f"{output.name}.partial.csv")


def _read(path: Path) -> tuple[str | None, list[Row]]:
    """The key of a CSV and its whole rows; none of a file that is missing or damaged."""
    try:
        text = read_bytes(path, limit=LIMIT).decode("utf-8")
    except (OSError, ValueError):  # it is measured anew
        return None, []
    whole = text[: text.rfind("\n") + 1].splitlines()  # a process may have been killed within a line
    keys = [line.removeprefix(f"# {KEY}") for line in whole if line.startswith(f"# {KEY}")]
    rows = csv.DictReader(line for line in whole if not line.startswith("#"))
    return (keys[-1] if keys else None), [
        {name: _value(value) for name, value in row.items() if name is not None and value is not None}
        for row in rows
        if None not in row and None not in row.values()
    ]


def _same(value: float | str) -> str:
    """The same text for equal numbers: pandas writes 2 as 2.0 where its column holds inf."""
    try:
        return str(float(value))
    except ValueError:
        return str(value) or str(math.nan)  # as what an empty field is read as


def _value(text: str) -> float | str:
    """A number where it is one; floats are written so that they come back bit for bit."""
    try:
        value = float(text)
    except ValueError:
        return math.nan if text == "" else text
    return int(text) if text.lstrip("-").isdecimal() else value
