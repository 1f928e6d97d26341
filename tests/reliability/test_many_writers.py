"""Many processes on one results folder at the same time, with tables made of it meanwhile."""

import io
import os
import signal
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import folders, result, same_outcome, until
from forked import ended, forked, one_run, run_of

from broadopt.config.run_config import RunConfig
from broadopt.errors import LeftToAnother
from broadopt.runs import results
from broadopt.table import main as table

SEEDS = range(1, 5)


def sweep(runs: list[RunConfig], cwd: Path, *, halt: str = "") -> Any:
    """Every run in turn, in the folder `cwd`, as one process of many that were given the same sweep; it stands still at
    the pass `halt` until its file `held` is removed.
    """

    def work() -> None:
        for one in runs:
            try:
                one_run(one, cwd, halt=halt, file=cwd / "held")()
            except LeftToAnother as left:
                print(left, flush=True)

    return work


def tables_until(ended: Path, cwd: Path) -> Any:
    """Read all results, and make a table, again and again, for the last time when the file `ended` is there.

    Each time the file `made-PID` is written.
    """

    def work() -> None:
        os.chdir(cwd)
        last = False
        while not last:
            last = ended.exists()
            found, problems = results.read_all(cwd / "results")
            assert problems == [], problems
            assert all(one["state"] == "finished" for one in found)
            sys.argv = ["broadopt-table", "runs", "--strict"]
            with redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as end:
                table()
            assert end.value.code == 0
            (cwd / f"made-{os.getpid()}").touch()
        print(f"results: {len(found)}")

    return work


def share(writers: int, readers: int, cwd: Path) -> None:
    runs = [run_of(f"method={method}", "budget=0.3", f"seed={seed}") for method in ("sgd", "sam") for seed in SEEDS]
    (cwd / "results" / "runs").mkdir(parents=True)
    done = cwd / "done"
    children = [forked(sweep(runs, cwd, halt="train 5"), cwd / "writer0.txt")]
    until((cwd / "held").exists)
    tables = [forked(tables_until(done, cwd), cwd / f"table{i}.txt") for i in range(readers)]
    until(lambda: len(list(cwd.glob("made-*"))) == readers)  # tables while a run is under way
    children += [forked(sweep(runs, cwd), cwd / f"writer{i}.txt") for i in range(1, writers)]
    until(lambda: any("left to it" in (cwd / f"writer{i}.txt").read_text() for i in range(1, writers)))
    for file in cwd.glob("made-*"):
        file.unlink()
    until(lambda: len(list(cwd.glob("made-*"))) == readers)  # and while several are
    (cwd / "held").unlink()
    codes = [ended(child) for child in children]
    done.touch()
    told = [(cwd / f"writer{i}.txt").read_text() for i in range(writers)]
    assert codes == [0] * writers, told
    assert [ended(child) for child in tables] == [0] * readers, [
        (cwd / f"table{i}.txt").read_text() for i in range(readers)
    ]
    assert [(cwd / f"table{i}.txt").read_text() for i in range(readers)] == [f"results: {len(runs)}\n"] * readers
    assert sum(text.count("\nfinished: ") for text in told) == len(runs)  # each was trained once
    assert sum(text.count("finished: ") + text.count("left to it") for text in told) == writers * len(runs)
    assert [result(folder)["state"] for folder in folders(cwd)] == ["finished"] * len(runs)


def test_processes_of_one_sweep_share_it_and_tables_never_see_half_a_result(tmp_path: Path) -> None:
    share(6, 2, tmp_path)


@pytest.mark.long
def test_thirty_two_processes_share_a_sweep_while_four_make_tables(tmp_path: Path) -> None:
    share(32, 4, tmp_path)


def held_at_its_checkpoint(one: RunConfig, cwd: Path) -> int:
    """A run in a child that has left checkpoints and stands still, until the file `held` is removed."""
    child = forked(one_run(one, cwd, halt="train 20", file=cwd / "held"), cwd / "first.txt")
    until((cwd / "held").exists)
    assert len(list(cwd.rglob("checkpoint-*.ckpt"))) == 2
    return child


def test_a_writer_that_was_killed_is_no_obstacle_to_one_that_waits(tmp_path: Path) -> None:
    one = run_of("method=sam", "budget=3", "wait=true")
    first = held_at_its_checkpoint(one, tmp_path)
    second = forked(one_run(one, tmp_path), tmp_path / "second.txt")
    until(lambda: "waiting for it to end" in (tmp_path / "second.txt").read_text())
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0
    assert "going on from" in (tmp_path / "second.txt").read_text()
    (folder,) = folders(tmp_path)
    (tmp_path / "alone").mkdir()
    assert ended(forked(one_run(one, tmp_path / "alone"), tmp_path / "alone.txt")) == 0
    assert same_outcome(folder, *folders(tmp_path / "alone"))


def test_a_signal_ends_the_wait_for_another_process(tmp_path: Path) -> None:
    one = run_of("method=sam", "budget=3", "wait=true")
    first = held_at_its_checkpoint(one, tmp_path)
    second = forked(one_run(one, tmp_path), tmp_path / "second.txt")
    until(lambda: "waiting for it to end" in (tmp_path / "second.txt").read_text())
    for child, output in ((second, "second.txt"), (first, "first.txt")):
        os.kill(child, signal.SIGUSR2)
        if child == first:
            (tmp_path / "held").unlink()
        assert ended(child) == 70
        assert "broadopt.errors.Interrupted: SIGUSR2" in (tmp_path / output).read_text()


def test_of_many_that_find_a_result_edited_one_sets_it_aside(tmp_path: Path) -> None:
    one = run_of("method=sgd", "budget=0.3")
    assert ended(forked(one_run(one, tmp_path), tmp_path / "first.txt")) == 0
    (folder,) = folders(tmp_path)
    before = (folder / "result.json").read_text()
    (folder / "result.json").write_text(before.replace('"seed": 1', '"seed": 2', 1))
    children = [
        forked(one_run(replace(one, execution=replace(one.execution, wait=True)), tmp_path), tmp_path / f"{i}.txt")
        for i in range(6)
    ]
    assert [ended(child) for child in children] == [0] * 6
    aside = sorted(path.name for path in folder.glob("result.*.json"))
    assert len(aside) == 1
    assert (folder / aside[0]).read_text() == before.replace('"seed": 1', '"seed": 2', 1)
    told = [(tmp_path / f"{i}.txt").read_text() for i in range(6)]
    assert sum("it is set aside" in text for text in told) == 1
    assert sum("\nfinished: " in text for text in told) == 1
