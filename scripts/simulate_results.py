"""Fill a folder with run folders as a large campaign leaves them, to measure what reads it: docs/scale.md.

    python scripts/simulate_results.py FOLDER [--runs 10000] [--running 500]

Accuracies are drawn at random: such a folder says nothing about any method.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

from broadopt.analysis.tables import published
from broadopt.analysis.tables.stored_recipes import StoredRecipes
from broadopt.config.identity import SEMANTICS, identity_of
from broadopt.config.shipped import paper_dir
from broadopt.runs import heartbeat, results
from broadopt.runs.schema import STATES

ENVIRONMENT = {
    "broadopt": "0.1.0",
    "torch": "2.14.1",
    "python": "3.11.7",
    "platform": "Linux-6.1.0-x86_64-with-glibc2.36",
    "device": "NVIDIA H100 80GB HBM3",
    "precision": "bf16",
    "threads": 16,
    "git_commit": None,
}
RATES = {"sgd": 20_000.0, "swa": 20_000.0, "fge": 20_000.0, "sam": 10_000.0, "asam": 10_000.0}
CHECKPOINT_BYTES = 4096
"""Of each pretended checkpoint: what looks at a folder never opens one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--running", type=int, default=500, help="how many of them are still in progress")
    given = parser.parse_args()
    draw = random.Random(0)
    for number, record in enumerate(islice(records(), given.runs)):
        folder = results.run_folder(given.folder, record)
        folder.mkdir(parents=True)
        (folder / ".lock").touch()
        (folder / "config.yaml").write_text(json.dumps(record))
        if number >= given.runs - given.running:
            in_progress(folder, record, draw)
        else:
            state = draw.choices(STATES, weights=(96, 1, 3))[0]
            ended(folder, record, draw, state)


def records() -> Iterator[dict[str, Any]]:
    """Recorded configs without end: seed after seed of each cell of both tables, and of one that is on no recipe."""
    tables = [published.load(name, folder=paper_dir()) for name in ("table1", "table3")]
    cells = [(row.experiment, method) for table in tables for row in table.rows for method in table.methods]
    stored = StoredRecipes()
    recipes = [stored([f"experiment={experiment}", f"method={method}"]) for experiment, method in cells]
    recipes.append(stored(["experiment=table3/resnet20", "method=asam", "step.rho=0.7"]))
    stored.save()
    for seed in count(1):
        yield from ({**recipe, "seed": seed, "precision": "bf16"} for recipe in recipes)


def in_progress(folder: Path, record: dict[str, Any], draw: random.Random) -> None:
    """A run on another machine, somewhere in its budget."""
    epoch, rate = draw.randrange(1, int(record["budget"])), RATES[record["method"]] * draw.uniform(0.9, 1.1)
    progress = {
        "schema": heartbeat.SCHEMA,
        "identity": identity_of(record),
        "config": record,
        "host": f"node{draw.randrange(64):02}",
        "machine": "another",
        "pid": draw.randrange(1000, 100_000),
        "device": ENVIRONMENT["device"],
        "time": time.time(),
        "moved": time.time(),
        "step": epoch * 391,
        "steps": int(record["budget"] * 391),
        "epoch": epoch,
        "epochs": record["budget"],
        "images_per_epoch": 50_000,
        "images_per_second": rate,
        "seconds_left": (record["budget"] - epoch) * 50_000 / rate,
    }
    (folder / heartbeat.NAME).write_text(json.dumps(progress))
    for step in (epoch - 1, epoch):
        checkpoint(folder, step * 391)


def checkpoint(folder: Path, step: int) -> None:
    (folder / f"checkpoint-{step:010d}.ckpt").write_bytes(bytes(CHECKPOINT_BYTES))


def ended(folder: Path, record: dict[str, Any], draw: random.Random, state: str) -> None:
    """A run that is finished, or was stopped half-way."""
    budgets = record["collect"].get("budgets", [1])
    epochs = record["budget"] * (max(budgets) if state == "finished" else 0.5)
    rate = RATES[record["method"]] * draw.uniform(0.9, 1.1)
    collected = budgets if record["method"] in ("swa", "fge") and state == "finished" else []
    result = {
        "schema": results.SCHEMA,
        "identity": identity_of(record),
        "semantics": SEMANTICS,
        "state": state,
        "dataset": record["dataset"]["name"],
        "model": record["model"]["name"],
        **{key: record[key] for key in ("method", "protocol", "seed")},
        "config": record,
        "epochs": epochs,
        "budget": record["budget"],
        "metrics": {
            "last": figures(draw),
            "best": {"test_accuracy": draw.gauss(75, 0.3), "epoch": epochs - 1},
            "collected": {f"{value:g}": figures(draw) for value in collected},
        },
        "cost": {
            "train_seconds": epochs * 50_000 / rate,
            "images_per_second": rate,
            "gradient_evaluations": int(epochs * 391 * (2 if "sam" in record["method"] else 1)),
            "peak_memory_bytes": 2**31,
        },
        "environment": ENVIRONMENT | {"host": f"node{draw.randrange(64):02}"},
    }
    if state == "interrupted":
        checkpoint(folder, int(epochs * 391))
    if state == "failed":
        result["failure"] = {"reason": "the loss or a weight is not finite", "epoch": 3, "lr": 0.1}
    sealed = {**result, "checksum": results.checksum(result)}
    # As results.write does, but not synced to the disk run by run.
    (folder / "result.json").write_text(json.dumps(sealed, indent=1) + "\n")
    rows = cycle([f"{{}},0.1,1.23456789,{draw.uniform(60, 70)},75.12,0.8123456789,0.0412345678\n"])
    header = "epoch,lr,train_loss,train_accuracy,test_accuracy,test_nll,test_ece\n"
    lines = (row.format(epoch) for epoch, row in zip(range(1, int(epochs) + 1), rows, strict=False))
    (folder / "history.csv").write_text(header + "".join(lines))


def figures(draw: random.Random) -> dict[str, float]:
    accuracy = draw.gauss(75, 0.3)
    return {"test_accuracy": accuracy, "test_nll": (100 - accuracy) / 25, "test_ece": draw.uniform(0.01, 0.05)}


if __name__ == "__main__":
    main()
