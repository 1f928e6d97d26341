"""How long gradients take: by the measured rate of their network, else by their operations at the speed of a measured
network of the same class, else at a share of a GPU's peak.

Each time says which of the three it is, and of which kind of device: hours of different kinds are never added. The
measured rates are those of rates.yaml, which scripts/rates.py makes from committed results.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from broadopt.files import MEBIBYTE, read_yaml

TABLE = Path(__file__).with_suffix(".yaml")

PEAKS: Mapping[str, Mapping[str, float]] = {
    "H100": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "H200": {"bf16": 989.4, "tf32": 494.7, "fp32": 66.9},
    "A100": {"bf16": 312.0, "tf32": 156.0, "fp32": 19.5},
}
"""10^12 dense operations a second by kind of GPU, a part of its name: NVIDIA's data sheets, the SXM models."""

USUAL = "H100"
"""The kind of GPU that hours are worked out for where the one at hand is of none of these kinds."""

BATCH = 128
"""Images of a batch in all measurements: a GPU works smaller ones off at a lower rate."""

SHARE = 0.1
"""Of the peak: an assumption. Small networks reach less, wide ones more."""

OPERATIONS = 6.0
"""Floating-point operations of a gradient for each multiply-add of a forward pass: two each, in three passes, of which
the backward pass makes two, with the weights and with the activations."""


@dataclass(frozen=True)
class Rate:
    """Images a second of one gradient, the median of several runs of one network on one kind of device."""

    model: Mapping[str, Any]
    """As it is recorded: name, target and its arguments."""
    device: str
    threads: int | None
    """Of a CPU."""
    precision: str
    images_per_second: float
    runs: int
    source: str
    macs: int
    """Multiply-adds of a forward pass on one image."""

    @property
    def tflops(self) -> float:
        """10^12 operations a second."""
        return 1e-12 * OPERATIONS * self.macs * self.images_per_second

    @property
    def place(self) -> str:
        """`an NVIDIA H100 80GB HBM3 in bf16`, `1 thread of a CPU (AMD EPYC) in bf16`."""
        where = on_threads(self.device, self.threads) if self.threads else f"an {self.device}"
        return f"{where} in {self.precision}"


@dataclass(frozen=True)
class Duration:
    """Hours of one kind of device, and whether they rest on a measured rate."""

    hours: float
    is_measured: bool
    kind: str
    """Of device, as `kind_of` calls it."""
    words: str

    def __str__(self) -> str:
        return f"about {shown(self.hours)} h {self.words}"

    @property
    def brief(self) -> str:
        """The same in a few words, without the name of a processor."""
        kind = self.kind.partition(" (")[0]
        return f"about {shown(self.hours)} h on {kind} ({'by measured rate' if self.is_measured else 'derived'})"


def went_on_elsewhere(environment: Mapping[str, Any]) -> bool:
    """Whether the run of this environment of a result was trained on several kinds of device: its seconds are those of
    all together, and no measure of any.
    """
    machines = environment.get("carried_out_on")
    return isinstance(machines, list) and len(machines) > 1


def kind_of(device: str, threads: int | None = None) -> str:
    """The kind of a device of that name: `an H100`, `1 thread of a CPU (AMD EPYC)`; the name itself of another GPU."""
    if threads:
        return on_threads(device, threads)
    known = next((kind for kind in PEAKS if kind in device), None)
    return f"an {known}" if known else f"a {device}" if device.startswith("CPU") else device


def on_threads(device: str, threads: int) -> str:
    """`1 thread of a CPU (AMD EPYC)`."""
    return f"{threads} thread{'s' * (threads != 1)} of a {device}"


