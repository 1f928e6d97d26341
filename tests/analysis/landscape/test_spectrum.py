"""Hessian products and stochastic Lanczos quadrature, against a dense Hessian, known spectra and curvlinops."""

import math

import curvlinops
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import data, network
from torch import Tensor, nn

from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.spectrum import Nodes, Spectrum, hessian_spectrum, lanczos, rademacher
from broadopt.errors import InputError


def dense(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The Hessian [P, P] of the mean cross-entropy, by torch.func, without broadopt."""
    names, shapes = zip(*((name, parameter.shape) for name, parameter in model.named_parameters()), strict=True)

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (images,)), labels)

    return torch.func.hessian(loss)(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))


@pytest.fixture(scope="module")
def hessian() -> Tensor:
    return dense(network(), *data())


def matrix(eigenvalues: Tensor) -> Tensor:
    """A symmetric matrix with these eigenvalues in a random basis."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(len(eigenvalues), len(eigenvalues), generator=generator, dtype=torch.float64)
    Q = torch.linalg.qr(normal).Q
    return Q * eigenvalues @ Q.T


@pytest.mark.parametrize("batch_size", [20, 7, 1])
def test_products_are_those_of_the_dense_hessian_however_the_images_are_batched(
    hessian: Tensor, batch_size: int
) -> None:
    loss = Loss(network(), *data(), batch_size=batch_size)
    vectors = torch.randn(3, loss.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss.products(vectors), vectors @ hessian, rtol=1e-10, atol=1e-12)


def test_products_are_those_of_curvlinops() -> None:
    model, (images, labels) = network(), data()
    loss = Loss(model, images, labels, batch_size=6)
    vectors = torch.randn(2, loss.size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    batches = [(images[:12], labels[:12]), (images[12:], labels[12:])]
    parameters = list(model.parameters())
    oracle = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches)
    torch.testing.assert_close(loss.products(vectors), (oracle @ vectors.T).T, rtol=1e-10, atol=1e-12)


def test_float32_products_are_close_to_the_float64_hessian(hessian: Tensor) -> None:
    loss = Loss(network(dtype=torch.float32), *data(dtype=torch.float32))
    vector = rademacher(loss.size, starts=1, seed=1)
    scale = float((vector.double() @ hessian).abs().max())
    products = loss.products(vector)
    assert products.dtype == torch.float32
    torch.testing.assert_close(products.double(), vector.double() @ hessian, rtol=0, atol=1e-5 * scale)


def test_loss_and_gradient_are_those_of_torch() -> None:
    model, (images, labels) = network(), data()
    value, gradients = Loss(model.train(), images, labels, batch_size=7).gradient()
    assert not model.training
    expected = F.cross_entropy(model(images), labels)
    assert value == pytest.approx(expected.item(), rel=1e-13)
    assert Loss(model, images, labels).value() == pytest.approx(value, rel=1e-13)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-14)


def test_a_network_with_weights_that_are_not_finite_is_refused() -> None:
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = math.nan
    loss = Loss(model, *data())
    with pytest.raises(InputError, match=r"^the loss is not finite at these weights$"):
        loss.value()
    with pytest.raises(InputError, match=r"^the Hessian is not finite at these weights$"):
        hessian_spectrum(loss, steps=3, starts=1, seed=1)


def test_a_diagonal_matrix_is_found_whole() -> None:
    eigenvalues = torch.tensor([-2.0, -0.5, 0.25, 1.0, 8.0], dtype=torch.float64)
    found = lanczos(lambda v: v * eigenvalues, rademacher(5, starts=2, seed=3).double(), steps=99)
    for nodes in found.starts:  # each sign's square is 1: every eigenvalue weighs the same
        np.testing.assert_allclose(nodes.values, eigenvalues, rtol=1e-12)
        np.testing.assert_allclose(nodes.weights, 0.2, rtol=1e-12)
        assert nodes.bounds.max() < 1e-12
    assert [value for value, _ in found.top(2)] == pytest.approx([8, 1], rel=1e-12)
    assert found.range == pytest.approx((-2, 8), rel=1e-12)
    negative = [float(nodes.weights[nodes.values < 0].sum()) for nodes in found.starts]
    assert negative == pytest.approx([0.4, 0.4], rel=1e-12)


