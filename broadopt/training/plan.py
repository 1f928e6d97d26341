"""plan=true: what a run would do and cost, worked out without data and without training."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from broadopt.config.instantiate import instantiated, without
from broadopt.data.datasets import size
from broadopt.methods.collect import Collector
from broadopt.models.build import network
from broadopt.training.schedule import Schedule

GRADIENT = 3
"""Forward passes that a gradient costs: the backward pass multiplies with the weights and with the activations."""


def macs(model: nn.Module) -> int:
    """Multiply-adds of one forward pass on one 32x32 image, convolutions and linear layers; `model` is on the meta
    device.
    """
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    model.train(training)
    return int(counter.get_total_flops()) // 2


def cost(
    values: Mapping[str, Any], model: nn.Module, collector: Collector, *, images: int, passes: int
) -> dict[str, float]:
    """Size and price of a run on `images` training images with `passes` gradients a step.

    parameters, macs (forward, one image), epochs, steps, gradient_evaluations (batches) and flops: two per
    multiply-add, a gradient counted as three forward passes; evaluations and BN re-estimation are left out.
    """
    budget = values["budget"]
    epochs = max([budget, *collector.evaluation_points(budget).values()])
    steps = round(epochs * -(-images // values["batch_size"]))
    forward = macs(model)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": forward,
        "epochs": epochs,
        "steps": steps,
        "gradient_evaluations": steps * passes,
        "flops": 2.0 * forward * GRADIENT * passes * epochs * images,
    }


def price(values: dict[str, Any]) -> dict[str, float]:
    """Size and cost of a run, as `cost` has them. Raises InputError where a part of it cannot be made."""
    classes, images = size(without(values["dataset"], "label_noise", "validation", "fingerprint"))
    with torch.device("meta"):
        model = network(values["model"], classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])
    collector = instantiated("collect", values["collect"])
    passes = instantiated("step", values["step"], model, optimizer).passes
    return cost(values, model, collector, images=images - values["dataset"]["validation"], passes=passes)


def line(values: Mapping[str, Any], price: Mapping[str, float]) -> str:
    """A run of a sweep in one line."""
    return (
        f"{values['dataset']['name']:9} {values['model']['name']:24} {values['method']:10} {values['protocol']:9} "
        f"seed {values['seed']:<3} {price['epochs']:g} epochs, {price['gradient_evaluations']:,} gradients, "
        f"{petaflops(price['flops'])}"
    )


def petaflops(flops: float) -> str:
    """`flops` in units of 10^15."""
    return f"{flops / 1e15:,.4g} PFLOPs"


def page(
    values: Mapping[str, Any],
    price: Mapping[str, float],
    schedule: Schedule,
    collector: Collector,
    origins: Mapping[str, str],
) -> str:
    """A run as one would check it against the paper; `origins` says of each value where it comes from."""
    budget = values["budget"]
    moments = collector.collection_points(budget)
    lines = [
        f"{values['method']} on {values['model']['name']}, {values['dataset']['name']}, protocol {values['protocol']}, "
        f"seed {values['seed']}",
        f"  network    {_call(values['model'])}: {price['parameters']:,} parameters, "
        f"{price['macs'] / 1e9:.4g} GMACs forward",
        f"  training   {price['epochs']:g} epochs, {price['steps']:,} steps of {values['batch_size']}",
        f"  cost       {price['gradient_evaluations']:,} gradient evaluations, {petaflops(price['flops'])}",
        f"  lr         {_milestones(schedule, moments, budget, price['epochs'])}",
        f"  step       {_call(values['step'])}",
    ]
    if moments:
        reads = ", ".join(f"{name} at epoch {epoch:g}" for name, epoch in collector.evaluation_points(budget).items())
        lines.append(f"  collect    {_call(values['collect'])}")
        lines.append(f"             {len(moments)} times, epochs {moments[0]:g} to {moments[-1]:g}; read-outs {reads}")
    lines.append(f"  images     {_call(values['augmentation'])}")
    width = max(map(len, origins))
    lines.append("  where the values come from")
    lines += [f"    {key:{width}}  {origin}" for key, origin in origins.items()]
    return "\n".join(lines)


def origins(
    unresolved: Mapping[str, Any], values: Mapping[str, Any], recipe: Mapping[str, Any], given: list[str]
) -> dict[str, str]:
    """Value and source, by key, of everything that the protocol decides or that the command line gives."""
    found = {}
    for key, value, node in _leaves(unresolved, values):
        if match := re.fullmatch(r"\$\{recipe:(\w+)\}", str(node)):
            found[key] = f"{value}  {recipe[match[1]][1]}"
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
    return ", ".join(f"{schedule(epoch):.4g} at epoch {epoch:g}" for epoch in epochs)


def _call(node: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in node.items() if key not in ("_target_", "name"))
    return f"{node['_target_'].rsplit('.', 1)[-1]}({arguments})"
