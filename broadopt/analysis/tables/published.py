"""The published tables: results/paper/*.yaml as typed records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from broadopt.errors import InputError

Metric = Literal["last", "best", "collected"]


@dataclass(frozen=True)
class Column:
    """One column of a paper's table: whose numbers it holds and which accuracy of a run it reads."""

    name: str
    title: str
    method: str
    metric: Metric
    key: str | None
    """Budgets spent, for `collected`: "1", "1.25" or "1.5"."""


@dataclass(frozen=True)
class Published:
    """One published cell in percent; None where the paper gives no value."""

    mean: float | None
    std: float | None
    runs: int | None
    source: tuple[str, ...]
    runs_source: str | None


@dataclass(frozen=True, eq=False)
class Row:
    """One row: the paper's name for it, and the experiment of broadopt that repeats it."""

    name: str
    dataset: str
    model: str
    experiment: str
    budget: Mapping[str, float]
    """Epochs of the paper's run, by method."""
    cells: Mapping[str, Published]
    """By column name."""
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is given beside the experiment, by method."""


@dataclass(frozen=True)
class Footnote:
    """A remark of the paper's on its table, and how certain it is that the paper says so."""

    text: str
    certainty: str


@dataclass(frozen=True)
class PaperTable:
    """A published table: its columns and rows in the paper's order, and the protocol that they were trained by."""

    name: str
    title: str
    protocol: str
    precision: str
    sources: Mapping[str, str]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    footnotes: tuple[Footnote, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the columns, each once, in the paper's order."""
        return tuple(dict.fromkeys(column.method for column in self.columns))


def load(name: str, *, folder: Path) -> PaperTable:
    """The published table `name` from `folder`/`name`.yaml. Raises InputError where there is no such file."""
    import yaml

    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"{path} is missing: broadopt was installed without its published tables")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    columns = tuple(
        Column(name, column["title"], column["method"], column["metric"], column.get("key"))
        for name, column in content["columns"].items()
    )
    return PaperTable(
        name=content["table"],
        title=content["title"],
        protocol=content["protocol"],
        precision=content["precision"],
        sources=content["sources"],
        columns=columns,
        rows=tuple(_row(row, [column.method for column in columns]) for row in content["rows"]),
        footnotes=tuple(Footnote(note["text"], note["certainty"]) for note in content["footnotes"]),
    )


def _row(content: Mapping[str, Any], methods: list[str]) -> Row:
    budget = content["budget"]
    return Row(
        name=content["name"],
        dataset=content["dataset"],
        model=content["model"],
        experiment=content["experiment"],
        budget=dict.fromkeys(methods, budget) if isinstance(budget, int) else budget,
        cells={name: _cell(cell) for name, cell in content["cells"].items()},
        overrides={method: tuple(words) for method, words in content.get("overrides", {}).items()},
    )


def _cell(content: Mapping[str, Any]) -> Published:
    return Published(
        mean=content["mean"],
        std=content["std"],
        runs=content["n"],
        source=tuple(content["source"]),
        runs_source=content.get("n_source"),
    )
