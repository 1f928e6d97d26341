"""pytorchcv's pre-activation networks with the shortcut that the papers' codes have."""

from pytorchcv.models.preresnet import PreResUnit
from torch import Tensor, nn


class RawShortcutUnit(PreResUnit):
    """pytorchcv's unit with the shortcut on the raw input, as homura and the SWA repository have it, not after BN and
    ReLU.
    """

    def forward(self, x: Tensor) -> Tensor:
        residual, _ = self.body(x)
        return residual + (self.identity_conv(x) if self.resize_identity else x)


def with_raw_shortcuts(network: nn.Module) -> nn.Module:
    """The same network, whose units are of that class."""
    for module in network.modules():
        if isinstance(module, PreResUnit):
            module.__class__ = RawShortcutUnit
    return network
