"""The spectrum of a Hessian by stochastic Lanczos quadrature, from products with vectors alone (Ghorbani et al. 2019,
"An Investigation into Neural Net Optimization via Hessian Eigenvalue Density").

The mean over random signs z of z^T f(H) z / P is trace f(H) / P, the mean of f over the spectrum. m Lanczos steps from
z give a tridiagonal matrix; its eigenvalues theta_i, with the squared first entries of its eigenvectors as weights w_i,
are the Gauss quadrature of z's share: sum_i w_i f(theta_i), exact for polynomials of degree 2 m - 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.errors import InputError
from broadopt.seeds import derive

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What one start gives, all float64 [n], n <= steps: Ritz values (ascending), their weights (they sum to 1), and
    for each Ritz value a radius within which H has an eigenvalue.
    """

    values: Values
    weights: Values
    bounds: Values


@dataclass(frozen=True)
class Spectrum:
    """The quadratures of all starts; their mean is the estimate, their scatter its uncertainty."""

    starts: tuple[Nodes, ...]

    def densities(self, at: Values, *, width: float) -> Values:
        """Density at each of `at`, each node a Gaussian of standard deviation `width`: [starts, points]."""
        return np.stack([_gaussians(at, nodes, width) for nodes in self.starts])

    def top(self, count: int) -> list[tuple[float, float]]:
        """The `count` largest eigenvalues, descending, each with its bound; nan where no start has so many nodes.

        The k-th largest Ritz value never exceeds the k-th largest eigenvalue (Cauchy's interlacing), so the largest
        among the starts is the closest. An eigenvalue of several dimensions counts once: a start sees one vector of it.
        """
        found = []
        for place in range(1, count + 1):
            candidates = [
                (float(nodes.values[-place]), float(nodes.bounds[-place]))
                for nodes in self.starts
                if len(nodes.values) >= place
            ]
            found.append(max(candidates, default=(float("nan"), float("nan"))))
        return found

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest Ritz value."""
        return min(float(n.values[0]) for n in self.starts), max(float(n.values[-1]) for n in self.starts)


def hessian_spectrum(
    loss: Loss, *, steps: int, starts: int, seed: int, advance: Callable[[], object] = lambda: None
) -> Spectrum:
    """The spectrum of the loss's Hessian at the network's weights. Takes `starts * (steps + 3)` vectors of its size;
    `advance` is called at each step.
    """
    reference = loss.parameters[0]
    signs = rademacher(loss.size, starts=starts, seed=seed).to(reference.device, reference.dtype)

    def products(vectors: Tensor) -> Tensor:
        advance()
        return loss.products(vectors)

    return lanczos(products, signs, steps=steps)


def rademacher(size: int, *, starts: int, seed: int) -> Tensor:
    """[starts, size] of independent signs, float32 on the CPU; a start is the same however many there are."""
    rows = []
    for start in range(starts):
        generator = torch.Generator().manual_seed(derive(seed, "lanczos", start))
        rows.append(torch.randint(2, (size,), generator=generator).mul_(2).sub_(1).float())
    return torch.stack(rows)


@torch.no_grad()
def lanczos(products: Callable[[Tensor], Tensor], starts: Tensor, *, steps: int) -> Spectrum:
    """Lanczos iterations from each row of `starts` [k, P], side by side; `products` takes [k, P] to H times each row.

    At most P steps; fewer where a start's Krylov space is exhausted. Raises InputError where a product is not finite.
    """
    count, size = starts.shape
    steps = min(steps, size)
    diagonal, off = np.zeros((count, steps)), np.zeros((count, steps))
    basis = starts.new_zeros(count, steps, size)
    vectors = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)
    for step in range(steps):
        basis[:, step] = vectors
        with torch.enable_grad():
            image = products(vectors)
        diagonal[:, step] = (image * vectors).sum(1, dtype=torch.float64).cpu()
        known = basis[:, : step + 1]
        # Against all former vectors, not the last two of the recurrence: rounding makes these lose their orthogonality
        # as soon as an eigenvalue converges, and it is found again and again. Twice, since one pass in float32 leaves
        # what it cancelled times 1e-7.
        for _ in range(2):
            image -= (known.mT @ (known @ image[:, :, None]))[:, :, 0]
        norms = torch.linalg.vector_norm(image, dim=1, dtype=torch.float64)
        off[:, step] = norms.cpu()
        if not np.isfinite(off[:, step]).all():
            raise InputError("the Hessian is not finite at these weights")
        vectors = image / norms.clamp_min(torch.finfo(image.dtype).tiny).to(image.dtype)[:, None]
    precision = torch.finfo(starts.dtype).eps
    return Spectrum(tuple(_nodes(diagonal[row], off[row], precision=precision) for row in range(count)))


def _nodes(diagonal: Values, off: Values, *, precision: float) -> Nodes:
    """The quadrature of a tridiagonal matrix; `off[-1]` is what would couple it to the next step."""
    # Behind an entry of the size of rounding stands noise, which says nothing of the start.
    scale = max(np.abs(diagonal).max(), off.max())
    exhausted = np.flatnonzero(off <= 10 * precision * scale)
    length = int(exhausted[0]) + 1 if len(exhausted) else len(diagonal)
    values, vectors = eigh_tridiagonal(diagonal[:length], off[: length - 1])
    # ||H y - theta y|| = beta_m |s_m|, the last entry of the tridiagonal matrix's eigenvector: an eigenvalue of H is
    # no farther away than that, but for the rounding of the products.
    bounds = off[length - 1] * np.abs(vectors[-1]) + precision * scale
    return Nodes(values=values, weights=vectors[0] ** 2, bounds=bounds)


def _gaussians(at: Values, nodes: Nodes, width: float) -> Values:
    distances = (at[:, None] - nodes.values[None]) / width
    return np.asarray((nodes.weights * np.exp(-(distances**2) / 2)).sum(1) / (width * np.sqrt(2 * np.pi)))
