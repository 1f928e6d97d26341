"""Every figure in the lines that quote a GPU's measurements is that of a committed file, or is named in quoted_lines.py
as one that no file holds.

A line is looked up by its beginning. What the files give is put into words and has to stand there; with that, and with
what no file holds, taken away no figure is left.
"""

import csv
import io
import json
import re
from pathlib import Path

import pytest
from documents import text
from quoted import Line, rated
from quoted_lines import of_heads, of_the_card, of_the_first_row, of_the_loop
from stored import run as table

from broadopt.devices import rates

NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|\b[A-Z][A-Za-z]*\d*(?:-\w+)+(?:, -\d+)?|\bH100(?: 80GB HBM3)?\b|\bTable \d|\b(?:bf16|fp32)\b"
    r"|\bfloat64\b|\btorch \d+\.\d+\.\d+|\bCUDA \d+\.\d+|\bdriver [\d.]+|\bcommit \w+"
)
"""Names and versions with a digit, which are no figures."""


LINES = [*of_heads(), *of_the_loop(), *of_the_card(), *of_the_first_row()]


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.page}: {line.begins[:60]}")
def test_the_figures_of_a_line_are_those_of_the_files(line: Line) -> None:
    (left,) = [found for found in text(line.page).splitlines() if found.startswith(line.begins)]
    left = re.sub(r"^\| \d{4}-\d\d-\d\d \|", "|", left)
    for words in (*line.held, *line.unheld):
        assert words in left
        left = left.replace(words, " ", 1)
    assert re.findall(r"\S*\d\S*", NAMES.sub(" ", left)) == []


WITHOUT_A_FILE = (
    "would PyramidNet be faster",
    "where does the recorded step of ResNet-20 go?",
    "AutoAugment with `deterministic=true`",
    "what explains the step times",
    "why did VGG-16 by `graphs=auto`",
)
"""Beginnings of the questions that were measured on that GPU, of which nothing was kept but the line."""


def test_every_line_of_a_gpu_is_held_or_said_to_have_no_file() -> None:
    pattern = (
        r"\bH100\b|\b(?:same|that|one) card\b|`(?:benchmark/gpu|benchmark/ratios_h100|results/(?:table1|vgg19_heads))"
    )
    held = [line.begins for line in LINES if line.page == "docs/log.md"]
    held += [f"| 2026-11-27 | {words}" for words in WITHOUT_A_FILE]
    named = [line for line in text("docs/log.md").splitlines() if re.search(pattern, line) and "| 2026-11" in line]
    assert len(named) >= 13
    assert [line for line in named if not line.startswith(tuple(held))] == []


def test_the_hours_of_both_tables_are_split_as_readme_says(tmp_path: Path) -> None:
    derived, whole, pyramid, counted = [], [], 0.0, []
    for name, seeds in (("table1", "1-3"), ("table3", "1-5")):
        words = (name, "--status", "--seeds", seeds, "--results", str(tmp_path), "--format", "csv")
        found = list(csv.DictReader(io.StringIO(table(*words)[0])))
        hours = [(row, float(row["device_hours_needed"])) for row in found]
        counted.append(len(found))
        whole.append(sum(spent for _, spent in hours))
        derived.append(sum(spent for row, spent in hours if row["estimated_from"] != "measured"))
        pyramid = sum(spent for row, spent in hours if row["row"].startswith("PyramidNet-272"))
    models = {json.dumps(model, sort_keys=True): model for model, _, _ in rates.networks()}.values()
    measured = [one for one in models if rates.rate_of(one, device="H100", threads=None, precision="bf16")]
    assert len(measured) == 10
    line = (
        f"Table 1 with 3 seeds, {counted[0]} runs / Table 3 with 5 seeds, {counted[1]} runs | "
        f"{whole[0]:.0f} / {whole[1]:.0f} | rates of ten of their networks measured on an H100; "
        f"{derived[0]:.0f} of the {whole[0]:.0f} h and {derived[1]:.0f} of the {whole[1]:.0f} h are derived: "
    )
    assert line in text("README.md")
    assert f" {pyramid:.0f} of the {derived[1]:.0f} are those of PyramidNet-272 with ShakeDrop." in text("README.md")
    nine_tenths = "PyramidNet-272 is nine tenths of Table 3."
    assert (round(10 * pyramid / whole[1]) == 9) == (nine_tenths in text("docs/rows.md"))
    share = 100 * rated("gpu_rates", "pyramidnet272")["TFLOP/s"] / rates.PEAKS["H100"]["bf16"]
    assert f"PyramidNet-272 is the row to think about: it reaches {share:.1f} % of the peak" in text("docs/rows.md")
