"""The catalogue of figures: every entry has its function, and --help lists them all."""

import argparse

import pytest
from in_process import said

from broadopt.figures.catalogue import ENTRIES, FIGURES, Entry, function_of, options_of


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_entry_has_a_function_of_its_name(entry: Entry) -> None:
    assert entry.function.partition(":")[2] == entry.name
    assert callable(function_of(entry))
    add = options_of(entry)
    if add is not None:
        add(argparse.ArgumentParser())


def test_names_are_unique() -> None:
    assert len(FIGURES) == len(ENTRIES)


def test_help_lists_every_figure_with_its_source(tmp_path) -> None:
    code, out, _ = said("broadopt-figure", "--help", cwd=tmp_path)
    assert code == 0
    for entry in ENTRIES:
        assert f"{entry.shows} ({entry.source})" in out
