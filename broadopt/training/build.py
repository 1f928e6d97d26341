"""The parts of a run, made from its checked config; nothing else makes them."""

from typing import Any

import torch

from broadopt.config.instantiate import instantiated
from broadopt.data.batches import Data
from broadopt.data.datasets import Dataset
from broadopt.devices.device import choose_memory_format
from broadopt.devices.processes import ALONE, Processes
from broadopt.errors import InputError
from broadopt.models.build import network
from broadopt.seeds import derive
from broadopt.training.loop import Parts


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
