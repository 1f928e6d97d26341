"""history.csv of a run's folder: one row an epoch, from which runs are compared along their training."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from broadopt.files import MEBIBYTE, read_bytes, replacing

NAME = "history.csv"

LIMIT = 16 * MEBIBYTE
"""Bytes of a history.csv, which has about a hundred an epoch."""

COLUMNS = 100
"""The most columns of one, which has a dozen: rows with more would take a hundred times the memory of the file."""

LARGEST = 1e100
"""Of any figure: sums and squares of many stay finite. A loss in single precision is below 1e39."""


def write(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the history of a run, one row an epoch; numbers in Python's shortest exact form."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(folder / NAME) as file:
        file.write(text.getvalue().encode())


def rows_of(folder: Path, result: Mapping[str, Any]) -> list[dict[str, float]]:
    """As `read`, of the folder of a result. Raises ValueError as well where the rows of a finished run are not what its
    figures were made of: the file of another run, edited, or cut off between two rows.
    """
    rows = read(folder)
    if rows and result["state"] == "finished":  # that of any other may be ahead of its result
        _check_figures(rows, result["metrics"])
    return rows


def _check_figures(rows: Sequence[Mapping[str, float]], recorded: Mapping[str, Any]) -> None:
    """Both files have all digits of the same floats, so that these are equal."""
    place = "not the history that result.json was made of"
    try:
        found = metrics(rows, {})
    except KeyError as error:
        raise ValueError(f"{place}: an evaluated epoch without {error.args[0]}") from error
    for part in ("last", "best"):
        if found[part] is None:
            raise ValueError(f"{place}: no epoch is evaluated")
        for name, value in found[part].items():
            expected = recorded[part].get(name, value)
            if value != expected:
                raise ValueError(f"{place}: {part} {name} {value:.6g}, there {expected:.6g}")


def read(folder: Path) -> list[dict[str, float]]:
    """The rows of a run folder's history in the order of its epochs, without the figures that a row lacks; empty where
    there is no history. Raises ValueError for a file that is none, OSError for one that cannot be read.
    """
    try:
        content = read_bytes(folder / NAME, limit=LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return []
    reader = csv.DictReader(io.StringIO(content.decode("utf-8")), strict=True)
    if len(reader.fieldnames or ()) > COLUMNS:
        raise ValueError(f"{len(reader.fieldnames or ())} columns; expected {COLUMNS} at most")
    try:  # what a row has more than there are names stands as a list under None, and is no number either
        rows = [{key: float(value) for key, value in row.items() if value} for row in reader]
    except (csv.Error, TypeError, ValueError) as error:
        raise ValueError(f"not a table of numbers ({error})") from error
    epochs = [row.get("epoch", math.nan) for row in rows]
    if not all(0 < before < after < LARGEST for before, after in zip([1e-300, *epochs], epochs, strict=False)):
        raise ValueError("without a column epoch that ascends")
    rows = [{key: value for key, value in row.items() if math.isfinite(value)} for row in rows]
    for row in rows:
        for name, value in row.items():
            low, high = (0.0, 100 + 1e-6) if name.endswith("_accuracy") else (-LARGEST, LARGEST)
            if not low <= value <= high:
                raise ValueError(f"{name[:60]}: expected a number from {low:g} to {high:g}, found {value:g}")
    return rows


def metrics(rows: Sequence[Mapping[str, float]], collected: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """last, best and collected of a history and of a collector's evaluations, as a result has them; on a validation set
    apart from the test set.
    """
    rows = [row for row in rows if "test_accuracy" in row]
    if not rows:
        return {"last": None, "best": None, "collected": dict(collected)}
    found: dict[str, Any] = {"last": _of("test", rows[-1]), "best": _best("test", rows), "collected": dict(collected)}
    if "validation_accuracy" in rows[-1]:
        found["validation"] = {"last": _of("validation", rows[-1]), "best": _best("validation", rows)}
    return found


def _of(split: str, row: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": row[f"{split}_{name}"] for name in ("accuracy", "nll", "ece")}


def _best(split: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    best = max(rows, key=lambda row: row[f"{split}_accuracy"])  # the first of equals
    return {f"{split}_accuracy": best[f"{split}_accuracy"], "epoch": best["epoch"]}