def shown(hours: float) -> str:
    """Hours in two digits at least."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


@cache
def _table() -> Mapping[str, Any]:
    content: Mapping[str, Any] = read_yaml(TABLE, limit=MEBIBYTE)
    return content


@cache
def measured() -> tuple[Rate, ...]:
    """The committed rates."""
    return tuple(Rate(**row) for row in _table()["rates"])


def networks() -> Iterable[tuple[Mapping[str, Any], str, int]]:
    """Of the papers' rows the recorded network, the name of the data set, and the multiply-adds of a forward pass on
    one image: status works with them, which would take seconds to build the networks.
    """
    return ((row["model"], row["dataset"], row["macs"]) for row in _table()["networks"])


def rate_of(
    model: Mapping[str, Any], *, device: str, threads: int | None, precision: str, rates: Iterable[Rate] | None = None
) -> Rate | None:
    """The measured rate of a network on a device of that name, or kind of GPU; `auto` takes the faster precision."""
    found = [rate for rate in _rates_on(device, threads, precision, rates) if rate.model == model]
    return max(found, key=lambda rate: rate.images_per_second, default=None)


def _nearest_of_class(
    model: Mapping[str, Any],
    macs: float,
    *,
    device: str,
    precision: str,
    rates: Iterable[Rate] | None,
) -> Rate | None:
    """The rate on a kind of GPU of the network that has the nearest number of multiply-adds among those of the same
    class: a class reaches much the same operations a second at different depths, and more where it is wider.
    """
    found = [
        rate
        for rate in _rates_on(device, None, precision, rates)
        if macs and rate.model["_target_"] == model.get("_target_")
    ]
    return min(found, key=lambda rate: (abs(math.log(rate.macs / macs)), -rate.images_per_second), default=None)


def _rates_on(device: str, threads: int | None, precision: str, rates: Iterable[Rate] | None) -> list[Rate]:
    return [
        rate
        for rate in (measured() if rates is None else rates)
        if (
            device in rate.device and rate.threads is None
            if threads is None
            else (device, threads) == (rate.device, rate.threads)
        )
        and precision in ("auto", rate.precision)
    ]


def duration(
    model: Mapping[str, Any],
    *,
    images: float,
    flops: float,
    precision: str,
    device: str = USUAL,
    threads: int | None = None,
    rates: Sequence[Rate] | None = None,
) -> Duration:
    """How long the gradients of `images` images, of `flops` operations in all, take on a device: a GPU where it has no
    `threads`. Where no rate of that device is known it is a GPU of its kind, or of the usual one, by its measured rate
    where there is one, else by that of a network of the same class, else by operations alone.
    """
    kind = next((kind for kind in PEAKS if kind in device), USUAL)
    places: tuple[tuple[str, int | None], ...] = ((device, threads), (kind, None))
    found = (rate_of(model, device=name, threads=of, precision=precision, rates=rates) for name, of in places)
    rate = next((rate for rate in found if rate is not None), None)
    if rate is not None:
        words = f"on {rate.place}, measured: {rate.images_per_second:,.0f} images/s a gradient ({_runs(rate.runs)})"
        return Duration(images / rate.images_per_second / 3600, True, kind_of(rate.device, rate.threads), words)
    macs = flops / images / OPERATIONS if images else 0.0
    nearest = _nearest_of_class(model, macs, device=kind, precision=precision, rates=rates)
    if nearest is not None:
        name = nearest.model["name"]
        whose = name if name != model.get("name") else f"another variant of {name}"
        words = f"on {nearest.place}, derived from the {nearest.tflops:.3g} TFLOP/s of {whose}, not measured"
        return Duration(flops / nearest.tflops / 1e12 / 3600, False, kind_of(nearest.device), words)
    name = precision if precision in PEAKS[kind] else "bf16"
    words = f"on an {kind} at {100 * SHARE:g} % of its {name} peak, derived, not measured"
    return Duration(flops / tflops(kind, name) / 1e12 / 3600, False, kind_of(kind), words)


def tflops(kind: str = USUAL, precision: str = "bf16") -> float:
    """10^12 operations a second that a GPU of that kind is taken to reach."""
    return SHARE * PEAKS[kind][precision]


def total(durations: Iterable[Duration]) -> str:
    """The hours of several runs, apart by kind of device and by whether they rest on measured rates."""
    sums: dict[tuple[str, bool], float] = {}
    for one in durations:
        place = (one.kind, one.is_measured)
        sums[place] = sums.get(place, 0.0) + one.hours
    kinds = list(dict.fromkeys(kind for kind, _ in sums))
    ordered = sorted(sums, key=lambda place: (kinds.index(place[0]), not place[1]))
    return together(
        f"about {shown(sums[kind, is_measured])} h on {kind} {SOURCES[is_measured]}" for kind, is_measured in ordered
    )


SOURCES = {True: "by measured rates", False: "derived, not measured"}
"""What is said of hours that rest on the measured rate of the same step and network, and of all others."""


def together(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)}"
