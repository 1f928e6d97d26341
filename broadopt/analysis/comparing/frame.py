"""Results and histories as pandas data frames: `broadopt.load_results` and `broadopt.load_history`."""

import json
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from broadopt.analysis.comparing.keys import completed, flat, order, recipe_id
from broadopt.analysis.comparing.selection import given, read, select, with_going_on
from broadopt.analysis.tables.formats import csv_text
from broadopt.analysis.tables.match import Result, precision, rank, whole
from broadopt.errors import InputError, nearest, printable
from broadopt.files import reason
from broadopt.runs import history
from broadopt.runs.schema import STATES

if TYPE_CHECKING:
    import pandas

PLACE = ("dataset", "model", "method", "protocol", "budget", "precision", "seed")
"""What a run is called by; the first columns of every data frame."""

RESULTS = ("state", "recipe", "identity", "folder")
"""How a run ended, what it shares with those that differ in their seed alone, and where it lies."""

SECTIONS = ("metrics", "cost", "environment", "failure")
"""Parts of a result that have columns of their own, behind those of its config."""


def load_results(
    *folders: str | Path,
    where: Mapping[str, Any] | Sequence[str] | None = None,
    states: Collection[str] = ("finished",),
) -> "pandas.DataFrame":
    """One row a run and seed, from the results folders given, or from `results` where none is.

    `where` selects runs by keys of their configs: `{"step.rho": [0.05, 0.5], "method": "sam"}`, or as on the command
    line `["step.rho=0.05,0.5", "method=sam"]`. `states`: of finished, failed and interrupted those that are wanted.

    Columns: dataset, model, method, protocol, budget (epochs), precision, seed, state, recipe (eight digits, the same
    for runs that differ in their seed alone), identity, folder, epochs (trained); every key of the recorded configs,
    dotted (`step.rho`, `lr`, `model.width`), a list as text; `metrics.last.test_accuracy` (percent), `...test_nll`
    (nats), `...test_ece` (a fraction), the same of `metrics.best` and `metrics.collected.1.5`; `cost.train_seconds`,
    `cost.gradient_evaluations`, ...; `environment.device`, .... What a run does not have is missing (NaN or None).

    Rows are sorted by data set, network, protocol, budget, method, the other keys and seed, numbers by size. Files
    that cannot be trusted are left out, each with a warning.
    Raises InputError for a folder, a key, a value or a state that does not exist.
    """
    return frame_of(_selected(folders, where, states))


def frame_of(results: Iterable[Result]) -> "pandas.DataFrame":
    """The data frame of `load_results` from results that were read already."""
    import pandas

    rows = per_run(results)
    return pandas.DataFrame(rows, columns=_columns(rows, PLACE + RESULTS))


def load_history(
    *folders: str | Path,
    where: Mapping[str, Any] | Sequence[str] | None = None,
    states: Collection[str] = (*STATES, "running"),
) -> "pandas.DataFrame":
    """One row an epoch of every run, also of those that are "running", with the arguments of `load_results`.

    Columns: those that `load_results` begins with, up to folder; epoch, lr, train_loss, train_accuracy, test_accuracy
    (percent), test_nll (nats), test_ece (a fraction), where an epoch was evaluated, and the same of validation images.
    To have the keys of the configs beside them: `history.merge(load_results(...)[["identity", "step.rho"]])`.
    """
    import pandas

    rows: list[dict[str, Any]] = []
    for result in ordered(_selected(folders, where, states, known=(*STATES, "running"))):
        epochs, problem = read_history(result)
        if problem:
            warnings.warn(printable(problem), stacklevel=2)
        lead = _lead(result)
        rows += [{**lead, **row, **lead} for row in epochs]  # a column of the file takes no place of the run's own
    return pandas.DataFrame(rows, columns=_columns(rows, PLACE + RESULTS))


def read_history(result: Result) -> tuple[list[dict[str, float]], str]:
    """The history of a result that `selection.read` has read, and why it cannot be used, if so: that of a finished run
    is there, has epochs, and is what its figures were made of.
    """
    place = f"left out: {result['folder']}/{history.NAME}"
    try:
        rows = history.rows_of(Path(result["path"]), result)
    except (OSError, ValueError) as error:
        return [], f"{place}: {reason(error)}"
    if not rows and result["state"] == "finished":
        return [], f"{place}: missing or empty, though the run is finished"
    return rows, ""


