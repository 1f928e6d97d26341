"""trunk=share: a run that begins with what another has trained ends, bit for bit, as one that has trained it all."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from command import SMALL, Sweep, finish, folders, outcome, result, run, start, stopped

from broadopt.analysis.status.state import look, run_of
from broadopt.config import own_code
from broadopt.config.run_config import RunConfig
from broadopt.data.datasets import read
from broadopt.predictor import read as read_predictor
from broadopt.runs import checkpoint, results
from broadopt.runs.repeat import repeated
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines
from broadopt.training.trunks import store
from broadopt.training.trunks.sharing import Sharing
from broadopt.training.trunks.store import Trunk

SHARED = (*SMALL, "budget=2", "trunk=share")
"""45 steps an epoch. The lr of SGD, SWA and FGE is the same in the first of two epochs."""


ANEW = "once removed, it is left anew"


def trunk_of(cwd: Path, run_folder: Path, epochs: int) -> Trunk:
    """What a run has left after so many epochs."""
    name = run_folder.relative_to(cwd / "results").as_posix()
    trunks = [store.read(path.parent) for path in (cwd / "results/trunks").rglob("trunk.json")]
    (found,) = [trunk for trunk in trunks if trunk.content["run"] == name and trunk.epochs == epochs]
    return found


def folder_of(cwd: Path, method: str) -> Path:
    (found,) = [folder for folder in folders(cwd) if folder.parent.name == method]
    return found


def same_as_alone(folder: Path, alone: Path) -> bool:
    """Whether a run has ended with the figures and the weights of the one that trained alone."""
    found = outcome(result(folder))
    found.pop("trunk", None)
    assert (folder / "history.csv").read_bytes() == (alone / "history.csv").read_bytes()
    kept = [(one / "predictor.safetensors") for one in (folder, alone)]
    assert kept[0].exists() == kept[1].exists()
    if kept[0].exists():
        first, second = (read_predictor(path, trust="own_network").model.state_dict() for path in kept)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    return found == outcome(result(alone))


def begins(done: "subprocess.CompletedProcess[str]") -> list[str]:
    """The lines in which runs say what they have taken over."""
    return [line for line in done.stderr.splitlines() if line.startswith("begins with")]


@pytest.fixture(scope="module", autouse=True)
def own_network() -> Any:
    own_code._code_of.cache_clear()  # tests before these may have asked where it could not be found
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "own")
        yield


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SWA, and then SGD and FGE, which share its first epoch: 90 training passes are all that the two make together."""
    cwd = tmp_path_factory.mktemp("row")
    first = run(*SHARED, "method=swa", cwd=cwd)
    assert first.returncode == 0, first.stderr
    assert begins(first) == []
    never = {"HALT": "train 91", "HALT_FILE": str(cwd / "halted")}
    both = run("-m", *SHARED, "method=sgd,fge", cwd=cwd, **never)
    assert both.returncode == 0, both.stderr
    place = trunk_of(cwd, folder_of(cwd, "swa"), 1)
    words = f"begins with 1 epoch of {place.content['run']}, from {place.folder.relative_to(cwd)}"
    assert begins(both) == [words, words]
    assert not (cwd / "halted").exists()
    return cwd


@pytest.mark.parametrize("method", ["swa", "sgd", "fge"])
def test_a_run_that_shares_ends_bit_for_bit_as_alone(method: str, row: Path, five_runs: Sweep) -> None:
    assert same_as_alone(folder_of(row, method), five_runs.folders[method])


def test_a_result_names_the_trunk_and_so_does_a_trunk_that_follows(row: Path) -> None:
    swa, sgd, fge = (folder_of(row, method) for method in ("swa", "sgd", "fge"))
    assert "trunk" not in result(swa)
    first, name = trunk_of(row, swa, 1), swa.relative_to(row / "results").as_posix()
    named = {"identity": first.identity, "epochs": 1, "run": name, "train_seconds": first.content["train_seconds"]}
    assert 0 < named["train_seconds"] < result(swa)["cost"]["train_seconds"]
    assert result(sgd)["trunk"] == result(fge)["trunk"] == named
    assert "trunk" not in first.content
    assert trunk_of(row, sgd, 2).content["trunk"] == named
    assert trunk_of(row, sgd, 2).content["steps"] == 90
    seen = look(row / "results")  # as --status does
    spent = {one["method"]: run_of(seen, one["config"], key).seconds for key, one in seen.results.items()}
    whole = {one["method"]: one["cost"]["train_seconds"] for one in seen.results.values()}
    assert spent == {method: whole[method] - named["train_seconds"] * (method != "swa") for method in spent}
    epochs = sorted(json.loads(path.read_text())["epochs"] for path in row.rglob("trunk.json"))
    assert epochs == [1, 2, 2]  # that after the first epoch is one and the same, whoever would have left it


