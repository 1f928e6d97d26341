"""The network that a finished run reports, in one file that holds no code: predictor.safetensors."""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from broadopt.config.identity import identity_of
from broadopt.config.own_code import refuse_foreign, say_what_has_changed
from broadopt.config.run_config import ModelConfig, Recipe, RunConfig
from broadopt.errors import InputError
from broadopt.files import MEBIBYTE, open_regular, parse_json, read_yaml, replacing
from broadopt.models.build import network
from broadopt.runs.checkpoint import UNREADABLE

NAME = "predictor.safetensors"

MOST_CLASSES = 100_000
"""Of a file that gives their number alone: any number could stand there."""


class Predictor(nn.Module):
    """float images [B, 3, 32, 32] from 0 to 1 -> logits [B, classes]; the images are normalised as in the training.

    classes: names of the classes, in the order of the logits. It can be exported (torch.export).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, *, mean: Sequence[float], std: Sequence[float], classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.model, self.classes = model, tuple(classes)
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        logits: Tensor = self.model((images - self.mean) / self.std)
        return logits


def save(folder: Path, model: nn.Module, *, recipe: Recipe, classes: Sequence[str]) -> None:
    """Write the weights and buffers of `model` with the recipe and the names of the classes, whole or not at all.

    Raises OSError (disk full, ...).
    """
    write(folder / NAME, model, metadata=described(recipe, classes))


def described(recipe: Recipe, classes: Sequence[str]) -> dict[str, str]:
    """What a file of weights says of them: enough to build the network and to know which run it is of."""
    return {
        "identity": recipe.identity,
        "recipe": json.dumps(recipe.record()),
        "classes": json.dumps(list(classes)),
        "image_size": "32",
        "mean": json.dumps(list(recipe.augmentation["mean"])),
        "std": json.dumps(list(recipe.augmentation["std"])),
    }


def write(path: Path, model: nn.Module, *, metadata: Mapping[str, str]) -> None:
    """Write the weights and buffers of `model`, whole or not at all. Raises OSError (disk full, ...)."""
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in model.state_dict().items():
        tensors[name] = tensor.detach().cpu().contiguous()
        # safetensors refuses storage that two names share, as those of tied weights do.
        if (place := tensors[name].untyped_storage().data_ptr()) in places:
            tensors[name] = tensors[name].clone()
        places.add(place)
    with replacing(path) as file:
        file.write(safetensors.save(tensors, metadata=dict(metadata)))


def not_writable(model: nn.Module) -> str | None:
    """The name of what the state of `model` has that is no tensor, as get_extra_state gives it: no file of weights can
    hold it.
    """
    return next((name for name, entry in model.state_dict().items() if not isinstance(entry, Tensor)), None)


def load(folder: str | Path, *, trust: str | Sequence[str] = ()) -> Predictor:
    """The predictor of a run folder, in evaluation mode on the CPU.

    Only networks of broadopt and torchvision are built; `trust` names the modules, beside these, that a network's code
    may come from. Raises InputError where the run has left none, its files cannot be read, or its network is foreign.
    """
    try:
        return read(Path(folder) / NAME, trust=trust)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected {NAME}, which a finished run leaves (not FGE or SWAG, which are not one network, nor "
            "with checkpoint.predictor=false)"
        ) from error


def read(path: Path, *, trust: str | Sequence[str] = ()) -> Predictor:
    """The predictor in a file of weights: what a run reports, or a snapshot. Raises InputError as `load` does, and
    FileNotFoundError.
    """
    trusted = [trust] if isinstance(trust, str) else list(trust)
    try:
        open_regular(path).close()  # safetensors would wait at a FIFO for ever
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            metadata = dict(file.metadata() or {})
        recipe, classes = _described(path, metadata)
        refuse_foreign(dict(recipe.model.target), trusted=trusted, place=path)
        say_what_has_changed(dict(recipe.model.target), recipe.code, identity=recipe.identity, place=path)
        if not trusted:
            # A file may name a network that fills all memory: its sizes are compared without any being taken, and it is
            # built no further than the file's tensors go. Code that is trusted may not build without values.
            with torch.device("meta"), _bounded(path, recipe.model, len(tensors)):
                network(recipe.model, len(classes)).load_state_dict(tensors, assign=True)
        model = network(recipe.model, len(classes))
        model.load_state_dict(tensors)
        return _predictor(model, recipe, classes)
    except FileNotFoundError:
        raise
    except (SafetensorError, *UNREADABLE) as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{path}: {why}") from error


@contextmanager
def _bounded(path: Path, config: ModelConfig, tensors: int) -> Iterator[None]:
    """Within it InputError is raised in this thread where a network has far more weights than a file has `tensors`;
    some networks replace a few while they are built.
    """
    most, thread = 2 * tensors + 1000, threading.get_ident()
    too_large = InputError(f"{path}: it has {tensors:,} tensors, and its network more than {most:,}")
    depth = config.target.get("depth")
    if isinstance(depth, int) and depth > most:  # of which lists are made before any layer
        raise too_large
    built = 0

    def count(*_: object) -> None:
        nonlocal built
        built += threading.get_ident() == thread
        if built > most:
            raise too_large

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _predictor(model: nn.Module, recipe: Recipe, classes: Sequence[str]) -> Predictor:
    mean, std = recipe.augmentation["mean"], recipe.augmentation["std"]
    return Predictor(model.to(torch.float32), mean=mean, std=std, classes=classes).eval()


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[Recipe, list[str]]:
    """The recipe and the classes' names, as the file itself records them; an older file leaves that to config.yaml."""
    if "recipe" not in metadata:
        values: Any = read_yaml(path.with_name("config.yaml"), limit=MEBIBYTE)
        count = int(metadata["classes"])
        if not 1 <= count <= MOST_CLASSES:
            raise ValueError(f"classes={count}: expected a number from 1 to {MOST_CLASSES:,}")
        return RunConfig.of(values).recipe, [str(number) for number in range(count)]
    record = parse_json(metadata["recipe"].encode())
    if identity_of(record) != metadata.get("identity"):
        raise ValueError("its identity is not that of its recipe")
    return Recipe.of_record(record), [str(name) for name in parse_json(metadata["classes"].encode())]
