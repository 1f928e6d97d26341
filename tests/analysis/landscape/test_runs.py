"""Which runs are chosen by folders and by selectors, in which order and under which labels."""

import shlex
import shutil
from pathlib import Path

import pytest
from stored import RESNET20, record, store

from broadopt.analysis.landscape.runs import check_different, chosen, repeat_command
from broadopt.errors import InputError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The results folder, and the folders of its runs by what they are."""
    root = tmp_path_factory.mktemp("runs") / "results"
    return {
        "results": root,
        "sgd": store(root, record(RESNET20, "method=sgd")),
        "sgd 2": store(root, record(RESNET20, "method=sgd", seed=2)),
        "sam": store(root, record(RESNET20, "method=sam", "step.rho=0.05")),
        "sam 0.5": store(root, record(RESNET20, "method=sam", "step.rho=0.5")),
        "asam": store(root, record(RESNET20, "method=asam"), state="failed"),
    }


def labels(words: list[str], folders: dict[str, Path], **options) -> list[str]:
    return [run.label for run in chosen(words, [folders["results"]], **options)]


def test_folders_stay_in_their_order(folders: dict[str, Path]) -> None:
    found = chosen([str(folders["sam"]), str(folders["sgd"])], [Path("nowhere")])
    assert [run.folder for run in found] == [folders["sam"], folders["sgd"]]
    assert [(run.label, run.recipe.method) for run in found] == [("SAM", "sam"), ("SGD", "sgd")]
    assert found[0].recipe.identity == found[0].result["identity"]


def test_a_run_is_repeated_in_the_results_folder_that_it_lies_in(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(folder: Path) -> list[str]:
        (run,) = chosen([str(folder)], [], trust=("one", "two"))
        program, repeat, precision, *words = shlex.split(repeat_command(run, "keep=snapshots"))
        assert (program, repeat, precision) == ("broadopt-run", f"repeat={run.folder}", "precision=fp32")
        return words

    folder, results = folders["sgd"], folders["results"]
    rest = ["trust=one", "trust=two", "keep=snapshots", "force=true"]
    assert command(folder) == [f"results_dir={results}", *rest]
    monkeypatch.chdir(results.parent)
    assert command(folder.relative_to(results.parent)) == [f"results_dir={results.name}", *rest]
    monkeypatch.chdir(results)
    assert command(folder.relative_to(results)) == ["results_dir=.", *rest]
    monkeypatch.chdir(folder.parent)
    assert command(Path(folder.name)) == [f"results_dir={results}", *rest]
    assert command(Path("..", folder.parent.name, folder.name)) == [f"results_dir={results}", *rest]
    copied = results.parent / "a copy"
    shutil.copytree(results / "runs", copied)
    assert command(copied / folder.relative_to(results / "runs")) == [f"results_dir={copied}", *rest]


def test_selected_runs_are_in_the_order_of_the_values(folders: dict[str, Path]) -> None:
    *first, last = labels(["method=sam,sgd", "seed=1"], folders)
    assert (set(first), last) == ({"SAM, rho 0.05", "SAM, rho 0.5"}, "SGD")
    assert labels(["step.rho=0.5,0.05"], folders) == ["SAM, rho 0.5", "SAM, rho 0.05"]
    assert labels(["seed=2,1", "method=sgd"], folders) == ["SGD, seed 2", "SGD, seed 1"]


def test_a_label_has_what_differs_within_a_method_alone(folders: dict[str, Path]) -> None:
    assert labels([str(folders["sgd"]), str(folders["sgd 2"]), str(folders["sam"])], folders) == [
        "SGD, seed 1",
        "SGD, seed 2",
        "SAM",
    ]


def test_runs_with_the_same_first_differences_are_told_apart_by_all(tmp_path: Path) -> None:
    three = ("weight_decay=0.001", "lr=0.2", "batch_size=64")
    found = [
        store(tmp_path, record(RESNET20, "method=sgd")),
        store(tmp_path, record(RESNET20, "method=sgd", *three)),
        store(tmp_path, record(RESNET20, "method=sgd", *three, seed=2)),
        store(tmp_path, record(RESNET20, "method=sgd", *three, precision="bf16")),
    ]
    names = [run.label for run in chosen(list(map(str, found)), [])]
    assert len(set(names)) == 4
    assert "precision bf16" in names[3]
    assert "seed 2" in names[2]


def test_a_run_in_two_results_folders_is_one_run(tmp_path: Path) -> None:
    folders = [store(tmp_path / name, record(RESNET20, "method=sgd")) for name in ("here", "there")]
    with pytest.raises(InputError, match=r"^rays: a run was named twice; expected different runs$"):
        check_different(chosen(list(map(str, folders)), []), "rays")


def test_a_run_reports_its_own_collector_and_not_one_beside_it(tmp_path: Path) -> None:
    collected = {"1": 71.0, "1.5": 72.0, "ema 1": 75.0, "ema 1.5": 76.0}
    (swa,) = chosen([str(store(tmp_path, record(RESNET20, "method=swa"), collected=collected))], [])
    assert swa.reported["test_accuracy"] == 72.0
    (sgd,) = chosen([str(store(tmp_path, record(RESNET20, "method=sgd"), collected={"ema 1": 75.0}))], [])
    assert sgd.reported["test_accuracy"] == 70.0


def test_failed_runs_have_no_curves(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match=r"method=asam: no run has this value; they have sam, sgd"):
        chosen(["method=asam"], [folders["results"]], unfinished=True)


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_folder_near_the_root_is_no_run(unfinished: bool) -> None:
    with pytest.raises(InputError, match=r"^/etc: holds no result\.json; expected the folder of a finished run$"):
        chosen(["/etc"], [], unfinished=unfinished)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: expected a run folder, or KEY=VALUE, which selects runs; there is no such folder"),
        (["method=swa"], "method=swa: no run has this value; they have sam, sgd"),
        (["step.roh=1"], 'step.roh: no run has a key of this name; did you mean "step.rho"?'),
        (["method="], "method=: expected KEY=VALUE or KEY=VALUE,VALUE"),
        (
            ["method=sam", "seed=2"],
            "method=sam seed=2: no finished run below {results} fits (--results names the folder)",
        ),
        (["{asam}"], "{asam}: this run is failed; expected one that is finished"),
        (["{results}"], "{results}: holds no result.json; expected the folder of a finished run"),
    ],
)  # fmt: skip
def test_what_is_no_run_is_named(words: list[str], message: str, folders: dict[str, Path]) -> None:
    with pytest.raises(InputError) as raised:
        chosen([word.format(**folders) for word in words], [folders["results"]])
    assert str(raised.value) == message.format(**folders)


def test_results_that_cannot_be_used_are_named_beside_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, other = (store(tmp_path, record(RESNET20, "method=sgd", seed=seed)) for seed in (1, 2))
    path = other / "result.json"
    path.write_text(path.read_text().replace("70.0", "71.0"))
    assert [run.folder for run in chosen(["method=sgd"], [tmp_path])] == [kept]
    line = f"{other.relative_to(tmp_path)}: its checksum does not fit: edited or damaged"
    assert capsys.readouterr().err == f"broadopt-figure: left out: {line}\n"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("lookahead", "its config has lookahead, which is no key of a recipe here"),
        ("lr", "its config is without lr"),
        ("dataset.label_noise", "its config is without dataset.label_noise"),
    ],
)
def test_a_result_whose_config_is_no_recipe_here_is_named(
    key: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table takes it, as one of a broadopt to come."""
    recorded = record(RESNET20, "method=sgd")
    if key == "lookahead":
        recorded[key] = 5
    else:
        group, _, leaf = key.rpartition(".")
        del (recorded[group] if group else recorded)[leaf]
    other = store(tmp_path, recorded)
    with pytest.raises(InputError) as raised:
        chosen([str(other)], [])
    assert str(raised.value) == f"{other}: {line}"
    with pytest.raises(InputError, match="no finished run"):
        chosen(["method=sgd"], [tmp_path])
    capsys.readouterr()
    kept = store(tmp_path, record(RESNET20, "method=sgd", seed=2))
    assert [run.folder for run in chosen(["method=sgd"], [tmp_path])] == [kept]
    assert capsys.readouterr().err == f"broadopt-figure: left out: {other.relative_to(tmp_path)}: {line}\n"


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"))
    path = folder / "result.json"
    path.write_text(path.read_text().replace("70.0", "71.0"))
    with pytest.raises(InputError) as raised:
        chosen([str(folder)], [])
    assert str(raised.value) == f"{path}: its checksum does not fit: edited or damaged"
