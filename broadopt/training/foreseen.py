"""What a run will leave, made up before it trains: a result that no reader takes would cost the whole training."""

from pathlib import Path

from broadopt.config.run_config import Recipe
from broadopt.errors import InputError
from broadopt.runs import results
from broadopt.training.conclude import head
from broadopt.training.parts import Parts

ROOM = 64 * 1024
"""Bytes of a result.json for what is not known before: the environment, the machines that it was carried out on."""

FIGURE = 100 / 3
"""A number that takes as much room as any."""


def check(folder: Path, recipe: Recipe, parts: Parts) -> None:
    """Raise InputError, naming the field, where the result of a run of these parts could not be read again."""
    splits = parts.data.targets()
    figures = {f"{split}_{name}": FIGURE for split in splits for name in ("accuracy", "nll")}
    figures |= {f"{split}_ece": FIGURE / 100 for split in splits}
    collected = {
        f"{name} {spent}".strip(): figures | {"epochs": FIGURE, "members": FIGURE}
        for name, collector in parts.collectors.items()
        for spent in collector.evaluation_points(recipe.budget)
    }
    result = head(recipe, "finished", FIGURE) | {
        "metrics": results.metrics([figures | {"epoch": FIGURE}], collected),
        "cost": {"train_seconds": FIGURE, "images_per_second": FIGURE, **parts.size},
        "environment": {"precision": recipe.precision},
    }
    try:
        results.check(results.sealed(result), folder, room=ROOM)
    except ValueError as error:
        raise InputError(f"the result.json of this run could not be read again: {error}") from error
