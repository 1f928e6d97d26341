"""How a training begins: from its checkpoint, from a trunk or from its first step; and what is said of it then."""

import logging
from pathlib import Path

from broadopt import predictor, snapshots
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.devices.device import is_broken
from broadopt.devices.provenance import arithmetic, code, say_where_rounding_differs
from broadopt.devices.sharing import advice
from broadopt.errors import RunFailed, is_lack_of_memory, printable
from broadopt.runs import checkpoint
from broadopt.runs.begun import record_changes, remove
from broadopt.signals import Stop
from broadopt.training.build import gain_of_bf16
from broadopt.training.loop import Training
from broadopt.training.parts import Parts
from broadopt.training.progress import HistoryFile, Reporter
from broadopt.training.trunks.sharing import Sharing

log = logging.getLogger("broadopt")


def begun(
    parts: Parts, run: RunConfig, recipe: Recipe, folder: Path, stop: Stop, reporter: Reporter
) -> tuple[Training, Sharing | None]:
    """The training of a run by its decided recipe, standing where it goes on or begins, in a folder that is this run's
    alone; and its trunks, where it shares them. Raises RunFailed.
    """
    first = parts.processes.is_first
    kept = snapshots.Snapshots(folder, recipe=recipe, classes=parts.data.classes)
    weights = kept if first and run.execution.keep == "snapshots" else None
    history = HistoryFile(folder) if first else None
    training = Training(parts, stop=stop, reporter=reporter, keep_history=history, keep_weights=weights)
    sharing = Sharing(training, run, recipe, folder) if run.execution.trunk == "share" else None
    resumed = resume(training, folder, recipe, sharing)
    if first:
        # The weights of one training never stand beside the result of another, which may keep none: nor do those that
        # an attempt that died has left beyond this point, which may be of another machine's course.
        reached = training.progress.step if resumed else -1
        remove([folder / predictor.NAME, *(one.path for one in snapshots.files(folder) if one.step > reached)])
        record_changes(folder, code().changes, resumed=resumed)
    if weights is not None:
        _say_what_was_not_kept(training, folder)
    return training, sharing


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
        training.progress.deterministic = bool(training.parts.settings["deterministic"])
        return False
    trunk = None if sharing is None else sharing.source
    what, without = (f"checkpoint in {folder}", "the checkpoint-*.ckpt there")
    if trunk is not None:
        what, without = f"trunk {printable(str(trunk))}", "it, or with trunk=none,"
    try:
        training.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        words = " ".join(str(error).split())[:200]
        if is_lack_of_memory(error) or is_broken(device):  # which says nothing of the state
            raise RunFailed(f"the {what} could not be loaded ({words}); it is kept{advice(error)}") from error
        raise RunFailed(
            f"the {what} does not fit this network, step or collector ({words}); without {without} the run begins anew"
        ) from error
    progress = training.progress
    progress.deterministic = bool(progress.deterministic and training.parts.settings["deterministic"])
    machines = progress.machines
    if machines and machines[-1] != machine and processes.is_first:
        say_where_rounding_differs(machines[-1], device, what=f"{trunk or folder} was trained so far")
    if not machines or machines[-1] != machine:
        machines.append(machine)
    if len(machines) > 1:
        training.measure_from_here()
    return resumed


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
