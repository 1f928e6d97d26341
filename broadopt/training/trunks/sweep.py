"""What a sweep saves by trunk=share, in words: how each run begins, why it takes over no more, and the sum."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from broadopt.config.run_config import RunConfig
from broadopt.devices.rates import shown, together
from broadopt.errors import printable
from broadopt.training.planning.page import UNCOUNTED
from broadopt.training.planning.price import share_of_first
from broadopt.training.planning.show import Plan
from broadopt.training.trunks.beginnings import Beginnings, in_epochs
from broadopt.training.trunks.order import Start, beginnings_of, ordered


class SharedSweep:
    """The runs of a sweep in which trunks come first; a plan of it says what they share."""

    def __init__(self, runs: Sequence[RunConfig | None], names: Sequence[str]) -> None:
        """`runs` in the order in which they were given, None for one that is none; `names`: what each is called in a
        line, the overrides by which it differs from the others.
        """
        sharing = [run if run is not None and run.execution.trunk == "share" else None for run in runs]
        self.names = [printable(name) for name in names]
        self.beginnings = beginnings_of(None if run is None else run.recipe for run in sharing)
        # Where the data lie is no part of an identity either, and what they are is not known before they are read.
        places = [run and json.dumps([run.execution.results_dir, run.recipe.dataset.values()]) for run in sharing]
        starts = ordered(self.beginnings, [place or "" for place in places])
        self.order = [start.run for start in starts]
        """Places of the runs as they were given, in the order in which they are to be carried out."""
        self.starts = {start.run: start for start in starts}
        self._planned: dict[int, Plan] = {}

    def show(self, place: int, planned: Plan) -> None:
        """Print below the plan of the run at a place of the order how it begins."""
        self._planned[self.order[place]] = planned
        if line := self.line(self.order[place]):
            print(f"  {line}", flush=True)

    def show_total(self) -> None:
        """Print what all planned runs together train."""
        if self._planned:
            print(self.total(), flush=True)

    def line(self, run: int) -> str:
        """How a run begins, and why it takes over no more; empty for one that shares no trunk."""
        start, own = self.starts[run], self.beginnings[run]
        if own is None:
            return ""
        if start.of is not None:
            whole = own.steps(start.epochs) == own.calendar.total_steps
            words = f"takes {'all its ' * whole}{in_epochs(start.epochs)} from {self.names[start.of]}"
            return words if whole else f"{words}: {self._why_no_more(own, start)}"
        takers = sum(other.of == run for other in self.starts.values())
        words = f"trains all its {own.calendar.epochs:g} epochs"
        if takers:
            return f"{words}; {takers} run{'s begin' if takers > 1 else ' begins'} from what it leaves"
        return f"{words}: {self._why_nothing(run, own)}"

    def _why_no_more(self, own: Beginnings, start: Start) -> str:
        source = self.beginnings[start.of or 0]
        assert source is not None
        if own.collects and own.taken_from == start.epochs:
            return "its collector begins there"
        if source.rates.digest(start.epochs + 1) != own.rates.digest(start.epochs + 1):
            return f"from epoch {start.epochs + 1} on its lr is another"
        return f"they are equal up to epoch {_in_common(own, source)}, but that leaves no later state"

    def _why_nothing(self, run: int, own: Beginnings) -> str:
        if own.taken_from == 0:
            return "its collector begins in the first epoch" if own.collects else "it trains no whole epoch"
        others = {place: one for place, one in enumerate(self.beginnings) if one is not None and place != run}
        if not others:
            return "no other run of the sweep shares trunks"
        unlike = {place: _unlike(own, one) for place, one in others.items()}
        nearest = min(others, key=lambda place: (len(unlike[place]), -_in_common(own, others[place])))
        name, equal = self.names[nearest], _in_common(own, others[nearest])
        if unlike[nearest]:
            keys = ", ".join(unlike[nearest])
            return f"{keys} {'is' if len(unlike[nearest]) == 1 else 'are'} not as in {name}, which is nearest to it"
        if equal == 0:
            return f"its lr is another than that of {name} from epoch 1 on"
        return f"{name} leaves no state in the {in_epochs(equal)} that they have in common"

    def total(self) -> str:
        """What the planned runs train of what they would train without each other, in a line."""
        epochs = budgets = all_epochs = all_budgets = 0.0
        trained, whole = defaultdict[str, float](float), defaultdict[str, float](float)  # hours, by kind of device
        are_hours_known = all(price.time is not None for _, _, price in self._planned.values())
        shares: dict[tuple[str, int], float] = {}
        for run, (recipe, cost, price) in self._planned.items():
            taken = self.starts[run].epochs
            key = (replace(recipe, seed=0).identity, taken)
            if key not in shares:
                shares[key] = share_of_first(recipe, cost, taken) if taken else 0.0
            epochs += cost.epochs - taken
            all_epochs += cost.epochs
            budgets += (cost.epochs - taken) / recipe.budget
            all_budgets += cost.epochs / recipe.budget
            if price.time is not None:
                trained[price.time.kind] += price.time.hours * (1 - shares[key])
                whole[price.time.kind] += price.time.hours
        hours = [f"about {shown(trained[kind])} of {shown(whole[kind])} h on {kind}" for kind in whole]
        return (
            f"trunk=share: trains {epochs:g} of {all_epochs:g} epochs, {budgets:.4g} of {all_budgets:.4g} budgets, "
            + (together(hours) if are_hours_known else UNCOUNTED)
        )


def _unlike(own: Beginnings, other: Beginnings) -> list[str]:
    """Keys of the recorded config in which two runs differ from the beginning."""
    mine, its = own.common, other.common
    return sorted(key for key in mine.keys() | its.keys() if mine.get(key) != its.get(key))


def _in_common(own: Beginnings, other: Beginnings) -> int:
    """Epochs of one lr in all steps of both runs, up to where one collects."""
    low, high = 0, min(own.taken_from, other.taken_from)
    while low < high:  # what is equal up to some epoch is so up to all before
        middle = (low + high + 1) // 2
        equal = own.rates.digest(middle) == other.rates.digest(middle)
        low, high = (middle, high) if equal else (low, middle - 1)
    return low
