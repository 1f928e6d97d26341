"""All finished runs of a folder, side by side where they differ in their method alone."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from broadopt.tables.formats import Block, Document
from broadopt.tables.match import Group, Recipes, Result, differing, groups, rank, show
from broadopt.tables.off_recipe import figures, place
from broadopt.tables.summary import collected_keys, cost, reading, summarise, text

OF_THE_METHOD = ("step", "collect", "schedule")
"""Config groups that a method chooses: a difference there is said of its line, any other of the whole table."""

CALIBRATION = ("test_nll", "test_ece")

NOTES = (
    "last: the weights after the last epoch. best: the best epoch on the test set. collected (coll.): what SWA (the "
    "mean of the weights) or FGE (the mean of the predictions) predicts after that many budgets; its NLL and ECE are "
    "those of the longest. best is chosen on the test set: it is never compared with last or collected.",
    "Accuracy and ECE in percent, NLL in nats: mean ± sample standard deviation over n seeds; one run has no ±. "
    "img/s: images a second in training; seconds: those of training; both are medians.",
)


@dataclass(frozen=True)
class Line:
    """The runs of one method and what is particular to them."""

    group: Group
    own: tuple[str, ...]
    usual_budget: str
    """The recipe's, where the group's own is another."""

    @property
    def name(self) -> str:
        return ", ".join((self.group.method, *self.own))


@dataclass(frozen=True)
class Setting:
    """What the runs of one table share."""

    dataset: str
    model: str
    protocol: str
    budget: float
    precision: str
    differs: tuple[str, ...]


def build(results: Iterable[Result], *, recipes: Recipes) -> Document:
    """Two blocks a setting: accuracies, then calibration and cost."""
    settings: dict[Setting, list[Line]] = {}
    for group in groups(results):
        setting, line = _placed(group, recipes.of_protocol(group))
        settings.setdefault(setting, []).append(line)
    blocks: list[Block] = []
    records: list[dict[str, Any]] = []
    for setting in sorted(settings, key=_order):
        lines = sorted(settings[setting], key=lambda line: (rank(line.group.method), line.own))
        blocks += [_accuracies(setting, lines), _costs(lines)]
        records += [record for line in lines for record in _records(setting, line)]
    caption, notes = ("", NOTES) if blocks else ("No finished run.", ())
    closing = Block(heading="", caption=caption, header=(), rows=(), labels=0, notes=notes)
    return Document(title="Runs", blocks=(*blocks, closing), records=tuple(records))


def _placed(group: Group, expected: dict[str, Any] | None) -> tuple[Setting, Line]:
    """The setting and the line of a group, by its difference from what its protocol prescribes."""
    differs = {} if expected is None else differing(expected, group.config)
    usual = show(expected["budget"]) if expected and "budget" in differs else ""
    own = tuple(text for path, text in differs.items() if path.split(".")[0] in OF_THE_METHOD)
    shared = tuple(text for path, text in differs.items() if path.split(".")[0] not in (*OF_THE_METHOD, "budget"))
    setting = Setting(
        dataset=group.dataset,
        model=group.model,
        protocol=group.protocol,
        budget=float(group.config["budget"]),
        precision=group.precision,
        differs=shared if expected else ("no recipe known to compare with",),
    )
    return setting, Line(group, own, usual)


def _order(setting: Setting) -> tuple[Any, ...]:
    # Protocols end in a year: the older baseline first.
    protocol = (setting.protocol[-4:], setting.protocol)
    return (setting.dataset, setting.model, protocol, setting.budget, setting.precision, setting.differs)


def _accuracies(setting: Setting, lines: Sequence[Line]) -> Block:
    keys = collected_keys(run for line in lines for run in line.group.runs)
    usual = " or ".join(dict.fromkeys(line.usual_budget for line in lines if line.usual_budget))
    epochs = "epoch" if setting.budget == 1 else "epochs"
    budget = f"budget {show(setting.budget)} {epochs}" + (f" instead of {usual}" if usual else "")
    return Block(
        heading=f"{setting.dataset}, {setting.model}, protocol {setting.protocol}, {budget}, {setting.precision}",
        caption="; ".join(setting.differs) + "." if setting.differs else "",
        header=("method", "n", "last", "best", *(f"coll. {key}" for key in keys)),
        rows=tuple(
            (
                line.name,
                str(len(line.group.runs)),
                _cell(line, "last", None),
                _cell(line, "best", None),
                *(_cell(line, "collected", key) for key in keys),
            )
            for line in lines
        ),
        labels=0,
    )


def _costs(lines: Sequence[Line]) -> Block:
    collected = ("collected",) if collected_keys(run for line in lines for run in line.group.runs) else ()
    rows = []
    for line in lines:
        longest = next(reversed(collected_keys(line.group.runs)), None)
        cells = [_cell(line, metric, longest, name) for metric in ("last", *collected) for name in CALIBRATION]
        rows.append((line.name, *cells, _median(line, "images_per_second"), _median(line, "train_seconds")))
    titles = [f"{metric} {name}" for metric in ("last", "coll.")[: 1 + len(collected)] for name in ("NLL", "ECE")]
    return Block(
        heading="",
        caption="Calibration and cost of the same runs.",
        header=("method", *titles, "img/s", "seconds"),
        rows=tuple(rows),
        labels=0,
    )


def _cell(line: Line, metric: str, key: str | None, quantity: str = "test_accuracy") -> str:
    runs = line.group.runs
    values = [reading(run, metric=metric, key=key, quantity=quantity) for run in runs]
    if quantity == "test_ece":  # a fraction in the files
        values = [None if value is None else 100 * value for value in values]
    return text(summarise(values), digits=3 if quantity == "test_nll" else 2, n=len(runs))


def _median(line: Line, quantity: str) -> str:
    known = [value for run in line.group.runs if (value := cost(run, quantity)) is not None]
    return f"{statistics.median(known):.0f}" if known else ""


def _records(setting: Setting, line: Line) -> list[dict[str, Any]]:
    runs = line.group.runs
    shared = {"table": "runs", **place(line.group), "differs": "; ".join((*setting.differs, *line.own))}
    readings = [("last", None), ("best", None), *(("collected", key) for key in collected_keys(runs))]
    records: list[dict[str, Any]] = []
    for metric, key in readings:
        for quantity in ("test_accuracy", *CALIBRATION):
            summary = summarise(reading(run, metric=metric, key=key, quantity=quantity) for run in runs)
            records += (
                [{**shared, "metric": metric, "key": key, **figures(summary, quantity=quantity)}] if summary else []
            )
    for quantity in ("images_per_second", "train_seconds"):
        records.append({**shared, **figures(summarise(cost(run, quantity) for run in runs), quantity=quantity)})
    return records
