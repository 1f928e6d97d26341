"""The optimizers below the steps. Each is a plain torch optimizer; steps and schedules work over any."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import get_object
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from broadopt.config.identity import importable
from broadopt.config.instantiate import instantiated
from broadopt.config.run_config import Recipe
from broadopt.errors import InputError

FLAT = ("lr", "momentum", "nesterov", "weight_decay")
"""Keys of a recipe that are handed to an optimizer which takes them."""


def base_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a recipe, over these parameters in one group; the schedule sets its lr ahead of each step.

    Raises InputError where it cannot be made or is no torch optimizer.
    """
    node, taken = recipe.optimizer, _arguments(recipe.optimizer.get("_target_"))
    if "lr" in node and "lr" in taken:  # one that names no lr may need it, although nothing comes of it
        raise InputError("optimizer.lr: the schedule sets the learning rate of each step; expected lr= in its place")
    made = instantiated("optimizer", node, list(parameters), **handed(recipe))
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"optimizer._target_={node['_target_']}: expected what makes a torch.optim.Optimizer")
    if recipe.clip is not None:
        bound_gradients(made, recipe.clip)
    return made


def handed(recipe: Recipe) -> dict[str, Any]:
    """The flat keys of a recipe that its optimizer is given: those that its signature names, unless its own node has
    them.
    """
    taken = _arguments(recipe.optimizer.get("_target_"))
    return {key: getattr(recipe, key) for key in FLAT if key in taken and key not in recipe.optimizer}


def unheeded(recipe: Recipe) -> list[str]:
    """Flat keys of a recipe, with values other than 0, that its optimizer has no argument for."""
    known = {*handed(recipe), *recipe.optimizer, "lr"}
    return [f"{key}={getattr(recipe, key)}" for key in FLAT if key not in known and getattr(recipe, key)]


def bound_gradients(optimizer: torch.optim.Optimizer, bound: float) -> None:
    """From now on g <- g min(1, bound / ||g||) ahead of each of its updates, ||g|| over all its groups together."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def clip(*_: object) -> None:
        # The norm stays on its device, and the gradients are multiplied also where the factor is 1.
        clip_grad_norm_(parameters, bound, foreach=True)

    optimizer.register_step_pre_hook(clip)


def is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its update is one kernel for all parameters, which takes the learning rate as a tensor too."""
    return all(bool(group.get("fused")) for group in optimizer.param_groups)


@contextmanager
def recordable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Within it updates may be recorded: torch refuses those of a group that is not `capturable`. A fused update is the
    same with it. Outside the groups are as they were, since torch warns of what is capturable and not recorded, and a
    checkpoint may be resumed on a CPU.
    """
    groups = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False


def _arguments(target: object) -> Sequence[str]:
    """The names of a target's arguments; none where it cannot be found, which `instantiated` says."""
    try:
        return list(inspect.signature(get_object(importable({"_target_": target})["_target_"])).parameters)
    except Exception:  # noqa: BLE001 - importing a user's module may raise anything
        return []


def sgd(
    parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.SGD:
    """v <- momentum v + d, d = g + weight_decay w; w <- w - lr v, with nesterov w - lr (d + momentum v)."""
    made = torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    if momentum:
        made.register_step_pre_hook(_begin_late)
    return made


def _begin_late(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """torch's fused update takes the momenta of all weights with gradients, or of none: one whose first gradient comes
    later than others' (a layer that stochastic depth has left out) begins at 0, by which its first update is the same.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if 0 < len(optimizer.state) < len(weights):
        for weight in weights:
            if weight.grad is not None and weight not in optimizer.state:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """w <- (1 - lr weight_decay) w - lr m / (sqrt(v) + eps), m and v the bias-corrected running means of g and g^2:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", Algorithm 2.

    Raises InputError where a momentum is given: m takes its place.
    """
    if momentum or nesterov:
        key = f"momentum={momentum:g}" if momentum else "nesterov=true"
        raise InputError(f"{key}: AdamW has optimizer.betas in its place; expected momentum=0 nesterov=false")
    return torch.optim.AdamW(
        parameters, lr=lr, weight_decay=weight_decay, betas=(betas[0], betas[1]), eps=eps, fused=True
    )


@torch.no_grad()
def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer keeps of each weight the weight's own order in memory. A loaded state has that of the run
    that has saved it (memory_format=), and torch's fused kernels walk through both without a look at their strides.
    """
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
