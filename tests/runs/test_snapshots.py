"""keep=snapshots: the weights of a run in the course of its training."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from command import OWN, SMALL, Sweep, folders, run, same_outcome, stopped
from safetensors import safe_open

from broadopt import predictor, snapshots
from broadopt.analysis.landscape import networks
from broadopt.analysis.landscape.runs import chosen
from broadopt.errors import InputError

SWA = (*SMALL, "budget=2", "method=swa", "keep=snapshots")
MOMENTS = [0, 45, 90, 113, 135]
"""The start, the ends of three epochs of 45 steps, and 1.25 budgets, at which SWA is evaluated."""


def described(path: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """What a file says of itself, and the bytes of each of its tensors."""
    with safe_open(path, framework="np") as file:
        names = list(file.keys())
        return dict(file.metadata()), {name: file.get_tensor(name).tobytes() for name in names}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("undisturbed")
    done = run(*SWA, cwd=cwd)
    assert done.returncode == 0
    (folder,) = folders(cwd)
    size = sum(path.stat().st_size for path in (folder / "snapshots").iterdir()) / 1e6
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("keep=snapshots")]
    count, each, whole = (float(word) for word in said.split() if word.replace(".", "").isdigit())
    assert count == len(MOMENTS)
    assert each == pytest.approx(size / count, abs=0.005)  # a description of 3 kB each is not counted
    assert whole == pytest.approx(count * each, rel=0.02)
    assert said.endswith(f"in {folder.relative_to(cwd)}/snapshots")
    return folder


def test_they_are_kept_and_change_nothing_else(undisturbed: Path, five_runs: Sweep) -> None:
    assert [snapshot.step for snapshot in snapshots.files(undisturbed)] == MOMENTS
    assert same_outcome(undisturbed, five_runs.folders["swa"])


def test_swas_mean_is_that_of_its_snapshots(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OWN)
    kept = {
        one.step: predictor.read(one.path, trust="own_network").model.state_dict()
        for one in snapshots.files(undisturbed)
    }
    reported = predictor.load(undisturbed, trust="own_network").model
    for name, weight in reported.named_parameters():
        mean = (kept[90][name].double() + kept[135][name].double()) / 2
        assert torch.allclose(weight.double(), mean, rtol=0, atol=1e-7)


def test_a_resumed_run_leaves_the_same_weights(undisturbed: Path, tmp_path: Path) -> None:
    assert stopped(*SWA, cwd=tmp_path, at="train 100", by=signal.SIGTERM).returncode == 75
    (folder,) = folders(tmp_path)
    assert [snapshot.step for snapshot in snapshots.files(folder)] == [0, 45, 90]
    assert run(*SWA, cwd=tmp_path).returncode == 0
    for one, other in zip(snapshots.files(folder), snapshots.files(undisturbed), strict=True):
        assert one.step == other.step
        assert described(one.path) == described(other.path)
    again = run(*SWA, cwd=tmp_path)
    assert again.stdout.startswith("already finished: ")
    assert "no snapshots" not in again.stdout
    for one in snapshots.files(folder):
        one.path.unlink()
    again = run(*SWA, cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "  it has kept no snapshots: force=true runs it anew and keeps them"


def test_weights_that_were_asked_for_late_are_said_to_be_missing(tmp_path: Path) -> None:
    assert stopped(*SWA[:-1], cwd=tmp_path, at="train 100", by=signal.SIGTERM).returncode == 75
    done = run(*SWA, cwd=tmp_path)
    assert done.returncode == 0
    (folder,) = folders(tmp_path)
    kept = [snapshot.step for snapshot in snapshots.files(folder)]
    assert kept == MOMENTS[2:]
    assert "keep=snapshots: 2 of the moments up to epoch 2 have none: they were trained without it" in done.stderr


def test_a_run_made_anew_keeps_no_weights_of_the_training_before(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.parents[4], tmp_path / "results")
    (folder,) = folders(tmp_path)
    (folder / "snapshots/.step-0000000090.safetensors.1.tmp").touch()  # of a process that was killed
    assert (folder / predictor.NAME).exists()
    assert snapshots.files(folder)
    again = run(*SWA[:-1], "checkpoint.predictor=false", "force=true", cwd=tmp_path)
    assert again.returncode == 0
    assert not (folder / predictor.NAME).exists()
    assert not [*(folder / "snapshots").iterdir()]


def test_weights_of_an_attempt_that_died_do_not_stay_beside_another_course(undisturbed: Path, tmp_path: Path) -> None:
    stopped(*SWA, cwd=tmp_path, at="train 100", by=signal.SIGKILL)
    (folder,) = folders(tmp_path)
    assert [one.step for one in snapshots.files(folder)] == [0, 45, 90]  # and no checkpoint
    assert stopped(*SWA[:-1], cwd=tmp_path, at="train 100", by=signal.SIGTERM).returncode == 75
    assert snapshots.files(folder) == []

    for step in MOMENTS:
        (folder / "snapshots").mkdir(exist_ok=True)
        shutil.copy(undisturbed / f"snapshots/step-{step:010d}.safetensors", folder / "snapshots")
    assert run(*SWA[:-1], cwd=tmp_path).returncode == 0
    assert [one.step for one in snapshots.files(folder)] == [0, 45, 90]  # beyond the checkpoint of step 100 none


NOTED = """
from torch import nn

