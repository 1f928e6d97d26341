"""PyramidNet, and ShakeDrop in it.

The oracles: pytorchcv's network and widths, equation 6 of the ShakeDrop paper put into its units, and the
distributions of what is drawn.
"""

import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from noise import assert_each_pass_keeps_its_own, assert_replayed_bit_for_bit
from pytorchcv.models.pyramidnet import PyrUnit
from pytorchcv.models.pyramidnet_cifar import CIFARPyramidNet, pyramidnet272_a200_bn_cifar100

from broadopt.errors import InputError
from broadopt.models.pyramidnet import PyramidNet, ShakeDrop

OPTIONS = {"num_classes": 10, "depth": 20, "alpha": 20, "rounding": "round", "shakedrop": False}


def pytorchcvs(unit: type[PyrUnit] = PyrUnit) -> CIFARPyramidNet:
    """PyramidNet-20, alpha 20: six blocks of middle widths round(16 + k · 20 / 6)."""
    middles = [19, 23, 26, 29, 33, 36]
    widths = [[4 * middles[2 * stage], 4 * middles[2 * stage + 1]] for stage in range(3)]
    reference = CIFARPyramidNet(widths, init_block_channels=16, bottleneck=True, num_classes=10)
    units = [module for module in reference.modules() if isinstance(module, PyrUnit)]
    for index, module in enumerate(units):
        module.__class__ = unit
        module.keep_probability = 1 - (index + 1) / len(units) * 0.5
    return reference


class ShakeDropUnit(PyrUnit):
    """pytorchcv's unit with equation 6 of the ShakeDrop paper: forward and backward joined by a detached difference."""

    gates_per_image = False

    def forward(self, x):
        y = self.bn(self.body(x))
        identity = self.identity_pool(x) if self.resize_identity else x
        identity = torch.cat([identity, identity.new_zeros(len(x), y.shape[1] - x.shape[1], *y.shape[2:])], 1)
        if not self.training:
            return identity + self.keep_probability * y
        draws = torch.rand(len(x) if self.gates_per_image else 1, 1, 1, 1).double()
        b = (draws < self.keep_probability).double()
        alpha, beta = (torch.rand(2, len(x), 1, 1, 1) * torch.tensor([2, 1]).view(2, 1, 1, 1, 1)).double()
        forward, backward = (b + (alpha - 1) - b * (alpha - 1)) * y, (b + beta - b * beta) * y
        return identity + backward + (forward - backward).detach()


class ShakeDropUnitPerImage(ShakeDropUnit):
    gates_per_image = True


def test_pyramidnet_equals_pytorchcvs(assert_same_network):
    assert_same_network(PyramidNet(**OPTIONS), pytorchcvs())


@pytest.mark.parametrize(("gate", "unit"), [("batch", ShakeDropUnit), ("image", ShakeDropUnitPerImage)])
def test_pyramidnet_with_shakedrop_equals_pytorchcvs_with_equation_6(assert_same_network, gate, unit):
    assert_same_network(PyramidNet(**OPTIONS | {"shakedrop": True}, gate=gate), pytorchcvs(unit), batch=6)


def test_all_widths_of_pyramidnet_272_are_pytorchcvs():
    with torch.device("meta"):
        ours = PyramidNet(num_classes=100, depth=272, alpha=200, rounding="round", shakedrop=False)
        theirs = pyramidnet272_a200_bn_cifar100()
    shapes = [parameter.shape for parameter in ours.parameters()]
    assert shapes == [parameter.shape for parameter in theirs.parameters()]


def test_floor_cuts_every_fraction_of_a_channel_off_and_keeps_whole_numbers():
    with torch.device("meta"):
        network = PyramidNet(num_classes=100, depth=272, alpha=200, rounding="floor", shakedrop=False)
    middles = [block.conv2.out_channels for block in network.blocks]
    assert middles[:9] == [18, 20, 22, 24, 27, 29, 31, 33, 36]  # 16 + k · 20 / 9
    assert [middles[k - 1] for k in (9, 18, 27, 36, 45, 54, 63, 72, 81, 90)] == [16 + 20 * k for k in range(1, 11)]


