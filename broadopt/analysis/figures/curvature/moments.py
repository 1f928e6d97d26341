"""The spectra that a figure shows: of which epochs, measured and kept as rows, and read back from these."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pandas

from broadopt.analysis.figures.curvature.scene import Scene
from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.spectrum import Nodes, Spectrum, hessian_spectrum
from broadopt.analysis.landscape.networks import moments, snapshot
from broadopt.analysis.landscape.progress import bar
from broadopt.analysis.landscape.runs import Run
from broadopt.analysis.landscape.store import Point, Row, Store
from broadopt.errors import InputError

TOP = 5
"""Eigenvalues whose ratio is shown: the largest over the fifth, as in SAM."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The spectrum of one run's network at one epoch."""

    run: str
    epoch: float
    spectrum: Spectrum
    parameters: int

    @property
    def largest(self) -> tuple[float, float]:
        """lambda_max and the radius within which it is known."""
        return self.spectrum.top(1)[0]

    @property
    def ratio(self) -> tuple[float, float]:
        """lambda_max / lambda_5, nan unless both are positive, and how far off it may be by their residuals."""
        (first, near), *_, (fifth, around) = self.spectrum.top(TOP)
        if not fifth > 0:
            return math.nan, math.nan
        most = (first + near) / (fifth - around) if around < fifth else math.inf
        return first / fifth, most - first / fifth


def chosen_epochs(runs: Sequence[Run], given: str | None, count: int) -> list[float]:
    """The epochs that are shown: those `given`, or `count` evenly spaced among those of which all runs have snapshots.

    The start is one of them only where it is given: before any training, BN's stored statistics are those of no image.
    Raises InputError for an epoch without snapshots.
    """
    kept = [{round(epoch, 6) for _, epoch in moments(run)} for run in runs]
    common = sorted(set.intersection(*kept))
    if given is not None:
        wanted = sorted({_epoch(text) for text in given.split(",")})
        for epoch in wanted:
            if epoch not in common:
                listed = ", ".join(f"{one:g}" for one in common) or "there are none"
                raise InputError(f"--epochs {epoch:g}: expected epochs of which every run has a snapshot: {listed}")
        return wanted
    later = [epoch for epoch in common if epoch > 0]
    if not later:
        raise InputError(
            f"{runs[-1].folder} and {runs[0].folder} have no snapshots of the same epoch after the start; expected "
            "runs with a snapshot at each epoch's end"
        )
    places = np.linspace(0, len(later) - 1, min(count, len(later))) if count > 1 else [len(later) - 1]
    return [later[round(place)] for place in places]


def _epoch(text: str) -> float:
    try:
        epoch = round(float(text), 6)
    except ValueError:
        epoch = math.nan
    if not 0 <= epoch < math.inf:
        raise InputError(f"--epochs {text}: expected numbers >= 0, separated by commas")
    return epoch


def measured(run: Run, epochs: Sequence[float], scene: Scene, store: Store) -> list[Row]:
    """A row a node of each spectrum of a run. Raises InputError where a snapshot cannot be used."""
    options, rows = scene.request.options, []
    for step, epoch in moments(run):
        if round(epoch, 6) not in epochs:
            continue
        # The nodes of a network are measured together, where the first of them is not known.
        nodes = cache(partial(_nodes, run, step, epoch, scene))
        for start in range(options.starts):
            for rank in range(1, options.steps + 1):
                point: Point = {"run": run.label, "step": step, "epoch": epoch, "start": start + 1, "rank": rank}
                rows.append(store.row(point, partial(_at, nodes, start, rank)))
    return rows


def _at(nodes: Callable[[], list[list[dict[str, float]]]], start: int, rank: int) -> dict[str, float]:
    return nodes()[start][rank - 1]


def _nodes(run: Run, step: int, epoch: float, scene: Scene) -> list[list[dict[str, float]]]:
    """By start, the nodes of one spectrum from the largest on; nan where a start's space was exhausted before."""
    options, (inputs, labels) = scene.request.options, scene.train(run)
    loss = Loss(scene.placed(run, snapshot(run, step).model), inputs, labels)
    with bar(what=f"spectrum: {run.label}, epoch {epoch:g}", unit="step", total=options.steps) as progress:
        try:
            found = hessian_spectrum(
                loss, steps=options.steps, starts=options.starts, seed=scene.request.seed, advance=progress.update
            )
        except InputError as error:
            raise InputError(f"{run.folder}, epoch {epoch:g}: {error}") from error
    rows: list[list[dict[str, float]]] = []
    for nodes in found.starts:
        columns = np.full((3, options.steps), math.nan)
        columns[:, : len(nodes.values)] = np.stack([nodes.values, nodes.weights, nodes.bounds])[:, ::-1]
        rows.append([
            {"eigenvalue": float(value), "weight": float(weight), "bound": float(bound), "parameters": loss.size}
            for value, weight, bound in columns.T
        ])  # fmt: skip
    return rows


def moments_of(table: pandas.DataFrame) -> list[Moment]:
    """The spectra of a table with a row a node, in its order."""
    found = []
    for _, own in table.dropna(subset="eigenvalue").groupby(["run", "epoch"], sort=False):
        starts, first = [], own.iloc[0]
        for _, one in own.groupby("start"):
            values, weights, bounds = (
                one[name].to_numpy()[::-1].astype(float) for name in ("eigenvalue", "weight", "bound")
            )
            starts.append(Nodes(values=values, weights=weights, bounds=bounds))
        found.append(
            Moment(
                run=str(first["run"]),
                epoch=float(first["epoch"]),
                spectrum=Spectrum(tuple(starts)),
                parameters=int(first["parameters"]),
            )
        )
    return found