class Noted(nn.Module):
    def __init__(self, *, num_classes, batch_norm):
        super().__init__()
        self.last = nn.Linear(48, num_classes)

    def forward(self, images):
        return self.last(nn.functional.avg_pool2d(images, 8).flatten(1))

    def get_extra_state(self):
        return {"note": 1}

    def set_extra_state(self, state):
        pass
"""


def test_a_network_whose_state_no_file_of_weights_can_hold_is_refused_before_it_is_trained(tmp_path: Path) -> None:
    (tmp_path / "noted.py").write_text(NOTED)
    own = (*SMALL, "model._target_=noted.Noted", "budget=1")
    path = f"{OWN}:{tmp_path}"
    line = "broadopt-run: model: its state has _extra_state, which is no tensor, as a file of weights needs; expected "
    for given, expected in (
        ([], "checkpoint.predictor=false"),
        (["keep=snapshots"], "checkpoint.predictor=false and keep=none"),
        (["keep=snapshots", "checkpoint.predictor=false"], "keep=none"),
        (["keep=snapshots", "collect=swag"], "keep=none"),
    ):
        done = run(*own, *given, cwd=tmp_path, PYTHONPATH=path)
        assert (done.returncode, done.stderr) == (2, f"{line}{expected}\n")
        assert not (tmp_path / "results").exists()
    assert run(*own, "checkpoint.predictor=false", cwd=tmp_path, PYTHONPATH=path).returncode == 0


def test_a_snapshot_under_the_name_of_another_moment_is_refused(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(OWN)
    folder = tmp_path / Path(*undisturbed.parts[-5:])
    shutil.copytree(undisturbed, folder)
    (measured,) = chosen([str(folder)], [], trust=["own_network"])
    assert networks.snapshot(measured, 45).classes
    early, late = (folder / "snapshots" / f"step-{step:010d}.safetensors" for step in (45, 90))
    late.replace(early)
    with pytest.raises(
        InputError, match=f"^{early}: it holds the weights after step 90; expected those after step 45$"
    ):
        networks.snapshot(measured, 45)


def test_what_is_no_snapshot_is_refused(undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "step-0000000001.safetensors"
    path.write_bytes((undisturbed / "snapshots" / "step-0000000045.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match=f"{path.name}: "):
        predictor.read(path)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "step-last.safetensors").touch()
    assert snapshots.files(tmp_path) == []


TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self, *, num_classes, batch_norm):
        super().__init__()
        self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
        self.second.weight = self.first.weight
        self.last = nn.Linear(48, num_classes)

    def forward(self, images):
        return self.last(self.second(self.first(nn.functional.avg_pool2d(images, 8).flatten(1)).relu()))
"""


def test_weights_of_two_names_are_kept_under_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tied.py").write_text(TIED)
    given = ("budget=1", "method=sgd", "keep=snapshots", "model._target_=tied.Tied")
    done = run(*SMALL, *given, cwd=tmp_path, PYTHONPATH=f"{OWN}:{tmp_path}")
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = predictor.load(folder, trust="tied").model
    kept = described(folder / predictor.NAME)[1]
    assert loaded.second.weight is loaded.first.weight
    assert loaded.second.weight.detach().numpy().tobytes() == kept["first.weight"] == kept["second.weight"]
    (_, last) = snapshots.files(folder)
    assert described(last.path)[1] == kept
