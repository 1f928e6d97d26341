"""What a run costs: its size, its gradients, its hours; worked out without data and without training."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from broadopt.config.instantiate import collectors_of, instantiated
from broadopt.config.run_config import ModelConfig, Recipe
from broadopt.data.batches import check_batch_size, check_held_out
from broadopt.data.datasets import size
from broadopt.devices.device import choose_device, device_name
from broadopt.devices.rates import OPERATIONS, Duration, duration
from broadopt.errors import InputError
from broadopt.methods.batchnorm import statistics
from broadopt.methods.collect import Collector, CountedCollector, Passes
from broadopt.methods.steps.optimizers import base_optimizer
from broadopt.methods.steps.sharp_steps import Course, counted, gradients, gradients_a_step
from broadopt.models.build import macs, network


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and price of a run."""

    parameters: int
    macs: int
    """Multiply-adds of a forward pass on one image; 0 where they could not be counted."""
    epochs: float
    steps: int
    images: int
    """Training images an epoch."""
    gradient_evaluations: float
    """Gradients of a batch in the whole run."""
    passes: float
    """Gradients a step, in the mean over the run."""
    held_out: int
    """Images that a network is evaluated on."""
    evaluations: Passes | None
    """Those of the history and of the collectors, without the BN statistics of the predictor that is kept; None where a
    collector of the user's own says nothing of its own.
    """

    @property
    def flops(self) -> float:
        """Floating-point operations of all gradients; 0 where they are not known."""
        return OPERATIONS * self.macs * self.passes * self.epochs * self.images

    @property
    def evaluation_flops(self) -> float:
        """Floating-point operations of the evaluations, 0 where they are not known."""
        if self.evaluations is None:
            return 0.0
        images = self.evaluations.held_out * self.held_out + self.evaluations.training * self.images
        return 2.0 * self.macs * images


@dataclass(frozen=True)
class Price:
    """What a planned run costs, for the sum of a sweep."""

    flops: float
    time: Duration | None
    """None where it is not known."""
    evaluations: float | None
    """Hours of evaluations beside those of `time`; None where they are not known."""

    @classmethod
    def of(cls, cost: Cost, time: Duration | None) -> "Price":
        """The price of a run whose gradients take `time`: evaluations are taken to make as many operations a second."""
        if time is None or cost.evaluations is None or not cost.flops:
            return cls(cost.flops, time, None)
        return cls(cost.flops, time, time.hours * cost.evaluation_flops / cost.flops)


def price(recipe: Recipe) -> Cost:
    """What a run costs, without its data and without training. Raises InputError where a part of it cannot be made, or
    where the data set has too few images for it.
    """
    found = size(recipe.dataset)
    check_held_out(recipe.dataset.validation, found.train)
    images = found.train - recipe.dataset.validation
    check_batch_size(recipe.batch_size, images)
    model, operations = _measured(json.dumps(asdict(recipe.model)), found.classes)
    optimizer = base_optimizer(recipe, model.parameters())
    collectors = collectors_of(recipe.collect).values()
    points = [one.evaluation_points(recipe.budget) for one in collectors]
    epochs = max([recipe.budget, *(epoch for each in points for epoch in each.values())])
    step = instantiated("step", recipe.step, model, optimizer)
    course = Course.of(images=images, batch_size=recipe.batch_size, budget=recipe.budget, epochs=epochs)
    return Cost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=operations,
        epochs=epochs,
        steps=course.steps,
        images=images,
        gradient_evaluations=gradients(step, course),
        passes=gradients_a_step(step, course),
        held_out=found.test + recipe.dataset.validation,
        evaluations=_evaluations(collectors, model, recipe, epochs),
    )


def _evaluations(collectors: Iterable[Collector], model: nn.Module, recipe: Recipe, epochs: float) -> Passes | None:
    own = [one.passes(recipe.budget) if isinstance(one, CountedCollector) else None for one in collectors]
    counted = [one for one in own if one is not None]
    if len(counted) < len(own):
        return None
    rows = math.ceil(round(epochs / recipe.evaluate_every, 9))  # the last epoch is evaluated whatever its number
    return Passes(
        held_out=rows + sum(one.held_out for one in counted),
        training=sum(one.training for one in counted) if statistics(model) else 0,
    )


def share_of_first(recipe: Recipe, cost: Cost, epochs: int) -> float:
    """The share of a run's gradients that its first epochs take."""
    model, _ = _measured(json.dumps(asdict(recipe.model)), size(recipe.dataset).classes)
    step = instantiated("step", recipe.step, model, base_optimizer(recipe, model.parameters()))
    first = Course.of(images=cost.images, batch_size=recipe.batch_size, budget=recipe.budget, epochs=epochs)
    return counted(step, first) / cost.gradient_evaluations


@cache
def _measured(model: str, classes: int) -> tuple[nn.Module, int]:
    """The network of a ModelConfig in JSON, on the meta device, and its multiply-adds; made once, since most runs of a
    sweep share theirs with others.
    """
    with torch.device("meta"):
        made = network(ModelConfig(**json.loads(model)), classes)
    # BN multiplies nothing that is counted, and on the meta device it takes half of the pass.
    norms = [module for module in made.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        vars(norm)["forward"] = lambda images: images
    operations = macs(made)
    for norm in norms:
        del vars(norm)["forward"]
    return made, operations


def time_of(recipe: Recipe, cost: Cost, *, device: str) -> Duration | None:
    """How long the steps of a run take on the device that `device`, as in a config, is on this machine, where its rate
    is known; else on a GPU of the usual kind. Evaluations come on top. None where neither a rate nor the operations
    are known.
    """
    try:
        chosen = choose_device(device)
    except InputError:  # planned where there is no GPU, for a machine that has one
        place: dict[str, Any] = {}
    else:
        threads = torch.get_num_threads() if chosen.type == "cpu" else None
        place = {"device": device_name(chosen), "threads": threads}
    found = duration(
        recipe.record()["model"],
        images=cost.passes * cost.epochs * cost.images,
        flops=cost.flops,
        precision=recipe.precision,
        **place,
    )
    return found if cost.flops or found.is_measured else None
