"""plan=true: what a run would do and cost, worked out without data and without training."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from broadopt.config.identity import AS_WITHOUT
from broadopt.config.instantiate import collectors_of, instantiated
from broadopt.config.run_config import ModelConfig, Recipe
from broadopt.data.batches import check_batch_size, check_held_out
from broadopt.data.datasets import size
from broadopt.devices.device import choose_device, device_name
from broadopt.devices.rates import Duration, duration, shown, total
from broadopt.errors import InputError
from broadopt.methods.batchnorm import statistics
from broadopt.methods.collect import Collector, CountedCollector, EverySteps, Passes
from broadopt.methods.schedule import Schedule, learning_rate
from broadopt.methods.steps.occasions import Course, counted, gradients, gradients_a_step
from broadopt.methods.steps.optimizers import base_optimizer
from broadopt.models.build import macs, network

GRADIENT = 3
"""Forward passes that a gradient costs: the backward pass multiplies with the weights and with the activations."""


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
        """Floating-point operations of all gradients: two per multiply-add, a gradient counted as three passes; 0 where
        they are not known.
        """
        return 2.0 * self.macs * GRADIENT * self.passes * self.epochs * self.images

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


def line(recipe: Recipe, cost: Cost, time: Duration | None) -> str:
    """A run of a sweep in one line."""
    words = [time.brief] if time is not None else []
    return (
        f"{recipe.dataset.name:9} {recipe.model.name:24} {recipe.method:10} {recipe.protocol:9} "
        f"seed {recipe.seed:<3} {cost.epochs:g} epochs, {_count(cost.gradient_evaluations)} gradients, "
        f"{', '.join([*words, petaflops(cost.flops)])}"
    )


def _count(gradients: float) -> str:
    return f"{gradients:,.6f}".rstrip("0").rstrip(".")


UNCOUNTED = "operations could not be counted"
"""Of a network that multiplies in other ways than by convolutions and matrices."""


def petaflops(flops: float) -> str:
    """`flops` in units of 10^15."""
    return f"{flops / 1e15:,.4g} PFLOPs" if flops else UNCOUNTED


def summary(prices: Sequence[Price]) -> str:
    """A planned sweep in one line."""
    times = [price.time for price in prices if price.time is not None]
    words = [total(times) if times else "hours unknown"]
    words += [on_top([price.evaluations for price in prices]), petaflops(sum(price.flops for price in prices))]
    uncounted = sum(not price.flops for price in prices)
    words += [f"{UNCOUNTED} of {uncounted} of them"] if 0 < uncounted < len(prices) else []
    return f"{len(prices)} runs, {', '.join(words)}"


def on_top(hours: Sequence[float | None]) -> str:
    """What evaluations take beside the steps, in words."""
    known = [one for one in hours if one is not None]
    if len(known) < len(hours):
        return "evaluations come on top"
    return f"evaluations about {shown(sum(known))} h more"


def page(
    recipe: Recipe,
    cost: Cost,
    time: Duration | None,
    *,
    schedule: Schedule,
    origins: Mapping[str, str],
) -> str:
    """A run as one would check it against the paper; `origins` says of each value where it comes from."""
    collectors = collectors_of(recipe.collect)
    listed = collectors[""].collection_points(recipe.budget)
    moments = [listed.start] if isinstance(listed, EverySteps) else listed
    lines = [
        f"{recipe.method} on {recipe.model.name}, {recipe.dataset.name}, protocol {recipe.protocol}, "
        f"seed {recipe.seed}",
        f"  network    {_call(recipe.model.target)}: {cost.parameters:,} parameters, "
        + (f"{cost.macs / 1e9:.4g} GMACs forward" if cost.macs else UNCOUNTED),
        f"  training   {cost.epochs:g} epochs, {cost.steps:,} steps of {recipe.batch_size}",
        f"  cost       {_count(cost.gradient_evaluations)} gradient evaluations" + _operations(cost.flops),
        *_evaluating(cost),
        f"  time       {time or 'unknown'}; {on_top([Price.of(cost, time).evaluations])}",
        f"  lr         {_milestones(schedule, moments, recipe.budget, cost.epochs)}",
        f"  step       {_call(recipe.step)}",
    ]
    if recipe.clip is not None:
        lines.append(f"  clip       norm of the gradient at most {recipe.clip:g}")
    if recipe.optimizer != AS_WITHOUT["optimizer"]:
        lines.append(f"  optimizer  {_call(recipe.optimizer)}, weight_decay {recipe.weight_decay:g}")
    for name, collector in collectors.items():
        node = recipe.collect["also"][name] if name else recipe.collect
        lines += _collecting(name, node, collector, recipe.budget)
    lines.append(f"  images     {_call(recipe.augmentation)}")
    width = max(map(len, origins))
    lines.append("  where the values come from")
    lines += [f"    {key:{width}}  {origin}" for key, origin in origins.items()]
    return "\n".join(lines)


def _evaluating(cost: Cost) -> list[str]:
    """What is evaluated, and what that takes."""
    if cost.evaluations is None:
        return []
    passes = [f"{cost.evaluations.held_out:,} passes over {cost.held_out:,} held-out images"]
    if cost.evaluations.training:
        passes.append(f"{cost.evaluations.training:,} over {cost.images:,} training images for BN statistics")
    return [f"  evaluation {', '.join(passes)}{_operations(cost.evaluation_flops)}"]


def _operations(flops: float) -> str:
    return f", {petaflops(flops)}" if flops else ""


def _collecting(name: str, node: Mapping[str, Any], collector: Collector, budget: float) -> list[str]:
    """What a collector is, when it collects, and when it is evaluated; nothing where it never collects."""
    moments = collector.collection_points(budget)
    if not moments:
        return []
    if isinstance(moments, EverySteps):
        which = f"every {moments.steps} steps" if moments.steps > 1 else "every step"
        when = f"after {which}, epochs {moments.start:g} to {moments.end:g}"
    else:
        when = f"{len(moments)} times, epochs {moments[0]:g} to {moments[-1]:g}"
    points = collector.evaluation_points(budget).items()
    reads = ", ".join(f"{spent} at epoch {epoch:g}" for spent, epoch in points)
    title = f"also {name}" if name else "collect"
    return [f"  {title:10} {_call(node)}", f"             {when}; evaluation points {reads}"]


def origins(
    unresolved: Mapping[str, Any], values: Mapping[str, Any], *, protocol: Mapping[str, Any], given: list[str]
) -> dict[str, str]:
    """Value and source, by key, of everything that the protocol decides or that the command line gives."""
    found = {}
    for key, value, node in _leaves(unresolved, values):
        if match := re.fullmatch(r"\$\{recipe:(\w+)\}", str(node)):
            found[key] = f"{value}  {protocol[match[1]][1]}"
        elif key != "plan" and any(override.lstrip("+").split("=")[0] == key for override in given):
            found[key] = f"{value}  command line"
    return found


def _leaves(nodes: Mapping[str, Any], values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key, node in nodes.items():
        if key not in values:
            continue
        if isinstance(node, Mapping) and isinstance(values[key], Mapping):
            yield from _leaves(node, values[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", values[key], node


def _milestones(schedule: Schedule, moments: list[float], budget: float, end: float) -> str:
    marks = {0.0, *(round(share * budget, 6) for share in (0.25, 0.5, 0.7, 0.9, 1.0)), *moments[:1]}
    last = end - 1 if end > 1 else 0.0
    epochs = [epoch for epoch in sorted(marks) if epoch < last] + [last]
    return ", ".join(f"{learning_rate(schedule, epoch):.4g} at epoch {epoch:g}" for epoch in epochs)


def _call(node: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if key not in ("_target_", "name", "also"))
    return f"{node['_target_'].rsplit('.', 1)[-1]}({arguments})"
