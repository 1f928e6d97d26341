"""The network that a finished run reports, in a file that holds no code: predictor.safetensors beside config.yaml."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import nn
from torchvision.transforms import Normalize

from broadopt.config.run_config import RunConfig
from broadopt.errors import InputError
from broadopt.files import replacing
from broadopt.models.build import network

NAME = "predictor.safetensors"


def save(folder: Path, model: nn.Module, *, classes: int, identity: str) -> None:
    """Write the weights and buffers of `model`, whole or not at all. Raises OSError (disk full, ...)."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / NAME) as file:
        file.write(safetensors.save(tensors, metadata={"classes": str(classes), "identity": identity}))


def load(folder: str | Path) -> nn.Module:
    """The network of a run folder, in evaluation mode on the CPU: float images [B, 3, H, W] from 0 to 1, which it
    normalises as in the training, to logits [B, classes].

    Raises InputError where the run has left none or its files cannot be read.
    """
    folder = Path(folder)
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
        with safe_open(folder / NAME, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            classes = int(file.metadata()["classes"])
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: expected config.yaml and {NAME}, which a run with checkpoint.predictor=true leaves"
        ) from error
    except (SafetensorError, OSError) as error:
        raise InputError(f"{folder / NAME}: {error}") from error
    recipe = RunConfig.of(values).recipe
    model = network(recipe.model, classes)
    model.load_state_dict(tensors)
    augmentation = recipe.augmentation
    return nn.Sequential(Normalize(augmentation["mean"], augmentation["std"]), model.to(torch.float32)).eval()