def test_the_opening_line_says_what_is_left_and_how_large_it_is(row: Path, tmp_path: Path) -> None:
    done = stopped(*SHARED, "method=swa", cwd=tmp_path, at="train 1", by=signal.SIGTERM)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("trunk=share")]
    trunks = [trunk_of(row, folder_of(row, "swa"), epochs).folder for epochs in (1, 2)]
    sizes = [path.stat().st_size / 1e6 for trunk in trunks for path in trunk.glob("*.ckpt")]
    words, _, place = line.partition(" MB in all, in ")
    assert words.startswith("trunk=share: the state after 1 and 2 epochs is left for others, about ")
    assert place == "results/trunks/digits/small"
    assert float(words.split()[-1]) == pytest.approx(sum(sizes), abs=0.02)  # 8 kB of names and figures each


def test_a_run_that_finds_all_its_epochs_trains_nothing(row: Path, tmp_path: Path) -> None:
    """SWA that collects the last weights of SGD alone: all its epochs are SGD's."""
    last = ("method=swa", "schedule=linear", "collect.start=1", "collect.budgets=[1]", "checkpoint.predictor=false")
    alone = run(*SMALL, "budget=2", *last, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    copy = shutil.copytree(row, tmp_path / "copy")
    before = set(folders(copy))
    done = run(*SHARED, *last, cwd=copy)
    assert begins(done)[0].startswith("begins with 2 epochs of runs/digits/small/sgd/")
    assert not [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    (folder,) = set(folders(copy)) - before
    assert same_as_alone(folder, folder_of(tmp_path, "swa"))


def test_a_killed_run_goes_on_and_still_names_its_trunk(row: Path, five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(row / "results/trunks", tmp_path / "results/trunks")
    shutil.rmtree(tmp_path / trunk_of(row, folder_of(row, "sgd"), 2).folder.relative_to(row))
    command = (*SHARED, "method=sgd", "checkpoint.minutes=0")
    assert stopped(*command, cwd=tmp_path, at="train 20", by=signal.SIGKILL).returncode == -signal.SIGKILL
    (folder,) = folders(tmp_path)
    assert [path.name for path in checkpoint.files(folder)] == [f"checkpoint-{step:010d}.ckpt" for step in (64, 63)]
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert begins(again) == []
    assert same_as_alone(folder, five_runs.folders["sgd"])
    assert result(folder)["trunk"] == result(folder_of(row, "sgd"))["trunk"]
    assert trunk_of(tmp_path, folder, 2).content["trunk"] == result(folder)["trunk"]


@cache
def asked_for(method: str) -> RunConfig:
    return forked.run_of("budget=2", "trunk=share", f"method={method}")


@cache
def sharing(method: str) -> Sharing:
    """What a run, of which nothing is there yet, has to do with the trunks below results/ of the current folder."""
    run = asked_for(method)
    recipe = run.recipe.decided(precision="fp32", fingerprint=None)
    parts = build(run, read(recipe.dataset), torch.device("cpu"))
    training = Training(parts, stop=Stop(), reporter=EpochLines())
    return Sharing(training, run, recipe, results.run_folder("results", recipe.record()))


def epochs_taken(one: Sharing) -> int:
    state = one.state()
    return 0 if state is None else state["progress"]["trunk"]["epochs"]


@pytest.mark.parametrize("change", [{"seed": 2}, {"lr": 0.05}, {"dataset": 0.2}, {"evaluate_every": 2}])
def test_the_trunk_of_another_recipe_is_not_taken(
    change: dict[str, Any], row: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(row)
    mine = sharing("fge")
    assert epochs_taken(mine) == 1
    caplog.clear()
    if "dataset" in change:
        change = {"dataset": replace(mine.recipe.dataset, label_noise=change["dataset"])}
    other = replace(mine.recipe, **change)
    assert other != mine.recipe
    assert (
        Sharing(mine.training, asked_for("fge"), other, results.run_folder("results", other.record())).state() is None
    )
    assert caplog.messages == []


def cut(trunk: Path) -> str:
    (path,) = trunk.glob("*.ckpt")
    path.write_bytes(path.read_bytes()[:-1])
    return f"checkpoint {path} is passed over: truncated or damaged"


def without_state(trunk: Path) -> str:
    next(trunk.glob("*.ckpt")).unlink()
    return f"trunk {trunk} is passed over: it holds no state after 90 steps"


def edited(trunk: Path) -> str:
    (trunk / "trunk.json").write_text((trunk / "trunk.json").read_text().replace('"steps": 90', '"steps": 45'))
    return f"trunk {trunk} is passed over: trunk.json: its checksum does not fit: edited or damaged; {ANEW}"


def renamed(trunk: Path) -> str:
    other = trunk.rename(trunk.with_name("seed1-01234567"))
    return f"trunk {other} is passed over: trunk.json: it belongs to another folder; {ANEW}"


def resealed(trunk: Path) -> str:
    content = json.loads((trunk / "trunk.json").read_text())
    content["config"]["lr"] = 0.3
    content["checksum"] = store.checksum(content)
    (trunk / "trunk.json").write_text(json.dumps(content))
    return f"trunk {trunk} is passed over: trunk.json: its identity is not that of its config; {ANEW}"


def emptied(trunk: Path) -> str:
    (trunk / "trunk.json").write_text("{}")
    return f"trunk {trunk} is passed over: trunk.json: not of schema 1; {ANEW}"


def with_an_escape(trunk: Path) -> str:
    other = trunk.rename(trunk.with_name("seed1-\x1b[31m\nfinished: all is well"))
    shown = str(other).replace("\x1b", "\\x1b").replace("\n", "\\n")
    return f"trunk {shown} is passed over: trunk.json: it belongs to another folder; {ANEW}"


@pytest.mark.parametrize("damage", [cut, without_state, edited, renamed, resealed, emptied, with_an_escape])
def test_a_damaged_trunk_is_passed_over_for_the_next(
    damage: Callable[[Path], str],
    row: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(row / "results/trunks", tmp_path / "results/trunks")
    monkeypatch.chdir(tmp_path)
    one = sharing("sgd")
    assert epochs_taken(one) == 2
    caplog.clear()
    words = damage(trunk_of(row, folder_of(row, "sgd"), 2).folder.relative_to(row))
    assert epochs_taken(one) == 1
    assert words in caplog.messages[:2]
    assert caplog.messages[-1].startswith("begins with 1 epoch of runs/digits/small/swa/")


def test_a_trunks_folder_that_cannot_be_read_is_one_line(
    row: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(row)
    one = sharing("sgd")
    place = store.place("results", one.recipe.record())

    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refused)
        assert one.state() is None
    assert caplog.messages == [f"trunks in {place} are passed over: Permission denied"]


def test_what_is_deterministic_begins_from_nothing_that_is_not(
    row: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(row)
    one = sharing("sgd")
    monkeypatch.setitem(one.training.parts.settings, "deterministic", True)
    assert one.state() is None
    assert len(caplog.messages) == 2
    assert all(line.endswith("is passed over: it was trained without deterministic=true") for line in caplog.messages)


def test_a_trunk_that_does_not_fit_is_named(row: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(row, tmp_path / "copy")
    trunk = trunk_of(copy, folder_of(copy, "sgd"), 2)
    _, state = checkpoint.newest(trunk.folder, identity=trunk.identity, device="cpu")  # type: ignore[misc]
    state["model"].popitem()
    checkpoint.save(trunk.folder, state, identity=trunk.identity, step=90)
    shutil.rmtree(folder_of(copy, "sgd"))
    done = run(*SHARED, "method=sgd", cwd=copy)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    place = trunk.folder.relative_to(copy)
    assert last.startswith(f"broadopt-run: the trunk {place} does not fit this network, step or collector (")
    assert last.endswith("; without it, or with trunk=none, the run begins anew")


def test_a_forced_run_may_begin_from_what_it_has_left_itself(row: Path, five_runs: Sweep, tmp_path: Path) -> None:
    copy = shutil.copytree(row, tmp_path / "copy")
    done = run(*SHARED, "method=sgd", "force=true", cwd=copy, HALT="train 1", HALT_FILE=str(tmp_path / "halted"))
    assert done.returncode == 0, done.stderr
    folder = folder_of(copy, "sgd")
    assert result(folder)["trunk"]["run"] == folder.relative_to(copy / "results").as_posix()
    assert result(folder)["trunk"]["epochs"] == 2
    assert same_as_alone(folder, five_runs.folders["sgd"])


def test_a_sharpness_aware_step_shares_as_well(five_runs: Sweep, tmp_path: Path) -> None:
    """SAM's cosine changes at every step; LAWA begins to collect after one epoch."""
    first = run(*SHARED, "method=sam", "collect=lawa", "collect.latest=2", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    never = {"HALT": "train 91", "HALT_FILE": str(tmp_path / "halted")}  # two passes a step
    done = run(*SHARED, "method=sam", cwd=tmp_path, **never)
    assert done.returncode == 0, done.stderr
    assert begins(done)[0].startswith("begins with 1 epoch of runs/digits/small/sam+lawa/")
    assert same_as_alone(folder_of(tmp_path, "sam"), five_runs.folders["sam"])


def test_a_trunk_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/trunks").write_text("a file")
    done = finish(start(*SMALL, "budget=1", "trunk=share", cwd=tmp_path))
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("trunk")]
    assert line.endswith(": Not a directory; the run goes on without leaving it")


def test_a_repeated_run_trains_all_itself(row: Path) -> None:
    folder = folder_of(row, "sgd")
    assert "\ntrunk: share\n" in (folder / "config.yaml").read_text()
    assert repeated([f"repeat={folder}", "trust=own_network"]).run.execution.trunk == "none"
