"""The plan of a run in words: a line, or the page that one would check against the paper; the sum of a sweep."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from broadopt.config.identity import AS_WITHOUT
from broadopt.config.instantiate import collectors_of
from broadopt.config.run_config import Recipe
from broadopt.devices.rates import BATCH, Duration, shown, together, total
from broadopt.methods.collect import Collector, EverySteps
from broadopt.methods.schedule import Schedule, learning_rate
from broadopt.methods.steps.optimizers import handed, unheeded
from broadopt.training.planning.price import Cost, Price

UNCOUNTED = "operations could not be counted"
"""Of a network that multiplies in other ways than by convolutions and matrices."""


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


def petaflops(flops: float) -> str:
    """`flops` in units of 10^15."""
    return f"{flops / 1e15:,.4g} PFLOPs" if flops else UNCOUNTED


def summary(prices: Sequence[Price]) -> str:
    """A planned sweep in one line."""
    times = [price.time for price in prices if price.time is not None]
    words = [total(times) if times else "hours unknown"]
    words += [on_top(prices), petaflops(sum(price.flops for price in prices))]
    uncounted = sum(not price.flops for price in prices)
    words += [f"{UNCOUNTED} of {uncounted} of them"] if 0 < uncounted < len(prices) else []
    return f"{len(prices)} runs, {', '.join(words)}"


def on_top(prices: Sequence[Price]) -> str:
    """What evaluations take beside the steps, in words, apart by kind of device."""
    hours: dict[str, float] = {}
    for price in prices:
        if price.time is None or price.evaluations is None:
            return "evaluations come on top"
        hours[price.time.kind] = hours.get(price.time.kind, 0.0) + price.evaluations
    several = len(hours) > 1
    parts = (f"about {shown(sum_)} h more" + f" on {kind}" * several for kind, sum_ in hours.items())
    return f"evaluations {together(parts)}"


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
        f"  time       {time or 'unknown'}{_other_batch(recipe, time)}; {on_top([Price.of(cost, time)])}",
        f"  lr         {_milestones(schedule, moments, recipe.budget, cost.epochs)}",
        f"  step       {_call(recipe.step)}",
    ]
    if recipe.clip is not None:
        lines.append(f"  clip       norm of the gradient at most {recipe.clip:g}")
    if recipe.optimizer != AS_WITHOUT["optimizer"]:
        decay = f", weight_decay {recipe.weight_decay:g}" if "weight_decay" in handed(recipe) else ""
        unused = f"; it takes no {', '.join(unheeded(recipe))}" if unheeded(recipe) else ""
        lines.append(f"  optimizer  {_call(recipe.optimizer)}{decay}{unused}")
    for name, collector in collectors.items():
        node = recipe.collect["also"][name] if name else recipe.collect
        lines += _collecting(name, node, collector, recipe.budget)
    lines.append(f"  images     {_call(recipe.augmentation)}")
    width = max(map(len, origins))
    lines.append("  where the values come from")
    lines += [f"    {key:{width}}  {origin}" for key, origin in origins.items()]
    return "\n".join(lines)


def _other_batch(recipe: Recipe, time: Duration | None) -> str:
    """That a measured rate is of batches of another size."""
    return f", of batches of {BATCH}" if time and time.is_measured and recipe.batch_size != BATCH else ""


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
