"""One run, from its checked config to its result."""

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from broadopt import predictor, snapshots
from broadopt.config.run_config import PUBLISHED, Recipe, RunConfig
from broadopt.data.datasets import Dataset, read
from broadopt.devices import probe
from broadopt.devices import processes as distributed
from broadopt.devices.device import (
    automatic_precisions,
    choose_device,
    choose_precision,
    count_peak_from_here,
    device_name,
    is_broken,
    set_flags,
)
from broadopt.devices.processes import Processes
from broadopt.devices.provenance import arithmetic, code, say_where_rounding_differs
from broadopt.devices.sharing import keep_to_share
from broadopt.errors import DeviceLost, InputError, Interrupted, LeftToAnother, RunFailed, printable
from broadopt.runs import checkpoint, results
from broadopt.runs.begun import check_own_keys, leftovers, precision_of, prepare, record_changes, remove
from broadopt.runs.heartbeat import Heartbeat, silence
from broadopt.runs.lock import only_writer
from broadopt.runs.repeat import say_what_is_decided_otherwise
from broadopt.signals import Stop
from broadopt.snapshots import Snapshots
from broadopt.trackers.choose import check_installed
from broadopt.trackers.live import NOT_TRACKED, Trackers, Tracking
from broadopt.training import foreseen
from broadopt.training.build import build, gain_of_bf16
from broadopt.training.conclude import already_finished, conclude, conclude_unbuilt, make_way, reported
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import HistoryFile, reporter
from broadopt.training.trunks.sharing import Sharing

log = logging.getLogger("broadopt")


def execute(
    run: RunConfig,
    stop: Stop,
    *,
    first: Mapping[str, Any] | None = None,
    trackers: Trackers | None = None,
    place: str = "",
) -> tuple[Path, dict[str, Any]] | None:
    """Carry out one run, or show the result of one that is finished; returns its folder and its result, of several
    processes in the first alone. `first`: where it repeats another, the environment of that one's result. `trackers`:
    those of the command, which gives them time to end; a run does not wait for its own. `place`: what its header begins
    with.

    Raises InputError, RunFailed, Interrupted, and LeftToAnother where another process is on the run.
    """
    # Steps and recordings refer to each other in cycles, and broadopt-run lets Python look for cycles rarely: without
    # this the runs of a sweep keep the networks and the GPU memory of those before them.
    gc.collect()
    execution = run.execution
    check_installed(execution.tracker)
    device = choose_device(distributed.device_of(execution.device))
    processes = distributed.join(device)
    say_where_rounding_differs(first or {}, device, what="the repeated run was made")
    dataset = read(run.recipe.dataset)
    recipe = decided(run, dataset, device, processes)
    say_what_is_decided_otherwise(first or {}, recipe)
    set_flags(recipe.precision, deterministic=execution.deterministic)
    keep_to_share(device)
    count_peak_from_here(device)
    folder = results.run_folder(execution.results_dir, recipe.record())
    check_own_keys(folder, recipe)
    result = already_finished(folder, run, recipe) if processes.is_first and not execution.force else None
    if processes.from_first(result is not None):
        if processes.is_first and leftovers(folder):
            with only_writer(folder, wait=False, stop=stop) as alone:
                remove(leftovers(folder) if alone else [])
        return None if result is None else (folder, result)
    code()  # before anything takes long: from here on the checkout may change, what is imported does not
    parts = built(replace(run, recipe=recipe), folder, dataset, device, processes, stop)
    if not processes.is_first:
        if processes.from_first(False):
            with stop.deferred():
                train(parts, run, recipe, folder, stop)
        return None
    with only_writer(folder, wait=execution.wait, stop=stop) as alone:
        result = already_finished(folder, run, recipe, alone=True) if alone else None
        if processes.from_first(alone and result is None):
            # From here on a signal is obeyed where the state can be saved first.
            with (
                stop.deferred(),
                Heartbeat(folder, recipe.record(), device=device_name(device), size=parts.size) as beat,
            ):
                trackers = trackers or Trackers()
                tracking = trackers.start(execution.tracker, recipe.record(), Path(execution.results_dir))
                result = train(parts, run, recipe, folder, stop, beat, tracking, place)
        if not alone:
            left = f"another process is on {folder}: left to it (wait=true waits for it to end)"
            raise LeftToAnother(f"{left}{silence(folder)}")
    return None if result is None else (folder, result)


