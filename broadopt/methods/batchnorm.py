"""BatchNorm's running statistics: kept through a pass, or computed anew for weights that no training step ever had."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from broadopt.devices.modes import mode
from broadopt.devices.processes import ALONE, Processes


def _tracking(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


def statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of a network, the tensors themselves."""
    return _statistics(_tracking(model))


def _statistics(layers: Iterable[_BatchNorm]) -> list[Tensor]:
    both = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
    return [tensor for tensor in both if tensor is not None]


@contextmanager
def keep_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, passes in training mode normalise by their batch as ever; the running statistics are afterwards what they
    were.
    """
    # Copied and put back, since a momentum of 0 would still count the batch and has no meaning where momentum is None.
    buffers = [buffer for layer in _tracking(model) for buffer in layer.buffers(recurse=False)]
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, saved, strict=True):
                buffer.copy_(before)


@torch.no_grad()
def reestimate(
    model: nn.Module,
    batches: Iterable[Tensor],
    processes: Processes = ALONE,
    *,
    autocast: AbstractContextManager[object] | None = None,
) -> None:
    """Replace the running statistics by means over one pass of training batches (float [B, 3, H, W]), in place.

    Batches are weighted by their size: after n images the momentum of the next b is b / (n + b), so the running
    variance is the mean of the batches' unbiased variances (SWA code, utils.py:107-135). Dropout stays active, as in
    training. Several processes each take every `count`-th batch, and the mean over all. No-op for a network without BN.
    Of a network in training mode, layers that it keeps in evaluation mode are left alone, as its training leaves them.
    `autocast` is the context of each forward pass, and not of what makes the batches.
    """
    layers = [layer for layer in _tracking(model) if layer.training or not model.training]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
    seen = 0
    try:
        with nullcontext() if model.training else mode(model, training=True):
            for images in processes.dealt(batches):
                seen += len(images)  # before the momenta: the first batch has b / b = 1 and replaces what was reset
                for layer in layers:
                    layer.momentum = len(images) / seen
                with nullcontext() if autocast is None else autocast:
                    model(images)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    processes.average(_statistics(layers), weight=seen)
