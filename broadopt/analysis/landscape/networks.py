"""The networks of a run, and their parameters as one flat vector."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from broadopt import predictor
from broadopt import snapshots as kept
from broadopt.analysis.landscape.runs import Run, check_code, repeat_command
from broadopt.config.instantiate import collectors_of
from broadopt.errors import InputError, printable
from broadopt.methods.collect import EverySteps
from broadopt.methods.fge import SnapshotEnsemble
from broadopt.predictor import Predictor
from broadopt.training.calendar import Calendar

if TYPE_CHECKING:
    from broadopt.methods.collect import Collector


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Weights that have a name in a figure."""

    label: str
    method: str
    vector: Tensor
    network: Predictor | None = None
    """With BN statistics of its own; None of a mean that no run has had."""
    recorded: float | None = None
    """The test error that the run's result has of it, in percent."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that decides what it does: the vector, and the buffers of its network, which the vector lacks. Averages
        of the same weights may differ in their BN statistics alone (an EMA with bn=own and one with bn=reestimate).
        """
        return (self.vector,) if self.network is None else (self.vector, *self.network.model.buffers())


def flat(model: nn.Module) -> Tensor:
    """A copy of all parameters in one vector, float32 [P], on their device; buffers are not in it."""
    return torch.cat([parameter.detach().reshape(-1).float() for parameter in model.parameters()])


@torch.no_grad()
def put(model: nn.Module, vector: Tensor) -> None:
    """Copy a vector [P], as `flat` gives it, into the parameters; their storage stays where it is. Raises ValueError
    where the lengths differ.
    """
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    if vector.shape != (count,):
        raise ValueError(f"a vector of shape {list(vector.shape)}, expected [{count}]")
    for parameter, part in zip(parameters, vector.split([one.numel() for one in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def reported(run: Run) -> Predictor:
    """The network that a run reports: its last weights, or SWA's average, with their BN statistics.

    Raises InputError where the run has kept none, which names the command that keeps it, and where it is unreadable or
    not of this recipe.
    """
    path = run.folder / predictor.NAME
    if not path.exists() and _collector(run).is_ensemble:
        raise InputError(f"{run.folder}: an ensemble ({run.recipe.method}) is not one network; expected another run")
    return _of_run(run, path, option="checkpoint.predictor=true")


def moments(run: Run) -> list[tuple[int, float]]:
    """(step, epochs trained) of each snapshot of a run in order; step 0 is the start. Raises InputError where it has
    kept none.
    """
    files = kept.files(run.folder)
    if not files:
        raise InputError(f"{run.folder} has kept no snapshots; {repeat_command(run, 'keep=snapshots')} keeps them")
    per_epoch = steps_per_epoch(run)
    return [(file.step, file.step / per_epoch) for file in files]


def snapshot(run: Run, step: int) -> Predictor:
    """The network of the snapshot at a step of `moments`. Raises InputError where it is unreadable or not of this
    recipe.
    """
    path = next(file.path for file in kept.files(run.folder) if file.step == step)
    return _of_run(run, path, option="keep=snapshots", step=step)


def member_moments(run: Run) -> list[tuple[int, float]]:
    """The moments of those snapshots that a finished run's collector took in: what SWA averages, FGE's ensemble. Raises
    InputError where the run collects nothing or has not kept all.
    """
    budget = run.recipe.budget
    calendar = Calendar.of({"": _collector(run)}, budget=budget, steps_per_epoch=steps_per_epoch(run))
    if calendar.updates:
        raise InputError(f"{run.folder}: {run.recipe.method} averages in every step; expected a run of SWA or FGE")
    if not calendar.collection_points[""]:
        raise InputError(f"{run.folder}: {run.recipe.method} collects no weights; expected a run of SWA or FGE")
    due = {step for step in calendar.collection_points[""] if step <= calendar.total_steps}
    found = [moment for moment in moments(run) if moment[0] in due]
    if len(found) < len(due):
        what = "ensemble" if is_ensemble(run) else "average"
        raise InputError(
            f"{run.folder} has snapshots of {len(found)} members, its {what} has {len(due)}; "
            f"{repeat_command(run, 'keep=snapshots')} keeps all"
        )
    return found


def is_ensemble(run: Run) -> bool:
    """Whether a run reports what several networks predict together."""
    return _collector(run).is_ensemble


def is_mean_of_collected(run: Run) -> bool:
    """Whether an ensemble predicts by the networks that it collected, as FGE does; SWAG draws others."""
    return isinstance(_collector(run), SnapshotEnsemble)


def collection_start(run: Run) -> float | None:
    """The epoch at which a run's collector takes in the first weights; None where it collects nothing."""
    moments = _collector(run).collection_points(run.recipe.budget)
    return moments.start if isinstance(moments, EverySteps) else min(moments, default=None)


def steps_per_epoch(run: Run) -> int:
    """Batches of an epoch, the last one, which may be smaller, included."""
    images = run.result.get("cost", {}).get("images_per_epoch")
    if not images:
        raise InputError(f"{run.folder}: its result does not say how many images an epoch has; expected a newer result")
    return -(-int(images) // run.recipe.batch_size)


def mark_of(run: Run) -> Mark:
    """The network that a run reports. Raises InputError."""
    network = reported(run)
    return Mark(
        label=run.label,
        method=run.recipe.method,
        vector=flat(network.model),
        network=network,
        recorded=100 - float(run.reported["test_accuracy"]),
    )


def mark_at(run: Run, epochs: float) -> Mark:
    """The snapshot of a run that is next to an epoch. Raises InputError."""
    return mark_of_snapshot(run, *min(moments(run), key=lambda found: abs(found[1] - epochs)))


def mark_of_snapshot(run: Run, step: int, epochs: float) -> Mark:
    """The snapshot of a moment, named by its epoch. Raises InputError."""
    network = snapshot(run, step)
    name = "start" if step == 0 else f"{run.label}, epoch {epochs:.4g}"
    return Mark(label=name, method=run.recipe.method, vector=flat(network.model), network=network)


def _of_run(run: Run, path: Path, *, option: str, step: int | None = None) -> Predictor:
    try:
        found = predictor.read(path, trust=run.trust)
    except FileNotFoundError as error:
        raise InputError(f"{run.folder} has kept no {path.name}; {repeat_command(run, option)} keeps it") from error
    _check_owner(run, path, step)
    return found


def _check_owner(run: Run, path: Path, step: int | None) -> None:
    """Raise InputError where a file of weights says that it is another run's, or of another moment than its name."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    identity, made = metadata.get("identity"), metadata.get("step")
    if identity not in (None, run.result["identity"]):
        raise InputError(f"{path}: it holds the weights of another run, of identity {str(identity)[:8]}")
    if step is not None and made not in (None, str(step)):
        raise InputError(f"{path}: it holds the weights after step {printable(made)}; expected those after step {step}")


def _collector(run: Run) -> "Collector":
    """The run's own collector: those that are evaluated beside it are no part of what it reports."""
    check_code(run, run.recipe.collect)
    collector: Collector = collectors_of(run.recipe.collect)[""]
    return collector
