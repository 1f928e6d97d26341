"""trunk=share in one run: the trunk that it begins from, and those that it leaves for others."""

import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from broadopt import snapshots
from broadopt.config.run_config import Recipe, RunConfig
from broadopt.errors import RunFailed, printable
from broadopt.files import reason
from broadopt.runs import checkpoint
from broadopt.training.loop import Training
from broadopt.training.trunks import store
from broadopt.training.trunks.beginnings import Beginnings, in_epochs

log = logging.getLogger("broadopt")


class Sharing:
    """What a training has to do with trunks. It leaves its own by itself, from its making on."""

    def __init__(self, training: Training, run: RunConfig, recipe: Recipe, folder: Path) -> None:
        """`recipe`: that of `run` with what the machine and the data decide."""
        self.training, self.recipe, self.results_dir = training, recipe, run.execution.results_dir
        self.run = folder.relative_to(self.results_dir).as_posix()
        self.beginnings = Beginnings.of(recipe, training.calendar)
        self.source: Path | None = None
        """The trunk that the training has begun from in this process."""
        training.leave = {self.beginnings.steps(epochs): partial(self.leave, epochs) for epochs in self.beginnings.left}

    def state(self) -> dict[str, Any] | None:
        """The state of the trunk with the most epochs that this run would come to itself, in the form of a checkpoint
        of it; None where there is none. To be called by the first process alone.
        """
        trunks, left_out = store.found(self.results_dir, self.recipe.record())
        for line in left_out:
            log.warning("%s", line)
        for trunk in trunks:
            epochs = trunk.epochs
            if not self.beginnings.exists(epochs) or trunk.identity != self.beginnings.identity(epochs):
                continue
            parts, steps = self.training.parts, self.beginnings.steps(epochs)
            place = printable(str(trunk.folder))
            if parts.settings["deterministic"] and not trunk.content["deterministic"]:
                log.warning("trunk %s is passed over: it was trained without deterministic=true", place)
                continue
            try:
                found = checkpoint.newest(trunk.folder, identity=trunk.identity, device=parts.device)
            except RunFailed as error:  # one can do without
                log.warning("trunk %s is passed over: %s", place, error)
                continue
            progress = found[1].get("progress") if found is not None else None
            if found is None or not isinstance(progress, dict) or progress.get("step") != steps:
                log.warning("trunk %s is passed over: it holds no state after %d steps", place, steps)
                continue
            log.warning("begins with %s of %s, from %s", in_epochs(epochs), printable(trunk.named["run"]), place)
            self.source = trunk.folder
            return found[1] | {
                "collector": parts.collector.state_dict(),
                "also": {name: one.state_dict() for name, one in parts.also.items()},
                "progress": progress | {"trunk": trunk.named, "deterministic": trunk.content["deterministic"]},
            }
        return None

    def leave(self, epochs: int) -> None:
        """Write the state after so many epochs, unless it is there. That it cannot be written is only warned of: it is
        no part of this run's result. Called by all processes together.
        """
        training, processes = self.training, self.training.parts.processes
        config = self.beginnings.record(epochs)
        folder = store.folder_of(self.results_dir, config)
        if processes.from_first(processes.is_first and store.is_there(folder, self.run)):
            return
        training.check_finite()
        state = without_collectors(training.state_dict())
        if not processes.is_first:
            return
        progress = training.progress
        try:
            store.write(
                folder,
                state,
                config=config,
                steps=progress.step,
                run=self.run,
                train_seconds=progress.train_seconds,
                deterministic=bool(progress.deterministic),
                begun_from=progress.trunk,
            )
        except OSError as error:
            log.warning("trunk %s: %s; the run goes on without leaving it", folder, reason(error))

    def opening(self) -> str:
        """A line on what will be left, how large it is and where; empty where nothing will be."""
        done = self.training.progress.step
        left = [epochs for epochs in self.beginnings.left if self.beginnings.steps(epochs) > done]
        folders = {one: store.folder_of(self.results_dir, self.beginnings.record(one)) for one in left}
        left = [one for one, folder in folders.items() if not os.path.exists(folder)]
        if not left:
            return ""
        each, place = _size(self.training) / 1e6, store.place(self.results_dir, self.recipe.record())
        whole = f"about {each:.3g} MB" + f" each, {len(left) * each:.3g} MB in all" * (len(left) > 1)
        return f"trunk=share: the state after {in_epochs(*left)} is left for others, {whole}, in {place}"


def without_collectors(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a training as it is without its collectors and what they have collected, whichever they are."""
    kept = {key: value for key, value in state.items() if key not in ("collector", "also")}
    nothing = {"collected": {}, "collected_at": -1, "also_collected_at": {}, "trunk": {}}
    return kept | {"progress": {**state["progress"], **nothing}}


def _size(training: Training) -> int:
    """Bytes of a state: weights, buffers and what the optimizer keeps of each weight, but for the few of the rest."""
    model, optimizer = training.parts.model, training.parts.step.optimizer
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    # Before the first step there is nothing to measure: of momentum a tensor, of Adam's kind two.
    group = optimizer.param_groups[0]
    return snapshots.size(model) + weights * (2 if "betas" in group else bool(group.get("momentum")))
