"""Rows of a measurement on the disk: taken over by the same measurement, by no other."""

import math
import os
from pathlib import Path

import pandas
import pytest
import torch

from broadopt.analysis.landscape.store import Store, device_fact, key_of, partial
from broadopt.errors import InputError, Interrupted


def counted(calls: list[float], value: float):
    def measure() -> dict[str, float]:
        calls.append(value)
        return {"loss": value}

    return measure


def filled(output: Path, key: str = "k") -> list[float]:
    """The values that were measured, and not taken over, for three points."""
    calls: list[float] = []
    store = Store(output, key=key, columns=("kind", "x"))
    for x, value in ((0.1, 0.1 + 0.2), (1.0, 2.0), (1e-9, float("nan"))):
        row = store.row({"kind": "grid", "x": x}, counted(calls, value))
        assert row["loss"] == value or (math.isnan(row["loss"]) and math.isnan(value))
    return calls


def test_rows_are_measured_once(tmp_path: Path) -> None:
    assert len(filled(tmp_path / "plane")) == 3
    assert partial(tmp_path / "plane").read_text() == (
        "# measured: k\nkind,x,loss\ngrid,0.1,0.30000000000000004\ngrid,1.0,2.0\ngrid,1e-09,nan\n"
    )
    assert filled(tmp_path / "plane") == []


def test_rows_of_another_measurement_are_not_overwritten(tmp_path: Path) -> None:
    filled(tmp_path / "plane")
    before = partial(tmp_path / "plane").read_bytes()
    with pytest.raises(InputError) as raised:
        Store(tmp_path / "plane", key="another", columns=("kind", "x"))
    assert str(raised.value) == (
        f"{partial(tmp_path / 'plane')} holds another measurement; -o names another output, or remove it"
    )
    assert partial(tmp_path / "plane").read_bytes() == before
    partial(tmp_path / "plane").rename(tmp_path / "plane.csv")  # a finished one may be drawn anew
    assert len(filled(tmp_path / "plane", key="another")) == 3


def test_a_whole_number_is_found_again_where_pandas_has_written_it_as_a_float(tmp_path: Path) -> None:
    table = pandas.DataFrame({"p": [2, math.inf], "loss": [1.0, 3.0]})
    (tmp_path / "plane.csv").write_text("# measured: k\n" + table.to_csv(index=False))
    store = Store(tmp_path / "plane", key="k", columns=("p",))
    assert [store.knows({"p": p}) for p in (2, math.inf, 3)] == [True, True, False]


def test_known_rows_stay_whatever_happens_while_the_partial_file_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "plane")
    before = partial(tmp_path / "plane").read_bytes()
    store = Store(tmp_path / "plane", key="k", columns=("kind", "x"))
    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(Interrupted):
        store.row({"kind": "grid", "x": 5.0}, counted([], 1.0))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"plane.partial.csv": before}


def interrupted(*paths: object) -> None:
    raise Interrupted("SIGTERM")


def test_a_key_names_the_device_unless_it_is_a_cpu() -> None:
    assert device_fact(torch.device("cpu")) == {}
    assert device_fact(torch.device("cuda", 1)) == {"device": "cuda"}


def test_a_row_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    filled(tmp_path / "plane")
    path = partial(tmp_path / "plane")
    path.write_bytes(path.read_bytes()[:-9])
    assert len(filled(tmp_path / "plane")) == 1
    assert filled(tmp_path / "plane") == []


def test_a_finished_csv_is_taken_over(tmp_path: Path) -> None:
    filled(tmp_path / "plane")
    partial(tmp_path / "plane").rename(tmp_path / "plane.csv")
    assert filled(tmp_path / "plane") == []
    assert not partial(tmp_path / "plane").exists()


def test_damaged_files_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "plane.csv").write_bytes(b"\xff\x00# measured: k\n")
    partial(tmp_path / "plane").write_text("# measured: k\nother,columns\n1,2\n")
    assert len(filled(tmp_path / "plane")) == 3


def test_a_key_tells_facts_and_weights() -> None:
    weights = torch.arange(3.0)
    keys = {
        key_of({"images": 10}, [weights]),
        key_of({"images": 11}, [weights]),
        key_of({"images": 10}, [weights + 1e-6]),
        key_of({"images": 10}, [weights.double()]),
    }
    assert len(keys) == 4
    assert key_of({"images": 10, "seed": 1}, [weights]) == key_of({"seed": 1, "images": 10}, [weights.clone()])
