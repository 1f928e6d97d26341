"""broadopt-table as users run it: real result files, the real command, numbers worked out by hand."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from printed import cells, words
from stored import RESNET20, VGG16, record, run, seal, store

from broadopt import table as tables
from broadopt.analysis.comparing.runs_table import build
from broadopt.analysis.tables import formats
from broadopt.analysis.tables.match import Recipes, differences
from broadopt.analysis.tables.request import FORMATS, TABLES, parse
from broadopt.config.compose import recipe_of
from broadopt.errors import InputError
from broadopt.runs import results

GOLDEN = Path(__file__).parents[2] / "golden"


def command(*arguments, expect=0, **environment):
    """The same from the installed command, in a process of its own."""
    program = Path(sys.executable).with_name("broadopt-table")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, env={**os.environ, **environment}, timeout=600
    )
    assert done.returncode == expect, done.stderr
    return done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


def rows(out, network):
    """The lines of a network in the main table, by what they show: broadopt, paper, Δ."""
    lines = [cells(line) for line in out.splitlines() if line.startswith("|")]
    names = next(index for index, line in enumerate(lines) if network in line)
    column = lines[names].index(network) + 1
    found = {}
    for line in lines[names:]:
        if line[column] in found:
            break
        found[line[column]] = line[column + 1 :]
    return found


def off_recipe(out):
    """The lines of the table of runs off the recipe: name -> the cells."""
    part = out.partition("**Runs off the recipe**")[2]
    return [cells(line) for line in part.splitlines() if line.startswith("|")][2:]


@pytest.fixture
def table3_runs(tmp_path):
    for seed, best in ((1, 69.5), (2, 70.2), (3, 69.4)):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), last=best - 0.5, best=best)
    store(tmp_path, record(RESNET20, "method=sam"), last=70.0, best=71.07)
    return tmp_path


# ---- what makes a run another than the recipe


LONG = "long " * 50


@pytest.mark.parametrize(
    ("expected", "actual", "lines"),
    [
        ({"budget": 200.0}, {"budget": 5}, ["budget 5 instead of 200"]),
        ({"step": {"rho": 1.0}}, {"step": {"rho": 0.5}}, ["step.rho 0.5 instead of 1"]),
        ({"dataset": {"fingerprint": None}}, {"dataset": {"fingerprint": "sha256:ab"}},
         ["dataset.fingerprint sha256:ab instead of none"]),
        ({"a": 200, "b": [1, 1.5], "c": None}, {"a": 200.0, "b": (1.0, 1.5), "c": None}, []),
        ({"nesterov": False}, {"nesterov": 0}, ["nesterov 0 instead of false"]),
        ({"nesterov": True}, {"nesterov": False}, ["nesterov false instead of true"]),
        ({"a": None}, {}, ["a nothing instead of none"]),
        ({}, {"a": {"b": 1}}, ["a (b 1) instead of nothing"]),
        ({"mean": [0.5, 0.5]}, {"mean": [0.5, 0.4]}, ["mean [0.5, 0.4] instead of [0.5, 0.5]"]),
        ({"seed": 1, "precision": "fp32"}, {"seed": 2, "precision": "bf16"}, []),
        ({"model": {"seed": 1}}, {"model": {"seed": 2}}, ["model.seed 2 instead of 1"]),
        ({"_note": 1, "a": {"_b": 1}}, {"_note": 2, "a": {"_b": 2}}, []),
        ({"model": {"_target_": "a.Net", "depth": 20}}, {"model": {"depth": 20}}, []),
        ({"model": {"_target_": "a.Net", "depth": 20}}, {"model": {"_target_": "b.Own", "depth": 20}},
         ["model Own(depth 20) instead of Net(depth 20)"]),
        ({"budget": 200.0, "schedule": {"budget": 200}}, {"budget": 5.0, "schedule": {"budget": 5}},
         ["budget 5 instead of 200"]),
        ({"schedule": {"budget": 200}, "budget": 200.0}, {"schedule": {"budget": 7}, "budget": 5.0},
         ["schedule.budget 7 instead of 200", "budget 5 instead of 200"]),
        ({"note": "?", "step": {"note": "?"}}, {"note": LONG + "1", "step": {"note": LONG + "2"}},
         [f"note {LONG[:197]}... instead of ?", f"step.note {LONG[:197]}... instead of ?"]),
        ({"note": "?", "step": {"note": "?"}}, {"note": LONG + "1", "step": {"note": LONG + "1"}},
         [f"note {LONG[:197]}... instead of ?"]),
        ({"a": 1, "step": {"a": 1}}, {"a": 2, "step": {"a": "2"}}, ["a 2 instead of 1", "step.a 2 instead of 1"]),
    ],
)  # fmt: skip
def test_differences_are_named_by_key_with_both_values(expected, actual, lines):
    assert differences(expected, actual) == lines


@pytest.mark.parametrize(
    ("override", "line", "other_way_round"),
    [
        (
            "schedule.count_from=0",
            "schedule.count_from 0 instead of 1",
            "schedule.count_from 1 instead of 0",
        ),
        ("model.gamma=ones", "model.gamma ones instead of uniform", "model.gamma uniform instead of ones"),
    ],
)
def test_a_value_that_is_not_recorded_is_named_all_the_same(override, line, other_way_round):
    row = ["experiment=table1/wrn28_10_cifar100", "method=fge"]
    assert differences(recipe_of(row), recipe_of([*row, override])) == [line]
    assert differences(recipe_of([*row, override]), recipe_of(row)) == [other_way_round]


def test_a_recorded_recipe_does_not_differ_from_itself_after_a_round_trip_through_json():
    for method in ("sgd", "swa", "fge", "sam", "asam"):
        recipe = recipe_of([RESNET20, f"method={method}"])
        assert differences(recipe, json.loads(json.dumps(recipe))) == []


# ---- the numbers


def test_a_cell_is_mean_sample_std_and_count_beside_the_paper_with_the_difference(table3_runs):
    out, _ = run("table3", "--results", table3_runs)
    # 69.5 70.2 69.4: mean 69.7, squares .04 + .25 + .09 = .38, / 2 = .19, root .4359 (with n it would be .3559)
    assert rows(out, "ResNet-20") == {
        "broadopt": ["69.70 ± 0.44 (3)", "71.07 (1)", ""],
        "paper": ["69.76 ± 0.44", "71.06 ± 0.31", "71.40 ± 0.30"],
        "Δ": ["-0.06", "+0.01", ""],
    }
    assert rows(out, "ResNet-56")["broadopt"] == ["", "", ""]
    assert "best (the best epoch on the test set) for SGD, SAM, ASAM" in words(out)
    assert "4 runs, 1 to 3 seeds a cell" in words(out)
    assert "CIFAR-100" in out
    assert "Runs off the recipe" not in out


def test_table_1_reads_last_for_sgd_and_the_collected_predictors_for_the_rest(tmp_path):
    store(tmp_path, record(VGG16, "method=sgd", seed=1), last=72.4, best=73.0)
    store(tmp_path, record(VGG16, "method=sgd", seed=2), last=72.8, best=73.2)
    store(tmp_path, record(VGG16, "method=fge"), last=60.0, best=61.0, collected={"1": 74.36})
    for seed, (one, more, most) in ((1, (73.8, 74.1, 74.2)), (2, (74.0, 74.3, 74.6))):
        store(tmp_path, record(VGG16, "method=swa", seed=seed), last=60.0, best=61.0,
              collected={"1": one, "1.25": more, "1.5": most})  # fmt: skip
    out, _ = run("table1", "--results", tmp_path)
    assert rows(out, "VGG-16 (200)") == {
        # pairs differ by .4, .2, .2, .4: std = difference / sqrt(2)
        "broadopt": ["72.60 ± 0.28 (2)", "74.36 (1)", "73.90 ± 0.14 (2)", "74.20 ± 0.14 (2)", "74.40 ± 0.28 (2)"],
        "paper": ["72.55 ± 0.10", "74.26", "73.91 ± 0.12", "74.17 ± 0.15", "74.27 ± 0.25"],
        "Δ": ["+0.05", "+0.10", "-0.01", "+0.03", "+0.13"],
    }
    assert rows(out, "PyramidNet-272 (300)")["paper"] == ["83.41 ± 0.21", "–", "–", "83.93 ± 0.18", "84.16 ± 0.15"]


def test_csv_splits_the_numbers_and_tells_the_metric(table3_runs):
    store(table3_runs, record(RESNET20, "method=asam", "budget=5"), last=40.0, best=41.0)
    out, _ = run("table3", "--results", table3_runs, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    main = [line for line in lines if line["table"] == "table3"]
    assert len(main) == 8 * 3
    sgd = next(line for line in main if (line["model"], line["method"]) == ("resnet20", "sgd"))
    assert (sgd["metric"], sgd["n"], float(sgd["mean"]), sgd["paper_mean"]) == ("best", "3", 69.7, "69.76")
    assert float(sgd["std"]) == pytest.approx(math.sqrt(0.19), abs=1e-6)
    assert float(sgd["difference"]) == pytest.approx(69.7 - 69.76, abs=1e-6)
    asam = next(line for line in main if (line["model"], line["method"]) == ("resnet20", "asam"))
    assert (asam["n"], asam["mean"], asam["std"], asam["difference"]) == ("0", "", "", "")
    off = [line for line in lines if line["table"] == "off the recipe"]
    assert [(line["metric"], line["mean"], line["differs"]) for line in off] == [
        ("last", "40", "budget 5 instead of 200"),
        ("best", "41", "budget 5 instead of 200"),
    ]


def test_metric_replaces_the_papers_choice_and_no_difference_is_shown_between_unlike_numbers(table3_runs):
    out, _ = run("table3", "--results", table3_runs, "--metric", "last")
    lines = rows(out, "ResNet-20")
    assert lines["broadopt"] == ["69.20 ± 0.44 (3)", "70.00 (1)", ""]
    assert "Δ" not in lines
    assert "broadopt reads last (the weights after the last epoch) for SGD, SAM, ASAM, as --metric asks" in words(out)
    assert "another kind of number, so Δ is left out: SGD (best), SAM (best), ASAM (best)" in words(out)


def test_a_metric_that_a_run_lacks_leaves_the_cell_empty_and_is_said(table3_runs):
    out, _ = run("table3", "--results", table3_runs, "--metric", "collected")
    assert rows(out, "ResNet-20")["broadopt"] == ["", "", ""]
    assert "SGD: 3 of 3 runs without collected, not counted in this column." in words(out)


def test_a_run_that_finished_at_chance_counts_and_is_named(tmp_path):
    for seed, last in ((1, 69.0), (2, 1.0), (3, 70.0)):
        store(tmp_path, record(RESNET20, "method=sam", seed=seed), last=last)
    line = "Finished at chance on the test set, and counted: 1 of 3 runs of ResNet-20 CIFAR-100 SAM."
    assert line in words(run("table3", "--results", tmp_path)[0])


def test_last_of_an_swa_run_stands_only_in_the_column_of_its_whole_length(tmp_path):
    store(tmp_path, record(VGG16, "method=swa"), last=61.0, collected={"1": 73.0, "1.25": 74.0, "1.5": 75.0})
    out, _ = run("table1", "--results", tmp_path, "--metric", "last")
    assert rows(out, "VGG-16 (200)")["broadopt"] == ["", "", "", "", "61.00 (1)"]
    assert "SWA 1.25: 1 of 1 run without last (last and best belong to a whole run" in words(out)


# ---- which runs count


def test_runs_off_the_recipe_stand_apart_with_what_differs_and_leave_the_cell_empty(tmp_path):
    store(tmp_path, record(RESNET20, "method=asam", "budget=10"), last=50.0, best=51.0)
    store(tmp_path, record(RESNET20, "method=asam", "budget=5", seed=1), last=40.0, best=41.0)
    store(tmp_path, record(RESNET20, "method=asam", "budget=5", seed=2), last=42.0, best=43.0)
    store(tmp_path, record(RESNET20, "method=asam", "step.rho=0.5", fingerprint="sha256:00ff"), last=60.0, best=61.0)
    store(tmp_path, record(RESNET20, "method=sam", "collect=swa"), last=62.0, best=63.0, collected={"1": 64.0})
    store(tmp_path, record("experiment=quickstart", "method=sam"), last=97.0, best=98.0)
    store(tmp_path, record(RESNET20, "method=sgd", "protocol=swa2018"), last=66.0, best=67.0)
    out, _ = run("table3", "--results", tmp_path)
    assert rows(out, "ResNet-20")["broadopt"] == ["", "", ""]
    assert "No run of these recipes yet." in words(out)
    # 40 and 42, 41 and 43: std = 2 / sqrt(2)
    assert off_recipe(out) == [
        ["cifar100", "resnet20", "sgd", "66.00 (1)", "67.00 (1)", "", "protocol swa2018 instead of asam2021"],
        ["cifar100", "resnet20", "asam", "41.00 ± 1.41 (2)", "42.00 ± 1.41 (2)", "", "budget 5 instead of 200"],
        ["cifar100", "resnet20", "asam", "50.00 (1)", "51.00 (1)", "", "budget 10 instead of 200"],
        ["cifar100", "resnet20", "asam", "60.00 (1)", "61.00 (1)", "",
         "dataset.fingerprint sha256:00ff instead of none; step.rho 0.5 instead of 1"],
        ["cifar100", "resnet20", "sam+swa", "62.00 (1)", "63.00 (1)", "64.00 (1)",
         "sam+swa is no column of this table"],
        ["digits", "resnet20", "sam", "97.00 (1)", "98.00 (1)", "",
         "no row of this table; budget 3 instead of 200; batch_size 32 instead of 128; "
         "augmentation.flip false instead of true"],
    ]  # fmt: skip


def test_another_class_of_network_under_the_same_name_does_not_count(tmp_path):
    own = record(RESNET20, "method=sgd")
    store(tmp_path, {**own, "model": {**own["model"], "_target_": "elsewhere.BetterNet"}}, best=99.0)
    out, _ = run("table3", "--results", tmp_path)
    assert rows(out, "ResNet-20")["broadopt"] == ["", "", ""]
    assert (
        off_recipe(out)[0][-1] == "model BetterNet(name resnet20, depth 20) instead of ResNet(name resnet20, depth 20)"
    )


def test_runs_of_one_recipe_are_one_cell_however_their_numbers_are_written(tmp_path):
    for seed, budgets in enumerate(([1, 1.25, 1.5], [1, 1.25, 1.5], [1.0, 1.25, 1.5])):
        recorded = record(VGG16, "method=swa", seed=seed)
        recorded["collect"]["budgets"] = budgets
        store(tmp_path, recorded, collected={"1": 71.0, "1.25": 72.0, "1.5": 73.0 + seed})
    out, _ = run("table1", "--results", tmp_path)
    assert "74.00 ± 1.00 (3)" in out
    assert off_recipe(out) == []
    page, _ = run("runs", "--results", tmp_path)
    assert len([line for line in page.splitlines() if line.startswith("| swa ")]) == 3  # accuracies, calibration, cost
    status, _ = run("runs", "--status", "--results", tmp_path)
    assert len([line for line in status.splitlines() if "| swa " in line.lower()]) == 1


@pytest.mark.parametrize(
    ("bf16", "fp32", "held", "apart"), [(2, 1, "bf16", "fp32"), (1, 1, "fp32", "bf16"), (1, 2, "fp32", "bf16")]
)
def test_a_cell_holds_one_precision_the_most_used_or_fp32(tmp_path, bf16, fp32, held, apart):
    for precision, count, best in (("bf16", bf16, 70.0), ("fp32", fp32, 72.0)):
        for seed in range(count):
            store(tmp_path, record(RESNET20, "method=asam", seed=seed, precision=precision), best=best)
    out, _ = run("table3", "--results", tmp_path)
    count = {"bf16": bf16, "fp32": fp32}[held]
    mean = {"bf16": "70.00", "fp32": "72.00"}[held]
    shown = f"{mean} (1)" if count == 1 else f"{mean} ± 0.00 ({count})"
    assert rows(out, "ResNet-20")["broadopt"][2] == shown
    assert [line[-1] for line in off_recipe(out)] == [f"precision {apart}, its cell holds {held}"]
    assert f"Precision of the runs in the table: {held} in {count} run" in words(out)
    assert "the paper used fp32" in words(out)


def test_runs_that_did_not_finish_are_named_and_not_counted(table3_runs):
    failed = store(table3_runs, record(RESNET20, "method=sgd", seed=4), best=10.0, state="failed")
    stopped = store(table3_runs, record(RESNET20, "method=sgd", seed=5), best=20.0, state="interrupted")
    for table in ("table3", "runs"):
        out, _ = run(table, "--results", table3_runs, "--strict")
        assert f"not counted: 1 failed ({failed.relative_to(table3_runs)})" in out
        assert f"not counted: 1 interrupted ({stopped.relative_to(table3_runs)})" in out
        assert "(4)" not in out
        assert "10.00" not in out


def test_files_that_cannot_be_trusted_are_left_out_and_named(table3_runs):
    cut = store(table3_runs, record(RESNET20, "method=asam", seed=1), best=99.0) / "result.json"
    cut.write_bytes(cut.read_bytes()[:-40])
    edited = store(table3_runs, record(RESNET20, "method=asam", seed=2), best=98.0) / "result.json"
    edited.write_text(edited.read_text().replace("98.0", "99.5"))
    out, err = run("table3", "--results", table3_runs)
    assert rows(out, "ResNet-20")["broadopt"] == ["69.70 ± 0.44 (3)", "71.07 (1)", ""]
    assert sorted(re.findall(r"left out: (\S+):", out)) == sorted(
        str(path.parent.relative_to(table3_runs)) for path in (cut, edited)
    )
    assert err == ""
    strict, _ = run("table3", "--results", table3_runs, "--strict", expect=1)
    assert strict == out


def copied(root):
    """A run folder, and one that holds a copy of its result."""
    run_folder = next(root.glob("runs/cifar100/resnet20/sgd/seed2-*"))
    copy = root / "runs/again" / run_folder.relative_to(root / "runs")
    copy.mkdir(parents=True)
    (copy / "result.json").write_bytes((run_folder / "result.json").read_bytes())
    return run_folder, copy


def test_a_copy_of_a_run_counts_once(table3_runs):
    before = run("table3", "--results", table3_runs, "--strict")
    copied(table3_runs)
    assert run("table3", "--results", table3_runs, "--strict") == before


def test_two_different_files_with_one_identity_are_both_left_out(table3_runs):
    run_folder, copy = copied(table3_runs)
    other = json.loads((copy / "result.json").read_text())
    del other["checksum"]
    results.write(copy, {**other, "metrics": {**other["metrics"], "best": {"test_accuracy": 99.0, "epoch": 3}}})
    out, _ = run("table3", "--results", table3_runs, "--strict", expect=1)
    # 69.5 and 69.4 remain: std = .1 / sqrt(2)
    assert rows(out, "ResNet-20")["broadopt"][0] == "69.45 ± 0.07 (2)"
    assert set(re.findall(r"left out: (\S+):", out)) == {
        str(folder.relative_to(table3_runs)) for folder in (run_folder, copy)
    }


def test_a_result_without_what_a_table_needs_is_left_out(table3_runs):
    path = store(table3_runs, record(RESNET20, "method=asam")) / "result.json"
    result = json.loads(path.read_text())
    del result["metrics"], result["checksum"]
    seal(path.parent, result)
    out, _ = run("table3", "--results", table3_runs, "--strict", expect=1)
    assert f"left out: {path.parent.relative_to(table3_runs)}: without metrics" in out


# ---- all runs


def test_runs_shows_one_line_a_method_of_like_runs_in_a_hundred_columns(tmp_path):
    collected = {"swa": {"1": 96.0, "1.25": 97.0, "1.5": 98.0}, "fge": {"1": 96.5}}
    for method in ("sgd", "swa", "fge", "sam", "asam"):
        for seed in (1, 2, 4):
            recorded = record("experiment=quickstart", f"method={method}", seed=seed)
            store(tmp_path, recorded, last=94.0 + seed, best=95.0 + seed, collected=collected.get(method))
    out, _ = run("runs", "--results", tmp_path)
    assert max(map(len, out.splitlines())) <= 100
    tables_shown = [[cells(line) for line in part.splitlines() if line.startswith("|")] for part in out.split("\n\n")]
    accuracies, calibration, costs = [shown for shown in tables_shown if shown]
    # 95 96 98: mean 96.33, squares 1.78 + .11 + 2.78 = 4.67, / 2 = 2.33, root 1.53
    assert accuracies[0] == ["method", "n", "last", "best", "coll. 1", "coll. 1.25", "coll. 1.5"]
    assert accuracies[2:] == [
        ["sgd", "3", "96.33 ± 1.53", "97.33 ± 1.53", "", "", ""],
        ["swa", "3", "96.33 ± 1.53", "97.33 ± 1.53", "96.00 ± 0.00", "97.00 ± 0.00", "98.00 ± 0.00"],
        ["fge", "3", "96.33 ± 1.53", "97.33 ± 1.53", "96.50 ± 0.00", "", ""],
        ["sam", "3", "96.33 ± 1.53", "97.33 ± 1.53", "", "", ""],
        ["asam", "3", "96.33 ± 1.53", "97.33 ± 1.53", "", "", ""],
    ]
    # NLL = (100 - accuracy) / 20, ECE = (100 - accuracy) / 1000 = that / 10 in percent; of SWA's last read-out, 98
    assert calibration[0] == ["method", "last NLL", "last ECE", "coll. NLL", "coll. ECE"]
    assert calibration[3] == ["swa", "0.183 ± 0.076", "0.37 ± 0.15", "0.100 ± 0.000", "0.20 ± 0.00"]
    assert costs[0] == ["method", "epochs", "gradients", "img/s", "seconds"]  # no device is recorded, so no ratio
    assert costs[3] == ["swa", "4.5", "10", "5002", "102"]
    assert "**digits, resnet20, protocol swa2018, budget 3 epochs instead of 200, fp32**" in out
    assert "batch_size 32 instead of 128; augmentation.flip false instead of true." in out
    assert "never compared with last or collected" in words(out)


def test_one_epoch_is_singular(tmp_path):
    store(tmp_path, record("experiment=quickstart", "method=sgd", "budget=1"))
    assert "budget 1 epoch instead of 200" in run("runs", "--results", tmp_path)[0]


def test_runs_has_a_column_for_each_key_in_which_its_lines_differ(tmp_path):
    for rho in (0.5, 1.0, 2.0):
        store(tmp_path, record(RESNET20, "method=asam", f"step.rho={rho}"), best=70.0 + rho)
    store(tmp_path, record(RESNET20, "method=asam", "lr=0.2"), best=60.0)
    store(tmp_path, record(RESNET20, "method=asam", precision="bf16"), best=61.0)
    out, _ = run("runs", "--results", tmp_path)
    table = [cells(line) for line in out.partition("Calibration")[0].splitlines() if line.startswith("|")]
    assert table[0] == ["method", "precision", "lr", "step.rho", "n", "last", "best"]
    assert table[2:] == [
        ["asam", "bf16", "0.1", "1", "1", "70.00", "61.00"],
        ["asam", "fp32", "0.1", "0.5", "1", "70.00", "70.50"],
        ["asam", "fp32", "0.1", "1", "1", "70.00", "71.00"],
        ["asam", "fp32", "0.1", "2", "1", "70.00", "72.00"],
        ["asam", "fp32", "0.2", "1", "1", "70.00", "60.00"],
    ]
    assert re.findall(r"^\*\*.*", out, flags=re.MULTILINE) == [
        "**cifar100, resnet20, protocol asam2021, budget 200 epochs**"
    ]
    assert "instead of" not in out


def test_an_empty_folder_gives_the_papers_table_and_says_that_there_are_no_runs(tmp_path):
    out, _ = run("table1", "--results", tmp_path)
    assert "No run of these recipes yet." in words(out)
    assert rows(out, "WRN-28-10 (200)")["paper"][0] == "80.82 ± 0.23"
    assert "No finished run." in run("runs", "--results", tmp_path)[0]


# ---- formats


def test_markup_and_control_characters_in_a_config_value_come_through_in_no_format(tmp_path):
    evil = "<script>alert(1)</script>|[x](http://y)&_%$#{}~^\\\n\x1b[31m"
    own = record(RESNET20, "method=sgd")
    store(tmp_path, {**own, "model": {**own["model"], "note": evil}})
    shown = {name: run("table3", "--results", tmp_path, "--format", name)[0] for name in FORMATS}
    assert all("\x1b" not in out for out in shown.values())
    assert "<script" not in shown["html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;|" in shown["html"]
    assert r"\<script>alert(1)\</script>\|[x]\(http://y)" in shown["markdown"]
    assert r"\textless{}script\textgreater{}" in shown["latex"]
    assert r"\&\_\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in shown["latex"]
    assert len({len(line) for line in csv.reader(io.StringIO(shown["csv"]))}) == 1


def test_no_line_of_a_latex_row_begins_with_a_bracket(tmp_path):
    own = record(RESNET20, "method=sgd")
    store(tmp_path, {**own, "dataset": {**own["dataset"], "name": "[1cm]"}})
    out, _ = run("table3", "--results", tmp_path, "--format", "latex")
    assert "{[}1cm] & resnet20" in out


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("table", TABLES)
def test_regenerating_gives_identical_bytes_whatever_order_files_were_written_in(tmp_path, table, form):
    runs = [record(RESNET20, "method=sgd", seed=seed) for seed in (1, 2, 3)] + [
        record(RESNET20, "method=asam", "budget=5")
    ]
    for root, order in (("a", runs), ("b", runs[::-1])):
        for recorded in order:
            store(tmp_path / root, recorded, best=60.0 + recorded["seed"] / 3)
    texts = [tables.make(parse([table, "--results", str(tmp_path / root), "--format", form]))[0] for root in "aba"]
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].endswith("\n")


def frozen_recipe(overrides):
    """The recipes as they were when the golden results were written: a new config key does not touch these tests."""
    known = json.loads((GOLDEN / "recipes.json").read_text())
    if " ".join(overrides) not in known:
        raise InputError(f"no golden recipe of {' '.join(overrides)}")
    return known[" ".join(overrides)]


@pytest.mark.parametrize("name", ["table1.md", "table3.md", "runs.md", "table3.tex", "table3.html", "table3.csv"])
def test_golden(name):
    table, suffix = name.split(".")
    form = {"md": "markdown", "tex": "latex"}.get(suffix, suffix)
    out, _ = tables.make(parse([table, "--results", str(GOLDEN), "--format", form]), compose=frozen_recipe)
    assert out == (GOLDEN / name).read_text(encoding="utf-8"), "after a wanted change: python tests/golden/generate.py"


def test_the_numbers_of_the_golden_tables_are_those_of_their_files():
    def read(pattern):
        found = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob(f"runs/{pattern}/result.json"))]
        return [result["metrics"] for result in found]

    sgd = [metrics["best"]["test_accuracy"] for metrics in read("cifar100/resnet20/sgd/*")]
    assert sgd == [69.5, 70.2, 69.4]
    # mean 69.7; squares .04 + .25 + .09 = .38; / 2 = .19; root .43589
    golden = (GOLDEN / "table3.md").read_text(encoding="utf-8")
    assert rows(golden, "ResNet-20")["broadopt"] == ["69.70 ± 0.44 (3)", "71.07 (1)", "71.85 ± 0.49 (2)"]
    assert rows(golden, "ResNet-20")["Δ"] == ["-0.06", "+0.01", "+0.45"]
    swa = [metrics["collected"] for metrics in read("cifar100/vgg16/swa/*")]
    assert [[run[key]["test_accuracy"] for run in swa] for key in ("1", "1.25", "1.5")] == [
        [73.8, 74.0],
        [74.1, 74.3],
        [74.2, 74.6],
    ]
    golden = (GOLDEN / "table1.md").read_text(encoding="utf-8")
    assert rows(golden, "VGG-16 (200)")["broadopt"] == [
        "72.50 (1)", "", "73.90 ± 0.14 (2)", "74.20 ± 0.14 (2)", "74.40 ± 0.28 (2)"
    ]  # fmt: skip


# ---- the command


def test_output_replaces_the_file_in_one_move_and_leaves_nothing_else(table3_runs, tmp_path):
    target = tmp_path / "out" / "table.md"
    target.parent.mkdir()
    target.write_text("old")
    out, _ = run("table3", "--results", table3_runs)
    assert run("table3", "--results", table3_runs, "--output", target) == ("", "")
    assert target.read_text(encoding="utf-8") == out
    assert list(target.parent.iterdir()) == [target]


def test_what_is_left_out_is_said_on_stderr_where_the_table_goes_to_a_file_or_is_csv(table3_runs, tmp_path):
    broken = store(table3_runs, record(RESNET20, "method=asam")) / "result.json"
    broken.write_text("{")
    _, err = run("table3", "--results", table3_runs, "--output", tmp_path / "t.md", "--strict", expect=1)
    assert re.fullmatch(r"broadopt-table: left out: \S+: .*\n", err)
    assert run("table3", "--results", table3_runs, "--format", "csv")[1] == err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel3"], 'table "tabel3" is none of table1, table3, label_noise, runs; did you mean "table3"?'),
        (["table3", "--format", "latx"],
         '--format "latx" is none of markdown, latex, csv, html; did you mean "latex"?'),
        (["table3", "--metric", "lst"], '--metric "lst" is none of last, best, collected; did you mean "last"?'),
        (["runs", "--metric", "last"], "--metric is for the papers' tables: runs shows last, best and collected"),
        (["table3", "--results", "nowhere"],
         "results folder nowhere does not exist: --results names the folder that holds runs/"),
        (["table3", "--output", "no/such/folder/t.md"],
         "--output no/such/folder/t.md cannot be written: No such file or directory"),
        ([], "the following arguments are required: TABLE; see broadopt-table --help"),
        (["table3", "--colour"], "unknown option --colour; see broadopt-table --help"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    out, err = run(*arguments, expect=2)
    assert (out, err) == ("", f"broadopt-table: {message}\n")


def test_results_defaults_to_the_folder_results_here(table3_runs, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "results").symlink_to(table3_runs)
    monkeypatch.chdir(tmp_path / "here")
    assert run("table3") == run("table3", "--results", table3_runs)


def test_the_installed_command_prints_utf_8_under_any_locale_and_exits_with_the_codes_of_the_contract(table3_runs):
    arguments = ("table3", "--results", table3_runs)
    assert command(*arguments, PYTHONIOENCODING="ascii") == run(*arguments)
    (store(table3_runs, record(RESNET20, "method=asam")) / "result.json").write_text("{")
    assert command(*arguments, "--strict", expect=1) == run(*arguments)
    assert command("table4", expect=2)[1].count("\n") == 1


def test_help_tells_what_each_number_is():
    out, err = run("--help")
    assert err == ""
    for word in ("sample standard deviation", "paper", "Δ", "last", "best", "collected", "--strict", "exit codes"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["table3", "--results", GOLDEN], ["torch"]),
        (["runs", "--results", GOLDEN, "--format", "latex"], ["torch"]),
        (["table3", "--results", GOLDEN, "--format", "csv"], ["torch", "pandas"]),
        (["--help"], ["torch", "pandas", "hydra"]),
    ],
)
def test_modules_that_are_not_needed_are_not_imported(arguments, without):
    program = f"""
