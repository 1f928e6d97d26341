"""The parts of a run, made from its config; nothing else makes them."""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from broadopt import predictor
from broadopt.config.instantiate import collectors_of, instantiated
from broadopt.config.run_config import ModelConfig, Recipe, RunConfig
from broadopt.data.batches import Data
from broadopt.data.datasets import Dataset
from broadopt.devices import graphs, probe
from broadopt.devices.device import choose_memory_format, device_name
from broadopt.devices.processes import ALONE, Processes
from broadopt.errors import InputError
from broadopt.methods.collect import Collector
from broadopt.methods.schedule import Schedule, at_rest, learning_rate
from broadopt.methods.step import Step
from broadopt.methods.steps.optimizers import base_optimizer, is_fused, unheeded
from broadopt.methods.steps.sharp_steps import Course, gradients_a_step
from broadopt.models.build import macs, network
from broadopt.seeds import derive
from broadopt.training.parts import Parts

log = logging.getLogger("broadopt")


def build(run: RunConfig, dataset: Dataset, device: torch.device, processes: Processes = ALONE) -> Parts:
    """Every part of a run whose precision is decided, for one of its `processes`. The network's initial weights depend
    on the seed alone. Raises InputError.
    """
    recipe, execution = run.recipe, run.execution
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what names no device of its own is made on the current one
    second_order = bool(recipe.step.get("second_order"))
    memory_format = choose_memory_format(execution.memory_format, recipe.model.name, device, second_order=second_order)
    data = Data.of(recipe, dataset, device=device, memory_format=memory_format)
    model, multiply_adds = _model(run, data, device, memory_format)
    optimizer = base_optimizer(recipe, model.parameters())
    step, collectors = instantiated("step", recipe.step, model, optimizer), collectors_of(recipe.collect)
    course = _course(recipe, collectors.values(), images=data.train_size)
    recorded = _are_recorded(run, step, device, processes)
    schedule = schedule_of(recipe, collectors)
    _check_kept(run, model, collectors[""])
    return Parts(
        model=model,
        step=step,
        collector=collectors.pop(""),
        also=collectors,
        schedule=schedule,
        data=data,
        seed=recipe.seed,
        budget=recipe.budget,
        label_smoothing=recipe.label_smoothing,
        evaluate_every=recipe.evaluate_every,
        precision=recipe.precision,
        device=device,
        processes=_sharing(processes, run, data, step),
        settings=_settings(run, processes, memory_format) | {"graphs": recorded},
        graph=partial(graphs.CudaGraph, device) if recorded else None,
        graphs=execution.graphs,
        size={
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "macs": multiply_adds or None,  # of a network that multiplies otherwise than is counted
            "images_per_epoch": data.train_size,
            "passes": gradients_a_step(step, course),
        },
    )


def _model(
    run: RunConfig, data: Data, device: torch.device, memory_format: torch.memory_format
) -> tuple[nn.Module, int]:
    """The network at its initial weights, on the device, and its multiply-adds; a warning on what its recipe may not
    mean.
    """
    torch.manual_seed(derive(run.recipe.seed, "weights"))
    model = network(run.recipe.model, data.num_classes)
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    multiply_adds = macs(model, num_classes=data.num_classes)
    _say_what_is_odd(run.recipe, model, data)
    if run.execution.compile:
        model.compile(dynamic=False)
    return model, multiply_adds


def _course(recipe: Recipe, collectors: Iterable[Collector], *, images: int) -> Course:
    """The training of `images` to the budget, or to the last evaluation point of a collector."""
    epochs = recipe.budget
    for collector in collectors:
        collector.collection_points(recipe.budget)  # what it refuses is refused here, before the run has a folder
        epochs = max([epochs, *collector.evaluation_points(recipe.budget).values()])
    return Course.of(images=images, batch_size=recipe.batch_size, budget=recipe.budget, epochs=epochs)


def _are_recorded(run: RunConfig, step: Step, device: torch.device, processes: Processes) -> bool:
    """Whether the steps of a run are recorded as a CUDA graph."""
    return graphs.choose(
        run.execution.graphs,
        device,
        processes=processes.count,
        own_code=bool(run.recipe.code),
        compiled=run.execution.compile,
        is_repeatable=getattr(step, "is_repeatable", False),
        is_fused=is_fused(step.optimizer),
    )


