"""Draw the learning curves of README from the committed runs: test accuracy over epochs, a panel a protocol.

    python scripts/draw_curves.py [--results results/cifar10_resnet20_5epochs] [--output results/figures/FILE.png]

A line is what the plain weights reach, a star what SWA's average or FGE's ensemble reaches. It needs
matplotlib: pip install '.[figures]'.
"""

import argparse
import csv
import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from broadopt.runs import results

RESULTS = Path("results/cifar10_resnet20_5epochs")
OUTPUT = Path("results/figures/cifar10_resnet20_5epochs.png")
PRECISION = "fp32"
PANELS = {"swa2018": ("sgd", "swa", "fge"), "asam2021": ("sam", "asam")}
# Okabe and Ito's colours, told apart with every common kind of colour vision; the markers tell the lines apart in grey.
COLOURS = {"sgd": "#000000", "swa": "#0072B2", "fge": "#009E73", "sam": "#D55E00", "asam": "#CC79A7"}
MARKERS = {"sgd": "o", "swa": "s", "fge": "^", "sam": "o", "asam": "s"}
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Curve:
    """One run: (epochs trained, test accuracy in percent) of the plain weights and of what a collector predicts."""

    method: str
    protocol: str
    weights: Points
    collected: Points


def curves(folder: Path) -> list[Curve]:
    """The curves of the finished fp32 runs in `folder`, one a method, in the order of PANELS."""
    found = {}
    for result in results.read_all(folder)[0]:
        if result["state"] == "finished" and result["config"]["precision"] == PRECISION:
            found[result["method"]] = _curve(folder / result["folder"], result)
    return [found[method] for methods in PANELS.values() for method in methods]


def _curve(run: Path, result: dict[str, Any]) -> Curve:
    with (run / "history.csv").open() as lines:
        weights = tuple((float(row["epoch"]), float(row["test_accuracy"])) for row in csv.DictReader(lines))
    collected = tuple((seen["epochs"], seen["test_accuracy"]) for seen in result["metrics"]["collected"].values())
    return Curve(result["method"], result["protocol"], weights, collected)


def digest(drawn: list[Curve]) -> str:
    """A hash of every point of the picture: it stands in the file, so that a test can tell what was drawn."""
    return hashlib.sha256(json.dumps([asdict(curve) for curve in drawn]).encode()).hexdigest()[:16]


def draw(drawn: list[Curve], output: Path) -> None:
    """Write the picture. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, width_ratios=(2, 1), layout="constrained")
    for panel, (protocol, methods) in zip(axes, PANELS.items(), strict=True):
        for curve in drawn:
            if curve.method in methods:
                _draw_curve(panel, curve)
        panel.set_title(f"protocol {protocol}", loc="left", fontsize=9)
        panel.set_xlabel("epochs trained")
        panel.grid(axis="y", color="0.9", linewidth=0.6)
        panel.set_axisbelow(True)
    axes[0].set(ylabel="test accuracy, %", xlim=(0.7, 9.2), xticks=range(1, 8))
    axes[1].set(xlim=(0.7, 6.1), xticks=range(1, 6))
    _label(axes)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110, metadata={"Software": None, "Curves": digest(drawn)})
    pyplot.close(figure)


def _draw_curve(panel: Any, curve: Curve) -> None:
    colour = COLOURS[curve.method]
    panel.plot(*zip(*curve.weights, strict=True), color=colour, marker=MARKERS[curve.method], markersize=3.5, lw=1.3)
    if curve.collected:
        panel.plot(*zip(*curve.collected, strict=True), color=colour, marker="*", markersize=7, lw=0.8, linestyle=":")


def _label(axes: Any) -> None:
    """Names beside the curves' ends, where no curve runs: (panel, method, words, epoch, accuracy)."""
    labels = (
        (0, "swa", "SWA, average", 7.65, 82.2),
        (0, "swa", "SWA, weights", 7.65, 74.4),
        (0, "fge", "FGE, ensemble", 4.85, 82.0),
        (0, "sgd", "SGD", 4.85, 79.4),
        (0, "fge", "FGE, weights", 5.12, 76.7),
        (1, "sam", "SAM", 5.15, 79.8),
        (1, "asam", "ASAM", 5.15, 78.0),
    )
    for panel, method, words, epoch, accuracy in labels:
        side = "right" if epoch < 5 else "left"
        axes[panel].text(epoch, accuracy, words, color=COLOURS[method], ha=side, va="center")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    given = parser.parse_args()
    try:
        draw(curves(given.results), given.output)
    except ImportError:
        sys.exit("draw_curves.py: expected matplotlib; install it by pip install '.[figures]'")
    print(f"{given.output}: {given.output.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
