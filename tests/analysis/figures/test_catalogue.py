"""The catalogue of figures: every entry has its function, and --help lists them all."""

import argparse
import inspect
import sys
from pathlib import Path

import pytest
from in_process import said
from PIL import Image

from broadopt import figure
from broadopt.analysis.figures.catalogue import ENTRIES, FIGURES, Entry, function_of, options_of


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_a_function_of_its_name(entry: Entry) -> None:
    assert entry.function.partition(":")[2] == entry.name
    assert callable(function_of(entry))
    add = options_of(entry)
    if add is not None:
        add(argparse.ArgumentParser())


def test_names_are_unique() -> None:
    assert len(FIGURES) == len(ENTRIES)


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        (["plane", "run"], "goes on"),
        (["sharpness"], "goes on"),
        (["ensemble"], "begins anew"),
        (["calibration"], "begins anew"),
        (["trajectory"], "begins anew"),
        ([], "begins anew"),
    ],
)
def test_an_interrupted_command_says_what_it_does_when_given_again(arguments: list[str], then: str) -> None:
    assert figure._then(arguments) == then


def test_figures_that_resume_are_those_that_keep_their_rows() -> None:
    for entry in ENTRIES:
        module = sys.modules[function_of(entry).__module__]
        assert entry.resumes == ("Store" in inspect.getsource(getattr(module, entry.name))), entry.name


def test_help_lists_every_figure_with_its_source(tmp_path: Path) -> None:
    code, out, _ = said("broadopt-figure", "--help", cwd=tmp_path)
    assert code == 0
    for entry in ENTRIES:
        assert f"{entry.shows} ({entry.source})" in out


def test_without_matplotlib_a_figure_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = "broadopt-figure: figures need matplotlib: pip install '.[figures]' in the checkout\n"
    assert said("broadopt-figure", "schematic", cwd=tmp_path) == (2, "", line)
    assert said("broadopt-figure", "--help", cwd=tmp_path)[0] == 0


def test_the_files_are_what_is_asked_for_and_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "own.mplstyle").write_text("figure.dpi: 50\nsavefig.dpi: 50\n")
    code, out, err = said("broadopt-figure", "schematic", "-o", "a/step.png", cwd=tmp_path)
    assert (code, err) == (0, "broadopt-figure: wrote a/step.csv, a/step.png\n")
    assert out.startswith("From a loss of 1.66: SAM climbs to 3.16 ")
    wanted = ("--format", "svg,pdf,png", "--style", "own.mplstyle", "--no-caption")
    for folder in ("b", "c"):
        (tmp_path / folder).mkdir()
        assert said("broadopt-figure", "schematic", "-o", folder, *wanted, cwd=tmp_path)[0] == 0
    names = [f"schematic.{kind}" for kind in ("csv", "pdf", "png", "svg")]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    assert all((tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in names)
    assert (tmp_path / "b/schematic.csv").read_bytes() == (tmp_path / "a/step.csv").read_bytes()
    with Image.open(tmp_path / "a/step.png") as ours, Image.open(tmp_path / "b/schematic.png") as own:
        assert ours.size[0] == 6 * own.size[0]
        assert ours.size[1] > 6 * own.size[1], "the caption takes room of its own"


@pytest.mark.parametrize(
    ("content", "message"), [("lines.width: 3\n", "lines.width"), ("lines.linewidth: thick\n", "thick")]
)
def test_a_style_that_cannot_be_used_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.mplstyle").write_text(content)
    code, out, err = said("broadopt-figure", "schematic", "--style", "own.mplstyle", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith("broadopt-figure: --style own.mplstyle: ")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["own.mplstyle"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = said("broadopt-figure", "schematic", "-o", "file/schematic", cwd=tmp_path)
    assert (code, err) == (2, "broadopt-figure: file/schematic.csv cannot be written: File exists\n")
