"""The step of SGD, SAM and ASAM on a loss of two weights, computed by the methods' own code."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from broadopt.analysis.figures.looks import COLOURS
from broadopt.analysis.figures.output import Drawing
from broadopt.analysis.figures.request import Request
from broadopt.methods.asam import asam_perturbation
from broadopt.methods.sam import sam_perturbation

MINIMUM = (0.8, 0.2)
CURVATURES = (0.5, 4.0)
ANGLE = math.radians(20)
"""Of the flat direction to the first weight's axis."""

START = (2.7, 1.4)
LR = 0.3
RHO = {"SAM": 0.5, "ASAM": 0.25}
"""ASAM's ball is measured in units of each weight, so that its radius is another number."""


@dataclass(frozen=True)
class Step:
    """One step: float64 [2] each."""

    method: str
    gradient: Tensor
    perturbation: Tensor
    ascended_gradient: Tensor
    end: Tensor


def hessian() -> Tensor:
    """H = R diag(curvatures) R^T, float64 [2, 2]."""
    turn = torch.tensor([[math.cos(ANGLE), -math.sin(ANGLE)], [math.sin(ANGLE), math.cos(ANGLE)]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor(CURVATURES, dtype=torch.float64)) @ turn.T


def loss(weights: Tensor) -> Tensor:
    """L(w) = (w - m)^T H (w - m) / 2 of float64 [..., 2]."""
    away = weights - torch.tensor(MINIMUM, dtype=torch.float64)
    return (away @ hessian() * away).sum(dim=-1) / 2


def gradient_at(weights: Tensor) -> Tensor:
    """dL/dw of float64 [2], by autograd."""
    leaf = weights.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def steps() -> list[Step]:
    """SGD, SAM and ASAM from START with the same lr; the perturbations are those of the training."""
    weight = torch.tensor(START, dtype=torch.float64)
    gradient = gradient_at(weight)
    found = []
    for method in ("SGD", "SAM", "ASAM"):
        if method == "SGD":
            eps = torch.zeros_like(weight)
        elif method == "SAM":
            (eps,) = sam_perturbation([weight], [gradient.clone()], rho=RHO["SAM"], p=2.0)
        else:
            (eps,) = asam_perturbation(
                [weight], [gradient.clone()], rho=RHO["ASAM"], eta=0.0, p=2.0, scales={weight: "element"}
            )
        ascended = gradient_at(weight + eps)
        found.append(Step(method, gradient, eps, ascended, weight - LR * ascended))
    return found


def schematic(request: Request) -> Drawing:
    """Three panels over the same contours: start, perturbation, gradient there, step."""
    found, start = steps(), torch.tensor(START, dtype=torch.float64)
    figure = Figure(figsize=(6.8, 2.05))
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    for axes, step in zip(panels, found, strict=True):
        _contours(axes)
        _draw_step(axes, step, start)
    panels[0].set_ylabel("$w_2$")
    return Drawing(figure=figure, rows=_rows(found, start), caption=_caption(), seen=_seen(found, start))


def ball(method: str, start: Tensor, count: int = 181) -> Tensor:
    """The boundary of the perturbations that a method allows, as weights, float64 [count, 2]: of SAM a circle, of ASAM
    an ellipse whose half-axes are rho |w_k|.
    """
    angles = torch.linspace(0, 2 * math.pi, count, dtype=torch.float64)
    axes = RHO[method] * (start.abs() if method == "ASAM" else torch.ones_like(start))
    return start + axes * torch.stack([angles.cos(), angles.sin()], dim=1)


def _contours(axes: Axes) -> None:
    columns, rows = (torch.linspace(*ends, 121, dtype=torch.float64) for ends in ((0.4, 3.7), (-0.35, 2.15)))
    values = loss(torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1))
    axes.contour(columns, rows, values, levels=[0.1 * 2**k for k in range(8)], colors="0.75", linewidths=0.6)
    axes.plot(*MINIMUM, marker="+", color="0.4", markersize=5)
    axes.annotate("minimum", MINIMUM, xytext=(0, 4), textcoords="offset points", fontsize=6, color="0.4", ha="center")
    axes.set_xlabel("$w_1$")
    axes.set_aspect("equal")


def _draw_step(axes: Axes, step: Step, start: Tensor) -> None:
    colour = COLOURS[step.method.lower()]
    axes.set_title(step.method, color=colour)
    if step.method != "SGD":
        axes.plot(*ball(step.method, start).T, color=colour, linewidth=0.6, linestyle=":")
        _arrow(axes, start, start + step.perturbation, "0.45", "--")
        _label(axes, start + step.perturbation, r"$w+\epsilon$", (4, -6))
        _arrow(axes, start, start - LR * step.gradient, "0.75", "-")
    _arrow(axes, start, step.end, colour, "-")
    axes.plot(*start, marker="o", color="black", markersize=3)
    _label(axes, start, "$w$", (5, 3))
    _label(axes, step.end, "$w_{t+1}$", (-4, 5))


def _arrow(axes: Axes, tail: Tensor, head: Tensor, colour: str, line: str) -> None:
    form = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", _pair(head), _pair(tail), arrowprops={**form, "mutation_scale": 6})


def _label(axes: Axes, point: Tensor, text: str, offset: tuple[float, float]) -> None:
    side = "left" if offset[0] > 0 else "right"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8}
    axes.annotate(text, _pair(point), xytext=offset, textcoords="offset points", fontsize=6, ha=side, bbox=box)


def _pair(point: Tensor) -> tuple[float, float]:
    return float(point[0]), float(point[1])


def _rows(found: Sequence[Step], start: Tensor) -> pandas.DataFrame:
    rows = []
    for step in found:
        points = {"start": start, "perturbed": start + step.perturbation, "end": step.end}
        rows += [
            {"method": step.method, "point": name, "w1": float(at[0]), "w2": float(at[1]), "loss": float(loss(at))}
            for name, at in points.items()
        ]
    return pandas.DataFrame(rows)


def _caption() -> str:
    return (
        f"Computed in float64 on L(w) = (w - m)ᵀH(w - m)/2 with curvatures {CURVATURES[0]} and {CURVATURES[1]}, from "
        f"the same w with lr {LR}. Dashed: the perturbation ε; dotted: the ball that it is chosen from (SAM: ‖ε‖ ≤ "
        f"{RHO['SAM']}; ASAM: ‖ε/|w|‖ ≤ {RHO['ASAM']}, η = 0); light: SGD's step; solid: the step, by the gradient at "
        "w + ε. No data and no randomness."
    )


def _seen(found: Sequence[Step], start: Tensor) -> str:
    sgd = found[0]
    parts = []
    for step in found[1:]:
        cosine = torch.dot(step.ascended_gradient, sgd.gradient) / step.ascended_gradient.norm() / sgd.gradient.norm()
        angle = math.degrees(math.acos(min(1.0, float(cosine))))
        raised = float(loss(start + step.perturbation))
        parts.append(f"{step.method} climbs to {raised:.2f} and steps {angle:.1f}° off SGD's direction")
    return f"From a loss of {float(loss(start)):.2f}: {'; '.join(parts)} (exact: nothing is sampled)."