def _selected(
    folders: Sequence[str | Path],
    where: Mapping[str, Any] | Sequence[str] | None,
    states: Collection[str],
    *,
    known: Sequence[str] = STATES,
) -> list[Result]:
    states = (states,) if isinstance(states, str) else states
    for state in states:
        if state not in known:
            raise InputError(f"states {state}: expected some of {', '.join(known)}{nearest(state, known)}")
    places = [Path(folder) for folder in folders or ("results",)]
    results, left_out = read(places)
    if "running" in known:
        results = with_going_on(places, results)
    for line in left_out:
        warnings.warn(printable(f"left out: {line}"), stacklevel=3)
    return select([result for result in results if result["state"] in states], given(where))


def ordered(results: Iterable[Result]) -> list[Result]:
    """Results by data set, network, protocol, budget, method as tables have it, then the values of their configs."""
    found = list(results)
    keys = sorted({key for result in found for key in flat(result["config"])} - {"seed"})
    configs = completed([flat(result["config"]) for result in found])

    def place(index: int) -> tuple[Any, ...]:
        result, config = found[index], configs[index]
        # Protocols end in a year: the older baseline first.
        protocol = (result["protocol"][-4:], result["protocol"])
        names = (result["dataset"], result["model"], protocol, result["budget"], rank(result["method"]))
        return (*names, [order(config.get(key)) for key in keys], result["seed"], result["folder"])

    return [found[index] for index in sorted(range(len(found)), key=place)]


def per_run(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row a run, as `load_results` describes it."""
    found = ordered(results)
    configs = completed([flat(result["config"]) for result in found])
    rows = []
    for result, config in zip(found, configs, strict=True):
        row = {**_lead(result), "epochs": result["epochs"]}
        # A recorded config may hold keys of any name: none takes the place of what the result itself says.
        own = {key: value for key, value in config.items() if key not in row and key.split(".")[0] not in SECTIONS}
        row |= {key: _plain(value) for key, value in own.items()}
        for part in SECTIONS:
            figures = flat(result.get(part, {}))  # null, as of a run that failed at once: no column of its own
            row |= {f"{part}.{key}": _plain(value) for key, value in figures.items() if value is not None}
        rows.append(row)
    return rows


def _lead(result: Result) -> dict[str, Any]:
    place = {name: result[name] for name in ("dataset", "model", "method", "protocol")}
    place |= {"budget": float(result["budget"]), "precision": precision(result), "seed": result["seed"]}
    place |= {"state": result["state"], "recipe": recipe_id(result["config"])}
    return place | {"identity": result["identity"], "folder": result["folder"]}


def _plain(value: Any) -> Any:
    """A value that a cell can hold and rows can be grouped by: a list as Hydra's command line takes it."""
    return whole(value) if isinstance(value, (list, tuple)) else value


def _columns(rows: Sequence[Mapping[str, Any]], first: Sequence[str]) -> list[str]:
    """The columns of some rows: the `first`, the keys of configs, then metrics, cost and environment."""
    names = dict.fromkeys(key for row in rows for key in row)
    by_section = {part: [name for name in names if name.split(".")[0] == part] for part in SECTIONS}
    config = [name for name in names if name.split(".")[0] not in SECTIONS]
    return list(dict.fromkeys([*first, *config, *(name for part in SECTIONS for name in by_section[part])]))


def as_table(frame: "pandas.DataFrame", form: str) -> bytes:
    """A data frame as csv, json (a list of rows, null where a value is missing) or parquet.

    Raises InputError where parquet is asked for and pyarrow is not installed.
    """
    if form == "parquet":
        return _parquet(frame)
    if form == "csv":
        texts = frame.map(lambda value: csv_text(value) if isinstance(value, str) else value)
        return str(texts.to_csv(index=False, lineterminator="\n", header=[*map(csv_text, frame.columns)])).encode()
    rows = [
        {key: None if value is None or value != value else value for key, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
    return json.dumps(rows, indent=1, allow_nan=False).encode() + b"\n"


def _parquet(frame: "pandas.DataFrame") -> bytes:
    import io

    try:
        import pyarrow  # noqa: F401 -- pandas' own message names three ways to install it
    except ImportError as error:
        raise InputError("--format parquet needs pyarrow: pip install '.[parquet]' in the checkout") from error
    objects = {name: frame[name].dropna() for name in frame.columns if frame[name].dtype == object}
    # A column of Parquet has one type: values of several, and numbers too large for any, are stored as text.
    mixed = [
        name
        for name, values in objects.items()
        if not any(all(isinstance(value, kind) for value in values) for kind in (str, bool))
    ]
    texts = {
        name: frame[name].map(lambda value: None if value is None or value != value else str(value)) for name in mixed
    }
    buffer = io.BytesIO()
    frame.assign(**texts).to_parquet(buffer, index=False)
    return buffer.getvalue()
