"""One run, from its checked config to its result."""

import gc
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from broadopt import predictor
from broadopt.config.run_config import PUBLISHED, Recipe, RunConfig
from broadopt.data.datasets import Dataset, read
from broadopt.devices import probe
from broadopt.devices import processes as distributed
from broadopt.devices.device import (
    AUTOMATIC,
    automatic_precisions,
    choose_device,
    choose_precision,
    count_peak_from_here,
    device_name,
    is_broken,
    set_flags,
)
from broadopt.devices.processes import Processes
from broadopt.devices.provenance import code, say_where_rounding_differs
from broadopt.devices.sharing import keep_to_share
from broadopt.errors import DeviceLost, InputError, Interrupted, LeftToAnother, RunFailed
from broadopt.runs import checkpoint, history, results
from broadopt.runs.begun import check_own_keys, leftovers, precision_of, prepare, remove
from broadopt.runs.heartbeat import Heartbeat, silence
from broadopt.runs.lock import only_writer
from broadopt.runs.repeat import say_what_is_decided_otherwise
from broadopt.signals import Stop
from broadopt.trackers.choose import check_installed
from broadopt.trackers.live import NOT_TRACKED, Trackers, Tracking
from broadopt.training.begin import begun, opening
from broadopt.training.build import build, gain_of_bf16
from broadopt.training.conclude import already_finished, check_result, conclude, make_way, not_begun, reported
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import reporter


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
    result = already_finished(folder, run, recipe) if processes.is_first else None
    if processes.from_first(result is not None):
        if processes.is_first and leftovers(folder):
            with only_writer(folder, wait=False, stop=stop) as alone:
                remove(leftovers(folder) if alone else [])
        return None if result is None else (folder, result)
    code()  # before anything takes long: from here on the checkout may change, what is imported does not
    made = partial(built, replace(run, recipe=recipe), folder, dataset, device, processes, stop)
    return in_turn(made, run, recipe, folder, processes, stop, trackers or Trackers(), place)


def in_turn(
    made: Callable[..., Parts],
    run: RunConfig,
    recipe: Recipe,
    folder: Path,
    processes: Processes,
    stop: Stop,
    trackers: Trackers,
    place: str,
) -> tuple[Path, dict[str, Any]] | None:
    """Carry out a run, of which `made` makes the parts, as soon as its folder is this command's alone; or show what
    another has finished by then. Returns and raises as `execute`.
    """
    alone, result = True, None

    def has_turn() -> bool:
        """Whether this process, the first, is alone in the folder, for as long as it is `held`, with work to do."""
        nonlocal alone, result
        alone = held.enter_context(only_writer(folder, wait=run.execution.wait, stop=stop))
        result = already_finished(folder, run, recipe) if alone else None
        return alone and result is None

    # A folder that is there is locked before network and data take memory that its process may need. Any other is made
    # after them, so that bad input leaves none.
    is_there = processes.is_first and os.path.exists(folder / ".lock")
    with ExitStack() as held:
        if processes.from_first(has_turn() if is_there else True):
            parts = made(is_held=is_there)
            if processes.from_first(has_turn() if processes.is_first and not is_there else True):
                result = carried_out(parts, run, recipe, folder, stop, trackers, place)
    if not alone:
        raise left_to_another(folder)
    return None if result is None else (folder, result)


def left_to_another(folder: Path) -> LeftToAnother:
    """What a run ends with whose folder another process holds."""
    left = f"another process is on {folder}: left to it (wait=true waits for it to end)"
    return LeftToAnother(f"{left}{silence(folder)}")


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
        possible = automatic_precisions(device)
        precision = precision_of(
            in_precision,
            run.execution.results_dir,
            here=precision,
            others=[name for name in possible if name != precision],
            elsewhere=[name for name in AUTOMATIC if name not in possible],
            force=run.execution.force,
        )
    return in_precision(processes.from_first(precision))


def built(
    run: RunConfig,
    folder: Path,
    dataset: Dataset,
    device: torch.device,
    processes: Processes,
    stop: Stop,
    *,
    is_held: bool,
) -> Parts:
    """The parts of a run. Where they cannot be made for another reason than the input, the first process raises
    RunFailed, and a result says so; LeftToAnother where another has taken the folder, unless it `is_held` already.
    """
    try:
        parts = build(run, dataset, device, processes)
        check_result(folder, run.recipe, parts)
        return parts
    except InputError:
        raise
    except Exception as error:
        if not processes.is_first:
            raise
        with nullcontext(True) if is_held else only_writer(folder, wait=False, stop=stop) as alone:
            if not alone:
                raise left_to_another(folder) from error
            raise not_begun(error, folder, run.recipe, device) from error


def carried_out(
    parts: Parts, run: RunConfig, recipe: Recipe, folder: Path, stop: Stop, trackers: Trackers, place: str
) -> dict[str, Any] | None:
    """`train`, with what the first process has beside it; returns the result, in the first process alone."""
    config = recipe.record()
    with stop.deferred():  # from here on a signal is obeyed where the state can be saved first
        if not parts.processes.is_first:
            train(parts, run, recipe, folder, stop)
            return None
        threads = torch.get_num_threads() if parts.device.type == "cpu" else None
        with Heartbeat(folder, config, device=device_name(parts.device), threads=threads, size=parts.size) as beat:
            tracking = trackers.start(run.execution.tracker, config, Path(run.execution.results_dir))
            return train(parts, run, recipe, folder, stop, beat, tracking, place)


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

    Raises Interrupted and RunFailed; both leave a result that says so, unless what is there says more.
    """
    first = parts.processes.is_first
    if first:
        make_way(folder, recipe)
        prepare(folder, run)
    try:
        training, sharing = begun(parts, run, recipe, folder, stop, reporter(tracking, is_first=first))
    except Exception as error:
        if not first:
            raise
        tracking.end({"state": "failed", "metrics": history.metrics([], {})})
        raise not_begun(error, folder, recipe, parts.device) from error

    try:
        tracking.rows(training.progress.history)
        if beat is not None:
            beat.follow(training.position)
        print(f"{place}{opening(training, run, folder, sharing)}", end="", flush=True)
        to_its_end(training, run, recipe, folder)
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


def to_its_end(training: Training, run: RunConfig, recipe: Recipe, folder: Path) -> None:
    """Train, with checkpoints on the way; then keep the network that the run reports, where it is one and is to be
    kept. A signal ends either with the state saved.
    """
    parts = training.parts

    def save() -> None:
        training.check_finite()
        state = training.state_dict()
        if parts.processes.is_first:
            checkpoint.save(folder, state, identity=recipe.identity, step=training.progress.step)

    training.run(save, minutes=run.execution.checkpoint.minutes)
    if not run.execution.checkpoint.predictor or parts.collector.is_ensemble:
        return
    try:
        network = training.network()
    except Interrupted:
        save()
        raise
    if parts.processes.is_first:
        predictor.save(folder, network, recipe=recipe, classes=parts.data.classes)
