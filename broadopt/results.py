"""Results as files: one folder a run, one result.json written last and whole, never believed unchecked."""

import csv
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from broadopt.checkpoint import replacing
from broadopt.config import SEMANTICS, identity

SCHEMA = 1
STATES = ("finished", "failed", "interrupted")


def run_folder(results_dir: str | Path, config: Mapping[str, Any]) -> Path:
    """`<results_dir>/runs/<dataset>/<model>/<method>/seed<k>-<first 8 of the identity>` for a recorded config."""
    names = (config["dataset"]["name"], config["model"]["name"], config["method"])
    return Path(results_dir, "runs", *names, f"seed{config['seed']}-{identity(config)[:8]}")


def metrics(history: Sequence[Mapping[str, float]], collected: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """last, best and collected of a history (rows of history.csv) and of a collector's read-outs; on a validation set
    apart from the test set.
    """
    rows = [row for row in history if "test_accuracy" in row]
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


def summary(result: Mapping[str, Any]) -> str:
    """The result in a few lines, each number with what it is."""
    found = result["metrics"]
    lines = [
        f"  last  {_percent(found['last'])}, nll {found['last']['test_nll']:.4f}, ece {found['last']['test_ece']:.4f}",
        f"  best  {_percent(found['best'])} in epoch {found['best']['epoch']:g}",
    ]
    for budgets, values in found["collected"].items():
        lines.append(
            f"  collected after {budgets} budgets ({values['members']:g} members)  {_percent(values)}, "
            f"nll {values['test_nll']:.4f}, ece {values['test_ece']:.4f}"
        )
    cost = result["cost"]
    return "\n".join(
        [
            *lines,
            f"  {result['epochs']:g} epochs, {cost['train_seconds']:.0f} s in training steps, "
            f"{cost['images_per_second']:.0f} images/s",
        ]
    )


def _percent(values: Mapping[str, float]) -> str:
    return f"test accuracy {values['test_accuracy']:.2f} %"


def set_aside(folder: Path) -> None:
    """Rename an existing result.json to result.1.json (2, 3, ...), and its history alike: what was finished is kept,
    tables do not read it.
    """
    number = next(
        number for number in count(1) if not [*folder.glob(f"*.{number}.json"), *folder.glob(f"*.{number}.csv")]
    )
    for name, suffix in (("result", "json"), ("history", "csv")):
        if (folder / f"{name}.{suffix}").exists():
            os.replace(folder / f"{name}.{suffix}", folder / f"{name}.{number}.{suffix}")


def write(folder: Path, result: Mapping[str, Any]) -> None:
    """Write result.json with its checksum, replacing an earlier one in one move. Raises OSError, and ValueError for NaN
    or infinity.
    """
    sealed = {**result, "checksum": checksum(result)}
    with replacing(folder / "result.json") as file:
        file.write(json.dumps(sealed, indent=1, allow_nan=False, ensure_ascii=False).encode() + b"\n")


def write_history(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write history.csv, one row an epoch; numbers in Python's shortest exact form."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(folder / "history.csv") as file:
        file.write(text.getvalue().encode())


def read(folder: Path) -> dict[str, Any] | None:
    """The result of one run folder, or None where there is none. Raises ValueError, saying why, for a file that cannot
    be trusted.
    """
    try:
        content = (folder / "result.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        result = json.loads(content)
    except ValueError as error:
        raise ValueError(f"not JSON, perhaps truncated ({error})") from error
    _verify(result)
    return dict(result)


def read_all(results_dir: str | Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every valid result below `results_dir`/runs, each with its "folder" (relative), sorted by it; and a line for each
    that is left out.
    """
    root = Path(results_dir)
    valid: list[dict[str, Any]] = []
    left_out: list[str] = []
    for path in sorted(root.glob("runs/**/result.json")):
        folder = path.parent.relative_to(root).as_posix()
        try:
            result = read(path.parent)
        except (ValueError, OSError) as error:
            left_out.append(f"{folder}: {error}")
            continue
        if result is not None:
            valid.append({**result, "folder": folder})
    by_identity = defaultdict(list)
    for result in valid:
        by_identity[result["identity"]].append(result["folder"])
    for folders in by_identity.values():
        if len(folders) > 1:
            left_out += [
                f"{folder}: its identity is also that of {', '.join(sorted(set(folders) - {folder}))}"
                for folder in folders
            ]
    return [result for result in valid if len(by_identity[result["identity"]]) == 1], sorted(left_out)


def checksum(result: Mapping[str, Any]) -> str:
    """SHA-256 (16 hex digits) over a result without its checksum: tells an edited file, not a forged one."""
    content = {key: value for key, value in result.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def _verify(result: Any) -> None:
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ValueError(f"not of schema {SCHEMA}")
    if result.get("checksum") != checksum(result):
        raise ValueError("its checksum does not fit: edited or damaged")
    if result.get("semantics") != SEMANTICS:
        raise ValueError(f"computed under semantics {result.get('semantics')}, this broadopt computes {SEMANTICS}")
    if result.get("state") not in STATES or result.get("identity") != identity(result.get("config", {})):
        raise ValueError("its identity is not that of its config")