import sys
from broadopt.table import main
sys.argv = ["broadopt-table", *{list(map(str, arguments))!r}]
try:
    main()
finally:
    print("imported:", [name for name in {without!r} if name in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert (done.returncode, "imported: []" in done.stderr) == (0, True), done.stderr


def test_each_file_is_opened_once_and_each_recipe_composed_once_however_many_seeds(tmp_path):
    for seed in range(40):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed))
        store(tmp_path, record(RESNET20, "method=sgd", "lr=0.2", seed=seed))
    opened = []

    def count(event, arguments):
        if (
            event == "open"
            and str(arguments[0]).startswith(str(tmp_path))
            and str(arguments[0]).endswith("result.json")
        ):
            opened.append(arguments[0])

    sys.addaudithook(count)
    valid, left_out = results.read_all(tmp_path)
    assert (len(valid), left_out, len(opened), len(set(opened))) == (80, [], 80, 80)
    composed = []

    def compose(overrides):
        composed.append(tuple(overrides))
        return recipe_of(overrides)

    document = build(valid, recipes=Recipes(compose))
    assert len(composed) == 1
    assert [len(block.rows) for block in document.blocks if block.rows] == [2, 2, 2]


def test_names_of_columns_are_no_formulas_either() -> None:
    """They are keys of configs that files of anyone's hold."""
    document = formats.Document(title="", blocks=(), records=({"=1+1": 2},), fields=("=1+1",))
    assert formats.as_csv(document) == "'=1+1\n2\n"
