"""What accuracy costs: time beside that of SGD, epochs to a given accuracy, accuracy at an equal cost.

Histories are those of `broadopt.runs.history`: a row an epoch, those that were not evaluated without `test_accuracy`.
"""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from broadopt.analysis.comparing.against import best_alike, by_seed
from broadopt.analysis.comparing.lines import Line
from broadopt.analysis.comparing.sweep import Sweep
from broadopt.analysis.tables.match import Result, precision
from broadopt.analysis.tables.off_recipe import figures
from broadopt.analysis.tables.options import Comparison
from broadopt.analysis.tables.summary import summarise, text
from broadopt.devices.rates import went_on_elsewhere
from broadopt.methods.recorded import OVER_TIME, share_by

History = Sequence[Mapping[str, float]]

COSTS_NOTHING = {
    *("protocol", "lr", "momentum", "nesterov", "weight_decay", "label_smoothing", "evaluate_every"),
    *("augmentation.mean", "augmentation.std"),
}
"""Settings on which neither the seconds nor the gradients of a training depend."""

UNKNOWN = " Not known of a step of your own with step.from or step.until: only its code says when it costs how much."


def evaluated(history: History) -> dict[float, float]:
    """Test accuracy in percent by epoch, of the epochs that were evaluated."""
    return {row["epoch"]: row["test_accuracy"] for row in history if "test_accuracy" in row}


def epochs_to(history: History, accuracy: float) -> float | None:
    """The first evaluated epoch with a test accuracy of at least `accuracy` percent; None where there is none."""
    return next((epoch for epoch, reached in evaluated(history).items() if reached >= accuracy), None)


def last_common_epoch(histories: Iterable[History]) -> float | None:
    """The last epoch that all of some runs have evaluated; None where there is none."""
    epochs = [set(evaluated(history)) for history in histories]
    return max(set.intersection(*epochs), default=None) if epochs else None


def accuracy_within(history: History, amount: float, spent_by: Callable[[float], float]) -> float | None:
    """Test accuracy at the last evaluated epoch by which no more than `amount` was spent; None where none is."""
    # Of an epoch that a number of steps ends, 1e-6 of an epoch are rounding; so are 1e-9 of an amount.
    most = amount * (1 + 1e-9)
    found = [reached for epoch, reached in evaluated(history).items() if spent_by(max(0.0, epoch - 1e-6)) <= most]
    return found[-1] if found else None


def spent(result: Result, quantity: str) -> float | None:
    """`train_seconds` or `gradient_evaluations` of a run; None where it was not measured."""
    value = result["cost"].get(quantity)
    return float(value) if value else None


def spent_by(result: Result, quantity: str) -> Callable[[float], float] | None:
    """(epoch) -> the same up to an epoch, seconds in proportion to gradients; None where it was not measured, or where
    it is not known at which steps.
    """
    total, epochs = spent(result, quantity), result["epochs"]
    if not total or not epochs:
        return None
    share = share_by(result["config"], epochs=epochs, images=result["cost"].get("images_per_epoch"))
    return None if share is None else lambda epoch: total * share(epoch)


def machine(result: Result) -> tuple[Any, ...] | None:
    """What has to be the same for two times to be comparable: device, precision, threads, number of processes and what
    compiles. None where the device is not recorded, or the run went on on one of another kind.
    """
    environment = result["environment"]
    if not environment.get("device") or went_on_elsewhere(environment):
        return None
    names = ("device", "threads", "processes", "compile", "deterministic")
    recorded = environment.get("graphs", environment.get("cuda_graphs"))
    return (precision(result), *(str(environment.get(name)) for name in names), str(recorded))


def time_ratio(runs: Iterable[Result], baseline: Iterable[Result]) -> float | None:
    """The median of the device seconds of `runs` over those of the baseline's median run on the same machine; None
    where no run of the baseline was trained on a machine that one of `runs` was trained on.
    """
    seconds: dict[Any, list[float]] = {}
    for result in baseline:
        value = spent(result, "train_seconds")
        if value is not None:
            seconds.setdefault(machine(result), []).append(value)
    ratios = [
        value / statistics.median(seconds[machine(result)])
        for result in runs
        if (value := spent(result, "train_seconds")) is not None
        and machine(result) is not None
        and machine(result) in seconds
    ]
    return statistics.median(ratios) if ratios else None


def baseline_runs(sweep: Sweep, line: Line, asked: Comparison, *, method: str) -> tuple[Result, ...]:
    """The finished runs of the line of `method` that has the settings of `line`, or else those on which cost depends;
    of several that with the highest accuracy. None where there is no such line: runs of another batch size cost
    something else.
    """

    def costs_as_much(other: Line) -> bool:
        return {key for key, _ in other.settings ^ line.settings} <= COSTS_NOTHING

    known = (other for other in sweep.lines if other.method == method and other.finished)
    best = best_alike(
        line, known, accuracies=lambda other: by_seed(other.finished, asked.metric), stands_in=costs_as_much
    )
    return best.finished if best else ()


