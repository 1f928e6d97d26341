"""Points of a loss landscape a second: weights put in place on the device, and loaded from a file one by one."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
import usual_loop
from measure import BATCH, interleaved, parts_of, random_dataset, ratio, seconds
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import update_bn
from torchvision import transforms

from broadopt import predictor
from broadopt.analysis.landscape.geometry import Line
from broadopt.analysis.landscape.grid import Landscape
from broadopt.analysis.landscape.networks import flat
from broadopt.config.compose import compose, run_config

POINTS = 2
"""Points a turn."""


def rows(*, device: str, network: str, steps: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One row: points a second of both, each point with BN re-estimated and train and test images evaluated."""
    count = BATCH * steps
    dataset = random_dataset(count, count)
    parts = parts_of(f"model={network}", f"device={device}", "precision=fp32", dataset=dataset)
    recipe = run_config(compose([f"model={network}"])).recipe
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        predictor.write(path, parts.model, metadata=predictor.described(recipe, dataset.classes))
        weights = flat(parts.model)
        line = Line.through(weights, 1.1 * weights)
        everything = torch.arange(count)
        landscape = Landscape(
            parts.model,
            train=parts.data.unaugmented("train", everything),
            test=parts.data.unaugmented("test", everything),
            statistics=torch.cat([images for images, _ in parts.data.statistics(1)]),
            weight_decay=5e-4,
            batch_size=BATCH,
            context=parts.autocast,
            memory_format=torch.channels_last,
        )

        def in_place() -> None:
            for number in range(POINTS):
                landscape.at(line.at(0.1 * number))

        cases = {
            "in place": lambda: seconds(in_place, parts.device),
            "one by one": one_by_one(path, parts.device, count),
        }
        measured = interleaved(cases, rounds=rounds)
    yield {
        "network": network,
        "images of each split": count,
        **{f"{name}, points/s": POINTS / median(values[name] for values in measured) for name in cases},
        **ratio(measured, "one by one", "in place"),
    }


def one_by_one(path: Path, device: torch.device, count: int) -> Callable[[], float]:
    """Seconds of POINTS points as the field measures them: the network loaded from its file, torch's update_bn and two
    evaluations through DataLoaders with PIL images.
    """
    images = usual_loop.Pictures(count)
    images.pipeline = transforms.Compose([*usual_loop.TO_TENSOR])
    loader = torch.utils.data.DataLoader(images, BATCH)

    @torch.no_grad()
    def evaluated(model: torch.nn.Module) -> tuple[float, int]:
        loss, hits = 0.0, 0
        for batch, labels in loader:
            logits = model(batch.to(device))
            loss += cross_entropy(logits, labels.to(device), reduction="sum").item()
            hits += int((logits.argmax(dim=1).cpu() == labels).sum())
        return loss, hits

    def once() -> None:
        for number in range(POINTS):
            model = predictor.read(path).model.to(device)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1 + 0.01 * number)
            update_bn(loader, model, device=device)
            model.eval()
            evaluated(model), evaluated(model)

    return lambda: seconds(once, device)
