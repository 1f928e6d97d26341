"""What holds of every network that draws noise in its forward pass."""

import torch
from torch import Tensor, nn


def assert_replayed_bit_for_bit(network: nn.Module) -> None:
    """The state of the generator ahead of a forward pass gives its logits and gradients again; the next differs."""
    images = torch.randn(5, 3, 32, 32)

    def run() -> list[Tensor]:
        logits = network(images)
        after_forward = torch.get_rng_state()
        gradients = torch.autograd.grad(logits.square().sum(), list(network.parameters()))
        assert torch.equal(torch.get_rng_state(), after_forward), "the backward pass draws nothing"
        return [logits, *gradients]

    state = torch.get_rng_state()
    first, other = run(), run()
    torch.set_rng_state(state)
    replayed = run()
    assert all(torch.equal(one, two) for one, two in zip(first, replayed, strict=True))
    assert not torch.equal(first[0], other[0])


def assert_each_pass_keeps_its_own(network: nn.Module) -> None:
    """Two forward passes before one backward pass give the sum of the gradients of two passes one after the other."""
    network = network.double()
    batches = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    parameters = list(network.parameters())
    torch.manual_seed(2)
    together = torch.autograd.grad(sum(network(batch).square().sum() for batch in batches), parameters)
    torch.manual_seed(2)
    apart = [torch.autograd.grad(network(batch).square().sum(), parameters) for batch in batches]
    for joint, first, second in zip(together, *apart, strict=True):
        torch.testing.assert_close(joint, first + second, rtol=1e-12, atol=1e-12)