def decided(run: RunConfig, dataset: Dataset, device: torch.device, processes: Processes) -> Recipe:
    """The recipe with what the machine and the data decide: precision, fingerprint, number of processes. Raises
    InputError where a repeated run would have other data.
    """
    expected, found = run.recipe.dataset.fingerprint, dataset.fingerprint
    if expected not in (None, found or PUBLISHED):
        raise InputError(
            f"{dataset.name}: these images or labels are not those of the repeated run (fingerprint "
            f"{found or PUBLISHED}, there {expected}); expected their place by data_dir=, dataset.path= or "
            "dataset.noise="
        )

    def in_precision(name: str) -> Recipe:
        return run.recipe.decided(precision=name, fingerprint=dataset.fingerprint, processes=processes.count)

    if not processes.is_first:
        return in_precision(processes.from_first(""))
    gain = partial(gain_of_bf16, run.recipe.model, len(dataset.classes), device)
    precision = choose_precision(run.recipe.precision, device, lambda: gain() >= probe.GAIN)
    if run.recipe.precision == "auto":
        others = [name for name in automatic_precisions(device) if name != precision]
        precision = precision_of(in_precision, run.execution.results_dir, here=precision, others=others)
    return in_precision(processes.from_first(precision))


def built(
    run: RunConfig, folder: Path, dataset: Dataset, device: torch.device, processes: Processes, stop: Stop
) -> Parts:
    """The parts of a run. Where they cannot be made for another reason than the input, RunFailed is raised and a result
    says so.
    """
    try:
        parts = build(run, dataset, device, processes)
        foreseen.check(folder, run.recipe, parts)
        return parts
    except InputError:
        raise
    except Exception as error:
        with only_writer(folder, wait=False, stop=stop) as alone:
            reason = reported(error, folder)
            if alone and processes.is_first and make_way(folder, run):
                conclude_unbuilt(folder, run.recipe, device, reason)
        raise (DeviceLost if is_broken(device) else RunFailed)(reason) from error


def train(
    parts: Parts,
    run: RunConfig,
    recipe: Recipe,
    folder: Path,
    stop: Stop,
    beat: Heartbeat | None = None,
    tracking: Tracking = NOT_TRACKED,
    place: str = "",
) -> dict[str, Any]:
    """Train by a decided recipe, in a folder that is this run's alone, from its newest checkpoint if it has one; write
    and return the result. Only the first of several processes reads and writes there, has a heartbeat and is tracked.

    Raises Interrupted and RunFailed; both leave a result that says so.
    """
    first = parts.processes.is_first
    if first:
        prepare(folder, run)
    history = HistoryFile(folder) if first else None
    kept = Snapshots(folder, recipe=recipe, classes=parts.data.classes)
    weights = kept if first and run.execution.keep == "snapshots" else None
    training = Training(parts, stop=stop, reporter=reporter(tracking), keep_history=history, keep_weights=weights)

    def save() -> None:
        training.check_finite()
        state = training.state_dict()
        if first:
            checkpoint.save(folder, state, identity=recipe.identity, step=training.progress.step)

    try:
        sharing = Sharing(training, run, recipe, folder) if run.execution.trunk == "share" else None
        resumed = resume(training, folder, recipe, sharing)
        if weights is not None:
            _say_what_was_not_kept(training, folder)
        if first:
            record_changes(folder, code().changes, resumed=resumed)
        tracking.rows(training.progress.history)
        if beat is not None:
            beat.follow(training.position)
        print(f"{place}{opening(training, run, folder, sharing)}", end="", flush=True)
        training.run(save, minutes=run.execution.checkpoint.minutes)
        network = predictor_of(training, run, save)
        if first and network is not None:
            predictor.save(folder, network, recipe=recipe, classes=parts.data.classes)
    except (Interrupted, BrokenPipeError):
        tracking.end(conclude(folder, training, recipe, "interrupted"))
        raise
    except Exception as error:
        if not first:
            raise
        reason = reported(error, folder)
        tracking.end(conclude(folder, training, recipe, "failed", reason))
        raise (DeviceLost if is_broken(parts.device) else RunFailed)(reason) from error
    result = conclude(folder, training, recipe, "finished")
    tracking.end(result)
    if first:
        remove(checkpoint.files(folder))
        print(f"finished: {folder}\n{results.summary(result)}", flush=True)
    return result


