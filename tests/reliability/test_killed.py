"""Runs that are killed, without a warning, at any moment and as often as it takes."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command import folders, result, same_outcome
from forked import ended, forked, has_ended, one_run, values_of

METHODS = ("sgd", "swa", "fge", "sam", "asam")
ATTEMPTS = 200


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], float, Path]]:
    """Of each method the values of a run, and the seconds and the folder of one that nothing disturbed."""
    cwd, found = tmp_path_factory.mktemp("undisturbed"), {}
    for method in METHODS:
        (cwd / method).mkdir()
        values, output = values_of(f"method={method}", "budget=1"), cwd / f"{method}.txt"
        began = time.monotonic()
        assert ended(forked(one_run(values, cwd / method), output)) == 0, output.read_text()
        found[method] = (values, time.monotonic() - began, *folders(cwd / method))
    return found


def kill_until_finished(values: dict[str, Any], seconds: float, cwd: Path, chance: random.Random) -> tuple[int, int]:
    """How many times a run of that many `seconds` was killed, and how many times it had a checkpoint to go on from."""
    kills = resumed = 0
    while kills < ATTEMPTS:
        output = cwd / f"output{kills}.txt"
        child = forked(one_run(values, cwd), output)
        deadline = time.monotonic() + seconds * chance.uniform(0.03, 0.8)
        while time.monotonic() < deadline and not has_ended(child):
            time.sleep(0.002)
        if not has_ended(child):
            os.kill(child, signal.SIGKILL)
        code, told = ended(child), output.read_text()
        resumed += "going on from" in told
        if code == 0:
            return kills, resumed
        assert code == -signal.SIGKILL, told
        assert "passed over" not in told  # no partial file has a checkpoint's name
        kills += 1
    raise AssertionError(f"not finished after {ATTEMPTS} attempts")


def survive(runs: int, undisturbed: dict[str, tuple[dict[str, Any], float, Path]], tmp_path: Path) -> str:
    chance, kills, resumed = random.Random(0), 0, 0
    for number in range(runs):
        (values, seconds, reference), cwd = undisturbed[METHODS[number % len(METHODS)]], tmp_path / str(number)
        cwd.mkdir()
        counts = kill_until_finished(values, seconds, cwd, chance)
        kills, resumed = kills + counts[0], resumed + counts[1]
        (folder,) = folders(cwd)
        assert result(folder)["state"] == "finished"
        assert same_outcome(folder, reference)
        assert sorted(path.name for path in folder.iterdir()) == [".lock", "config.yaml", "history.csv", "result.json"]
    assert kills >= runs
    assert resumed
    return f"{runs} runs survived {kills} kills and went on from a checkpoint {resumed} times"


def test_runs_killed_at_random_moments_end_as_if_undisturbed(undisturbed: Any, tmp_path: Path) -> None:
    survive(5, undisturbed, tmp_path)


@pytest.mark.long
def test_fifty_runs_killed_at_random_moments_end_as_if_undisturbed(
    undisturbed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = survive(50, undisturbed, tmp_path)
    with capsys.disabled():
        print(f"\n{told}")
