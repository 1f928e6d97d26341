"""What a run costs: from the measured rate of its network, else from its floating-point operations."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from broadopt.config.run_config import Recipe
from broadopt.status.state import Folder, Record, total_epochs

CIFAR_IMAGES = 50_000
"""Known here without torch, which takes seconds to import."""


@dataclass(frozen=True)
class Rate:
    """Images a second in training steps, the median of several runs on one kind of device."""

    images_per_second: float
    runs: int
    where: str
    method: str


@dataclass(frozen=True)
class Estimate:
    """Device seconds an epoch, None where nothing tells them, and what they are estimated from."""

    seconds_per_epoch: float | None
    source: str
    """`measured`, `other method`, `flops` or `unknown`."""
    words: str


class Estimates:
    """Estimates for recorded configs by what the runs of a folder have measured; `tflops`: the rate of a device in
    10^12 floating-point operations a second, for networks that none of them has.
    """

    def __init__(self, folder: Folder, *, tflops: float | None) -> None:
        self._tflops = tflops
        self._images = dict(_images(folder))
        self._rates: dict[str, dict[str, Rate]] = {}
        for (network, step), measured in _measured(folder).items():
            self._rates.setdefault(network, {})[step] = _usual(measured)

    def of(self, record: Record) -> Estimate:
        """By runs of the same network and step, else of the same network with another step (in proportion to the
        gradients of a step), else by FLOPs.
        """
        steps = self._rates.get(_key(record["model"]), {})
        own = _key(record["step"])
        same = [rate for step, rate in steps.items() if _target(step) == _target(own)]
        if same:
            rate = max(same, key=lambda rate: rate.runs)
            return Estimate(
                self._epoch(record) / rate.images_per_second,
                "measured",
                f"measured: {rate.images_per_second:,.0f} img/s, {rate.where}",
            )
        if steps:
            step, rate = max(steps.items(), key=lambda item: item[1].runs)
            speed = rate.images_per_second * passes(step) / passes(own)
            words = f"rate of {rate.method}, by gradients: {speed:,.0f} img/s, {rate.where}"
            return Estimate(self._epoch(record) / speed, "other method", words)
        if self._tflops is not None:
            flops = _flops(json.dumps(record, sort_keys=True))
            seconds = flops / total_epochs(record) / (self._tflops * 1e12)
            return Estimate(seconds, "flops", f"operations: {flops / 1e15:,.4g} PFLOPs at {self._tflops:g} TFLOP/s")
        return Estimate(None, "unknown", "")

    def _epoch(self, record: Record) -> int:
        """Training images an epoch."""
        dataset = record["dataset"]
        if dataset["name"] in ("cifar10", "cifar100"):
            return CIFAR_IMAGES - int(dataset["validation"])
        if (measured := self._images.get(_key(dataset))) is not None:
            return measured
        from broadopt.data.datasets import size

        return size(Recipe.of_record(record).dataset)[1] - int(dataset["validation"])


def _images(folder: Folder) -> Iterator[tuple[str, int]]:
    """Training images an epoch, by data set."""
    for result in folder.results.values():
        if result["epochs"]:
            images = result["cost"]["images_per_second"] * result["cost"]["train_seconds"] / result["epochs"]
            yield _key(result["config"]["dataset"]), round(images)
    for _, progress in folder.progress.values():
        if progress["images_per_epoch"]:
            yield _key(progress["config"]["dataset"]), progress["images_per_epoch"]


Measured = list[tuple[str, float, str]]
"""Device and precision, images a second, method."""


def _measured(folder: Folder) -> dict[tuple[str, str], Measured]:
    """What every run has measured, by network and step."""
    found: dict[tuple[str, str], Measured] = defaultdict(list)
    for result in folder.results.values():
        _add(found, result["config"], result["environment"].get("device"), result["cost"]["images_per_second"])
    for _, progress in folder.progress.values():
        _add(found, progress["config"], progress["device"], progress.get("images_per_second"))
    return found


def _add(found: dict[tuple[str, str], Measured], record: Record, device: str | None, rate: float | None) -> None:
    if rate:
        found[_key(record["model"]), _key(record["step"])].append(
            (f"{device} {record['precision']}", rate, record["method"])
        )


def _usual(measured: Measured) -> Rate:
    """The median of the kind of device that most runs were on."""
    by_device: dict[str, list[float]] = defaultdict(list)
    for where, rate, _ in measured:
        by_device[where].append(rate)
    where, rates = max(by_device.items(), key=lambda item: (len(item[1]), max(item[1])))
    return Rate(statistics.median(rates), len(rates), where, measured[0][2])


def _key(node: Mapping[str, Any]) -> str:
    return json.dumps(node, sort_keys=True)


def _target(step: str) -> Any:
    return json.loads(step).get("_target_")


@cache
def passes(step: str) -> int:
    """Gradients that a step takes; `step` is a config's node as JSON."""
    from torch import nn, optim

    from broadopt.config.instantiate import instantiated

    model = nn.Linear(1, 1)
    return int(instantiated("step", json.loads(step), model, optim.SGD(model.parameters(), lr=0.1)).passes)


@cache
def _flops(record: str) -> float:
    from broadopt.training.plan import price

    return price(Recipe.of_record(json.loads(record))).flops
