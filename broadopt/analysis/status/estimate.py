"""What a run costs: from the measured rate of its network, else from its floating-point operations. Words say of every
time whether it is measured or derived.

All of it is worked out from plain numbers that results and heartbeats hold, and nothing that they name is ever built:
whoever made the folder would choose what is called.
"""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from broadopt.analysis.status.devices import SEVERAL, Device
from broadopt.analysis.status.state import Folder, Record, processes, total_epochs
from broadopt.config.identity import AS_WITHOUT, public
from broadopt.devices import rates
from broadopt.methods.recorded import PASSES, varies

IMAGES = {"broadopt.datasets.cifar": 50_000, "broadopt.datasets.digits": 1_438}
"""Training images of the data sets that are always the same, before any are held out."""


@dataclass(frozen=True)
class Rate:
    """Images a second in training steps, the median of several runs on one kind of device."""

    images_per_second: float
    runs: int
    device: Device
    precision: str
    method: str
    batch_size: int | None

    @property
    def where(self) -> str:
        """Device and precision."""
        return f"{self.device} {self.precision}"


@dataclass(frozen=True)
class Estimate:
    """Device seconds an epoch, None where they are unknown, and what they are estimated from."""

    seconds_per_epoch: float | None
    source: str
    """`measured`, `other method`, `flops` or `unknown`."""
    words: str
    kind: str
    """Of device, whose seconds they are."""


UNKNOWN = Estimate(None, "unknown", "", "")


OF_THE_TIME = ("chunk", "layers")
"""Options of a step by which as many gradients take another time."""


class Estimates:
    """Estimates for recorded configs by what the runs of a folder have measured. For networks that none of them has:
    by the rate that is known of an H100, or by their operations at a share of its peak; or at `tflops`, the rate of a
    device in 10^12 floating-point operations a second.
    """

    def __init__(self, folder: Folder, *, tflops: float | None) -> None:
        self._tflops = tflops
        self._images: dict[str, int] = {}
        self._passes: dict[str, float] = {}
        self._macs: dict[str, int] = {}
        self._own = {_key([model, dataset]): macs for model, dataset, macs in rates.networks()}
        """Multiply-adds of the papers' networks."""
        for record, numbers in _sizes(folder):
            for known, node, name in (
                (self._images, record["dataset"], "images_per_epoch"),
                (self._passes, _cost_of_step(record), "passes"),
                (self._macs, [record["model"], record["dataset"]["name"]], "macs"),
            ):
                if numbers.get(name):
                    known[_key(node)] = numbers[name]
        for dataset, images in _images_by_rate(folder):
            self._images.setdefault(dataset, images)
        self._rates: dict[str, list[tuple[str, Rate]]] = defaultdict(list)
        """By network: the cost of a step, and the rate that it was measured at in one precision and batch size."""
        for (network, cost, _, batch_size), measured in _measured(folder).items():
            self._rates[network].append((cost, _usual(measured, batch_size=batch_size)))

    def of(self, record: Record) -> Estimate:
        """By runs of the same network and step, else of the same network with another step (in proportion to the
        gradients of a step), else by what is known of the network elsewhere. Runs in the record's precision, and of
        these those with its batch size, are taken where there are any: another's rate may be several times as high.
        """
        images, found = self._epoch(record), self._rates.get(_key(record["model"]), [])
        found = [one for one in found if one[1].precision == record["precision"]] or found
        found = [one for one in found if one[1].batch_size == record.get("batch_size")] or found
        own = _key(_cost_of_step(record))
        gradients = self._gradients(own)
        same = [rate for cost, rate in found if self._is_same(cost, own)]
        if same and images:
            rate = max(same, key=lambda rate: (rate.runs, rate.images_per_second))
            words = f"measured: {rate.images_per_second:,.0f} img/s, {rate.where}"
            return Estimate(images / rate.images_per_second, "measured", words, rate.device.kind)
        others = [(rate, passes) for cost, rate in found if (passes := self._gradients(cost))]
        if others and images and gradients:
            rate, passes = max(others, key=lambda other: (other[0].runs, other[0].images_per_second))
            speed = rate.images_per_second * passes / gradients
            words = f"derived from the rate of {rate.method}, by gradients: {speed:,.0f} img/s, {rate.where}"
            return Estimate(images / speed, "other method", words, rate.device.kind)
        return self._unmeasured(record, images, gradients)

    def _unmeasured(self, record: Record, images: int | None, gradients: float | None) -> Estimate:
        """By what is known of the network elsewhere, and of a device."""
        flops = self._flops(record, images, self._own | self._macs)
        if flops is None or not images or not gradients:
            return UNKNOWN
        epochs = total_epochs(record)
        if self._tflops is not None:
            words = f"derived from operations: {flops / 1e15:,.4g} PFLOPs at {self._tflops:g} TFLOP/s"
            kind = f"a device of {self._tflops:g} TFLOP/s"
            return Estimate(flops / epochs / (self._tflops * 1e12), "flops", words, kind)
        time = rates.duration(
            record["model"], images=gradients * images, flops=flops / epochs, precision=record["precision"]
        )
        source = "measured" if time.is_measured else "flops"
        return Estimate(3600 * time.hours, source, f"{time.words}: {flops / 1e15:,.4g} PFLOPs", time.kind)

    def flops(self, record: Record) -> float | None:
        """Floating-point operations of the gradients of a whole run, by the multiply-adds that runs of its network have
        recorded; None where none has.
        """
        return self._flops(record, self._epoch(record), self._macs)

    def _epoch(self, record: Record) -> int | None:
        """Training images an epoch, None where they are unknown."""
        dataset = record["dataset"]
        published = IMAGES.get(public(dataset.get("_target_", ""))) if dataset["fingerprint"] is None else None
        if published is None:
            return self._images.get(_key(dataset))
        return max(1, published - dataset.get("validation", 0))

    def _is_same(self, cost: str, other: str) -> bool:
        """Whether two steps take the same time: the same step with as many gradients. Where these are unknown, only one
        that varies may take others.
        """
        if cost == other or _target(cost) != _target(other):
            return cost == other
        if any(_option(cost, key) != _option(other, key) for key in OF_THE_TIME):
            return False
        gradients = (self._gradients(cost), self._gradients(other))
        if None in gradients:
            return not any(varies(json.loads(one)["step"]) for one in (cost, other))
        return gradients[0] == gradients[1]

    def _gradients(self, cost: str) -> float | None:
        """Gradients that a step takes in the mean, None where they are unknown; `cost` is what _cost_of_step gives, as
        JSON.
        """
        is_other = varies(json.loads(cost)["step"])
        return self._passes.get(cost) or (None if is_other else PASSES.get(public(_target(cost))))

    def _flops(self, record: Record, images: int | None, known: Mapping[str, int]) -> float | None:
        """Operations of a whole run, by the multiply-adds that are known."""
        macs = known.get(_key([record["model"], record["dataset"]["name"]]))
        passes = self._gradients(_key(_cost_of_step(record)))
        if not macs or not passes or not images:
            return None
        return rates.OPERATIONS * macs * passes * images * total_epochs(record)