def test_the_quadrature_is_exact_for_polynomials_of_degree_2m_minus_1() -> None:
    A = matrix(torch.linspace(-1, 2, 40, dtype=torch.float64))
    start = rademacher(40, starts=1, seed=5).double()
    (nodes,) = lanczos(lambda v: v @ A, start, steps=4).starts
    for degree in range(8):
        power = (start[0] @ torch.linalg.matrix_power(A, degree) @ start[0] / 40).item()
        assert float(nodes.weights @ nodes.values**degree) == pytest.approx(power, rel=1e-11)


def test_float32_finds_each_eigenvalue_once_and_within_its_bound() -> None:
    # With the recurrence alone the outlier comes back, as copies of itself, long before 60 steps.
    eigenvalues = torch.cat([torch.linspace(0, 1, 197, dtype=torch.float64), torch.tensor([20.0, 30.0, 100.0])])
    A = matrix(eigenvalues).float()
    found = lanczos(lambda v: v @ A, rademacher(200, starts=2, seed=1), steps=60)
    for nodes in found.starts:
        assert len(nodes.values) == 60
        np.testing.assert_allclose(nodes.values[-3:], [20, 30, 100], rtol=1e-5)
        assert nodes.values[-4] < 1.001
        distances = np.abs(nodes.values[:, None] - eigenvalues.numpy()).min(1)
        assert (distances <= nodes.bounds + 1e-4).all()
        assert nodes.weights.sum() == pytest.approx(1, rel=1e-6)


def test_an_exhausted_space_ends_with_what_was_found() -> None:
    eigenvalues = torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    (nodes,) = lanczos(lambda v: v * eigenvalues, torch.ones(1, 6, dtype=torch.float64), steps=6).starts
    np.testing.assert_allclose(nodes.values, [-1, 0, 3], atol=1e-12)
    np.testing.assert_allclose(nodes.weights, [1 / 6, 1 / 2, 1 / 3], rtol=1e-12)
    top = Spectrum((nodes,)).top(4)
    assert math.isnan(top[3][0])


def test_a_start_does_not_depend_on_the_others_and_is_seeded() -> None:
    three = rademacher(50, starts=3, seed=1)
    assert torch.equal(three[:2], rademacher(50, starts=2, seed=1))
    assert not torch.equal(three, rademacher(50, starts=3, seed=2))
    assert not torch.equal(three[0], three[1])
    assert three.abs().eq(1).all()


def test_the_spectrum_of_a_network_is_that_of_its_dense_hessian(hessian: Tensor) -> None:
    loss = Loss(network(), *data(), batch_size=9)
    found = hessian_spectrum(loss, steps=60, starts=3, seed=1)
    eigenvalues = torch.linalg.eigvalsh(hessian).numpy()
    for place, (value, bound) in enumerate(found.top(5), start=1):
        assert value == pytest.approx(eigenvalues[-place], rel=1e-9)
        assert bound < 1e-6
    # The trace's estimate is that of Hutchinson with the same signs.
    signs = rademacher(loss.size, starts=3, seed=1).double()
    for nodes, z in zip(found.starts, signs, strict=True):
        assert float(nodes.weights @ nodes.values) == pytest.approx(float(z @ hessian @ z) / loss.size, rel=1e-9)


def test_the_density_is_a_mean_of_gaussians() -> None:
    nodes = Nodes(values=np.array([0.0, 4.0]), weights=np.array([0.75, 0.25]), bounds=np.zeros(2))
    at = np.linspace(-3, 7, 2001)
    (density,) = Spectrum((nodes,)).densities(at, width=0.5)
    assert np.trapezoid(density, at) == pytest.approx(1, rel=1e-8)
    peak = 1 / (0.5 * math.sqrt(2 * math.pi))
    assert density[600] == pytest.approx(0.75 * peak, rel=1e-8)
    assert density[1400] == pytest.approx(0.25 * peak, rel=1e-8)
