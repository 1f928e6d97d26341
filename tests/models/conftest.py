"""What the network tests share: an exact comparison of a network with a second, independent implementation."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A second implementation is a function of (parameters and buffers in the network's order, images, training?) -> logits.
Function = Callable[[list[Tensor], Tensor, bool], Tensor]
RELATIVE_TOLERANCE = 1e-10  # float64; the order of summation is the only permitted difference


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def assert_same_network() -> Callable[..., None]:
    """Compare logits, all gradients and all BN statistics of two implementations, in training and in evaluation."""
    return _assert_same_network


def _assert_same_network(
    network: nn.Module, reference: Function | nn.Module, *, batch: int = 3, size: int = 32, zero_gradient: str = ""
) -> None:
    """`zero_gradient` ends the names of the parameters whose gradient vanishes in training (biases before a BN)."""
    generator = torch.Generator().manual_seed(3)
    _scatter(network.double(), generator)
    state = [value.detach().clone() for value in network.state_dict().values()]
    parameters = dict(network.named_parameters())
    trainable = [name in parameters for name in network.state_dict()]
    images = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(parameters[list(parameters)[-1]].numel(), (batch,), generator=generator)
    function = _as_function(reference) if isinstance(reference, nn.Module) else reference

    for training in (True, False):
        for value, requires_grad in zip(state, trainable, strict=True):
            value.requires_grad_(requires_grad)
        torch.manual_seed(5)
        logits = network.train(training)(images)
        torch.manual_seed(5)
        expected = function(state, images, training)
        gradients = torch.autograd.grad(F.cross_entropy(logits, labels), list(parameters.values()))
        leaves = [value for value, requires_grad in zip(state, trainable, strict=True) if requires_grad]
        expected_gradients = torch.autograd.grad(F.cross_entropy(expected, labels), leaves)
        _assert_close(logits, expected, f"logits, training={training}")
        for name, ours, theirs in zip(parameters, gradients, expected_gradients, strict=True):
            vanishes = training and bool(zero_gradient) and name.endswith(zero_gradient)
            assert vanishes or theirs.abs().max() > 0, name
            _assert_close(ours, theirs, f"gradient of {name}, training={training}")
        for (name, ours), theirs in zip(network.state_dict().items(), state, strict=True):
            _assert_close(ours, theirs, f"{name} after training={training}")


def _scatter(network: nn.Module, generator: torch.Generator) -> None:
    """Give BN and biases values of their own: at their initial 1 and 0 many a mistake does not show."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                tensor.data = low + torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
            module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator, dtype=torch.float64)
        elif getattr(module, "bias", None) is not None:
            module.bias.data = 0.1 * torch.randn(module.bias.shape, generator=generator, dtype=torch.float64)


def _as_function(reference: nn.Module) -> Function:
    """A module of the same tensors in the same order, as a function of them."""
    expected = reference.double().state_dict()

    def call(state: list[Tensor], images: Tensor, training: bool) -> Tensor:
        tensors = dict(zip(expected, state, strict=True))
        assert {name: tensor.shape for name, tensor in tensors.items()} == {k: v.shape for k, v in expected.items()}
        return torch.func.functional_call(reference.train(training), tensors, (images,))

    return call


def _assert_close(ours: Tensor, theirs: Tensor, what: str) -> None:
    assert ours.shape == theirs.shape, what
    scale = max(1.0, theirs.detach().abs().max().item())
    assert (ours.detach() - theirs.detach()).abs().max().item() <= RELATIVE_TOLERANCE * scale, what