def resume(training: Training, folder: Path, recipe: Recipe, sharing: Sharing | None = None) -> bool:
    """Put a training where its newest checkpoint stands, if it has one, else where a trunk does that it may share.
    Returns whether it has one, in the first of several processes. Raises RunFailed for a checkpoint that does not fit.
    """
    processes, device = training.parts.processes, training.parts.device
    state = checkpoint.load(folder, identity=recipe.identity, device=device) if processes.is_first else None
    resumed = state is not None
    if state is None and sharing is not None and processes.is_first:
        state = sharing.state()
    state = processes.from_first(state, device)
    machine = arithmetic(device)
    if state is None:
        training.progress.machines = [machine]
        return False
    trunk = None if sharing is None else sharing.source
    what, without = (f"checkpoint in {folder}", "the checkpoint-*.ckpt there")
    if trunk is not None:
        what, without = f"trunk {printable(str(trunk))}", "it, or with trunk=none,"
    try:
        training.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFailed(
            f"the {what} does not fit this network, step or collector "
            f"({' '.join(str(error).split())[:200]}); without {without} the run begins anew"
        ) from error
    machines = training.progress.machines
    if machines and machines[-1] != machine and processes.is_first:
        say_where_rounding_differs(machines[-1], device, what=f"{trunk or folder} was trained so far")
    if not machines or machines[-1] != machine:
        machines.append(machine)
    return resumed


def predictor_of(training: Training, run: RunConfig, save: Callable[[], None]) -> nn.Module | None:
    """The network that a trained run reports, where it is one and is to be kept. A signal ends its making with the
    state saved.
    """
    if not run.execution.checkpoint.predictor or training.parts.collector.is_ensemble:
        return None
    try:
        return training.network()
    except Interrupted:
        save()
        raise


def _say_what_was_not_kept(training: Training, folder: Path) -> None:
    """Say which snapshots there will not be: of what was trained before they were asked for, or of a trunk."""
    kept, step = {file.step for file in snapshots.files(folder)}, training.progress.step
    missing = [one for one in range(step) if (one == 0 or training.calendar.is_due(one)) and one not in kept]
    if missing:
        log.warning(
            "keep=snapshots: %d of the moments up to epoch %g have none: they were trained without it",
            len(missing),
            step / training.calendar.steps_per_epoch,
        )


def opening(training: Training, run: RunConfig, folder: Path, sharing: Sharing | None = None) -> str:
    """The opening lines of a run: its name, its folder, what was decided for it, and the room that it will take."""
    parts, values = training.parts, run.values()
    made = {key: choice for key, choice in parts.settings.items() if key != "graphs" or choice}
    autos = {key: f"{key}=auto: {choice}" for key, choice in made.items() if values.get(key) == "auto"}
    if "precision" in autos and parts.device.type == "cpu":
        gain = gain_of_bf16(run.recipe.model, parts.data.num_classes, parts.device)
        autos["precision"] += f" (bf16 has {gain:.2f} times the rate of fp32)" * (gain > 0)
    device = "GPU" if parts.device.type == "cuda" else "CPU"
    lines = [f"{run.recipe}: {folder}", *([f"{', '.join(autos.values())} on this {device}"] if autos else [])]
    if training.keep_weights is not None:
        count, each = 1 + training.calendar.moments, snapshots.size(parts.model) / 1e6
        lines.append(
            f"keep=snapshots: {count} of {each:.3g} MB, {count * each:.3g} MB in all, in {folder / snapshots.FOLDER}"
        )
    if sharing is not None and (left := sharing.opening()):
        lines.append(left)
    return "".join(f"{line}\n" for line in lines)