def _settings(run: RunConfig, processes: Processes, memory_format: torch.memory_format) -> dict[str, Any]:
    execution = run.execution
    return {
        **({"processes": processes.count} if processes.count > 1 else {}),
        "precision": run.recipe.precision,
        "memory_format": "channels_last" if memory_format == torch.channels_last else "contiguous",
        "compile": execution.compile,
        "deterministic": execution.deterministic,
    }


def _check_kept(run: RunConfig, model: nn.Module, collector: Collector) -> None:
    """Raise InputError where files of weights are to be kept of a network that none can hold."""
    name, asked = predictor.not_writable(model), ""
    if run.execution.keep == "snapshots":
        asked = "keep=none"
    if run.execution.checkpoint.predictor and not collector.is_ensemble:
        asked = f"checkpoint.predictor=false and {asked}" if asked else "checkpoint.predictor=false"
    if name is not None and asked:
        found = f"its state has {name}, which is no tensor, as a file of weights needs"
        raise InputError(f"model: {found}; expected {asked}")


def schedule_of(recipe: Recipe, collectors: Mapping[str, Collector]) -> Schedule:
    """The schedule of a recipe; a warning on evaluation points before which it changes no weight any more. Raises
    InputError, and RunFailed for one of the user's that gives no number: before anything is trained.
    """
    schedule: Schedule = instantiated("schedule", recipe.schedule)
    learning_rate(schedule, 0.0)
    points = {
        f"{name} {spent}".strip(): epoch
        for name, collector in collectors.items()
        for spent, epoch in collector.evaluation_points(recipe.budget).items()
    }
    if line := at_rest(schedule, recipe.budget, points):
        log.warning("%s", line)
    return schedule


def _say_what_is_odd(recipe: Recipe, model: nn.Module, data: Data) -> None:
    """A warning on what a recipe may not mean."""
    if left := unheeded(recipe):
        log.warning("optimizer: %s takes no %s", recipe.optimizer["_target_"], ", ".join(left))
    batch_size = recipe.batch_size
    if data.train_size % batch_size == 1 and any(isinstance(module, _BatchNorm) for module in model.modules()):
        log.warning(
            "batch_size=%d: the last batch of each epoch has a single image, by which BN normalises it (and fails "
            "where its feature maps are one pixel); another batch_size avoids that",
            batch_size,
        )


def _sharing(processes: Processes, run: RunConfig, data: Data, step: Step) -> Processes:
    """`processes`, where each has an image of every batch and takes part in every step; else raises InputError."""
    batch_size, chunk = run.recipe.batch_size, run.recipe.step.get("chunk")
    smallest = min(batch_size, data.train_size % batch_size or batch_size)
    if smallest < processes.count:
        raise InputError(
            f"batch_size={batch_size}: the last batch of an epoch has {smallest} images for {processes.count} "
            "processes; expected one each at least"
        )
    reason = getattr(step, "one_process", "")
    if chunk is not None:
        reason = f"step.chunk={chunk}: chunks are those of one device; expected null"
        if "perturbation" in run.recipe.step:
            reason += "; step.perturbation=share perturbs by each process's share"
    if processes.count == 1 and run.recipe.step.get("perturbation") == "share":
        raise InputError("step.perturbation=share: there is one process; expected global, or step.chunk=M")
    if processes.count > 1 and reason:
        raise InputError(f"{reason} ({processes.count} processes)")
    return processes


def gain_of_bf16(model: ModelConfig, classes: int, device: torch.device) -> float:
    """The rate of training a network in bf16 over that in fp32 on this CPU, of which `device` is the name."""
    return _gain_of_bf16(json.dumps(asdict(model), sort_keys=True), classes, device_name(device))


@cache
def _gain_of_bf16(model: str, classes: int, processor: str) -> float:
    made = partial(network, ModelConfig(**json.loads(model)), classes)
    return probe.gain_of_bf16(made, key=f"{classes} classes, {model}", processor=processor)
