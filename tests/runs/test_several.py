"""A run with several collectors: its result, and what tables, objectives and trackers make of it.

The oracle: the run with its first collector alone.
"""

from pathlib import Path

import pytest
from command import SMALL, Sweep, folders, result, run
from in_process import said
from printed import cells
from safetensors.torch import load_file
from stored import VGG16, record, seal, store
from stored import run as table

import broadopt
from broadopt.analysis.status.state import total_epochs
from broadopt.analysis.tables.match import Recipes, groups, step_and_collect
from broadopt.config.compose import recipe_of
from broadopt.runs import objective, results
from broadopt.runs.objective import evaluation_point, longest
from broadopt.trackers.record import points_of

SEVERAL = ("method=swa", "collect=swa+ema+swag", "collect.also.swag.samples=2", "collect.also.swag.budgets=[1.5]")
KEYS = ["1", "ema 1", "1.25", "1.5", "swag 1.5"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with three collectors."""
    cwd = tmp_path_factory.mktemp("several")
    process = run(*SMALL, *SEVERAL, "budget=2", cwd=cwd)
    assert process.returncode == 0, process.stderr
    (folder,) = folders(cwd)
    assert folder.parent.name == "sgd+swa+ema+swag"
    assert "\n  collected after 1.25 budgets (1 member)  test accuracy " in process.stdout
    assert "\n  collected by ema after 1 budget (90 members)  test accuracy " in process.stdout
    return folder


def test_the_first_collector_is_as_if_it_were_alone(several: Path, five_runs: Sweep) -> None:
    alone, found = result(five_runs.folders["swa"]), result(several)
    assert list(found["metrics"]["collected"]) == KEYS
    own = {key: value for key, value in found["metrics"]["collected"].items() if " " not in key}
    assert found["metrics"] | {"collected": own} == alone["metrics"]
    predictors = [load_file(folder / "predictor.safetensors") for folder in (several, five_runs.folders["swa"])]
    assert all((predictors[0][name] == tensor).all() for name, tensor in predictors[1].items())
    assert results.read(several) is not None


def test_the_same_command_and_a_repetition_show_the_result(several: Path) -> None:
    root = several.parents[5]
    for again in ((*SMALL, *SEVERAL, "budget=2"), (f"repeat={several}", "trust=own_network")):
        process = run(*again, cwd=root)
        assert (process.returncode, process.stderr) == (0, "")
        assert process.stdout.startswith("already finished: ")


def test_every_column_of_a_run_has_its_name(several: Path) -> None:
    figures = result(several)["metrics"]["collected"]
    (row,) = broadopt.load_results(several.parents[4]).to_dict("records")
    for key in KEYS:
        assert row[f"metrics.collected.{key}.test_accuracy"] == figures[key]["test_accuracy"]
    lines = table("runs", "--results", several.parents[4], "--format", "csv")[0].splitlines()
    found = [line.split(",") for line in lines if ",collected," in line and ",test_accuracy," in line]
    assert sorted({name for fields in found for name in fields if name in KEYS}) == sorted(KEYS)
    points = points_of([{"epoch": 3.0}], result(several)["metrics"])[3]
    assert points["collected/ema/1/test_nll"] == figures["ema 1"]["test_nll"]
    assert points["collected/1.5/test_nll"] == figures["1.5"]["test_nll"]


def test_a_run_reports_what_its_own_collector_predicts_after_the_most_budgets() -> None:
    figures = {key: {"test_accuracy": number} for number, key in enumerate(["1", "ema 3", "1.5", "swa 2", "1.25"])}
    assert longest(figures) == "1.5"
    assert longest(["ema 1"]) is None
    assert sorted(["ema 1.5", "1.5", "ema 1", "2", "10", "1", "a/b 1"], key=evaluation_point) == (
        ["1", "1.5", "2", "10", "a/b 1", "ema 1", "ema 1.5"]
    )
    metrics = {"last": {"test_accuracy": 9.0}, "collected": figures}
    assert objective.value(metrics, "test_accuracy") == 2
    assert objective.value(metrics | {"collected": {"ema 1": {"test_accuracy": 7.0}}}, "test_accuracy") == 9


def test_what_a_run_reports_is_compared_and_its_further_columns_are_explained(tmp_path: Path) -> None:
    recorded = record(VGG16, "collect=swa+ema")
    store(tmp_path, recorded, collected={"1": 71.0, "1.25": 72.0, "1.5": 73.0, "ema 1": 79.0})
    store(tmp_path, record(VGG16, "method=sgd"), last=70.0)
    text = table("runs", "--results", tmp_path, "--against", "sgd")[0]
    row = next(line for line in text.splitlines() if line.startswith("| sgd+swa+ema "))
    assert cells(row)[1:] == ["1", *["70.00"] * 2, "71.00", "72.00", "73.00", "79.00"]
    assert "coll. ema 1" in text
    assert "coll. with a name" in text
    assert "+3.00" in text
    assert "coll. with a name" not in table("runs", "--results", tmp_path, "--where", "method=sgd")[0]


def test_no_cell_of_a_papers_table_is_filled_by_a_run_with_several_collectors(tmp_path: Path) -> None:
    empty = table("table1", "--results", tmp_path)[0]
    store(tmp_path, record(VGG16, "collect=swa+ema"), collected={"1": 71.0, "1.25": 72.0, "1.5": 73.0, "ema 1": 79.0})
    text = table("table1", "--results", tmp_path)[0]
    assert text.startswith(empty.rstrip("\n"))
    assert "sgd+swa+ema is no column of this table" in " ".join(text.split())


OWN_COLLECTORS = {
    "slow": "defaults: [ema, _self_]\nhalf_life: 4",
    "slower": "defaults: [slow]\nhalf_life: 5",
    "first": "defaults: [_self_, ema]\nhalf_life: 5",
    "early": "# @package _global_\ndefaults: [swa, _self_]\ncollect: {start: 0.5}",
    "bare": "half_life: 5",
    "loop": "defaults: [loop]",
    "lost": "defaults: [nowhere]",
}


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "own/collect").mkdir(parents=True)
    for name, text in OWN_COLLECTORS.items():
        (tmp_path / f"own/collect/{name}.yaml").write_text(f"{text}\n")
    return ("--config-dir", "own", "experiment=quickstart", "plan=true")


@pytest.mark.parametrize("name", ["slow", "slower", "first", "early"])
def test_a_collector_made_of_another_is_the_same_behind_a_further_one(
    name: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    alone = said("broadopt-run", *own, f"collect={name}", cwd=tmp_path)[1]
    code, out, err = said("broadopt-run", *own, f"collect=lawa+{name}", cwd=tmp_path)
    assert (code, err) == (0, "")
    call = next(line[13:] for line in alone.splitlines() if line.startswith("  collect    "))
    assert f"\n  also {name:5} {call}\n" in out
    half_life = {"slow": "4.0", "slower": "5.0", "first": "2.0"}.get(name)
    assert half_life is None or f"half_life={half_life}" in call


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare", "collect.also.bare: expected a _target_, "),
        ("loop", "collect.also.loop: its defaults have loop; expected other collectors"),
        ("lost", "collect.also.lost: its defaults have nowhere; expected other collectors"),
    ],
)
def test_a_further_collector_that_cannot_be_made_is_named(
    name: str, message: str, own: tuple[str, ...], tmp_path: Path
) -> None:
    code, out, err = said("broadopt-run", *own, f"collect=swa+{name}", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"broadopt-run: {message}")
    assert err.count("\n") == 1


def test_a_name_tells_what_a_run_was_composed_of(tmp_path: Path) -> None:
    parts = {"sam+swa": ("sam", "swa"), "sgd+swa+ema": ("sgd", "swa+ema"), "ema": ("sgd", "ema")}
    assert {name: step_and_collect(name) for name in parts} == parts
    for overrides in (["method=asam", "collect=fge+ema"], ["collect=swa+lawa"], ["collect=ema"]):
        recorded = record("model=wrn28_10", "dataset=cifar10", *overrides, "protocol=swa2018")
        found = results.read(store(tmp_path, recorded))
        assert found is not None
        expected = Recipes(recipe_of).of_protocol(groups([found])[0])
        assert expected is not None
        assert expected["collect"] == recorded["collect"]


def test_a_run_trains_to_the_last_evaluation_point_of_all_its_collectors() -> None:
    assert total_epochs(record("collect=ema+swa", "budget=10", "dataset=cifar100")) == 15
    assert total_epochs(record("collect=swa+ema", "budget=10", "collect.also.ema.budgets=[2]")) == 20
    assert total_epochs(record("collect=ema+fge", "budget=10")) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collected": {"ema  1": {}}}, "metrics.collected: expected numbers of budgets, behind the name of another"),
        ({"collected": {"ema": {}}}, "metrics.collected: expected numbers of budgets, behind the name of another"),
        ({"collected": {"e\nma 1": {}}}, "metrics.collected: expected numbers of budgets, behind the name of another"),
        ({"also": 3}, "config.collect.also: expected a mapping, found 3"),
        ({"also": {"ema": 3}}, "config.collect.also.ema: expected a mapping, found 3"),
        ({"also": {"ema": {"budgets": "all"}}}, "config.collect.also.ema.budgets: expected a list of numbers of"),
        ({"also": {"..": {}}}, "config.collect.also: expected names of collectors as keys, found .."),
    ],
)
def test_a_result_with_another_form_is_left_out(tmp_path: Path, change: dict, message: str) -> None:
    recorded = record("collect=swa+ema")
    if "also" in change:
        recorded = {**recorded, "collect": {**recorded["collect"], **change}}
    folder = store(tmp_path, recorded)
    if "collected" in change:
        content = result(folder)
        seal(folder, {**content, "metrics": {**content["metrics"], **change}})
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.").replace("[", r"\[")):
        results.read(folder)
