"""Tables as Markdown, LaTeX, HTML or CSV. The same document gives the same bytes, whatever is in its cells."""

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broadopt.errors import printable

if TYPE_CHECKING:
    import pandas

FIELDS = (
    *("table", "dataset", "model", "method", "protocol", "budget", "precision", "row", "column"),
    *("quantity", "metric", "key", "n", "mean", "std"),
    *("paper_metric", "paper_mean", "paper_std", "difference", "differs"),
)
"""The columns of every CSV: n, mean, std are broadopt's; metric and key say which number of a run they are made of."""


@dataclass(frozen=True)
class Block:
    """One table: plain text in every cell."""

    heading: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int
    """How many leading columns name the line; repeats of the line above are left blank."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """A table and what is said around it, before it has a format."""

    title: str
    blocks: tuple[Block, ...]
    records: tuple[Mapping[str, Any], ...]
    """The same numbers, one a record with keys from `fields`, for CSV."""
    remarks: tuple[str, ...] = ()
    """What was left out, below everything."""
    fields: tuple[str, ...] = FIELDS


def as_markdown(document: Document) -> str:
    """Pipe tables (GitHub's Markdown); readable as plain text."""
    parts = []
    for block in document.blocks:
        parts += [f"**{_markdown(block.heading)}**"] if block.heading else []
        parts += [_wrapped(block.caption)] if block.caption else []
        parts += [_pipe_table(block)] if block.rows else []
        parts += ["\n".join(_wrapped(note, bullet="- ") for note in block.notes)] if block.notes else []
    parts += ["\n".join(f"- {_markdown(remark)}" for remark in document.remarks)] if document.remarks else []
    return "\n\n".join(parts) + "\n"


def as_latex(document: Document) -> str:
    """One `table` a block, for a document with the packages array, booktabs and adjustbox."""
    lines = [r"% needs \usepackage{array,booktabs,adjustbox}"]
    for block in document.blocks:
        lines += _latex_float(block) if block.rows else _latex_lines((block.caption, *block.notes))
    return "\n".join([*lines, *_latex_lines(document.remarks)]) + "\n"


STYLE = """\
body { font-family: sans-serif; margin: 2em }
p, ul { max-width: 60em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2em .7em; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
thead th { border-bottom: 2px solid #444 }
td { white-space: nowrap }
td:last-child { white-space: normal; min-width: 10em }"""


def as_html(document: Document) -> str:
    """A page of its own; no markup in a cell or a note comes through."""
    title = _html(document.title)
    parts = [
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
        f"<style>\n{STYLE}\n</style>\n</head>\n<body>\n<h1>{title}</h1>",
    ]
    for block in document.blocks:
        parts += [f"<h2>{_html(block.heading)}</h2>"] if block.heading else []
        parts += [f"<p>{_html(block.caption)}</p>"] if block.caption else []
        parts += [_html_table(block)] if block.rows else []
        parts += [_html_list(block.notes)] if block.notes else []
    parts += [_html_list(document.remarks)] if document.remarks else []
    return "\n".join(parts) + "\n</body>\n</html>\n"


def as_csv(document: Document) -> str:
    """One line a number, in full precision; empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, document.fields, lineterminator="\n")
    writer.writerow({name: csv_text(name) for name in document.fields})
    writer.writerows({key: _csv(value) for key, value in record.items()} for record in document.records)
    return text.getvalue()


FORMATS: Mapping[str, Callable[[Document], str]] = {
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "html": as_html,
}


def _blanked(rows: Sequence[tuple[str, ...]], labels: int) -> list[tuple[str, ...]]:
    """The rows with each label left blank where it and those before it repeat the line above."""
    above: tuple[str, ...] = ()
    shown = []
    for row in rows:
        repeated = next((index for index in range(labels) if row[: index + 1] != above[: index + 1]), labels)
        shown.append(("",) * repeated + row[repeated:])
        above = row
    return shown


def _frame(block: Block, escape: Callable[[str], str]) -> "pandas.DataFrame":
    import pandas

    rows = [tuple(map(escape, row)) for row in _blanked(block.rows, block.labels)]
    return pandas.DataFrame(rows, columns=[escape(name) for name in block.header])


def _pipe_table(block: Block) -> str:
    align = ["left" if _holds_words(block, index) else "right" for index in range(len(block.header))]
    frame = _frame(block, _markdown)
    table = str(frame.to_markdown(index=False, tablefmt="pipe", disable_numparse=True, colalign=align))
    # A last column of words may be long: without its padding only the long lines wrap in a terminal.
    return "\n".join(map(_unpadded, table.split("\n"))) if align[-1] == "left" else table


def _unpadded(line: str) -> str:
    """A line of a pipe table without what fills its last cell up. By hand, since a pattern for it takes time in
    proportion to the square of the line's length.
    """
    rest, _, last = line.removesuffix("|").rpartition("|")
    return f"{rest}|{last[:4]}|" if set(last) == {":", "-"} else f"{rest}|{last.rstrip(' ')} |"


def _latex_float(block: Block) -> list[str]:
    caption = ". ".join(filter(None, (block.heading, block.caption)))
    return [
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{_latex(caption)}}}",
        r"\begin{adjustbox}{max width=\linewidth}",
        *_latex_table(block),
        r"\end{adjustbox}",
        r"\par\smallskip\raggedright\footnotesize",
        *_latex_lines(block.notes),
        r"\end{table}",
        "",
    ]


def _latex_table(block: Block) -> list[str]:
    align = ["l" if _holds_words(block, index) else "r" for index in range(len(block.header))]
    if align[-1] == "l":
        align[-1] = r">{\raggedright\arraybackslash}p{6cm}"
    style = _frame(block, _latex).style.hide(axis="index")
    *top, bottom, end = style.to_latex(hrules=True, column_format="".join(align)).rstrip().split("\n")
    head, body = top[: -len(block.rows)], top[-len(block.rows) :]
    names = [row[: block.labels - 1] for row in block.rows]
    starts = [index for index in range(1, len(names)) if block.labels and names[index] != names[index - 1]]
    for index in reversed(starts):
        body.insert(index, r"\addlinespace")
    return [*head, *body, bottom, end]


def _holds_words(block: Block, index: int) -> bool:
    """Whether a column holds words, which stand to the left, or numbers."""
    return index < block.labels or any(row[index][:1].isalpha() for row in block.rows)


MARKDOWN = str.maketrans({character: "\\" + character for character in "|<`\\"})
LATEX = str.maketrans(
    {character: "\\" + character for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "[": "{[}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "–": "--", "…": r"\ldots{}"}
    | {"±": r"$\pm$", "Δ": r"$\Delta$", "×": r"$\times$", "†": r"$^\dagger$", "*": r"$^*$"}
)


def _markdown(text: str) -> str:
    return printable(text).translate(MARKDOWN).replace("](", "]\\(")


def _wrapped(text: str, *, bullet: str = "") -> str:
    """A paragraph or list item of at most 100 characters a line."""
    indent = " " * len(bullet)
    return textwrap.fill(
        _markdown(text),
        width=100,
        initial_indent=bullet,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _latex(text: str) -> str:
    return re.sub(r"^-(?=\d)", "$-$", printable(text).translate(LATEX))


def _html(text: str) -> str:
    return html.escape(printable(text))


def _html_list(notes: Sequence[str]) -> str:
    return "<ul>\n" + "\n".join(f"<li>{_html(note)}</li>" for note in notes) + "\n</ul>"


def _html_table(block: Block) -> str:
    return str(_frame(block, printable).to_html(border=0, escape=True, index=False, justify="left"))


def _latex_lines(notes: Sequence[str]) -> list[str]:
    return [rf"{_latex(note)}\par" for note in notes if note]


def _csv(value: Any) -> Any:
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return csv_text(value) if isinstance(value, str) else value


def csv_text(text: str) -> str:
    """A text from a file of anyone's as a CSV may hold it: on one line, and no formula to a spreadsheet."""
    return _no_formula(printable(text))


def _no_formula(text: str) -> str:
    """`text` as a spreadsheet shows it: one that begins like a formula is computed, or may start a program, unless a
    quote, which is not shown, is ahead of it. Numbers stay as they are.
    """
    is_number = re.fullmatch(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", text, re.ASCII)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) and not is_number else text
