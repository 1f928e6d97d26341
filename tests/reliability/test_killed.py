"""Runs that are killed, without a warning, at any moment and as often as it takes.

The oracle is the same run, killed by nobody.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from command import folders, result, same_outcome, until
from forked import ended, forked, has_ended, one_run, run_of

from broadopt.config.run_config import RunConfig

METHODS = ("sgd", "swa", "fge", "sam", "asam")
ATTEMPTS = 200
Undisturbed = dict[str, tuple[RunConfig, Path]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Of each method the config of a run, and the folder of one that nothing disturbed."""
    cwd, found = tmp_path_factory.mktemp("undisturbed"), {}
    for method in METHODS:
        (cwd / method).mkdir()
        one, output = run_of(f"method={method}", "budget=1"), cwd / f"{method}.txt"
        assert ended(forked(one_run(one, cwd / method), output)) == 0, output.read_text()
        found[method] = (one, *folders(cwd / method))
    return found


def kill_until_finished(one: RunConfig, cwd: Path, chance: random.Random) -> tuple[int, int]:
    """How many times a run was killed, and how many times it had a checkpoint to go on from: at least once each.

    Each time it is held at a random pass. The first time it is killed there, after its first step and the checkpoint
    of it; later it goes on, and the kill comes within the next few steps or while their checkpoints are written. The
    passes are drawn from ever more, since an estimation of BN statistics, many passes long, begins anew each time.
    """
    kills = resumed = 0
    held = cwd / "held"
    while kills < ATTEMPTS:
        output = cwd / f"output{kills}.txt"
        at = chance.randrange(3, 40 + 10 * kills)
        child = forked(one_run(one, cwd, halt=f"train {at}", file=held), output)
        until(lambda child=child: held.exists() or has_ended(child))
        if kills:
            held.unlink(missing_ok=True)
            time.sleep(chance.uniform(0, 0.05))
        if not has_ended(child):
            os.kill(child, signal.SIGKILL)
        held.unlink(missing_ok=True)
        code, told = ended(child), output.read_text()
        resumed += "going on from" in told
        if code == 0:
            return kills, resumed
        assert code == -signal.SIGKILL, told
        assert "passed over" not in told  # no partial file has a checkpoint's name
        kills += 1
    raise AssertionError(f"not finished after {ATTEMPTS} attempts")


def survive(runs: int, undisturbed: Undisturbed, tmp_path: Path) -> str:
    chance, kills, resumed = random.Random(0), 0, 0
    for number in range(runs):
        (one, reference), cwd = undisturbed[METHODS[number % len(METHODS)]], tmp_path / str(number)
        cwd.mkdir()
        counts = kill_until_finished(one, cwd, chance)
        kills, resumed = kills + counts[0], resumed + counts[1]
        (folder,) = folders(cwd)
        assert result(folder)["state"] == "finished"
        assert same_outcome(folder, reference)
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in reference.iterdir())
        assert not list(folder.glob("*.ckpt"))
    assert kills >= runs
    assert resumed >= runs
    return f"{runs} runs survived {kills} kills and went on from a checkpoint {resumed} times"


def test_runs_killed_at_random_moments_end_as_if_undisturbed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    survive(5, undisturbed, tmp_path)


@pytest.mark.long
def test_fifty_runs_killed_at_random_moments_end_as_if_undisturbed(
    undisturbed: Undisturbed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = survive(50, undisturbed, tmp_path)
    with capsys.disabled():
        print(f"\n{told}")
