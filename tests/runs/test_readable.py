"""What a run writes can be read again: else it is refused before it trains, and nothing of the old is replaced."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import OWN, SMALL, folders, result, run
from stored import RESNET20, record, store

from broadopt.runs import results

COLLECTOR = """
from broadopt.methods.swa import WeightAverage


class Mine(WeightAverage):
    def __init__(self, *, key, budgets=()):
        super().__init__(start=0.5, budgets=[1])
        self.key = key

    def evaluation_points(self, budget):
        return {self.key: budget}
"""
STEP = """
class Half:
    passes = {passes}

    def __init__(self, model, optimizer, *, numbers=()):
        self.optimizer = optimizer

    def __call__(self, closure):
        self.optimizer.zero_grad()
        loss = closure()
        self.optimizer.step()
        return loss
"""
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def own(tmp_path: Path) -> Run:
    """broadopt-run with collectors and steps of one's own."""
    configs = {"collect/mine": "_target_: mine.Mine", "step/half": "_target_: half.Half\nnumbers: []"}
    configs["collect/moyé"] = "_target_: broadopt.methods.swa.WeightAverage\nstart: 0.5\nbudgets: [1]"
    configs["model/small"] = (OWN / "model/small.yaml").read_text()
    for name, text in configs.items():
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "mine.py").write_text(COLLECTOR)
    (tmp_path / "half.py").write_text(STEP.format(passes=0.5))

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        base = ("--config-dir", str(tmp_path / "configs"), *SMALL[2:])
        return run(*base, *words, cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{OWN}")

    return command


def finishes_once(own: Run, cwd: Path, *words: str) -> dict[str, Any]:
    """The result of a run, which the same command then shows."""
    done = own(*words)
    assert done.returncode == 0, done.stderr
    again = own(*words)
    assert again.stdout.startswith("already finished: "), again.stderr
    (folder,) = folders(cwd)
    assert results.read(folder) is not None
    assert not (folder / "result.1.json").exists()
    return result(folder)


def refused(own: Run, cwd: Path, *words: str) -> str:
    """The line with which a run is refused that has left no folder."""
    done = own(*words)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert folders(cwd) == []
    start = "broadopt-run: the result.json of this run could not be read again: "
    assert done.stderr.startswith(start)
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix(start).strip()


def test_a_number_of_budgets_may_have_every_digit_of_a_float(own: Run, tmp_path: Path) -> None:
    found = finishes_once(own, tmp_path, "budget=0.5", "collect=mine", "+collect.key='1.3333333333333333'")
    assert list(found["metrics"]["collected"]) == ["1.3333333333333333"]


def test_a_collector_may_be_called_in_any_language(own: Run, tmp_path: Path) -> None:
    found = finishes_once(own, tmp_path, "budget=0.5", "collect='swa+moyé'", "collect.budgets=[1]")
    assert list(found["metrics"]["collected"]) == ["1", "moyé 1"]


def test_a_step_may_take_a_part_of_a_gradient(own: Run, tmp_path: Path) -> None:
    assert finishes_once(own, tmp_path, "budget=0.1", "step=half")["cost"]["passes"] == 0.5


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("collect=mine", "+collect.key=at the end"),
            "metrics.collected: expected numbers of budgets, behind the name of another collector than the run's own, "
            "as keys, found at the end",
        ),
        (
            ("collect=mine", "+collect.key=1", "+collect.budgets=[0]"),
            "config.collect.budgets: expected a list of numbers of budgets, found [0]",
        ),
    ],
)
def test_what_no_reader_takes_is_refused_before_the_training(
    words: tuple[str, ...], line: str, own: Run, tmp_path: Path
) -> None:
    assert refused(own, tmp_path, *words) == line


def test_a_recipe_that_is_too_long_is_refused_before_the_training(own: Run, tmp_path: Path) -> None:
    text = json.dumps(["9" * 10_000] * 100)  # a million bytes in few nodes: OmegaConf takes 0.5 ms for each
    (tmp_path / "configs/step/half.yaml").write_text(f"_target_: half.Half\nnumbers: {text}")
    assert refused(own, tmp_path, "step=half").endswith(" bytes, expected 983,040 at most")


def test_a_number_of_gradients_that_is_none_is_refused_before_the_training(own: Run, tmp_path: Path) -> None:
    (tmp_path / "half.py").write_text(STEP.format(passes=-1))
    assert refused(own, tmp_path, "step=half") == "cost.passes: expected a number from 1e-09 to 1e+15, found -1"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"epochs": -1.0}, "epochs: expected a number from 0"),
        ({"notes": "x" * results.LIMIT}, "bytes, expected 1,048,576 at most"),
        ({"identity": "0" * 64}, "its identity is not that of its config"),
        ({"semantics": 99}, "computed under semantics 99"),
    ],
)
def test_what_cannot_be_read_is_never_written(change: dict[str, Any], wrong: str, tmp_path: Path) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"))
    before = (folder / "result.json").read_bytes()
    with pytest.raises(ValueError, match=wrong):
        results.write(folder, result(folder) | change)
    with pytest.raises(ValueError, match="it belongs to another run"):
        results.write(tmp_path, result(folder))
    assert (folder / "result.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["result.json"]
