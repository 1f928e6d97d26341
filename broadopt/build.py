"""The parts of a run, made from its checked config; nothing else makes them."""

from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import nn

from broadopt import plan
from broadopt.data import Data
from broadopt.datasets import Dataset, size
from broadopt.device import choose_memory_format
from broadopt.distributed import ALONE, Processes
from broadopt.errors import InputError
from broadopt.messages import instantiation_error
from broadopt.seeds import derive
from broadopt.train import Parts


def instantiated(group: str, node: dict[str, Any], *arguments: Any, **options: Any) -> Any:
    """What a config node with a `_target_` makes. Raises InputError, in one line, where it cannot be made."""
    if not isinstance(node.get("_target_"), str):
        raise InputError(f"{group}: expected a _target_, the dotted name of what is to be called, among its keys")
    try:
        return instantiate(node, *arguments, _convert_="all", **options)
    except InstantiationException as error:
        raise instantiation_error(error, group, node) from error


def network(node: dict[str, Any], num_classes: int) -> nn.Module:
    """The network of a config's `model` node. Raises InputError."""
    made = instantiated("model", without(node, "name"), num_classes=num_classes)
    if not isinstance(made, nn.Module):
        raise InputError(f"model._target_={node['_target_']}: expected a torch.nn.Module, found {type(made).__name__}")
    return made


def build(
    values: dict[str, Any],
    precision: str,
    dataset: Dataset,
    device: torch.device,
    processes: Processes = ALONE,
) -> Parts:
    """Every part of a run from its checked config, for one of its `processes`. The network's initial weights depend on
    the seed alone. Raises InputError.
    """
    memory_format = choose_memory_format(values["memory_format"], values["model"]["name"], device)
    data = Data(
        dataset,
        batch_size=values["batch_size"],
        augmentation=instantiated("augmentation", values["augmentation"]),
        seed=values["seed"],
        device=device,
        validation=values["dataset"]["validation"],
        label_noise=values["dataset"]["label_noise"],
        channels_last=memory_format == torch.channels_last,
    )
    torch.manual_seed(derive(values["seed"], "weights"))
    model = network(values["model"], data.num_classes)
    model = model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    if values["compile"] or values["cuda_graphs"]:
        model.compile(dynamic=False, mode="reduce-overhead" if values["cuda_graphs"] else "default")
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=values["lr"],
        momentum=values["momentum"],
        nesterov=values["nesterov"],
        weight_decay=values["weight_decay"],
        fused=True,
    )
    return Parts(
        model=model,
        step=instantiated("step", values["step"], model, optimizer),
        collector=instantiated("collect", values["collect"]),
        schedule=instantiated("schedule", values["schedule"]),
        data=data,
        seed=values["seed"],
        budget=values["budget"],
        label_smoothing=values["label_smoothing"],
        evaluate_every=values["evaluate_every"],
        precision=precision,
        device=device,
        processes=shared(processes, values, data),
        settings={
            **({"processes": processes.count} if processes.count > 1 else {}),
            "precision": precision,
            "memory_format": "channels_last" if memory_format == torch.channels_last else "contiguous",
            **{key: values[key] for key in ("compile", "cuda_graphs", "deterministic")},
        },
    )


def shared(processes: Processes, values: dict[str, Any], data: Data) -> Processes:
    """`processes`, where each has an image of every batch and takes part in every step; else raises InputError."""
    smallest = min(values["batch_size"], data.train_size % values["batch_size"] or values["batch_size"])
    if smallest < processes.count:
        raise InputError(
            f"batch_size={values['batch_size']}: the last batch of an epoch has {smallest} images for "
            f"{processes.count} processes; expected one each at least"
        )
    if processes.count > 1 and values["step"].get("chunk") is not None:
        raise InputError(
            f"step.chunk={values['step']['chunk']}: chunks are those of one device; with {processes.count} processes "
            "expected null (step.perturbation=share perturbs by each process's share)"
        )
    return processes


def without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    """`node` less the keys that are not its target's arguments."""
    return {key: value for key, value in node.items() if key not in keys}


def price(values: dict[str, Any]) -> dict[str, float]:
    """Size and cost of a run, as broadopt.plan.cost has them. Raises InputError where a part of it cannot be made."""
    classes, images = size(without(values["dataset"], "label_noise", "validation", "fingerprint"))
    with torch.device("meta"):
        model = network(values["model"], classes)
        optimizer = torch.optim.SGD(model.parameters(), lr=values["lr"])
    collector = instantiated("collect", values["collect"])
    passes = instantiated("step", values["step"], model, optimizer).passes
    return plan.cost(values, model, collector, images=images - values["dataset"]["validation"], passes=passes)
