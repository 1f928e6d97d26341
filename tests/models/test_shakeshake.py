"""Shake-Shake.

The oracles: a second implementation over a flat list of tensors, pytorchcv's shortcut, and the distributions of what is
drawn.
"""

from functools import partial

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from noise import assert_each_pass_keeps_its_own, assert_replayed_bit_for_bit
from pytorchcv.models.shakeshakeresnet_cifar import ShakeShakeShortcut

from broadopt.errors import InputError
from broadopt.models.shakeshake import ShakeShake, ShakeShakeBlock, TwoPathShortcut, shake_shake

IMAGES = 20_000


def second_implementation(state, images, training, first_width):
    """Shake-Shake-14 over a flat list of tensors; the two mixtures are joined by a detached difference."""
    tensors = iter(state)

    def normalise(x):
        scale, shift, mean, variance, batches = (next(tensors) for _ in range(5))
        batches += training
        return F.batch_norm(x, mean, variance, scale, shift, training)

    def branch(x, stride):
        y = F.relu(normalise(F.conv2d(F.relu(x), next(tensors), stride=stride, padding=1)))
        return normalise(F.conv2d(y, next(tensors), padding=1))

    def shortcut(x, stride):
        shifted = torch.zeros_like(x)
        shifted[:, :, 1:, 1:] = F.relu(x)[:, :, :-1, :-1]
        left = F.conv2d(F.relu(x)[:, :, ::stride, ::stride], next(tensors))
        return normalise(torch.cat([left, F.conv2d(shifted[:, :, ::stride, ::stride], next(tensors))], 1))

    def mix(a, b):
        if not training:
            return 0.5 * a + 0.5 * b
        alpha, beta = torch.rand(2, len(a), 1, 1, 1).double()
        forward, backward = alpha * a + (1 - alpha) * b, beta * a + (1 - beta) * b
        return backward + (forward - backward).detach()

    x = normalise(F.conv2d(images, next(tensors), padding=1))
    for stage, width in enumerate((first_width, 2 * first_width, 4 * first_width)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            mixture = mix(branch(x, stride), branch(x, stride))
            x = mixture + (x if x.shape[1] == width else shortcut(x, stride))
    return F.linear(F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1), next(tensors), next(tensors))


@pytest.mark.parametrize("width", [8, 16])  # at 16 the first block has no projection and shows what the stem ends in
def test_shake_shake_equals_a_second_implementation(assert_same_network, width):
    network = ShakeShake(num_classes=10, depth=14, width=width)
    assert_same_network(network, partial(second_implementation, first_width=width))


def test_the_two_path_shortcut_equals_pytorchcvs():
    ours, theirs = TwoPathShortcut(4, 10, 2).double(), ShakeShakeShortcut(4, 10, 2).double()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-12, atol=1e-12)


def measured_coefficients() -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward coefficient of the first branch for each image, seen from outside the function."""
    torch.manual_seed(11)
    a = torch.ones(IMAGES, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    b = torch.zeros_like(a, requires_grad=True)
    mixture = shake_shake(a, b)
    mixture.sum().backward()
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a), rtol=0, atol=1e-15)
    for values in (mixture.detach(), a.grad):
        assert torch.equal(values, values[:, :1, :1, :1].expand_as(values)), "one coefficient for a whole image"
    return mixture.detach()[:, 0, 0, 0], a.grad[:, 0, 0, 0]


def test_both_coefficients_are_uniform_and_independent_of_each_other_and_across_images():
    alpha, beta = measured_coefficients()
    for coefficient in (alpha, beta):
        assert scipy.stats.kstest(coefficient.numpy(), "uniform").pvalue > 1e-3
        assert abs(coefficient.mean().item() - 1 / 2) < 4 * (1 / 12 / IMAGES) ** 0.5
        assert abs(torch.corrcoef(torch.stack([coefficient[1:], coefficient[:-1]]))[0, 1].item()) < 4 / IMAGES**0.5
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1].item()) < 4 / IMAGES**0.5
    assert abs(torch.corrcoef(torch.stack([(alpha - 0.5) ** 2, (beta - 0.5) ** 2]))[0, 1].item()) < 4 / IMAGES**0.5


def constant_block() -> ShakeShakeBlock:
    """A block whose first branch is 1 and whose second is 0, whatever comes in."""
    block = ShakeShakeBlock(4, 4, 1)
    for branch, value in ((block.branch1, 1.0), (block.branch2, 0.0)):
        torch.nn.init.zeros_(branch.bn2.weight)
        torch.nn.init.constant_(branch.bn2.bias, value)
    return block


def test_a_block_adds_its_mixture_to_its_input_and_in_evaluation_the_mean_of_the_branches():
    block = constant_block()
    x = torch.randn(IMAGES, 4, 2, 2)
    torch.manual_seed(11)
    alpha = (block(x) - x).detach()
    assert (alpha - alpha[:, :1, :1, :1]).abs().max() < 1e-6
    assert scipy.stats.kstest(alpha[:, 0, 0, 0].numpy(), "uniform").pvalue > 1e-3
    torch.testing.assert_close(block.eval()(x), x + 0.5)


def test_the_generators_state_replays_outputs_and_gradients_bit_for_bit():
    assert_replayed_bit_for_bit(ShakeShake(num_classes=10, depth=8, width=8))


def test_two_forward_passes_before_one_backward_keep_their_own_noise():
    assert_each_pass_keeps_its_own(ShakeShake(num_classes=10, depth=8, width=8))


def test_functional_gradients_are_those_of_the_backward_pass():
    network, images = ShakeShake(num_classes=10, depth=8, width=8).double(), torch.randn(2, 3, 32, 32).double()
    parameters, buffers = dict(network.named_parameters()), dict(network.named_buffers())

    def loss(parameters, buffers):
        return torch.func.functional_call(network, (parameters, buffers), (images,)).square().sum()

    torch.manual_seed(4)
    functional = torch.func.grad(loss)(parameters, buffers)
    torch.manual_seed(4)
    loss(parameters, buffers).backward()
    for name, parameter in parameters.items():
        torch.testing.assert_close(functional[name], parameter.grad, rtol=1e-12, atol=1e-12)


def test_one_seed_gives_the_same_coefficients_in_every_precision():
    coefficients = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(8)
        coefficients.append(shake_shake(torch.ones(100, 1, 1, 1, dtype=dtype), torch.zeros(100, 1, 1, 1, dtype=dtype)))
    assert [values.dtype for values in coefficients] == [torch.float64, torch.float32, torch.bfloat16]
    assert torch.equal(coefficients[0].float(), coefficients[1])
    assert torch.equal(coefficients[0].bfloat16(), coefficients[2])


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"^model\.depth=27: a Shake-Shake ResNet has depth 6n \+ 2 .* nearest: 26$"):
        ShakeShake(num_classes=10, depth=27, width=64)
    with pytest.raises(InputError, match=r"^model\.width=0: expected an integer of at least 1$"):
        ShakeShake(num_classes=10, depth=26, width=0)
    with pytest.raises(InputError, match=r"^model\.width=33: .*; expected an even number$"):
        ShakeShake(num_classes=10, depth=26, width=33)