def _cost_of_step(record: Record) -> dict[str, Any]:
    """What the mean number of gradients of a step hangs on: where it varies, also on how long the training goes on
    after its budget, and on how many steps it has.
    """
    cost = {"step": record["step"]}
    if varies(record["step"]):
        cost |= {"budgets": total_epochs(record) / float(record["budget"]), "batch_size": record.get("batch_size")}
    return cost


def _sizes(folder: Folder) -> Iterator[tuple[Record, Mapping[str, Any]]]:
    """Of each run its recorded config and the numbers that tell its size."""
    yield from ((result["config"], result["cost"]) for result in folder.results.values())
    yield from ((progress["config"], progress) for _, progress in folder.progress.values())


def _images_by_rate(folder: Folder) -> Iterator[tuple[str, int]]:
    """Training images an epoch, by data set: what results say that were written before their images were counted."""
    for result in folder.results.values():
        cost, epochs = result["cost"], result["epochs"]
        if epochs and (images := round(cost["images_per_second"] * cost["train_seconds"] / epochs)):
            yield _key(result["config"]["dataset"]), images


Measured = list[tuple[tuple[Device, str], float, str]]
"""Device and precision, images a second, method."""

Alike = tuple[str, str, str, int | None]
"""Network, cost of a step, precision and batch size."""


def _measured(folder: Folder) -> dict[Alike, Measured]:
    """What every run has measured, by what runs have in common: not one that went on on another machine,
    and of a step that varies finished runs alone, since late SAM is twice as fast in its first half.
    """
    found: dict[Alike, Measured] = defaultdict(list)
    for result in folder.results.values():
        if varies(result["config"]["step"]) and result["state"] != "finished":
            continue
        _add(found, result["config"], Device.of(result["environment"]), result["cost"]["images_per_second"])
    for _, progress in folder.progress.values():
        if not varies(progress["config"]["step"]):
            _add(found, progress["config"], Device.of(progress), progress.get("images_per_second"))
    return found


def _add(found: dict[Alike, Measured], record: Record, device: Device, rate: float | None) -> None:
    if rate and device != SEVERAL:  # of one device: a run of several processes has the images of all
        alike = (_key(record["model"]), _key(_cost_of_step(record)), record["precision"], record.get("batch_size"))
        found[alike].append(((device, record["precision"]), rate / processes(record), record["method"]))


def _usual(measured: Measured, *, batch_size: int | None) -> Rate:
    """The median of the kind of device that most runs were on."""
    by_device: dict[tuple[Device, str], list[float]] = defaultdict(list)
    for where, rate, _ in measured:
        by_device[where].append(rate)
    where, rates = max(by_device.items(), key=lambda item: (len(item[1]), max(item[1])))
    return Rate(statistics.median(rates), len(rates), *where, measured[0][2], batch_size)


def _key(node: Any) -> str:
    return json.dumps(node, sort_keys=True)


def _option(cost: str, key: str) -> Any:
    return json.loads(cost)["step"].get(key, AS_WITHOUT[f"step.{key}"])


def _target(cost: str) -> str:
    return str(json.loads(cost)["step"].get("_target_", ""))