def measured_factors(gate: str, keep: float, *, batches: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward and backward factor for each batch and image, [batches, images], seen from outside the module."""
    torch.manual_seed(17)
    module = ShakeDrop(keep_probability=keep, gate=gate)
    x = torch.ones(batches, images, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.stack([module(batch) for batch in x])
    y.sum().backward()
    for values in (y.detach(), x.grad):
        assert torch.equal(values, values[..., :1, :1, :1].expand_as(values)), "one factor for a whole image"
    return y.detach()[..., 0, 0, 0], x.grad[..., 0, 0, 0]


def assert_noise_of_equation_6(forward: torch.Tensor, backward: torch.Tensor) -> None:
    """Where the gate drops: U(-1, 1) forward, U(0, 1) backward, not correlated."""
    count = forward.numel()
    assert count > 3000
    assert scipy.stats.kstest(forward.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert scipy.stats.kstest(backward.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([forward, backward]))[0, 1].item()) < 4 / count**0.5
    assert abs(torch.corrcoef(torch.stack([forward[1:], forward[:-1]]))[0, 1].item()) < 4 / count**0.5
    assert abs(torch.corrcoef(torch.stack([backward[1:], backward[:-1]]))[0, 1].item()) < 4 / count**0.5


@pytest.mark.parametrize("keep", [0.5, 0.75])
def test_a_gate_per_image_keeps_each_image_with_the_probability_of_its_block(keep):
    forward, backward = measured_factors("image", keep, batches=1, images=20_000)
    kept = forward[0] == 1
    assert torch.equal(kept, backward[0] == 1), "both passes share the gate"
    assert abs(kept.double().mean().item() - keep) < 4 * (keep * (1 - keep) / kept.numel()) ** 0.5
    neighbours = torch.stack([kept[1:], kept[:-1]]).double()
    assert abs(torch.corrcoef(neighbours)[0, 1].item()) < 4 / kept.numel() ** 0.5
    assert_noise_of_equation_6(forward[0][~kept], backward[0][~kept])


def test_a_gate_per_batch_keeps_or_drops_all_its_images_and_each_dropped_image_has_its_own_noise():
    keep, batches = 0.75, 2000
    forward, backward = measured_factors("batch", keep, batches=batches, images=8)
    kept = forward == 1
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert torch.equal(kept, backward == 1)
    assert abs(kept[:, 0].double().mean().item() - keep) < 4 * (keep * (1 - keep) / batches) ** 0.5
    assert_noise_of_equation_6(forward[~kept], backward[~kept])


@pytest.mark.parametrize("gate", ["batch", "image"])
def test_evaluation_uses_the_mean_of_the_training_factors(gate):
    forward, _ = measured_factors(gate, 0.6, batches=5000, images=4)
    module = ShakeDrop(keep_probability=0.6, gate=gate).eval()
    deviation = forward.mean(1).std().item() / 5000**0.5
    assert abs(forward.mean().item() - module(torch.ones(1, 1, 1, 1)).item()) < 4 * deviation
    assert module(torch.ones(1, 1, 1, 1)).item() == pytest.approx(0.6)


def test_the_keep_probability_falls_linearly_with_the_block_to_one_half():
    with torch.device("meta"):
        network = PyramidNet(**OPTIONS | {"depth": 272, "alpha": 200, "shakedrop": True})
    probabilities = [block.noise.keep_probability for block in network.blocks]
    assert probabilities == pytest.approx([1 - block / 180 for block in range(1, 91)], abs=1e-12)


def test_the_measured_drop_rate_of_each_block_grows_linearly_to_the_final_one():
    network = PyramidNet(**OPTIONS | {"shakedrop": True}, final_drop_probability=0.9, gate="image")
    torch.manual_seed(23)
    for block, module in enumerate(network.blocks, start=1):
        dropped = (module.noise(torch.ones(10_000, 1, 1, 1)) != 1).double().mean().item()
        expected = 0.9 * block / 6
        assert abs(dropped - expected) < 4 * (expected * (1 - expected) / 10_000) ** 0.5


@pytest.mark.parametrize("gate", ["batch", "image"])
def test_the_generators_state_replays_outputs_and_gradients_bit_for_bit(gate):
    assert_replayed_bit_for_bit(PyramidNet(**OPTIONS | {"shakedrop": True}, gate=gate))


def test_two_forward_passes_before_one_backward_keep_their_own_noise():
    assert_each_pass_keeps_its_own(PyramidNet(**OPTIONS | {"shakedrop": True}))


def test_one_seed_gives_the_same_factors_in_every_precision():
    module, factors = ShakeDrop(keep_probability=0.5, gate="image"), []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        torch.manual_seed(8)
        factors.append(module(torch.ones(100, 1, 1, 1, dtype=dtype)))
    assert [values.dtype for values in factors] == [torch.float64, torch.float32, torch.bfloat16]
    assert torch.equal(factors[0].float(), factors[1])
    assert torch.equal(factors[0].bfloat16(), factors[2])


def test_the_shortcut_is_the_pooled_input_with_zeros_as_the_new_channels():
    block = PyramidNet(**OPTIONS).blocks[2]
    torch.nn.init.zeros_(block.bn4.weight)
    x = torch.randn(2, 92, 8, 8)
    y = block(x)
    torch.testing.assert_close(y[:, :92], F.interpolate(x, scale_factor=0.5, mode="area"))
    assert torch.equal(y[:, 92:], torch.zeros(2, 4 * 26 - 92, 4, 4))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("depth", 270, r"a PyramidNet has depth 9n \+ 2 with n >= 1; nearest: 272"),
        ("alpha", 0, "expected an integer of at least 1"),
        ("rounding", "ceil", "expected one of round, floor"),
        ("rounding", "rounded", 'expected one of round, floor; did you mean "round"?'),
        ("shakedrop", "no", "expected true or false"),
        ("gate", "images", 'expected one of batch, image; did you mean "image"?'),
        ("final_drop_probability", 1.5, "expected a number from 0 to 1"),
        ("final_drop_probability", "half", "expected a number from 0 to 1"),
    ],
)
def test_a_bad_option_is_refused(key, value, message):
    with pytest.raises(InputError) as error:
        PyramidNet(**OPTIONS | {key: value})
    assert str(error.value).replace("\\", "") == f"model.{key}={value}: {message}".replace("\\", "")
