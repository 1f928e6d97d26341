"""The same config gives the same bits, however it is watched; and the same numbers as the version before."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import short_run
import torch
from short_run import METHODS, RESNET, Kind, differences, outcome

from broadopt.config.identity import SEMANTICS
from broadopt.errors import RunFailed
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines, ProgressLine

GOLDEN = Path(__file__).parents[1] / "golden" / "semantics.json"


@pytest.mark.parametrize("method", ["sgd", "sam+swa", "asam+fge"])
def test_twice_is_the_same_bit_for_bit(method: str, tmp_path: Path) -> None:
    first, second = (
        outcome(short_run.run(tmp_path / name, *RESNET, *METHODS[method], "dataset.label_noise=0.2")) for name in "ab"
    )
    assert differences(first, second) == []
    other = outcome(short_run.run(tmp_path / "c", *RESNET, *METHODS[method], "dataset.label_noise=0.2", "seed=2"))
    assert differences(first, other) != []


@pytest.mark.parametrize("method", ["sgd+swa", "sam+fge"])
def test_how_often_it_is_evaluated_and_saved_changes_nothing(method: str, tmp_path: Path) -> None:
    often = outcome(short_run.run(tmp_path / "a", *RESNET, *METHODS[method], minutes=0))
    seldom = outcome(short_run.run(tmp_path / "b", *RESNET, *METHODS[method], "evaluate_every=4"))
    rows, fewer = often["progress"].pop("history"), seldom["progress"].pop("history")
    assert differences(often, seldom) == []
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in fewer]
    assert rows[-1] == fewer[-1]
    assert "test_accuracy" in rows[0]
    assert "test_accuracy" not in fewer[0]


def test_how_it_is_shown_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outcome(short_run.run(tmp_path / "a", *RESNET, *METHODS["sam"]))
    monkeypatch.setattr(short_run, "EpochLines", ProgressLine)
    assert differences(outcome(short_run.run(tmp_path / "b", *RESNET, *METHODS["sam"])), plain) == []
    assert short_run.EpochLines is not EpochLines


def test_a_weight_that_is_not_finite_never_reaches_a_checkpoint(tmp_path: Path) -> None:
    """It appears after step 5; each step is saved, and the first save after it fails the run."""
    poisoned: list[Any] = []

    def poison() -> None:
        (model,) = poisoned
        with torch.no_grad():
            next(model.parameters()).data[0, 0, 0, 0] = float("nan")

    start = Training.__init__

    def noting(self: Training, parts: Any, **options: Any) -> None:
        start(self, parts, **options)
        poisoned.append(parts.model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "__init__", noting)
        removed = short_run.at_pass(Kind.TRAIN, 6, poison)
        with pytest.raises(RunFailed, match="not finite in epoch 2"):
            short_run.run(tmp_path, *RESNET, *METHODS["sgd"], minutes=0)
        removed.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"checkpoint-{step:010d}.ckpt" for step in (4, 5)]
    resumed = short_run.run(tmp_path, *RESNET, *METHODS["sgd"])
    assert differences(outcome(resumed), outcome(short_run.run(tmp_path / "b", *RESNET, *METHODS["sgd"]))) == []


def numbers(method: str, folder: Path) -> dict[str, float]:
    """What a method computes in 12 steps, its network in float64: losses, accuracies, and the length of the weights."""
    parts = short_run.parts_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short_run, "parts_of", lambda *overrides: doubled(parts(*overrides, apart=1)))
        made = short_run.run(folder, *RESNET, *METHODS[method], "label_smoothing=0.1", "dataset.label_noise=0.1")
    rows = {f"epoch {row['epoch']:g}": row for row in made.progress.history} | made.progress.collected
    found = {f"{place} {name}": value for place, row in rows.items() for name, value in row.items()}
    length = torch.stack([weight.detach().norm() for weight in made.parts.model.parameters()]).norm()
    return found | {"length": float(length), "gradients": made.progress.gradient_evaluations}


def doubled(parts: Any) -> Any:
    parts.model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return parts


@pytest.mark.parametrize("method", METHODS)
def test_what_a_config_computes_changes_only_with_the_semantics_version(method: str, tmp_path: Path) -> None:
    """In float64 another processor's order of summation is far below 1e-6, another formula, order or seed far above."""
    golden = json.loads(GOLDEN.read_text())
    assert golden["semantics"] == SEMANTICS, "raise it in broadopt/config/identity.py, then run this file as a script"
    assert numbers(method, tmp_path) == pytest.approx(golden["numbers"][method], rel=1e-6, abs=1e-9), (
        "the same config computes other numbers than before: if that is wanted, raise config.identity.SEMANTICS"
    )


if __name__ == "__main__":  # python tests/reliability/test_reproducible.py FOLDER writes the golden numbers anew
    made = {method: numbers(method, Path(sys.argv[1]) / method) for method in METHODS}
    GOLDEN.write_text(json.dumps({"semantics": SEMANTICS, "numbers": made}, indent=1) + "\n")
