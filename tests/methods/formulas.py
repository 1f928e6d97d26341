"""The papers' formulas on a small network in float64, without broadopt: what the methods are held against."""

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Batch = tuple[Tensor, Tensor]

NORMS = (1, 1.25, 2, 3, math.inf)
CLOSE = {"rtol": 1e-11, "atol": 1e-13}  # float64: what is left is the order of summation, over several steps


class SmallNet(nn.Module):
    """Convolution with a bias that matters (no BN right behind it), ReLU, BN, dropout, linear with bias."""

    def __init__(self, *, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(64, 5)
        generator = torch.Generator().manual_seed(seed)
        self.double()
        with torch.no_grad():  # at BN's initial 1 and 0 many a mistake does not show
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
            self.bn.weight.add_(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(self.dropout(self.bn(self.conv(images).relu())).flatten(1))


def batches(count: int, *, size: int = 8) -> list[Batch]:
    """`count` batches of random images for SmallNet with labels 0..4."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, size, 3, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (count, size), generator=generator)
    return list(zip(images, labels, strict=True))


def weights_of(model: nn.Module) -> Tensors:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def closure(model: nn.Module, batch: Batch, losses: list[float] | None = None) -> Callable[[], Tensor]:
    """What the training loop hands to a step; the losses of its passes are noted in `losses`."""

    def forward_and_backward() -> Tensor:
        loss = F.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        if losses is not None:
            losses.append(loss.item())
        return loss.detach()

    return forward_and_backward


def features(weights: Tensors, images: Tensor) -> Tensor:
    """What goes into SmallNet's BN."""
    return F.conv2d(images, weights["conv.weight"], weights["conv.bias"]).clamp_min(0)


def loss(weights: Tensors, images: Tensor, labels: Tensor) -> Tensor:
    """SmallNet's cross-entropy in training mode, without dropout."""
    inputs = features(weights, images)
    centred = inputs - inputs.mean((0, 2, 3), keepdim=True)
    normal = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    outputs = normal * weights["bn.weight"][:, None, None] + weights["bn.bias"][:, None, None]
    logits = outputs.flatten(1) @ weights["linear.weight"].T + weights["linear.bias"]
    return (logits.logsumexp(1) - logits[torch.arange(len(labels)), labels]).mean()


gradients = torch.func.grad(loss)


def ones(weights: Tensors) -> Tensors:
    """SAM's T."""
    return {name: torch.ones_like(weight) for name, weight in weights.items()}


def perturbation(weights: Tensors, slopes: Tensors, *, rho: float, p: float, scales: Tensors) -> Tensors:
    """eps = rho T sign(Tg) |Tg|^(q-1) / (||Tg||_q^q)^(1/p): SAM, eq. 2, in the coordinates T^-1 eps of ASAM, eq. 3."""
    T = torch.cat([scales[name].flatten() for name in weights])
    Tg = T * torch.cat([slopes[name].flatten() for name in weights])
    if p == math.inf:
        direction = Tg.sign()
    elif p == 1:
        direction = torch.zeros_like(Tg)
        direction[Tg.abs().argmax()] = Tg[Tg.abs().argmax()].sign()
    else:
        q = 1 / (1 - 1 / p)
        direction = Tg.sign() * Tg.abs() ** (q - 1) / (Tg.abs() ** q).sum() ** (1 / p)
    parts = (rho * T * direction).split([weight.numel() for weight in weights.values()])
    return {name: part.view_as(weights[name]) for part, name in zip(parts, weights, strict=True)}


def sgd_update(
    weights: Tensors,
    slopes: Tensors,
    momenta: Tensors,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One SGD update in place: d = g + lambda w, v <- mu v + d (v <- d at first), w <- w - lr v, or lr (d + mu v)."""
    for name in weights:
        descent = slopes[name] + weight_decay * weights[name]
        momenta[name] = momentum * momenta[name] + descent if name in momenta else descent
        weights[name] = weights[name] - lr * (descent + momentum * momenta[name] if nesterov else momenta[name])


def sharpness_aware(
    weights: Tensors,
    data: Iterable[Batch],
    *,
    rho: float,
    p: float,
    scales: Callable[[Tensors], Tensors],
    **options: float,
) -> tuple[Tensors, Tensors]:
    """Weights and momenta after a step a batch, w <- w - alpha (grad L(w + eps) + lambda w): ASAM, Algorithm 1."""
    weights, momenta = dict(weights), {}
    for batch in data:
        eps = perturbation(weights, gradients(weights, *batch), rho=rho, p=p, scales=scales(weights))
        above = {name: weights[name] + eps[name] for name in weights}
        sgd_update(weights, gradients(above, *batch), momenta, **options)
    return weights, momenta


def feasible_directions(eps: Tensor, *, rho: float, p: float, count: int = 300) -> Tensor:
    """[count, n] of p-norm rho: Gaussian ones, ones on few coordinates, and ones close to `eps`."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count, len(eps), generator=generator, dtype=torch.float64)
    draws[1::3] *= torch.rand(draws[1::3].shape, generator=generator) < 3 / len(eps)
    draws[2::3] = eps + 0.01 * eps.abs().mean() * draws[2::3]
    draws = draws[draws.abs().sum(1) > 0]
    return rho * draws / torch.linalg.vector_norm(draws, p, dim=1, keepdim=True)


def adamw_update(
    weights: Tensors, slopes: Tensors, means: Tensors, squares: Tensors, number: int, *, lr: float, weight_decay: float
) -> None:
    """Update `number` (from 1) of AdamW in place, its betas 0.9 and 0.999: Loshchilov and Hutter, Algorithm 2."""
    for name in weights:
        means[name] = 0.9 * means.get(name, 0) + 0.1 * slopes[name]
        squares[name] = 0.999 * squares.get(name, 0) + 0.001 * slopes[name] ** 2
        mean, square = means[name] / (1 - 0.9**number), squares[name] / (1 - 0.999**number)
        weights[name] = (1 - lr * weight_decay) * weights[name] - lr * mean / (square**0.5 + 1e-8)


def flat(tensors: Tensors | Iterable[Tensor]) -> Tensor:
    """All tensors as one vector."""
    values = tensors.values() if isinstance(tensors, dict) else tensors
    return torch.cat([tensor.flatten() for tensor in values])


def part_orthogonal(tensors: Tensors, to: Tensors) -> Tensors:
    """All tensors taken for one vector."""
    factor = flat(tensors) @ flat(to) / (flat(to) @ flat(to))
    return {name: tensors[name] - factor * to[name] for name in tensors}
