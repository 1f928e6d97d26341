"""What a run leaves when it has come to its end, or to a halt: its history and then its result; and what it does about
a result that is there before it.
"""

import logging
import traceback
from pathlib import Path
from typing import Any

import torch

from broadopt import predictor, snapshots
from broadopt.config.identity import SEMANTICS
from broadopt.config.instantiate import collectors_of
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.devices.device import peak_memory
from broadopt.devices.provenance import environment
from broadopt.devices.sharing import advice
from broadopt.errors import RunFailed
from broadopt.files import write_text
from broadopt.runs import checkpoint, history, results
from broadopt.runs.begun import remove
from broadopt.training.loop import Training

log = logging.getLogger("broadopt")

LONGEST_REASON = 10_000
"""Characters of the reason of a failure: an error may quote a tensor, and a result.json has its limit."""


def conclude(
    folder: Path, training: Training, recipe: Recipe, state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write and return the result of a run that was trained, to its end or not; its first process writes."""
    progress, parts = training.progress, training.parts
    result = head(recipe, state, training.epochs) | {
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
    result = head(recipe, "failed", 0.0) | {
        "metrics": results.metrics([], {}),
        "cost": cost | counts,
        "environment": environment(device, {"precision": recipe.precision}),
        "failure": {"reason": failure},
    }
    results.write(folder, result)


def head(recipe: Recipe, state: str, epochs: float) -> dict[str, Any]:
    """What a result says of its run, however far that has come."""
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
        return str(error)[:LONGEST_REASON]
    where = f" (see {folder / 'error.txt'})"
    try:
        write_text(folder / "error.txt", traceback.format_exc())
    except OSError:  # a full disk: why the run failed is said all the same
        where = ""
    text = " ".join(str(error)[:LONGEST_REASON].split()) or "no reason given"
    return f"{type(error).__name__}: {text}{where}{advice(error)}"


def make_way(folder: Path, run: RunConfig) -> bool:
    """Set aside what a failure must not replace; whether the result of a run that could not be built may be written: a
    finished result stays, unless it is forced, and so does that of a run that can go on.
    """
    if already_finished(folder, run, run.recipe, alone=True) is not None:
        return False
    result = results.read(folder)
    return result is None or result["state"] != "interrupted"


def already_finished(folder: Path, run: RunConfig, recipe: Recipe, *, alone: bool = False) -> dict[str, Any] | None:
    """The finished result of this run that `folder` holds, which is then shown; None where there is none, or where it
    is set aside with force=true.

    A result that cannot be trusted is set aside too, with a warning, by the process that holds the folder `alone`.
    """
    try:
        result = results.read(folder, identity=recipe.identity)
    except ValueError as error:
        if not alone:
            return None
        log.warning("%s: %s; it is set aside", folder / "result.json", error)
        results.set_aside(folder)
        return None
    if result is None or result["state"] != "finished":
        return None
    if run.execution.force:
        # Anew is from the first step, also in a copy that was made while it ran; and the weights of one training never
        # stand beside the result of another, which may keep none.
        remove([*checkpoint.files(folder), folder / predictor.NAME, *(kept.path for kept in snapshots.files(folder))])
        results.set_aside(folder)
        return None
    print(f"already finished: {folder} (force=true runs it anew)\n{results.summary(result)}")
    lacking = run.execution.checkpoint.predictor and not (folder / predictor.NAME).exists()
    if lacking and not collectors_of(run.recipe.collect)[""].is_ensemble:
        print(f"  it has kept no {predictor.NAME}: force=true runs it anew and keeps it")
    if run.execution.keep == "snapshots" and not snapshots.files(folder):
        print("  it has kept no snapshots: force=true runs it anew and keeps them")
    return result
