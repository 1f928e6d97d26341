"""One run, from its checked config to its result."""

import logging
import os
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from broadopt import predictor
from broadopt.config.identity import SEMANTICS
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.data.datasets import read
from broadopt.devices import processes as distributed
from broadopt.devices.device import (
    choose_device,
    choose_precision,
    device_name,
    environment,
    peak_memory,
    set_flags,
)
from broadopt.errors import InputError, Interrupted, RunFailed
from broadopt.runs import checkpoint, heartbeat, results
from broadopt.runs.heartbeat import Heartbeat
from broadopt.runs.lock import only_writer
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import reporter

log = logging.getLogger("broadopt")


def execute(run: RunConfig, stop: Stop) -> None:
    """Carry out one run, or show the result of one that is finished. Raises InputError, RunFailed, Interrupted."""
    execution = run.execution
    device = choose_device(distributed.device_of(execution.device))
    processes = distributed.join(device)
    precision = choose_precision(run.recipe.precision, device)
    if execution.cuda_graphs and device.type != "cuda":
        raise InputError(f"cuda_graphs=true: expected a CUDA device, this run is on {device}")
    set_flags(precision, deterministic=execution.deterministic)
    dataset = read(run.recipe.dataset)
    recipe = run.recipe.decided(precision=precision, fingerprint=dataset.fingerprint, processes=processes.count)
    run = replace(run, recipe=recipe)
    folder = results.run_folder(execution.results_dir, recipe.record())
    if processes.from_first(processes.is_first and not execution.force and already_finished(folder)):
        if processes.is_first and leftovers(folder):
            with only_writer(folder, wait=False, stop=stop) as alone:
                remove(leftovers(folder) if alone else [])
        return
    parts = build(run, dataset, device, processes)
    if execution.checkpoint.predictor and parts.collector.is_ensemble:
        raise InputError(f"checkpoint.predictor=true: {recipe.method} reports an ensemble, which is not one network")
    if not processes.is_first:
        if processes.from_first(False):
            train(parts, run, folder, stop, None)
        return
    with only_writer(folder, wait=execution.wait, stop=stop) as alone:
        if not alone:
            print(f"another process is on {folder}: left to it (wait=true waits for it to end)")
        if processes.from_first(alone and not already_finished(folder, alone=True, force=execution.force)):
            with Heartbeat(folder, recipe.record(), device=device_name(device)) as beat:
                train(parts, run, folder, stop, beat)


def already_finished(folder: Path, *, alone: bool = False, force: bool = False) -> bool:
    """Whether `folder` holds a finished result, which is then shown, or set aside with `force`.

    A result that cannot be trusted is set aside too, which is said, by the process that holds the folder `alone`.
    """
    try:
        result = results.read(folder)
    except ValueError as error:
        if not alone:
            return False
        log.warning("%s: %s; it is set aside", folder / "result.json", error)
        results.set_aside(folder)
        return False
    if result is None or result["state"] != "finished":
        return False
    if force:
        results.set_aside(folder)
        return False
    print(f"already finished: {folder} (force=true runs it anew)\n{results.summary(result)}")
    return True


def train(parts: Parts, run: RunConfig, folder: Path, stop: Stop, beat: Heartbeat | None) -> None:
    """Train in a folder that is this run's alone, from its newest checkpoint if it has one, and write the result. Only
    the first of several processes reads and writes there, and it alone has a heartbeat.

    Raises Interrupted and RunFailed; both leave a result that says so.
    """
    identity = run.recipe.identity
    first = parts.processes.is_first
    if first:
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(run.values()))
        (folder / "error.txt").unlink(missing_ok=True)
        remove(unfinished(folder))
        link_output(folder)
    training = Training(parts, stop=stop, reporter=reporter())
    state = checkpoint.load(folder, identity=identity, device=parts.device) if first else None
    state = parts.processes.from_first(state, parts.device)
    if state is not None:
        training.load_state_dict(state)
    if beat is not None:
        beat.follow(training.position)

    def save() -> None:
        training.check_finite()
        state = training.state_dict()
        if first:
            checkpoint.save(folder, state, identity=identity, step=training.progress.step)

    try:
        print(opening(parts, run, folder), end="", flush=True)
        training.run(save, minutes=run.execution.checkpoint.minutes)
    except (Interrupted, BrokenPipeError):
        conclude(folder, training, run.recipe, "interrupted")
        raise
    except Exception as error:
        if not first:
            raise
        reason = reported(error, folder)
        conclude(folder, training, run.recipe, "failed", reason)
        raise RunFailed(reason) from error
    if run.execution.checkpoint.predictor:
        network = training.network()
        if first:
            predictor.save(folder, network, classes=parts.data.num_classes, identity=identity)
    result = conclude(folder, training, run.recipe, "finished")
    if first:
        remove(checkpoint.files(folder))
        print(f"finished: {folder}\n{results.summary(result)}", flush=True)


def opening(parts: Parts, run: RunConfig, folder: Path) -> str:
    """The lines that say which run this is, where its files are and what was decided for it."""
    values = run.values()
    autos = [f"{key}=auto: {choice}" for key, choice in parts.settings.items() if values.get(key) == "auto"]
    device = "GPU" if parts.device.type == "cuda" else "CPU"
    return f"{run.recipe}: {folder}\n" + (f"{', '.join(autos)} on this {device}\n" if autos else "")


def reported(error: Exception, folder: Path) -> str:
    """Why a run failed, in a line; the traceback of what nobody foresaw goes to error.txt."""
    if isinstance(error, RunFailed):
        return str(error)
    (folder / "error.txt").write_text(traceback.format_exc())
    return f"{type(error).__name__}: {error} (see {folder / 'error.txt'})"


def unfinished(folder: Path) -> list[Path]:
    """What processes that died while they wrote a file have left; to be called by the one that holds the folder."""
    return list(folder.glob(".*.tmp"))


def leftovers(folder: Path) -> list[Path]:
    """What a process that died right after writing its finished result has left."""
    return [*checkpoint.files(folder), *folder.glob(heartbeat.NAME), *unfinished(folder)]


def remove(files: Iterable[Path]) -> None:
    """Remove files that may already be gone."""
    for file in files:
        file.unlink(missing_ok=True)


def link_output(folder: Path) -> None:
    """Where a launcher has sent what the run prints to a file, lay a link to it, output.txt, into the run's folder."""
    link = folder / "output.txt"
    link.unlink(missing_ok=True)
    if "BROADOPT_OUTPUT" in os.environ:
        link.symlink_to(os.path.relpath(os.environ["BROADOPT_OUTPUT"], folder))


def conclude(
    folder: Path, training: Training, recipe: Recipe, state: str, failure: str | None = None
) -> dict[str, Any]:
    """Write the history and then the result of a run that has come to its end or to a halt; its first process does."""
    progress, device = training.progress, training.parts.device
    result = {
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
        "epochs": training.epochs,
        "budget": recipe.budget,
        "metrics": results.metrics(progress.history, progress.collected),
        "cost": {
            "train_seconds": progress.train_seconds,
            "images_per_second": training.images_per_second,
            "gradient_evaluations": progress.gradient_evaluations,
            "peak_memory_bytes": peak_memory(device),
        },
        "environment": environment(device, training.parts.settings),
    }
    if failure is not None:
        result["failure"] = {"reason": failure, **training.place()}
    if training.parts.processes.is_first:
        results.write_history(folder, progress.history)
        results.write(folder, result)
    return result
