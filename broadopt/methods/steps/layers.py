"""Which parameters a step perturbs."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from broadopt.errors import InputError

LAYERS = ("all", "normalisation")
NORMALISATION = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""BatchNorm and InstanceNorm are _NormBase."""


def parameters_of(model: nn.Module, layers: str) -> frozenset[Tensor] | None:
    """The parameters of these layers of a network; None for all. Raises InputError where there are none."""
    if layers == "all":
        return None
    found = frozenset(
        parameter
        for module in model.modules()
        if isinstance(module, NORMALISATION)
        for parameter in module.parameters(recurse=False)
        if parameter.requires_grad
    )
    if not found:
        raise InputError(f"step.layers={layers}: the network has no such layer with parameters; expected all")
    return found


@contextmanager
def only_these(chosen: Collection[Tensor] | None, *, among: Sequence[Tensor]) -> Iterator[None]:
    """Inside, a pass makes the gradients of the `chosen` parameters alone, the others being taken for constants; all
    where it is None.
    """
    # Autograd then leaves out the products that nobody reads: of each convolution that with the weights' gradient, and
    # everything below the first chosen layer.
    others = [] if chosen is None else [one for one in among if one.requires_grad and one not in chosen]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:  # also when a signal ends the pass
        for parameter in others:
            parameter.requires_grad_(True)
