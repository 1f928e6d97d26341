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
from broadopt.devices.device import is_broken, peak_memory
from broadopt.devices.provenance import environment
from broadopt.devices.sharing import advice
from broadopt.errors import DeviceLost, InputError, RunFailed
from broadopt.files import write_text
from broadopt.runs import checkpoint, history, results
from broadopt.runs.begun import remove
from broadopt.training.loop import Training
from broadopt.training.parts import Parts

log = logging.getLogger("broadopt")

LONGEST_REASON = 10_000
"""Characters of the reason of a failure: an error may quote a tensor, and a result.json has its limit."""

ROOM = 64 * 1024
"""Bytes of a result.json for what is not known before: the environment, the machines that it was carried out on."""

FIGURE = 100 / 3
"""A number that takes as much room as any."""


def check_result(folder: Path, recipe: Recipe, parts: Parts) -> None:
    """Raise InputError, naming the field, where the result of a run of these parts could not be read again: it is made
    up before the training, which it would cost.
    """
    splits = parts.data.targets()
    figures = {f"{split}_{name}": FIGURE for split in splits for name in ("accuracy", "nll")}
    figures |= {f"{split}_ece": FIGURE / 100 for split in splits}
    collected = {
        f"{name} {spent}".strip(): figures | {"epochs": FIGURE, "members": FIGURE}
        for name, collector in parts.collectors.items()
        for spent in collector.evaluation_points(recipe.budget)
    }
    result = head(recipe, "finished", FIGURE) | {
        "metrics": history.metrics([figures | {"epoch": FIGURE}], collected),
        "cost": {"train_seconds": FIGURE, "images_per_second": FIGURE, **parts.size},
        "environment": {"precision": recipe.precision},
    }
    try:
        results.check(results.sealed(result), folder, room=ROOM)
    except ValueError as error:
        raise InputError(f"the result.json of this run could not be read again: {error}") from error


def conclude(
    folder: Path, training: Training, recipe: Recipe, state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write and return the result of a run that was trained, to its end or not; its first process writes."""
    progress, parts = training.progress, training.parts
    settings = parts.settings | {"deterministic": bool(progress.deterministic)}  # of all processes that trained it
    result = head(recipe, state, training.epochs) | {
        "metrics": history.metrics(progress.history, progress.collected),
        "cost": {
            "train_seconds": progress.train_seconds,
            "images_per_second": training.images_per_second,
            "gradient_evaluations": progress.gradient_evaluations,
            "peak_memory_bytes": peak_memory(parts.device),
            **parts.size,
        },
        "environment": environment(parts.device, settings) | _machines(training),
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
        "metrics": history.metrics([], {}),
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


def not_begun(error: Exception, folder: Path, recipe: Recipe, device: torch.device) -> RunFailed:
    """What a run failed by before its first step. Its result says so, unless what is there says more: a result of a
    training, or a checkpoint to go on from. To be called by the process that holds the folder.
    """
    reason = reported(error, folder)
    if not _says_more(folder, recipe):
        conclude_unbuilt(folder, recipe, device, reason)
    return (DeviceLost if is_broken(device) else RunFailed)(reason)


def _says_more(folder: Path, recipe: Recipe) -> bool:
    if checkpoint.files(folder):
        return True
    try:
        result = results.read(folder, identity=recipe.identity)
    except (OSError, ValueError):  # what it says is not known
        return True
    return result is not None and (result["state"] != "failed" or result["epochs"] > 0)


def make_way(folder: Path, recipe: Recipe) -> None:
    """Set aside what a training that begins or goes on must not replace: a finished result, which is to be made anew,
    and one that cannot be trusted.
    """
    try:
        result = results.read(folder, identity=recipe.identity)
    except ValueError as error:
        log.warning("%s: %s; it is set aside", folder / "result.json", error)
        results.set_aside(folder)
        return
    if result is not None and result["state"] == "finished":
        remove(checkpoint.files(folder))  # anew is from the first step, also in a copy that was made while it ran
        results.set_aside(folder)


def already_finished(folder: Path, run: RunConfig, recipe: Recipe) -> dict[str, Any] | None:
    """The finished result of this run that `folder` holds, which is then shown; None where there is none that can be
    trusted, or where force=true makes it anew.
    """
    try:
        result = results.read(folder, identity=recipe.identity)
    except ValueError:
        return None
    if result is None or result["state"] != "finished" or run.execution.force:
        return None
    print(f"already finished: {folder} (force=true runs it anew)\n{results.summary(result)}")
    lacking = run.execution.checkpoint.predictor and not (folder / predictor.NAME).exists()
    if lacking and not collectors_of(run.recipe.collect)[""].is_ensemble:
        print(f"  it has kept no {predictor.NAME}: force=true runs it anew and keeps it")
    if run.execution.keep == "snapshots" and not snapshots.files(folder):
        print("  it has kept no snapshots: force=true runs it anew and keeps them")
    return result