class AlongTraining:
    """The columns that are worked out from histories: at an epoch, to an accuracy, at an equal cost."""

    def __init__(self, sweep: Sweep, asked: Comparison, histories: Callable[[Result], History]) -> None:
        self.asked = asked
        needed = asked.at_epoch is not None or asked.reach is not None or asked.equal_cost is not None
        runs = [run for line in sweep.lines for run in line.group.runs] if needed else []
        self._of = {run["identity"]: histories(run) for run in runs}
        self.epoch = asked.at_epoch
        if asked.at_epoch == 0:
            self.epoch = last_common_epoch(history for history in self._of.values() if evaluated(history))
        self.against = asked.against or "sgd"
        self.quantity = "train_seconds" if asked.equal_cost == "seconds" else "gradient_evaluations"
        """Of which accuracies at an equal cost have spent as much."""
        self._sweep = sweep

    def at_epoch(self, line: Line) -> list[float | None]:
        """Accuracy of each run of a line, finished or not, at the epoch asked for."""
        return [evaluated(self._of[run["identity"]]).get(self.epoch or 0.0) for run in line.group.runs]

    def to_reach(self, line: Line) -> list[tuple[float, float | None] | None]:
        """Epochs and seconds of each finished run with a history to the accuracy asked for; None where it was not
        reached.
        """
        found: list[tuple[float, float | None] | None] = []
        known = [run for run in line.finished if evaluated(self._of[run["identity"]])]
        for run in known:
            epochs = epochs_to(self._of[run["identity"]], self.asked.reach or 0.0)
            # The seconds of a run that has moved are not in proportion to its gradients.
            seconds = None if went_on_elsewhere(run["environment"]) else spent_by(run, "train_seconds")
            found.append(None if epochs is None else (epochs, None if seconds is None else seconds(epochs)))
        return found

    def at_equal_cost(self, line: Line) -> list[float | None]:
        """Accuracy of each finished run when it had cost what the baseline's median run cost in all."""
        quantity, found = self.quantity, list[float | None]()
        baseline = baseline_runs(self._sweep, line, self.asked, method=self.against)
        for run in line.finished:
            like = baseline
            if quantity == "train_seconds":  # seconds of another machine are no measure
                like = tuple(one for one in like if machine(one) == machine(run) is not None)
            known = [value for one in like if (value := spent(one, quantity))]
            by = spent_by(run, quantity) if known else None
            history = self._of[run["identity"]]
            found.append(None if by is None else accuracy_within(history, statistics.median(known), by))
        return found


def asked_columns(sweep: Sweep, extra: AlongTraining) -> list[tuple[list[str], list[list[str]], str]]:
    """Titles, cells by line and the note of each group of columns that an option asks for."""
    found = []
    if extra.asked.reach is not None:
        target, cells = f"{extra.asked.reach:g}", []
        for line in sweep.lines:
            known = extra.to_reach(line)
            reached = [one for one in known if one]
            epochs = f"{statistics.median(one[0] for one in reached):g}" if reached else ""
            seconds = [one[1] for one in reached if one[1] is not None]
            words = f"{len(reached)} of {len(known)}" if known else ""
            cells.append([words, epochs, f"{statistics.median(seconds):.0f}" if seconds else ""])
        note = (
            f"reach {target}: of the runs with a history, those with an evaluated epoch of at least {target} %, chosen "
            "on the test set; epochs and seconds to the first such epoch: medians of those runs."
        ) + _over_time(sweep, "train_seconds")
        found.append(([f"reach {target}", f"epochs to {target}", f"seconds to {target}"], cells, note))
    if extra.asked.equal_cost is not None:
        title = f"at {extra.against}'s {extra.asked.equal_cost}"
        cells = [[text(summarise(extra.at_equal_cost(line)), n=len(line.finished))] for line in sweep.lines]
        note = (
            f"{title}: test accuracy of the plain weights at the last evaluated epoch by which no more was spent than "
            f"by the median run of {extra.against} in all, if there is one with the same settings (but for "
            "lr, label smoothing and the like, which cost nothing); a schedule made for that budget would end lower."
        ) + _over_time(sweep, extra.quantity)
        found.append(([title], cells, note))
    return found


def _over_time(sweep: Sweep, quantity: str) -> str:
    """What is to be said where a step costs more in one part of a training than in another."""
    uneven = [run for run in sweep.runs if OVER_TIME & run["config"]["step"].keys()]
    unknown = any(spent(run, quantity) and spent_by(run, quantity) is None for run in uneven)
    words = " Seconds of a step with step.from or step.until are in proportion to its gradients."
    return (words if uneven and quantity == "train_seconds" else "") + (UNKNOWN if unknown else "")


def asked_records(line: Line, extra: AlongTraining) -> list[dict[str, Any]]:
    """The numbers of these columns for one line, and that at an epoch, as records for CSV."""
    records = []
    if extra.asked.at_epoch is not None:
        cell = summarise(extra.at_epoch(line))
        records.append({"metric": "at epoch", "key": extra.epoch, **figures(cell)})
    if extra.asked.reach is not None:
        reached = [one for one in extra.to_reach(line) if one]
        for quantity, values in (
            ("epochs_to", [one[0] for one in reached]),
            ("seconds_to", [one[1] for one in reached]),
        ):
            records.append({"key": extra.asked.reach, **figures(summarise(values), quantity=quantity)})
    if extra.asked.equal_cost is not None:
        cell = summarise(extra.at_equal_cost(line))
        records.append({"metric": f"at {extra.against}'s {extra.asked.equal_cost}", **figures(cell)})
    return records
