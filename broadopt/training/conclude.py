"""What a run leaves when it has come to its end, or to a halt: its history and then its result."""

import traceback
from pathlib import Path
from typing import Any

import torch

from broadopt.config.identity import SEMANTICS
from broadopt.config.run_config import Recipe
from broadopt.devices.device import peak_memory
from broadopt.devices.provenance import environment
from broadopt.devices.sharing import advice
from broadopt.errors import RunFailed
from broadopt.files import write_text
from broadopt.runs import history, results
from broadopt.training.loop import Training


def conclude(
    folder: Path, training: Training, recipe: Recipe, state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write and return the result of a run that was trained, to its end or not; its first process writes."""
    progress, parts = training.progress, training.parts
    result = _head(recipe, state, training.epochs) | {
        "metrics": results.metrics(progress.history, progress.collected),
        "cost": {
            "train_seconds": progress.train_seconds,
            "images_per_second": training.images_per_second,
            "gradient_evaluations": progress.gradient_evaluations,
            "peak_memory_bytes": peak_memory(parts.device),
            **parts.size,
        },
        "environment": environment(parts.device, parts.settings) | _machines(training),
    }
    if progress.trunk:
        result["trunk"] = dict(progress.trunk)
    if failure is not None:
        result["failure"] = {"reason": failure, **training.place()}
    if parts.processes.is_first:
        history.write(folder, progress.history)
        results.write(folder, result)
    return result


def conclude_unbuilt(folder: Path, recipe: Recipe, device: torch.device, failure: str) -> None:
    """Write the result of a run that failed before it could be trained."""
    cost = dict.fromkeys(("train_seconds", "images_per_second"), 0.0)
    counts = {"gradient_evaluations": 0, "peak_memory_bytes": peak_memory(device)}
    result = _head(recipe, "failed", 0.0) | {
        "metrics": results.metrics([], {}),
        "cost": cost | counts,
        "environment": environment(device, {"precision": recipe.precision}),
        "failure": {"reason": failure},
    }
    results.write(folder, result)


def _head(recipe: Recipe, state: str, epochs: float) -> dict[str, Any]:
    return {
        "schema": results.SCHEMA,
        "identity": recipe.identity,
        "semantics": SEMANTICS,
        "state": state,
        "dataset": recipe.dataset.name,
        "model": recipe.model.name,
        "method": recipe.method,
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "config": recipe.record(),
        "epochs": epochs,
        "budget": recipe.budget,
    }


def _machines(training: Training) -> dict[str, Any]:
    """Threads and instruction sets that the run was carried out with, where they were not the same throughout."""
    machines = training.progress.machines
    return {"carried_out_on": machines} if len(machines) > 1 else {}


def reported(error: Exception, folder: Path) -> str:
    """Why a run failed, in a line; the traceback of what nobody foresaw goes to error.txt."""
    if isinstance(error, RunFailed):
        return str(error)
    where = f" (see {folder / 'error.txt'})"
    try:
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError:  # a full disk: why the run failed is said all the same
        where = ""
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text}{where}{advice(error)}"
