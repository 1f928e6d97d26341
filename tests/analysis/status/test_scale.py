"""Many runs in one folder, in small: what a look at them reads, and that it tells them all apart."""

import csv
import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from stored import run

from broadopt import files
from broadopt.analysis.status import state as standing
from broadopt.runs import folders, heartbeat, results

SCRIPTS = Path(__file__).parents[3] / "scripts"
RUNS, RUNNING = 245, 30


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    command = [sys.executable, SCRIPTS / "simulate_results.py", folder, "--runs", RUNS, "--running", RUNNING]
    subprocess.run(list(map(str, command)), check=True)
    return folder


def test_every_run_is_counted_once_in_its_state(many: Path) -> None:
    out, _ = run("runs", "--status", "--results", many, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    states = Counter(row["state"] for row in rows)
    ended = Counter(result["state"] for result in results.read_all(many)[0])
    assert states == ended + Counter(running=RUNNING)
    assert len(rows) == RUNS


def test_the_tables_count_what_the_status_counts(many: Path) -> None:
    page, _ = run("table3", "--results", many)
    out, _ = run("table3", "--status", "--results", many, "--seeds", "1-6", "--format", "csv")
    finished = sum(row["state"] == "finished" for row in csv.DictReader(io.StringIO(out)))
    assert f"{finished} runs, " in " ".join(page.split())


def test_a_look_lists_each_folder_once_and_reads_each_file_once(many: Path) -> None:
    listed: Counter[str] = Counter()
    read: Counter[str] = Counter()
    list_folder, open_regular = os.scandir, files.open_regular
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", lambda path: (listed.update([str(path)]), list_folder(path))[1])
        patch.setattr(files, "open_regular", lambda path: (read.update([str(path)]), open_regular(path))[1])
        found = standing.look(many)
    assert (len(found.results), len(found.progress)) == (RUNS - RUNNING, RUNNING)
    assert set(listed) == {str(path) for path in (many / "runs").rglob("*") if path.is_dir()} | {str(many / "runs")}
    assert set(listed.values()) == set(read.values()) == {1}
    assert sum(path.endswith(heartbeat.NAME) for path in read) == RUNNING


@pytest.mark.parametrize("readers", [1, 3, 1000])
def test_the_number_of_readers_changes_nothing(many: Path, monkeypatch: pytest.MonkeyPatch, readers: int) -> None:
    usual = results.read_all(many)
    assert len(usual[0]) == RUNS - RUNNING
    monkeypatch.setattr(folders, "READERS", readers)
    assert results.read_all(many) == usual


def test_what_a_look_costs_can_be_measured(many: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "measure_scale.py"), str(many), "--latency", "0.0001"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.count(f"all {RUNS - RUNNING} results") == 2
    assert not list(many.rglob("seed1-*/progress.json"))
