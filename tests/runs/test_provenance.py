"""The commit and the changes that a result records are those of the code that the run began with."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command import OWN, SMALL, folders, result
from in_process import said

import broadopt
from broadopt.devices import provenance
from broadopt.runs.begun import record_changes

TRAINED = (*SMALL, "method=sgd", "budget=0.1", "checkpoint.minutes=0")
"""Five steps, with a checkpoint after each."""

Train = Callable[..., Path]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of one commit, which takes the place of broadopt's own."""
    folder = tmp_path / "checkout"
    shutil.copytree(Path(broadopt.__file__).resolve().parents[1] / "configs", folder / "configs")
    (folder / "broadopt").mkdir()
    (folder / "broadopt/method.py").write_text("rho = 0.05\n")
    for words in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "First"]):
        own = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *own, *words], cwd=folder, check=True)
    monkeypatch.setattr(broadopt, "__file__", str(folder / "broadopt/__init__.py"))
    return folder


@pytest.fixture
def train(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains as a process does that has just started; `at` is called in each training pass, with its number."""
    monkeypatch.syspath_prepend(str(OWN))
    import own_network

    def train(*words: str, at: Callable[[int], None] = lambda number: None, expect: int = 0) -> Path:
        passes = 0

        def moment(kind: str) -> None:
            nonlocal passes
            passes += kind == "train"
            if kind == "train":
                at(passes)

        monkeypatch.setattr(own_network, "moment", moment)
        provenance.code.cache_clear()
        code, _, errors = said("broadopt-run", *TRAINED, *words, cwd=tmp_path)
        assert code == expect, errors
        (folder,) = folders(tmp_path)
        return folder

    yield train
    provenance.code.cache_clear()
    sys.modules.pop("own_network")


def head(checkout: Path) -> str:
    return subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=checkout, text=True).strip()


def test_code_that_is_changed_while_a_run_trains_is_not_recorded(train: Train, checkout: Path) -> None:
    def change(number: int) -> None:
        (checkout / "broadopt/method.py").write_text("rho = 0.5\n")

    folder = train(at=change)
    assert result(folder)["environment"]["git_commit"] == head(checkout)
    assert not (folder / "code.diff").exists()


def test_a_run_begun_anew_from_clean_code_keeps_no_changes_of_before(train: Train, checkout: Path) -> None:
    method = checkout / "broadopt/method.py"
    method.write_text("rho = 0.5\n")
    folder = train()
    assert result(folder)["environment"]["git_commit"] == f"{head(checkout)}+"
    assert "+rho = 0.5" in (folder / "code.diff").read_text()
    method.write_text("rho = 0.05\n")
    assert train("force=true") == folder
    assert result(folder)["environment"]["git_commit"] == head(checkout)
    assert not (folder / "code.diff").exists()


def test_a_resumed_run_keeps_the_changes_that_trained_its_first_part(train: Train, checkout: Path) -> None:
    method = checkout / "broadopt/method.py"
    method.write_text("rho = 0.5\n")

    def fail(number: int) -> None:
        if number == 4:
            raise RuntimeError("a defect")

    folder = train(at=fail, expect=1)
    first = (folder / "code.diff").read_text()
    method.write_text("rho = 0.05\n")
    rest: list[int] = []
    train(at=rest.append)
    assert rest == [1, 2]  # those of five that the first part has not trained
    assert result(folder)["environment"]["git_commit"] == head(checkout)
    assert (folder / "code.diff").read_text() == first
    assert not (folder / "code.resumed.diff").exists()


def test_other_changes_of_a_resumed_run_are_kept_beside_the_first(tmp_path: Path) -> None:
    begun, later = tmp_path / "code.diff", tmp_path / "code.resumed.diff"
    record_changes(tmp_path, "first\n", resumed=False)
    record_changes(tmp_path, "first\n", resumed=True)
    assert not later.exists()
    record_changes(tmp_path, "second\n", resumed=True)
    assert (begun.read_text(), later.read_text()) == ("first\n", "second\n")
    record_changes(tmp_path, "first\n", resumed=True)  # undone
    assert (begun.exists(), later.exists()) == (True, False)
    record_changes(tmp_path, "second\n", resumed=True)
    record_changes(tmp_path, "", resumed=False)
    assert (begun.exists(), later.exists()) == (False, False)
