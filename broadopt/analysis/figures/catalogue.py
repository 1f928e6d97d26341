"""The figures of broadopt-figure as data: what each shows, after which source, and the function that draws it."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broadopt.errors import InputError

if TYPE_CHECKING:
    import argparse

    from broadopt.analysis.figures.output import Drawing
    from broadopt.analysis.figures.request import Request


TRAIN_IMAGES = 10_000

MEASURED = ("--device", "--data-dir", "--images", "--train-images", "--seed")
"""The options of a measurement on networks, of which a figure takes those that it reads."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure."""

    name: str
    shows: str
    source: str
    function: str
    """`module:function` of `Request -> Drawing`; `function_options`, where the module has one, adds its own options."""
    fewest: int = 1
    """Runs that it needs."""
    most: int | None = None
    """Runs that it takes; None: any number."""
    unfinished: bool = False
    """Whether it takes runs that are going on as well."""
    needs: str = "runs"
    """What these are, in words."""
    resumes: bool = False
    """Whether a measurement that was interrupted goes on from its rows; others take minutes and begin anew."""
    reads: tuple[str, ...] = MEASURED
    """Which of the options MEASURED it reads."""
    train_images: int = TRAIN_IMAGES
    """Where --train-images is not given: fewer where each image costs much."""


# Each family of figures adds its own lines, in the order of --help.
ENTRIES = (
    Entry(
        name="plane",
        shows="test error and train loss on the plane through three weight vectors",
        source="SWA Fig. 1",
        function="broadopt.analysis.figures.surfaces.planes:plane",
        most=3,
        needs="runs (one: three of its snapshots; two: with the start of the second's collector)",
        resumes=True,
    ),
    Entry(
        name="rays",
        shows="test error and train loss along random directions from each run's weights",
        source="SWA Fig. 4",
        function="broadopt.analysis.figures.surfaces.lines:rays",
        resumes=True,
    ),
    Entry(
        name="line",
        shows="test error and train loss on the line through two runs, and its asymmetry",
        source="SWA Fig. 5",
        function="broadopt.analysis.figures.surfaces.lines:line",
        fewest=2,
        most=2,
        resumes=True,
    ),
    Entry(
        name="spectrum",
        shows="Hessian spectral density and top eigenvalues over the epochs",
        source="SAM section 4.2",
        function="broadopt.analysis.figures.curvature.spectrum:spectrum",
        most=6,
        needs="runs with snapshots",
        train_images=1000,
        resumes=True,
        reads=("--device", "--data-dir", "--train-images", "--seed"),
    ),
    Entry(
        name="sharpness",
        shows="rise of the loss in a ball, plain and adaptive, as it is and rescaled, and the generalisation gap",
        source="SAM section 2, ASAM section 3",
        function="broadopt.analysis.figures.curvature.sharpness:sharpness",
        train_images=1000,
        resumes=True,
    ),
    Entry(
        name="normalisation",
        shows="rise of the loss by SAM's and ASAM's perturbations, element- and filter-wise, p = 2 and inf, over rho",
        source="ASAM section 3",
        function="broadopt.analysis.figures.curvature.normalisation:normalisation",
        most=1,
        needs="run",
        train_images=1000,
        resumes=True,
        reads=("--device", "--data-dir", "--train-images", "--seed"),
    ),
    Entry(
        name="schematic",
        shows="one step of SGD, SAM and ASAM on a loss of two weights, computed",
        source="SAM Fig. 2",
        function="broadopt.analysis.figures.schematic:schematic",
        fewest=0,
        most=0,
        reads=(),
    ),
    Entry(
        name="ensemble",
        shows="distances of predictions, of snapshots among themselves and of their ensemble from SWA, over the spread",
        source="SWA section 3.5",
        function="broadopt.analysis.figures.averages:ensemble",
        most=1,
        needs="run with snapshots",
    ),
    Entry(
        name="trajectory",
        shows="SGD's iterates around their mean: how far from it and from each other",
        source="SWA section 3.2, Mandt et al. 2017",
        function="broadopt.analysis.figures.averages:trajectory",
        needs="runs with snapshots",
        reads=(),
    ),
    Entry(
        name="curves",
        shows="learning curves and lr schedules of any runs, unfinished ones too, with bands over seeds",
        source="history.csv",
        function="broadopt.analysis.figures.curves:curves",
        unfinished=True,
        reads=(),
    ),
    Entry(
        name="calibration",
        shows="reliability diagrams, NLL and expected calibration error of any runs",
        source="Guo et al. 2017",
        function="broadopt.analysis.figures.calibration:calibration",
        reads=("--device", "--data-dir", "--images", "--seed"),
    ),
    Entry(
        name="noise",
        shows="accuracy against label noise, a line a method",
        source="SAM 3.3, ASAM 4.4",
        function="broadopt.analysis.figures.noise:noise",
        fewest=2,
        reads=(),
    ),
)

FIGURES = {entry.name: entry for entry in ENTRIES}


def check_installed() -> None:
    """Raise InputError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("figures need matplotlib: pip install '.[figures]' in the checkout")


def function_of(entry: Entry) -> "Callable[[Request], Drawing]":
    """What draws a figure; its module is imported here. Raises InputError where matplotlib is not installed."""
    check_installed()
    module, _, name = entry.function.partition(":")
    found: Callable[[Request], Drawing] = getattr(importlib.import_module(module), name)
    return found


def options_of(entry: Entry) -> "Callable[[argparse.ArgumentParser], None] | None":
    """What adds the options that a figure alone has; None where it has none of its own."""
    check_installed()
    module, _, name = entry.function.partition(":")
    found: Callable[[argparse.ArgumentParser], None] | None = getattr(
        importlib.import_module(module), f"{name}_options", None
    )
    return found
