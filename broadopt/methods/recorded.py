"""Gradients of a step by its recorded config alone: nothing that it names is built, and torch is not imported."""

from collections.abc import Callable, Mapping
from typing import Any

from broadopt.config.identity import public
from broadopt.errors import InputError
from broadopt.methods.steps.sharp_steps import Course, SharpSteps

PASSES = {
    "broadopt.methods.step.Plain": 1,
    "broadopt.methods.sam.sam": 2,
    "broadopt.methods.asam.asam": 2,
    "broadopt.methods.steps.friendly.FriendlySAM": 2,
    "broadopt.methods.steps.gsam.gsam": 2,
    "broadopt.methods.steps.looksam.LookSAM": 2,
    "broadopt.methods.steps.msam.MSAM": 1,
}
"""Gradients that each of broadopt's own steps takes where it is sharp."""

OVER_TIME = frozenset({"from", "until"})
"""Keys by which a step is plain in one part of a training and sharp in another."""

VARYING = OVER_TIME | {"every", "ascent", "second_order"}
"""Keys by which a step takes another number of gradients, which its runs record."""

SECOND_ORDER = 2
"""What step.second_order adds at a sharp step, as `broadopt.methods.steps.second_order` counts it."""

LARGEST = 1e15
"""Of any number here: products of a few of them stay finite."""

FINE = 10_000
"""Steps that an epoch is counted in where their number is not known."""


def varies(step: Mapping[str, Any]) -> bool:
    """Whether a recorded step takes other numbers of gradients than its kind, or at different times of a training."""
    return bool(VARYING & step.keys())


def share_by(record: Mapping[str, Any], *, epochs: float, images: int | None) -> Callable[[float], float] | None:
    """(epoch) -> the share of all gradients of a training of `epochs` epochs that it has taken by then; None where it
    is not known, as for a step of one's own with a step.from.

    `images`: training images an epoch, None where they are not known.
    """
    step = record["step"]
    passes = PASSES.get(public(str(step.get("_target_", ""))))
    if passes == 1 or not step.keys() & {*OVER_TIME, "every"}:
        return lambda epoch: epoch / epochs
    if passes is None:  # what is made of these keys only its code says; every k-th step is spread evenly at least
        return None if step.keys() & OVER_TIME else lambda epoch: epoch / epochs
    try:
        sharp_steps = _sharp_steps(step)
        more = (passes - 1 + SECOND_ORDER * bool(step.get("second_order"))) * _number(step.get("ascent", 1))
    except (InputError, TypeError):  # a file of others may hold anything
        return None
    budget, batch_size = float(record["budget"]), record.get("batch_size")
    if not images or not batch_size:
        # Finer than the training's own: every k-th of them is as good as a k-th of each.
        images, batch_size = FINE, 1
        sharp_steps, more = SharpSteps(start=sharp_steps.start, end=sharp_steps.end), more / sharp_steps.every

    def taken(epoch: float) -> float:
        course = Course.of(images=images, batch_size=batch_size, budget=budget, epochs=min(epoch, epochs))
        return course.steps + more * sharp_steps.before(course)

    whole = taken(epochs)
    return lambda epoch: taken(epoch) / whole


def _sharp_steps(step: Mapping[str, Any]) -> SharpSteps:
    until, every = step.get("until"), step.get("every", 1)
    if type(every) is not int or every > LARGEST:
        raise TypeError("step.every")
    return SharpSteps(start=_number(step.get("from", 0)), end=None if until is None else _number(until), every=every)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= LARGEST:
        raise TypeError("expected a number >= 0")
    return float(value)
