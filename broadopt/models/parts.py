"""What several families share: their depth rule, the order of their blocks, their initialisation, their checks."""

from collections.abc import Iterator, Sequence

from torch import nn

from broadopt.errors import InputError, nearest


def require_positive(key: str, value: object) -> None:
    """Raise InputError unless `value`, given as `model.<key>`, is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"model.{key}={value}: expected an integer of at least 1")


def require_boolean(key: str, value: object) -> None:
    """Raise InputError unless `value`, given as `model.<key>`, is true or false: the word "no" would count as true."""
    if not isinstance(value, bool):
        raise InputError(f"model.{key}={value}: expected true or false")


def require_choice(key: str, value: str, valid: Sequence[str]) -> None:
    """Raise InputError unless `value`, given as `model.<key>`, is one of the names in `valid`."""
    if value not in valid:
        raise InputError(f"model.{key}={value}: expected one of {', '.join(valid)}{nearest(str(value), list(valid))}")


def blocks_per_stage(family: str, depth: int, *, layers_per_block: int, other_layers: int) -> int:
    """n, the number of blocks in each of three equal stages, from depth = 3 · layers_per_block · n + other_layers.

    What `other_layers` counts is the family's own custom: the stem and the linear layer, or (WRN) the stem and the
    three projections. Raises InputError where no n >= 1 gives this depth.
    """
    require_positive("depth", depth)
    period = 3 * layers_per_block
    blocks = (depth - other_layers) // period
    if blocks < 1 or period * blocks + other_layers != depth:
        closest = period * max(1, round((depth - other_layers) / period)) + other_layers
        raise InputError(
            f"model.depth={depth}: a {family} has depth {period}n + {other_layers} with n >= 1; nearest: {closest}"
        )
    return blocks


def residual_stages(in_channels: int, widths: Sequence[int], blocks: int) -> Iterator[tuple[int, int, int]]:
    """(in channels, out channels, stride) of every block: `blocks` blocks for each of `widths`, in order.

    The first block of a stage changes the width, and from the second stage on it also halves height and width.
    """
    for stage, width in enumerate(widths):
        for block in range(blocks):
            yield in_channels, width, 2 if stage > 0 and block == 0 else 1
            in_channels = width


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps height and width, or halves them at stride 2."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = False) -> nn.Conv2d:
    """A 1x1 convolution."""
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)


def initialise_fan_out(network: nn.Module) -> None:
    """Draw every convolution from N(0, 2 / (k² · out channels)) and zero its bias (He et al. 2015, backward form).

    That is torch's kaiming_normal_ in mode "fan_out", also for grouped convolutions. BN is (1, 0) and linear layers
    keep torch's default, as in the sources of all families that call this; what differs, a family sets after it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
