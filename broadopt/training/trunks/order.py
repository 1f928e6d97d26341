"""Which runs of a sweep begin from which: trunks first, so that the others find what they can share."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from broadopt.config.identity import identity_of
from broadopt.config.run_config import Recipe
from broadopt.errors import printable
from broadopt.training.trunks.beginnings import Beginnings

log = logging.getLogger("broadopt")

Key: TypeAlias = tuple[str, int, str]
"""A beginning: what all of a run have in common, its epochs, and the hash of its learning rates."""


@dataclass(frozen=True)
class Start:
    """How a run of a sweep begins, by its place in the order that was given."""

    run: int
    epochs: int = 0
    """Epochs that it takes over."""
    of: int | None = None
    """The run that has left them; None where it trains all itself."""
    wave: int = 0
    """How many runs that share anything with it, directly or not, begin before it."""


def beginnings_of(recipes: Iterable[Recipe | None]) -> list[Beginnings | None]:
    """The beginnings of each run of a sweep; None for one without trunk=share, and for one whose data are not here."""
    alike: dict[tuple[str, str], Beginnings | None] = {}
    found: list[Beginnings | None] = []
    for recipe in recipes:
        if recipe is None:
            found.append(None)
            continue
        # All that is worked out is the same for each seed; where the data lie is no part of an identity.
        key = replace(recipe, seed=0).identity, json.dumps(recipe.dataset.values(), sort_keys=True)
        if key not in alike:
            alike[key] = _tried(recipe)
        known = alike[key]
        found.append(None if known is None else Beginnings(recipe, known.calendar, known.schedule, known.rates))
    return found


def _tried(recipe: Recipe) -> Beginnings | None:
    try:
        found = Beginnings.of(recipe)
        found.rates.digest(found.taken_from)
    except Exception as error:  # noqa: BLE001 - code of the user's own may raise anything; the run itself will fail by it
        # Its data need not be on the machine that starts the sweep: only the order is lost.
        why = " ".join(str(error).split()) or type(error).__name__
        log.warning("trunk=share: %s keeps its place in the order of the sweep: %s", recipe, printable(why))
        return None
    return found


def ordered(beginnings: Sequence[Beginnings | None], places: Sequence[str] = ()) -> list[Start]:
    """The runs of a sweep in an order in which trunks come before those that begin from them. `places`: of each run
    where it looks for trunks, unless that is the same for all.

    Of the runs that can share, that which saves the others the most epochs comes first, then that which saves the rest
    the most more, and so on; of equals, and of runs that save nothing, the first given. Of several such groups the
    first runs come first, then the second ones: where several runs are carried out at a time, those of other groups
    fill the time in which a trunk is trained. Runs that share nothing are in the first wave.
    """
    left, takers = _offers(beginnings, places or [""] * len(beginnings))
    starts: dict[int, Start] = {}
    for group in _groups(left, takers):
        starts |= _greedy(group, left, takers)
    whole = [starts.get(run, Start(run)) for run in range(len(beginnings))]
    return sorted(whole, key=lambda start: start.wave)


def _offers(
    beginnings: Sequence[Beginnings | None], places: Sequence[str]
) -> tuple[dict[int, list[Key]], dict[Key, list[int]]]:
    """The beginnings that each run leaves, and the runs that could begin from each; those alone that are of use."""
    together: dict[str, list[tuple[int, Beginnings]]] = defaultdict(list)
    for run, (one, place) in enumerate(zip(beginnings, places, strict=True)):
        if one is not None:
            together[identity_of({**one.common, "place": place})].append((run, one))
    left: dict[int, list[Key]] = {}
    takers: dict[Key, list[int]] = defaultdict(list)
    for common, runs in together.items():
        points = {epochs for _, one in runs for epochs in one.left} if len(runs) > 1 else set()
        for run, one in runs if points else ():
            for epochs in filter(one.exists, points):
                takers[common, epochs, one.rates.digest(epochs)].append(run)
            left[run] = [(common, epochs, one.rates.digest(epochs)) for epochs in one.left]
    return {run: [key for key in keys if len(takers[key]) > 1] for run, keys in left.items()}, takers


def _groups(left: Mapping[int, Sequence[Key]], takers: Mapping[Key, Sequence[int]]) -> list[list[int]]:
    """The runs that share anything, directly or by way of others, together; in the order given."""
    group_of: dict[int, list[int]] = {}
    for run in sorted(left):
        for other in {taker for key in left[run] for taker in takers[key]}:
            mine, its = group_of.setdefault(run, [run]), group_of.setdefault(other, [other])
            if mine is not its:
                mine += its
                group_of |= dict.fromkeys(its, mine)
    return [sorted(group) for group in {id(group): group for group in group_of.values()}.values()]


def _greedy(
    group: Sequence[int], left: Mapping[int, Sequence[Key]], takers: Mapping[Key, Sequence[int]]
) -> dict[int, Start]:
    """How each run of a group begins."""
    waiting = {run: Start(run) for run in group}
    """Of each what it can take over so far."""
    starts: dict[int, Start] = {}
    while waiting:
        offers = {run: _offered(run, waiting, left[run], takers) for run in waiting}
        gains = {
            run: sum(start.epochs - waiting[start.run].epochs for start in offers[run].values()) for run in waiting
        }
        chosen = max(waiting, key=lambda run: gains[run])  # the first given of equals
        if gains[chosen] == 0:  # the order of the rest changes nothing
            rest = enumerate(waiting.values(), start=len(starts))
            return starts | {start.run: replace(start, wave=wave) for wave, start in rest}
        starts[chosen] = replace(waiting.pop(chosen), wave=len(starts))
        waiting |= offers[chosen]
    return starts


def _offered(
    run: int, waiting: Mapping[int, Start], left: Sequence[Key], takers: Mapping[Key, Sequence[int]]
) -> dict[int, Start]:
    """By run that waits, what it would take over from `run` where that is more than it can take so far. A run leaves
    nothing of the epochs that it takes over itself.
    """
    found: dict[int, Start] = {}
    for key in left:  # in ascending order of their epochs
        epochs = key[1]
        for other in takers[key] if epochs > waiting[run].epochs else ():
            if other != run and other in waiting and epochs > waiting[other].epochs:
                found[other] = Start(other, epochs, run)
    return found
