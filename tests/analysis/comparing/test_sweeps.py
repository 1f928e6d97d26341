"""broadopt-table runs as users of sweeps run it: columns, rows, selection, differences and cost, on stored results."""

import csv
import functools
import io
import json
import operator
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from documents import section
from printed import tables, words
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW
from stored import RESNET20, VGG16, record, run, seal, store

import broadopt
from broadopt.config.identity import identity_of
from broadopt.runs.folders import run_folder
from broadopt.runs.heartbeat import Heartbeat
from broadopt.runs.lock import only_writer
from broadopt.runs.results import write
from broadopt.signals import Stop

SHORT = (RESNET20, "budget=10")


def own(recorded: dict[str, Any], *, method: str | None = None, **parts: dict[str, Any]) -> dict[str, Any]:
    """A recorded config with a network or step of one's own."""
    changed = {**recorded, **{name: {**recorded[name], **values} for name, values in parts.items()}}
    return changed if method is None else {**changed, "method": method}


# ---- columns and rows


def test_a_sweep_on_a_network_of_ones_own_has_a_row_a_value(tmp_path: Path) -> None:
    net = {"name": "small_net", "_target_": "small_net.small_net", "width": 16}
    for seed in (1, 2):
        for rho in (0.5, 0.05):
            recorded = record(*SHORT, "method=sam", f"step.rho={rho}", seed=seed)
            store(tmp_path, own(recorded, model=net), last=70 + 10 * rho + seed)
        store(tmp_path, own(record(*SHORT, "method=sgd", seed=seed), model=net), last=69.0 + seed)
    step = {"_target_": "random_sam.random_sam", "rho": 0.1}
    recorded = own(record(*SHORT, "method=sgd"), model=net, step=step, method="random_sam")
    store(tmp_path, {**recorded, "code": {"random_sam": "ab" * 32}}, last=68.0)
    out, _ = run("runs", "--results", tmp_path)
    assert "**cifar100, small_net, protocol asam2021, budget 10 epochs, fp32**" in out
    assert "no recipe known to compare with." in out
    assert tables(out)[0] == [
        ["method", "step.rho", "n", "last", "best"],
        ["sgd", "", "2", "70.50 ± 0.71", "70.50 ± 0.71"],
        ["sam", "0.05", "2", "72.00 ± 0.71", "72.00 ± 0.71"],
        ["sam", "0.5", "2", "76.50 ± 0.71", "76.50 ± 0.71"],
        ["random_sam", "0.1", "1", "68.00", "68.00"],
    ]


def test_a_grid_is_one_table_sorted_by_value_with_the_recipes_own_value(tmp_path: Path) -> None:
    for lr in (0.1, 0.01, 1.0):
        for weight_decay in (1e-3, 0, 5e-4):
            store(tmp_path, record(*SHORT, f"lr={lr}", f"weight_decay={weight_decay}"), last=60 + lr)
    out, _ = run("runs", "--results", tmp_path)
    (accuracies, *_) = tables(out)
    assert accuracies[0] == ["method", "lr", "weight_decay", "n", "last", "best"]
    assert [row[1:3] for row in accuracies[1:]] == [
        [lr, decay] for lr in ("0.01", "0.1", "1") for decay in ("0", "0.0005", "0.001")
    ]
    assert len(re.findall(r"^\*\*", out, flags=re.MULTILINE)) == 1


def test_keys_of_data_network_collector_and_code_have_columns(tmp_path: Path) -> None:
    plain = record(*SHORT, "method=swa")
    recorded = [
        plain,
        record(*SHORT, "method=swa", "dataset.label_noise=0.2"),
        record(*SHORT, "method=swa", "collect.start=0.5"),
        own(plain, model={"gate": True}),
        {**plain, "code": {"net": "ab" * 32}},
        {**plain, "code": {"net": "cd" * 32}},
    ]
    for config in recorded:
        store(tmp_path, config, collected={"1": 73.0})
    (accuracies, *_) = tables(run("runs", "--results", tmp_path)[0])
    columns = ["dataset.label_noise", "model.gate", "collect.start", "code.net"]
    assert accuracies[0] == ["method", *columns, "n", "last", "best", "coll. 1"]
    assert [row[1:5] for row in accuracies[1:]] == [
        ["0", "", "0.5", ""],
        ["0", "", "0.805", ""],
        ["0", "", "0.805", "abababab"],
        ["0", "", "0.805", "cdcdcdcd"],
        ["0", "true", "0.805", ""],
        ["0.2", "", "0.805", ""],
    ]


def test_no_cell_mixes_recipes_whatever_columns_are_asked_for(tmp_path: Path) -> None:
    for rho in (0.05, 0.5):
        store(tmp_path, record(*SHORT, "method=sam", f"step.rho={rho}"), last=70 + rho)
    (accuracies, *_) = tables(run("runs", "--results", tmp_path, "--columns", "lr,momentum")[0])
    assert accuracies == [
        ["method", "lr", "momentum", "n", "last", "best"],
        ["sam", "0.1", "0.9", "1", "70.05", "70.05"],
        ["sam", "0.1", "0.9", "1", "70.50", "70.50"],
    ]


def test_a_column_of_what_differs_inside_a_line_is_refused(tmp_path: Path) -> None:
    for seed in (2, 1):
        store(tmp_path, record(*SHORT, "method=sam", seed=seed))
    store(tmp_path, record(*SHORT, "method=sgd", seed=3))
    message = "--columns seed: a line is of several runs, with 1 and 2 in one line of sam; --per-run: a row a run"
    for form in ("markdown", "csv"):
        asked = ("--columns", "lr", "seed", "--format", form)
        out, err = run("runs", "--results", tmp_path, *asked, expect=2)
        assert (out, err) == ("", f"broadopt-table: {message}\n")
    out, _ = run("runs", "--results", tmp_path, "--columns", "seed", "--where", "seed=2,3")
    assert [row[:3] for row in tables(out)[0]] == [["method", "seed", "n"], ["sgd", "3", "1"], ["sam", "2", "1"]]


def test_a_table_of_several_protocols_says_so_and_what_they_differ_in(tmp_path: Path) -> None:
    base = ("model=resnet20", "dataset=cifar10", "budget=10")
    store(tmp_path, record(*base, "method=sgd"))
    store(tmp_path, record(*base, "method=sam"))
    out, _ = run("runs", "--results", tmp_path)
    assert tables(out)[0][0] == ["method", "protocol", "n", "last", "best"]
    assert (
        "This table mixes protocols: swa2018 (sgd) and asam2021 (sam), which differ in label_smoothing 0 and 0.1; "
        "schedule.shape linear and cosine. One protocol= for all is fair."
    ) in words(out)
    shutil.rmtree(tmp_path / "runs/cifar10/resnet20/sam")
    assert "mixes protocols" not in run("runs", "--results", tmp_path)[0]


@pytest.mark.parametrize(
    ("typed", "columns"),
    [
        ("dataset.label_noise=0.4", ["0", "0.4"]),
        ("model.depth=32", ["20", "32"]),
        ("lr=0.3", ["0.1", "0.3"]),
    ],
)
def test_what_was_typed_is_not_explained_as_of_the_protocol(tmp_path: Path, typed: str, columns: list[str]) -> None:
    base = ("model=resnet20", "dataset=cifar10", "budget=10")
    store(tmp_path, record(*base, "method=sgd"))
    store(tmp_path, record(*base, "method=sam", typed))
    out, _ = run("runs", "--results", tmp_path)
    key, (header, *rows) = typed.partition("=")[0], tables(out)[0]
    note = words(out).partition("This table mixes protocols")[2].partition("One protocol= for all")[0]
    assert "label_smoothing 0 and 0.1" in note
    assert key not in note
    assert [row[header.index(key)] for row in rows] == columns


def test_options_of_the_methods_are_said_below_and_are_columns_where_they_are_not_the_recipes(tmp_path: Path) -> None:
    store(tmp_path, record(*SHORT, "method=sgd"))
    store(tmp_path, record(*SHORT, "method=sam"))
    store(tmp_path, record(*SHORT, "method=asam"))
    out, _ = run("runs", "--results", tmp_path)
    assert tables(out)[0][0] == ["method", "n", "last", "best"]
    assert "Of the methods: sam: step.rho 0.1; asam: step.eta 0.01, step.rho 1." in words(out)
    shutil.rmtree(tmp_path / "runs/cifar100/resnet20/sam")
    store(tmp_path, record(*SHORT, "method=sam", "step.rho=0.5"))
    out, _ = run("runs", "--results", tmp_path)
    assert [row[:2] for row in tables(out)[0]] == [["method", "step.rho"], ["sgd", ""], ["sam", "0.5"], ["asam", "1"]]


def test_where_no_recipe_is_known_numbers_that_methods_differ_in_are_columns(tmp_path: Path) -> None:
    for method in ("sgd", "sam", "asam"):
        store(tmp_path, own(record(*SHORT, f"method={method}"), model={"name": "mine", "_target_": "mine.Net"}))
    out, _ = run("runs", "--results", tmp_path)
    assert [row[:2] for row in tables(out)[0]] == [["method", "step.rho"], ["sgd", ""], ["sam", "0.1"], ["asam", "1"]]
    assert "Of the methods: sam: step.bn both, step.noise fresh, step.p 2; asam: step.bn both, step.eta 0.01" in words(
        out
    )


def test_sort(tmp_path: Path) -> None:
    for rho, last in ((0.05, 71.0), (0.5, 73.0), (5.0, 72.0)):
        store(tmp_path, record(*SHORT, "method=sam", f"step.rho={rho}"), last=last)
    store(tmp_path, record(*SHORT, "method=sgd"), last=71.5)
    for key, order in {"last": ["0.5", "5", "", "0.05"], "step.rho,last": ["", "0.05", "0.5", "5"]}.items():
        (accuracies, *_) = tables(run("runs", "--results", tmp_path, "--sort", key)[0])
        assert [row[1] for row in accuracies[1:]] == order


def test_where_selects_runs(tmp_path: Path) -> None:
    for rho in (0.05, 0.5, 5.0):
        store(tmp_path, record(*SHORT, "method=sam", f"step.rho={rho}"))
    store(tmp_path, record(*SHORT, "method=sgd"))
    found = {
        "step.rho=0.05,5e-1": [["sam", "0.05"], ["sam", "0.5"]],
        "step.rho=5.0,none": [["sgd", ""], ["sam", "5"]],
        "method=sam step.rho=0.05": [["sam", "1"]],  # nothing differs: the count comes next
    }
    for condition, rows in found.items():
        (accuracies, *_) = tables(run("runs", "--results", tmp_path, "--where", *condition.split())[0])
        assert [row[:2] for row in accuracies[1:]] == rows
    out, _ = run("runs", "--results", tmp_path, "--where", "step.rho=0.05", "method=sgd")
    assert "No finished run." in out


def test_where_finds_texts_that_look_like_numbers_or_words(tmp_path: Path) -> None:
    sam = record(*SHORT, "method=sam")
    store(tmp_path, own(sam, step={"p": "inf"}), last=71.0)
    store(tmp_path, own(sam, step={"p": 1}), last=72.0)
    store(tmp_path, own(sam, model={"name": "18", "own": "none"}), last=73.0)
    store(tmp_path, own(sam, model={"shape": [3, "1e2"]}), last=74.0)
    for where, last in (
        ("step.p=inf", ["71.00"]),
        ("step.p=1", ["72.00"]),
        ("step.p=inf,1", ["71.00", "72.00"]),
        ("model=18", ["73.00"]),
        ("model='18'", ["73.00"]),
        ("model.own=none step.p=2 model=18", ["73.00"]),
        ("model.shape=[3.0,1e2]", ["74.00"]),
    ):
        table = tables(run("runs", "--results", tmp_path, "--where", *where.split())[0])[0]
        assert sorted(row[table[0].index("last")] for row in table[1:]) == last, where
    _, err = run("runs", "--results", tmp_path, "--where", "model=018", expect=2)
    assert err == "broadopt-table: --where model.name=018: no run has this value; they have 18, resnet20\n"


@pytest.mark.parametrize("option", [(), ("--status",)])
@pytest.mark.parametrize("part", ["runs/cifar100", "runs/cifar100/resnet20/sam", "link"])
def test_a_part_of_a_results_folder_is_not_one_without_runs(tmp_path: Path, part: str, option: tuple[str, ...]) -> None:
    root = tmp_path / "results"
    folder = store(root, record(*SHORT, "method=sam"))
    (root / "link").symlink_to(root / "runs/cifar100")
    _, err = run("runs", "--results", root / part, *option, expect=2)
    words = f"is a part of {root}/runs; expected {root}, of whose runs --where selects some\n"
    assert err == f"broadopt-table: results folder {root / part} {words}"
    _, err = run("runs", "--results", folder, *option, expect=2)
    assert err.startswith(f"broadopt-table: results folder {folder} is the folder of a run; expected {root}, of whose")
    (tmp_path / "runs/new").mkdir(parents=True)
    run("runs", "--results", tmp_path / "runs/new", *option)


def test_several_folders_and_a_folder_one_level_off(tmp_path: Path) -> None:
    store(tmp_path / "mine/a", record(*SHORT, "method=sam"), last=71.0)
    store(tmp_path / "b", record(*SHORT, "method=sam", seed=2), last=73.0)
    shutil.copytree(tmp_path / "mine/a/runs", tmp_path / "b/runs", dirs_exist_ok=True)
    out, _ = run("runs", "--results", tmp_path / "mine", "--results", tmp_path / "b/runs", "--strict")
    assert tables(out)[0][1] == ["sam", "2", "72.00 ± 1.41", "72.00 ± 1.41"]
    for folder, place in ((tmp_path / "mine", tmp_path / "mine/a"), (tmp_path / "b/runs", tmp_path / "b")):
        assert f"- {folder} holds no runs/: read from {place}\n" in out
    (broken,) = (tmp_path / "b/runs/cifar100/resnet20/sam").glob("seed2-*")
    (broken / "result.json").write_text("{")
    out, _ = run("runs", "--results", tmp_path / "mine/a", "--results", tmp_path / "b")
    assert f"left out: {tmp_path}/b/{broken.relative_to(tmp_path / 'b')}: not JSON" in out
    assert tables(out)[0][1] == ["sam", "1", "71.00", "71.00"]


# ---- differences


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGD with three seeds; SAM with the same seeds, with other seeds, with one seed, and with runs that diverged."""
    root = tmp_path_factory.mktemp("compared")
    for seed, last in ((1, 70.0), (2, 72.0), (3, 73.0)):
        store(root, record(*SHORT, "method=sgd", seed=seed), last=last, best=last + 1)
        store(root, record(*SHORT, "method=sam", "step.rho=0.05", seed=seed), last=last + seed, best=last + 3)
    for seed, last in ((4, 75.0), (5, 75.5), (6, 74.7)):
        store(root, record(*SHORT, "method=sam", "step.rho=0.1", seed=seed), last=last)
    store(root, record(*SHORT, "method=sam", "step.rho=0.5"), last=74.0)
    for seed, last, state in ((1, 74.0, "finished"), (2, 1.0, "finished"), (3, 60.0, "failed"), (4, 75.0, "finished")):
        store(root, record(*SHORT, "method=sam", "step.rho=5", seed=seed), last=last, state=state)
    return root


def test_against_a_method(compared: Path) -> None:
    out, _ = run("runs", "--results", compared, "--against", "sgd", "--detect", "0.5")
    assert tables(out)[0][1:] == [
        ["sgd", "", "3", "71.67 ± 1.53", "72.67 ± 1.53"],
        ["sam", "0.05", "3", "73.67 ± 2.52", "74.67 ± 1.53"],
        ["sam", "0.1", "3", "75.07 ± 0.40", "75.07 ± 0.40"],
        ["sam", "0.5", "1", "74.00", "74.00"],
        ["sam", "5", "3 of 4", "50.00 ± 42.44", "50.00 ± 42.44"],
    ]
    # The paired differences are 1, 2 and 3: tests/analysis/comparing/test_statistics.py works their numbers out.
    oracle = CompareMeans(DescrStatsW([75.0, 75.5, 74.7]), DescrStatsW([70.0, 72.0, 73.0]))
    low, high = oracle.tconfint_diff(usevar="unequal")
    p = oracle.ttest_ind(usevar="unequal")[1]
    oracle = CompareMeans(DescrStatsW([74.0, 75.0]), DescrStatsW([70.0, 72.0, 73.0]))
    few_low, few_high = oracle.tconfint_diff(usevar="unequal")
    few_p = oracle.ttest_ind(usevar="unequal")[1]
    assert p < few_p < 0.0742 < 2 * few_p  # so Holm gives 3 p, 2 few_p, and that once more
    corrected = [f"{max(3 * p, 2 * few_p):.3f}", f"{3 * p:.3f}", f"{max(3 * p, 2 * few_p):.3f}"]
    assert tables(out)[1] == [
        ["method", "step.rho", "n", "accuracy", "Δ to sgd", "95 % interval", "p", "p (Holm)", "test", "seeds for 0.5"],
        ["sgd", "", "3", "71.67 ± 1.53", "", "", "", "", "", ""],
        ["sam", "0.05", "3", "73.67 ± 2.52", "+2.00", "-0.48 to +4.48", "0.074", corrected[0], "paired", "34"],
        [
            "sam",
            "0.1",
            "3",
            "75.07 ± 0.40",
            "+3.40",
            f"{low:.2f} to +{high:.2f}",
            f"{p:.3f}",
            corrected[1],
            "Welch",
            "80",
        ],
        ["sam", "0.5", "1", "74.00", "+2.33", "", "", "", "", ""],
        [
            "sam",
            "5",
            "2 of 4",
            "74.50 ± 0.71",
            "+2.83",
            f"{few_low:.2f} to +{few_high:.2f}",
            f"{few_p:.3f}",
            corrected[2],
            "Welch",
            "90",
        ],
    ]
    assert "Finished at chance, and counted: 1 of 3 of sam, step.rho 5." in words(out)
    assert "sam, step.rho 0.5: one seed: no interval can be given." in words(out)
    assert "sam, step.rho 5: 1 failed and 1 ended at chance of 4." in words(out)
    assert "*" not in out.replace("**cifar100", "").replace("fp32**", "")


def test_the_metric_that_is_compared_and_the_csv(compared: Path) -> None:
    out, _ = run("runs", "--results", compared, "--against", "sgd", "--metric", "best", "--format", "csv")
    records = [row for row in csv.DictReader(io.StringIO(out)) if row["quantity"] == "difference"]
    assert [(row["step.rho"], row["metric"], row["against"], row["mean"]) for row in records][:2] == [
        ("0.05", "best", "sgd", "2"),
        ("0.1", "best", "sgd", "2.3999999999999915"),  # the differences are those of the binary numbers, unrounded
    ]
    assert (records[0]["p"], records[0]["test"]) == ("", "")  # each pair is 2 apart


def test_a_collectors_prediction_is_compared_unless_a_metric_is_named(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        store(tmp_path, record(*SHORT, "method=sgd", seed=seed), last=70.0 + seed)
        collected = {"1": 71.0, "1.5": 74.0 + 2 * seed}
        store(tmp_path, record(*SHORT, "method=swa", seed=seed), last=60.0, collected=collected)
    differences = [row[4] for row in tables(run("runs", "--results", tmp_path, "--against", "sgd")[0])[1]]
    assert differences[0] == "95 % interval"
    rows = tables(run("runs", "--results", tmp_path, "--against", "sgd")[0])[1]
    assert [row[3] for row in rows] == ["Δ to sgd", "", "+6.00"]
    rows = tables(run("runs", "--results", tmp_path, "--against", "sgd", "--metric", "last")[0])[1]
    assert [row[3] for row in rows] == ["Δ to sgd", "", "-12.00"]


def test_of_several_collectors_the_first_is_compared_and_the_others_are_named(tmp_path: Path) -> None:
    several = record(*SHORT, "collect=swa+ema+lawa")
    store(tmp_path, record(*SHORT, "method=sgd"), last=70.0)
    store(tmp_path, several, last=71.0, collected={"1": 72.0, "1.5": 73.0, "ema 1": 99.0, "lawa 1": 98.0})
    words = "Not compared: what further collectors predict on the same runs (sgd+swa+ema+lawa: ema, lawa)."
    for against, difference in (("sgd", ["", "+3.00"]), ("sgd+swa+ema+lawa", ["-3.00", ""])):
        out, _ = run("runs", "--results", tmp_path, "--against", against)
        assert [row[3] for row in tables(out)[1][1:]] == difference
        assert words in " ".join(out.split())
    assert words not in " ".join(run("runs", "--results", tmp_path, "--against", "sgd", "--metric", "last")[0].split())


def test_the_baseline_is_the_one_of_the_same_settings_else_the_best(tmp_path: Path) -> None:
    for lr, last in ((0.1, 70.0), (0.2, 72.0)):
        store(tmp_path, record(*SHORT, "method=sgd", f"lr={lr}"), last=last)
        store(tmp_path, record(*SHORT, "method=sam", f"lr={lr}"), last=last + 0.5)
    store(tmp_path, record(*SHORT, "method=sam", "lr=0.3"), last=71.0)
    rows = tables(run("runs", "--results", tmp_path, "--against", "sgd")[0])[1]
    assert [[row[0], row[1], row[4], row[-1]] for row in rows] == [
        ["method", "lr", "Δ to sgd", "compared with"],
        ["sgd", "0.1", "", ""],
        ["sgd", "0.2", "", ""],
        ["sam", "0.1", "+0.50", "sgd, lr 0.1"],
        ["sam", "0.2", "+0.50", "sgd, lr 0.2"],
        ["sam", "0.3", "-1.00", "sgd, lr 0.2"],
    ]
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd", "--format", "csv")
    records = [row for row in csv.DictReader(io.StringIO(out)) if row["quantity"] == "difference"]
    assert [(row["lr"], row["compared_with"]) for row in records] == [
        ("0.1", "sgd, lr 0.1"),
        ("0.2", "sgd, lr 0.2"),
        ("0.3", "sgd, lr 0.2"),
    ]


def test_the_columns_that_are_shown_do_not_change_what_is_compared(tmp_path: Path) -> None:
    for lr, last in ((0.1, 70.0), (0.2, 72.0)):
        store(tmp_path, record(*SHORT, "method=sgd", f"lr={lr}"), last=last)
        store(tmp_path, record(*SHORT, "method=sam", f"lr={lr}"), last=last + 0.5)
    for columns, title in (((), "Δ to sgd"), (("--columns", "weight_decay"), "Δ to sgd")):
        rows = tables(run("runs", "--results", tmp_path, "--against", "sgd", *columns)[0])[1]
        assert sorted(row[rows[0].index(title)] for row in rows[1:]) == ["", "", "+0.50", "+0.50"]


def test_a_baseline_of_another_budget_is_taken_where_a_table_has_none_and_named(tmp_path: Path) -> None:
    for seed in (1, 2):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), last=70.0 + seed)  # 400 epochs: as dear as SAM's 200
        store(tmp_path, record(RESNET20, "method=sam", seed=seed), last=71.0 + 3 * seed)
    store(tmp_path, record("model=resnet56", "dataset=cifar100", "method=asam"), last=72.0)
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    differences = [table for table in tables(out) if "Δ to sgd" in table[0]]
    # 74 and 77 minus 71 and 72: 3 and 5
    assert [[row[0], row[3], row[-1]] for table in differences for row in table] == [
        ["method", "Δ to sgd", "compared with"],
        ["sam", "+4.00", "sgd, budget 400"],
    ]
    assert out.count("No run of sgd here to compare with.") == 1


def test_a_baseline_of_another_budget_has_the_same_data(tmp_path: Path) -> None:
    for noise, last in ((0, 75.0), (0.4, 60.0)):
        store(tmp_path, record(RESNET20, "method=sgd", f"dataset.label_noise={noise}"), last=last)  # 400 epochs
    store(tmp_path, record(RESNET20, "method=sam", "dataset.label_noise=0.4"), last=66.0)
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    (differences,) = (table for table in tables(out) if "Δ to sgd" in table[0])
    assert [[row[0], row[3], row[-1]] for row in differences[1:]] == [
        ["sam", "+6.00", "sgd, dataset.label_noise 0.4, budget 400"]
    ]


@pytest.mark.parametrize("setting", ["dataset.label_noise=0.4", "model.depth=32", "dataset.coarse=true", "precision"])
def test_runs_on_other_data_are_no_baseline(tmp_path: Path, setting: str) -> None:
    other = {"precision": "bf16"} if setting == "precision" else {}
    overrides = () if other else (setting,)
    store(tmp_path, record(RESNET20, "method=sgd"), last=75.0)
    store(tmp_path, record(RESNET20, "method=sam", *overrides, **other), last=66.0)
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    assert "Δ to sgd" not in out
    assert out.count("No run of sgd here to compare with.") == 1
    store(tmp_path, record(RESNET20, "method=sgd", "budget=200"), last=74.0)
    store(tmp_path, record(RESNET20, "method=asam"), last=76.0)
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    (differences,) = (table for table in tables(out) if "Δ to sgd" in table[0])
    place = differences[0].index("Δ to sgd")
    assert [[row[0], row[place]] for row in differences[1:]] == [["sgd", ""], ["sam", ""], ["asam", "+2.00"]]
    assert "No run of sgd of the same data, network and precision to compare with: sam, " in words(out)
    shutil.rmtree(tmp_path / "runs/cifar100/resnet20/asam")
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    assert "Δ to sgd" not in out
    assert "No run of sgd of the same data, network and precision to compare with: sam, " in words(out)


def test_settings_in_which_a_baseline_of_another_budget_differs_are_named(tmp_path: Path) -> None:
    """The best of those of the same settings is taken, and of all where none has them."""
    store(tmp_path, record(RESNET20, "method=sgd", "batch_size=64"), last=70.0)
    store(tmp_path, record(RESNET20, "method=sam"), last=72.0)
    for last, compared_with in ((70.0, "sgd, batch_size 64, budget 400"), (69.0, "sgd, batch_size 128, budget 400")):
        out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
        (differences,) = (table for table in tables(out) if "Δ to sgd" in table[0])
        assert [[row[3], row[-1]] for row in differences[1:]] == [[f"+{72 - last:.2f}", compared_with]]
        if last == 70.0:
            store(tmp_path, record(RESNET20, "method=sgd"), last=69.0)


def test_a_papers_table_against_a_method(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), best=70.0 + seed)
        store(tmp_path, record(RESNET20, "method=asam", seed=seed), best=70.0 + 2 * seed)
    plain, _ = run("table3", "--results", tmp_path)
    out, _ = run("table3", "--results", tmp_path, "--against", "sgd")
    assert out.startswith(plain.rstrip())
    assert "n of k" not in out.removeprefix(plain.rstrip())
    half = 4.302652729749464 / 3**0.5
    assert tables(out)[-1] == [
        ["Network", "Method", "n", "accuracy", "Δ to sgd", "95 % interval", "p", "p (Holm)", "test"],
        [
            "ResNet-20",
            "ASAM",
            "3",
            "74.00 ± 2.00",
            "+2.00",
            f"{2 - half:.2f} to +{2 + half:.2f}",
            "0.074",
            "0.074",
            "paired",
        ],
    ]
    assert (
        "No row has runs of SAM and of another method." in run("table3", "--results", tmp_path, "--against", "sam")[0]
    )


def test_rows_that_are_compared_with_different_columns_each_name_theirs(tmp_path: Path) -> None:
    out, _ = run("table1", "--results", tmp_path, "--against", "swa")
    assert "**Differences to swa**" in out
    assert "No row has runs of swa and of another method." in out
    collected = {"1": 73.0, "1.25": 74.0, "1.5": 75.0}
    store(tmp_path, record(VGG16, "method=swa"), last=60.0, collected=collected)
    store(tmp_path, record(VGG16, "method=fge"), collected={"1": 73.5})
    out, _ = run("table1", "--results", tmp_path, "--against", "swa")
    assert "**Differences to SWA 1**" in out
    assert "compared with" not in out
    store(tmp_path, record(VGG16, "method=sgd"), last=72.0)
    out, _ = run("table1", "--results", tmp_path, "--against", "swa")
    assert "**Differences to swa**" in out
    found = tables(out)[-1]
    assert [[row[2], row[5], row[-1]] for row in found] == [
        ["Method", "Δ to swa", "compared with"],
        ["SGD", "-3.00", "SWA 1.5"],
        ["FGE 1", "+0.50", "SWA 1"],
    ]
    assert {len(row) for row in found} == {len(found[0])}
    out, _ = run("table1", "--results", tmp_path, "--against", "swa", "--format", "csv")
    records = [row for row in csv.DictReader(io.StringIO(out)) if row["quantity"] == "difference"]
    assert [(row["column"], row["against"], row["compared_with"], row["mean"]) for row in records] == [
        ("SGD", "swa", "SWA 1.5", "-3"),
        ("FGE 1", "swa", "SWA 1", "0.5"),
    ]


@pytest.mark.parametrize("metric", ["last", "best"])
def test_by_one_metric_the_baseline_is_the_column_that_has_it(tmp_path: Path, metric: str) -> None:
    """The last weights of SWA stand in the column of the budgets that the run has spent."""
    store(tmp_path, record(VGG16, "method=swa"), last=60.0, collected={"1": 73.0, "1.25": 74.0, "1.5": 75.0})
    store(tmp_path, record(VGG16, "method=fge"), last=61.0, collected={"1": 73.5})
    store(tmp_path, record(VGG16, "method=sgd"), last=72.0)
    out, _ = run("table1", "--results", tmp_path, "--against", "swa", "--metric", metric)
    assert "**Differences to SWA 1.5**" in out
    assert [[row[2], row[5]] for row in tables(out)[-1][1:]] == [["SGD", "+12.00"], ["FGE 1", "+1.00"]]


def test_runs_that_failed_or_ended_at_chance_are_counted_in_a_papers_table(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), best=70.0 + seed)
        store(tmp_path, record(RESNET20, "method=asam", seed=seed), best=70.0 + 2 * seed)
    store(tmp_path, record(RESNET20, "method=asam", seed=4), state="failed")
    store(tmp_path, record(RESNET20, "method=asam", seed=5), last=1.0, best=1.0)
    out, _ = run("table3", "--results", tmp_path, "--against", "sgd")
    assert tables(out)[-1][1][1:5] == ["ASAM", "3 of 5", "74.00 ± 2.00", "+2.00"]
    counts = (
        "n of k: k runs of the cell ended, and the differences are those of n; the others failed or ended at chance."
    )
    assert counts in " ".join(out.split())


def test_failed_runs_are_counted_in_the_precision_of_their_cell(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed, precision="bf16"), best=70.0 + seed)
        store(tmp_path, record(RESNET20, "method=asam", seed=seed, precision="bf16"), best=70.0 + 2 * seed)
    store(tmp_path, record(RESNET20, "method=asam", seed=4, precision="bf16"), state="failed")
    for seed in (5, 6):  # more of them, and of another precision than the cell holds
        store(tmp_path, record(RESNET20, "method=asam", seed=seed, precision="fp32"), state="failed")
    out, _ = run("table3", "--results", tmp_path, "--against", "sgd")
    assert tables(out)[-1][1][1:5] == ["ASAM", "3 of 4", "74.00 ± 2.00", "+2.00"]
    assert "n of k: k runs of the cell ended" in out


def test_the_howto_quotes_the_committed_example() -> None:
    checkout = Path(__file__).parents[3]
    place = checkout / "results/cifar10_resnet20_rho"
    out, _ = run("runs", "--results", place, "--against", "sgd", "--detect", "1")
    rows = {(row[0], row[1]): row for row in next(table for table in tables(out) if "Δ to sgd" in table[0])}
    howto = " ".join((checkout / "docs/howto.md").read_text().split())
    assert rows["sgd", ""][3] == "47.42 ± 1.03"
    assert rows["sam", "0.02"][3:] == ["52.56 ± 4.01", "+5.14", "-21.67 to +31.95", "0.248", "0.496", "paired", "72"]
    assert rows["sam", "0.5"][4:8] == ["-21.30", "-29.18 to -13.42", "0.019", "0.056"]
    assert (
        "SAM's 52.56 ± 4.01 at rho 0.02 is 5.1 points above SGD's 47.42 ± 1.03 with an interval from -21.7 to +32.0 "
        "(p = 0.25; 72 seeds would find a difference of one point), and the 21 points that rho 0.5 loses have p = 0.056"
    ) in howto


def test_the_accuracy_on_held_out_images_has_a_column_where_there_are_any(tmp_path: Path) -> None:
    for seed in (1, 2):
        recorded = record(RESNET20, "method=sam", "dataset.validation=500", seed=seed)
        store(tmp_path, recorded, last=70.0 + seed, held_out=60.0 + 2 * seed)
    swa = record(RESNET20, "method=swa", "protocol=asam2021", "budget=200", "dataset.validation=500")
    store(tmp_path, swa, last=71.0, collected={"1": 72.0, "1.5": 73.0}, held_out=65.0)
    without = record(RESNET20, "method=sgd", "protocol=asam2021", "budget=200")
    store(tmp_path, without, last=69.0)
    out, _ = run("runs", "--results", tmp_path)
    accuracies = next(table for table in tables(out) if "last" in table[0])
    place = accuracies[0].index("held out")
    assert {row[0]: row[place] for row in accuracies[1:]} == {"sgd": "", "sam": "63.00 ± 1.41", "swa": "66.00"}
    assert "values are to be chosen by it" in " ".join(out.split())
    rows = list(csv.DictReader(io.StringIO(run("runs", "--results", tmp_path, "--format", "csv")[0])))
    held = {row["method"]: float(row["mean"]) for row in rows if row["metric"] == "held out"}
    assert held == {"sam": 63.0, "swa": 66.0}
    assert {row["quantity"] for row in rows if row["metric"] == "held out"} == {"validation_accuracy"}


# ---- cost


@pytest.fixture(scope="module")
def costly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGD on two devices and SAM on one of them and on a third, with histories; SAM at twice the gradients."""
    root = tmp_path_factory.mktemp("costly")
    rising = {epoch: 50.0 + 2 * epoch for epoch in range(1, 11)}
    once = {"gradient_evaluations": 1000}
    for seed, device, seconds in ((1, "H100", 100.0), (2, "H100", 120.0), (3, "A100", 300.0)):
        recorded = record(*SHORT, "method=sgd", seed=seed)
        store(root, recorded, device=device, cost={**once, "train_seconds": seconds}, history=rising, last=70.0)
    faster = {epoch: 52.0 + 2 * epoch for epoch in range(1, 11)}
    for seed, device, seconds in ((1, "H100", 220.0), (2, "A100", 630.0), (3, "T4", 999.0)):
        recorded = record(*SHORT, "method=sam", seed=seed)
        cost = {"gradient_evaluations": 2000, "train_seconds": seconds}
        store(root, recorded, device=device, cost=cost, history=faster, last=72.0)
    half = {epoch: 40.0 + 2 * epoch for epoch in range(1, 7)}
    store(root, record(*SHORT, "method=asam"), state="interrupted", history=half, last=52.0)
    return root


def test_time_is_a_ratio_to_sgd_on_the_same_device(costly: Path) -> None:
    costs = tables(run("runs", "--results", costly)[0])[-1]
    # 220 / 110 on the H100 and 630 / 300 on the A100; no SGD on the T4
    assert costs == [
        ["method", "epochs", "gradients", "img/s", "seconds", "x sgd"],
        ["sgd", "10", "1000", "5002", "120", "1.00"],
        ["sam", "10", "2000", "5002", "630", "2.05"],
    ]


def test_epochs_and_seconds_to_an_accuracy(costly: Path) -> None:
    costs = tables(run("runs", "--results", costly, "--reach", "60")[0])[-1]
    assert [row[6:] for row in costs] == [
        ["reach 60", "epochs to 60", "seconds to 60"],
        ["3 of 3", "5", "60"],
        ["3 of 3", "4", "252"],
    ]
    costs = tables(run("runs", "--results", costly, "--reach", "71")[0])[-1]
    assert [row[6:] for row in costs[1:]] == [["0 of 3", "", ""], ["3 of 3", "10", "630"]]


def test_accuracy_at_an_equal_cost(costly: Path) -> None:
    costs = tables(run("runs", "--results", costly, "--equal-cost")[0])[-1]
    # SAM has spent SGD's 1000 gradients after 5 of its 10 epochs: 52 + 2 x 5
    assert [row[6] for row in costs] == ["at sgd's gradients", "70.00 ± 0.00", "62.00 ± 0.00"]
    costs = tables(run("runs", "--results", costly, "--equal-cost", "seconds")[0])[-1]
    # 110 s of 22 s an epoch: 5 epochs; 300 s of 63: 4; SGD's own runs had 110 s of 10 and 12: 10 and 9 epochs
    assert [row[6] for row in costs[1:]] == ["69.33 ± 1.15", "61.00 ± 1.41 (2)"]


@pytest.mark.parametrize("name", ["threads", "processes", "compile", "deterministic", "graphs"])
def test_what_times_are_compared_by_is_said(tmp_path: Path, name: str) -> None:
    """Two values of what makes a step slower or faster are no ratio; the note and the reference name it."""
    for method in ("sgd", "sam"):
        store(tmp_path, record(*SHORT, f"method={method}"), device="H100")
    out, _ = run("runs", "--results", tmp_path)
    assert [row[-1] for row in tables(out)[-1]] == ["x sgd", "1.00", "1.00"]
    assert name in words(out).partition("x sgd: ")[2]
    assert name in section("docs/reference.md", "broadopt-table").partition("**Cost.**")[2]
    (folder,) = (tmp_path / "runs/cifar100/resnet20/sam").iterdir()
    result = json.loads((folder / "result.json").read_text())
    result["environment"][name] = 2
    write(folder, {key: result[key] for key in result if key != "checksum"})
    assert [row[-1] for row in tables(run("runs", "--results", tmp_path)[0])[-1]] == ["x sgd", "1.00", ""]


def test_a_run_that_has_moved_has_no_ratio_of_times(tmp_path: Path) -> None:
    rising = {epoch: 50.0 + 2 * epoch for epoch in range(1, 11)}
    for method in ("sgd", "sam"):
        store(tmp_path, record(*SHORT, f"method={method}"), device="H100", history=rising)
    (folder,) = (tmp_path / "runs/cifar100/resnet20/sam").iterdir()
    result = json.loads((folder / "result.json").read_text())
    result["environment"]["carried_out_on"] = [{"device": "A100"}, {"device": "H100"}]
    write(folder, {key: result[key] for key in result if key != "checksum"})
    out, _ = run("runs", "--results", tmp_path, "--equal-cost", "seconds", "--reach", "60")
    assert [row[-4:] for row in tables(out)[-1]] == [
        ["reach 60", "epochs to 60", "seconds to 60", "at sgd's seconds"],
        ["1 of 1", "5", "50", "70.00"],
        ["1 of 1", "5", "", ""],
    ]
    assert [row[5] for row in tables(out)[-1]] == ["x sgd", "1.00", ""]


def test_cost_is_that_of_sgd_with_the_same_settings(tmp_path: Path) -> None:
    """SGD at two batch sizes, one twice as dear as the other; SAM at these and at a third that SGD was not run at."""
    rising = {epoch: 50.0 + 2 * epoch for epoch in range(1, 11)}
    for method, batch_size, cost in (("sgd", 64, 200), ("sgd", 128, 100), ("sam", 64, 400), ("sam", 128, 250)):
        figures = {"gradient_evaluations": cost, "train_seconds": float(cost)}
        recorded = record(*SHORT, f"method={method}", f"batch_size={batch_size}")
        store(tmp_path, recorded, device="H100", cost=figures, history=rising)
    figures = {"gradient_evaluations": 300, "train_seconds": 300.0}
    store(tmp_path, record(*SHORT, "method=sam", "batch_size=32"), device="H100", cost=figures, history=rising)
    free = record(*SHORT, "method=sam", "lr=0.2", "label_smoothing=0", "batch_size=64")
    store(tmp_path, free, device="H100", cost={"gradient_evaluations": 400, "train_seconds": 400.0}, history=rising)
    for quantity in ("gradients", "seconds"):
        out, _ = run("runs", "--results", tmp_path, "--equal-cost", quantity)
        # 200 of 400: 5 epochs; 100 of 250: 4
        assert [[*row[:3], *row[-2:]] for row in tables(out)[-1]] == [
            ["method", "batch_size", "label_smoothing", "x sgd", f"at sgd's {quantity}"],
            ["sgd", "64", "0.1", "1.00", "70.00"],
            ["sgd", "128", "0.1", "1.00", "70.00"],
            ["sam", "32", "0.1", "", ""],
            ["sam", "64", "0", "2.00", "60.00"],
            ["sam", "64", "0.1", "2.00", "60.00"],
            ["sam", "128", "0.1", "2.50", "58.00"],
        ]
    assert "with the same settings" in words(out)


def test_of_several_sgd_with_the_same_settings_the_most_accurate_is_what_cost_and_difference_are_to(
    tmp_path: Path,
) -> None:
    for shape, last, seconds in (("linear", 70.0, 200.0), ("cosine", 71.0, 100.0), ("constant", 69.0, 50.0)):
        recorded = record(*SHORT, "method=sgd", f"schedule.shape={shape}")
        store(tmp_path, recorded, last=last, device="H100", cost={"train_seconds": seconds})
    sam = record(*SHORT, "method=sam", "schedule.shape=linear")
    store(tmp_path, sam, last=72.0, device="H100", cost={"train_seconds": 400.0})
    out, _ = run("runs", "--results", tmp_path, "--against", "sgd")
    assert [row[-1] for row in tables(out)[-1]][-1] == "4.00", "of cosine's 100 seconds"
    assert "1.00" in next(line for line in out.splitlines() if line.startswith("| sam") and "cosine" in line)


def test_a_step_that_is_plain_at_first_has_spent_less_by_then(tmp_path: Path) -> None:
    """Late SAM takes one gradient a step in 43 % of its epochs and two in the others: 1.57 in the mean. By epoch 7 of
    10 it has taken 4.3 + 2 x 2.7 = 9.7 of SGD's 10, and by epoch 8 more; by epoch 5, 5.7 of its own 15.7.
    """
    rising = {epoch: 50.0 + 2 * epoch for epoch in range(1, 11)}
    store(tmp_path, record(*SHORT, "method=sgd"), cost={"gradient_evaluations": 1000}, history=rising)
    sizes: dict[str, Any]
    for seed, sizes in ((1, {"images_per_epoch": 12_800}), (2, {})):
        late = record(*SHORT, "method=late_sam", "batch_size=128", seed=seed)
        store(tmp_path, late, cost={"gradient_evaluations": 1570, "train_seconds": 157.0, **sizes}, history=rising)
    out, _ = run("runs", "--results", tmp_path, "--equal-cost", "--reach", "60")
    costs = tables(out)[-1]
    assert dict(zip(*(costs[number] for number in (0, 2)), strict=True)) == {
        **dict(zip(costs[0], costs[2], strict=True)),
        **{"method": "late_sam", "epochs to 60": "5", "seconds to 60": "57", "at sgd's gradients": "64.00 ± 0.00"},
    }
    assert "Seconds of a step with step.from or step.until are in proportion to its gradients." in words(out)


def test_every_kth_step_is_counted_step_by_step(tmp_path: Path) -> None:
    """11 epochs of 7 steps, of which steps 0, 10, ..., 70 are sharp: 85 gradients, and 77 by the end of epoch 10."""
    rising = {epoch: 50.0 + epoch for epoch in range(1, 12)}
    eleven = (RESNET20, "budget=11", "batch_size=128")
    sizes = {"images_per_epoch": 7 * 128}
    store(tmp_path, record(*eleven, "method=sgd"), cost={"gradient_evaluations": 77, **sizes}, history=rising)
    tenth = record(*eleven, "method=sam", "step.every=10")
    store(tmp_path, tenth, cost={"gradient_evaluations": 85, **sizes}, history=rising)
    costs = tables(run("runs", "--results", tmp_path, "--equal-cost")[0])[-1]
    assert [row[-1] for row in costs[1:]] == ["61.00", "60.00"]


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "own.Step", "from": 0.5},
        {"_target_": "broadopt.methods.sam.sam", "from": "late"},
        {"_target_": "broadopt.methods.sam.sam", "until": 10**400},
        {"_target_": "broadopt.methods.sam.sam", "from": 0.5, "every": 0},
        {"_target_": "broadopt.methods.sam.sam", "from": 0.5, "every": 10**400},
        {"_target_": "broadopt.methods.sam.sam", "from": 0.5, "ascent": -1},
    ],
)
def test_what_a_step_of_ones_own_takes_in_a_part_of_a_training_is_not_guessed(
    tmp_path: Path, step: dict[str, Any]
) -> None:
    rising = {epoch: 50.0 + 2 * epoch for epoch in range(1, 11)}
    recorded = record(*SHORT, "method=sgd")
    store(tmp_path, recorded, cost={"gradient_evaluations": 1000}, history=rising)
    store(tmp_path, {**recorded, "step": step, "method": "own"}, cost={"gradient_evaluations": 1570}, history=rising)
    out, _ = run("runs", "--results", tmp_path, "--equal-cost", "--reach", "60")
    header, sgd, mine = tables(out)[-1]
    assert header[-3:] == ["epochs to 60", "seconds to 60", "at sgd's gradients"]
    assert (sgd[-3:], mine[-3:]) == (["5", "50", "70.00"], ["5", "", ""])
    assert "Not known of a step of your own with step.from or step.until" in words(out)


def test_unfinished_runs_are_compared_at_the_last_common_epoch(costly: Path) -> None:
    out, _ = run("runs", "--results", costly, "--at-epoch")
    assert tables(out)[0] == [
        ["method", "n", "last", "best", "epoch 6"],
        ["sgd", "3", "70.00 ± 0.00", "70.00 ± 0.00", "62.00 ± 0.00"],
        ["sam", "3", "72.00 ± 0.00", "72.00 ± 0.00", "64.00 ± 0.00"],
        ["asam", "0", "", "", "52.00 (1)"],
    ]
    assert "not counted" not in out
    rows = tables(run("runs", "--results", costly, "--at-epoch", "8")[0])[0]
    assert [row[-1] for row in rows] == ["epoch 8", "66.00 ± 0.00", "68.00 ± 0.00", ""]
    assert "| asam" not in run("runs", "--results", costly)[0]


def test_a_run_without_figures_is_named_where_unfinished_runs_are_compared(costly: Path, tmp_path: Path) -> None:
    shutil.copytree(costly, tmp_path / "copy")
    recorded = record(*SHORT, "method=asam", seed=9)
    folder = run_folder(tmp_path / "copy", recorded)
    folder.mkdir(parents=True)
    with Heartbeat(folder, recorded, device="a device"):
        shutil.copy(folder / "progress.json", tmp_path)
    shutil.move(tmp_path / "progress.json", folder)  # as a process leaves it that was killed
    place = folder.relative_to(tmp_path / "copy")
    out, _ = run("runs", "--results", tmp_path / "copy", "--at-epoch")
    assert f"not compared: {place} has no history yet (interrupted: died on " in out
    assert "not compared" not in run("runs", "--results", tmp_path / "copy")[0]
    assert "not compared" not in run("runs", "--results", tmp_path / "copy", "--at-epoch", "--where", "method=sgd")[0]


def test_runs_that_are_going_on_are_compared_by_the_epochs_behind_them(costly: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(costly, root)
    recorded = record(*SHORT, "method=asam", seed=2)
    folder = run_folder(root, recorded)
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,lr,test_accuracy,test_nll,test_ece\n5.0,0.1,,,\n6.0,0.1,54.0,1.0,0.1\n")
    with Heartbeat(folder, recorded, device="a device"), only_writer(folder, wait=False, stop=Stop()):
        out, _ = run("runs", "--results", root, "--at-epoch")
        curves = broadopt.load_history(root, where={"method": "asam", "seed": 2})
        shutil.copy(folder / "progress.json", tmp_path)
    assert tables(out)[0][-1] == ["asam", "0", "", "", "53.00 ± 1.41 (2)"]  # with the 52 of the interrupted run
    # One that is not asked for has a history all the same.
    assert "not compared" not in run("runs", "--results", root, "--at-epoch", "--where", "method=sgd")[0]
    assert "not compared" not in out
    assert "not counted" not in out
    assert curves[["state", "epoch", "identity"]].values.tolist() == [
        ["running", epoch, identity_of(recorded)] for epoch in (5.0, 6.0)
    ]
    shutil.move(tmp_path / "progress.json", folder)  # as a process leaves it that was killed
    assert run("runs", "--results", root, "--at-epoch")[0] == out
    assert set(broadopt.load_history(root, states=["interrupted"])["seed"]) == {1, 2}
    assert "running" not in set(broadopt.load_history(root)["state"])
    assert tables(run("runs", "--results", root)[0]) == tables(run("runs", "--results", costly)[0])


def test_an_interrupted_run_that_goes_on_is_running_ahead_of_its_first_new_epoch(tmp_path: Path) -> None:
    recorded = record(*SHORT, "method=asam")
    folder = store(tmp_path, recorded, state="interrupted", history={epoch: 40.0 + epoch for epoch in range(1, 11)})
    for roots in ([tmp_path], [tmp_path, tmp_path / "other"]):
        (roots[-1] / "runs").mkdir(parents=True, exist_ok=True)
        assert set(broadopt.load_history(*roots)["state"]) == {"interrupted"}
        with Heartbeat(folder, recorded, device="a device"), only_writer(folder, wait=False, stop=Stop()):
            found = broadopt.load_history(*roots)
        assert (set(found["state"]), len(found)) == ({"running"}, 10)


def test_of_copies_that_are_going_on_the_one_with_the_most_epochs_is_compared(tmp_path: Path) -> None:
    """An interrupted run in one results folder, and its copies that went on in others until they were killed."""
    recorded = record(*SHORT, "method=asam")
    history = {epoch: 40.0 + epoch for epoch in range(1, 6)}
    interrupted = store(tmp_path / "a", recorded, state="interrupted", history=history)
    result = json.loads((interrupted / "result.json").read_text())
    write(interrupted, {key: result[key] for key in result if key != "checksum"} | {"epochs": 5.0})
    for root, epochs in (("b", 3), ("c", 8), ("d", 7)):
        folder = run_folder(tmp_path / root, recorded)
        folder.mkdir(parents=True)
        rows = "".join(f"{epoch}.0,0.1,{50 + epoch}.0,1.0,0.1\n" for epoch in range(1, epochs + 1))
        (folder / "history.csv").write_text(f"epoch,lr,test_accuracy,test_nll,test_ece\n{rows}")
        with Heartbeat(folder, recorded, device="a device"):
            shutil.copy(folder / "progress.json", tmp_path)
        shutil.move(tmp_path / "progress.json", folder)  # as a process leaves it that was killed
    for order in ("abcd", "dcba"):
        asked = [word for root in order for word in ("--results", tmp_path / root)]
        rows = tables(run("runs", *asked, "--at-epoch")[0])[0]
        assert [rows[0][-1], rows[-1][-1]] == ["epoch 8", "58.00 (1)"]


def test_the_csv_has_what_was_asked_for(costly: Path) -> None:
    asked = ("--at-epoch", "--reach", "60", "--equal-cost")
    out, _ = run("runs", "--results", costly, "--format", "csv", *asked)
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["method"] == "sam"]
    found = {(row["quantity"], row["metric"], row["key"]): (row["n"], row["mean"]) for row in rows}
    assert found["time_ratio", "", ""] == ("", "2.05")
    assert found["epochs_to", "", "60"] == ("3", "4")
    assert found["test_accuracy", "at epoch", "6"] == ("3", "64")
    assert found["test_accuracy", "at sgd's gradients", ""] == ("3", "62")
    assert found["gradient_evaluations", "", ""] == ("3", "2000")


def test_the_csv_has_every_digit(tmp_path: Path) -> None:
    lasts = {1e-08: 71.1, 0.1 + 0.2: 200 / 3}
    for lr, last in lasts.items():
        store(tmp_path, record(*SHORT, "method=sgd", f"lr={lr}"), last=last)
    out, _ = run("runs", "--results", tmp_path, "--format", "csv")
    rows = [row for row in csv.DictReader(io.StringIO(out)) if row["metric"] == "last"]
    assert [(row["lr"], row["mean"]) for row in rows if row["quantity"] == "test_accuracy"] == [
        ("1e-08", "71.1"),
        ("0.30000000000000004", repr(200 / 3)),
    ]


@pytest.mark.parametrize("content", [b"\xff\x00", b"epoch,test_accuracy\n1,50.0\ninf,70.0\n"])
def test_a_history_that_cannot_be_read_is_named(costly: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(costly, tmp_path / "copy")
    (odd,) = (tmp_path / "copy/runs/cifar100/resnet20/sam").glob("seed1-*/history.csv")
    odd.write_bytes(content)
    out, _ = run("runs", "--results", tmp_path / "copy", "--reach", "60", "--strict", expect=1)
    assert f"left out: {odd.relative_to(tmp_path / 'copy')}: " in out
    assert [row[6] for row in tables(out)[-1][1:]] == ["3 of 3", "2 of 2"]
    run("runs", "--results", tmp_path / "copy", "--reach", "60", "--equal-cost", "--at-epoch", "--strict", expect=1)


def test_a_finished_run_without_a_history_is_named_and_not_counted(costly: Path, tmp_path: Path) -> None:
    shutil.copytree(costly, tmp_path / "copy")
    (gone,) = (tmp_path / "copy/runs/cifar100/resnet20/sam").glob("seed1-*/history.csv")
    (empty,) = (tmp_path / "copy/runs/cifar100/resnet20/sgd").glob("seed1-*/history.csv")
    gone.unlink()
    empty.write_text("epoch,test_accuracy\n")
    out, _ = run("runs", "--results", tmp_path / "copy", "--reach", "71", "--strict", expect=1)
    for path in (gone, empty):
        assert f"left out: {path.relative_to(tmp_path / 'copy')}: missing or empty, though the run is finished" in out
    assert [row[6] for row in tables(out)[-1][1:]] == ["0 of 2", "2 of 2"]
    with pytest.warns(UserWarning, match="missing or empty, though the run is finished"):
        assert set(broadopt.load_history(tmp_path / "copy", where={"method": "sam"})["seed"]) == {2, 3}
    for path in (tmp_path / "copy/runs/cifar100/resnet20/sgd").glob("*/history.csv"):
        path.unlink()
    out, _ = run("runs", "--results", tmp_path / "copy", "--reach", "71", "--strict", expect=1)
    assert [row[6] for row in tables(out)[-1][1:]] == ["", "2 of 2"]


@pytest.mark.parametrize(
    "columns", ["test_accuracy", "test_accuracy,test_nll", "test_accuracy,test_nll,test_ece,validation_accuracy"]
)
def test_a_history_beside_a_heartbeat_may_lack_figures(costly: Path, tmp_path: Path, columns: str) -> None:
    shutil.copytree(costly, tmp_path / "copy")
    recorded = record(*SHORT, "method=asam", seed=2)
    folder = run_folder(tmp_path / "copy", recorded)
    folder.mkdir(parents=True)
    others = ",1.0" * columns.count(",")
    (folder / "history.csv").write_text(f"epoch,{columns}\n5.0\n6.0,54.0{others}\n")
    with Heartbeat(folder, recorded, device="a device"), only_writer(folder, wait=False, stop=Stop()):
        out, _ = run("runs", "--results", tmp_path / "copy", "--at-epoch", "--strict")
    assert tables(out)[0][-1] == ["asam", "0", "", "", "53.00 ± 1.41 (2)"]


@pytest.mark.parametrize(
    "field", ["collected.1.validation_accuracy", "collected.1.validation_nll", "best.test_nll", "best.test_ece"]
)
def test_a_result_with_a_figure_that_is_none_is_left_out(tmp_path: Path, field: str) -> None:
    store(tmp_path, record(*SHORT, "method=sgd"))
    folder = store(tmp_path, record(*SHORT, "method=sgd", "collect=swa"), collected={"1": 70.0})
    content = json.loads((folder / "result.json").read_text())
    del content["checksum"]
    *path, name = field.split(".")
    functools.reduce(operator.getitem, path, content["metrics"])[name] = 10**400
    seal(folder, content)
    out, err = run("runs", "--results", tmp_path, "--format", "csv", "--strict", expect=1)
    assert {row["method"] for row in csv.DictReader(io.StringIO(out))} == {"sgd"}
    assert f"left out: {folder.relative_to(tmp_path)}: metrics.{field}: expected a " in err


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--where step.rh=1", '--where step.rh: no run has a key of this name; did you mean "step.rho"?'),
        ("--where step.rho=7", "--where step.rho=7: no run has this value; they have 0.05, 0.1, 0.5, 5"),
        ("--where lr", "--where lr: expected KEY=VALUE or KEY=VALUE,VALUE; the table is named ahead of it"),
        ("--where lr=", "--where lr=: expected KEY=VALUE or KEY=VALUE,VALUE; the table is named ahead of it"),
        ("--columns weightdecay", '--columns weightdecay: no run has a key of this name; did you mean "weight_decay"?'),
        ("--sort step.roh", '--sort step.roh: no run has a key of this name; did you mean "step.rho"?'),
        ("--against sg", '--against sg: no finished run of this method; there are sgd, sam; did you mean "sgd"?'),
        ("--against adam", "--against adam: no finished run of this method; there are sgd, sam"),
        ("--detect 0.5", "--detect goes with --against: a difference is one to a method"),
        ("--against sgd --detect x", "--detect x: expected a number > 0 and <= 100"),
        ("--reach 0", "--reach 0: expected a number > 0 and <= 100"),
        ("--at-epoch x", "--at-epoch x: expected a number > 0"),
        ("--equal-cost second", '--equal-cost "second" is none of gradients, seconds; did you mean "seconds"?'),
        ("--per-run --format html", "--per-run is written as csv, json, parquet, not as html"),
        ("--per-run --format parquet", "--format parquet is binary: --output FILE says where to"),
        ("--per-run --against sgd", "--against does not go with --per-run: rows of single runs"),
        ("--per-run --columns sed", '--columns sed: no run has a column of this name; did you mean "seed"?'),
        ("--format parquet", "--format parquet goes with runs --per-run, which writes a row a run"),
        ("--status --where lr=1", "--where does not go with --status; see broadopt-table --help"),
        ("--status --results a", "--results given twice does not go with --status; see broadopt-table --help"),
    ],
)
def test_bad_input_is_one_line(compared: Path, arguments: str, message: str) -> None:
    out, err = run("runs", "--results", compared, *arguments.split(), expect=2)
    assert (out, err) == ("", f"broadopt-table: {message}\n")


def test_bad_input_of_a_papers_table_is_one_line(compared: Path) -> None:
    for arguments, message in (
        ("--sort lr", "--sort is for runs: a paper's table has its own form"),
        ("--at-epoch", "--at-epoch is for runs: a paper's table has its own form"),
        ("--per-run", "--per-run is for runs: a paper's table has its own form"),
        ("--against fge", "--against fge: expected one of sgd, sam, asam"),
    ):
        _, err = run("table3", "--results", compared, *arguments.split(), expect=2)
        assert err.startswith(f"broadopt-table: {message}")


def test_keys_of_any_kind_in_files_of_others_do_no_harm(tmp_path: Path) -> None:
    recorded = record(*SHORT, "method=sgd")
    odd = {"a": [1, [2, {"b": 3}]], "lr": {"deep": {"deeper": "x" * 500}}, "": 1, "c.d": None, "e|f": "<b>"}
    store(tmp_path, {**recorded, "model": {**recorded["model"], **odd}})
    store(tmp_path, recorded, last=71.0)
    out, _ = run("runs", "--results", tmp_path)
    assert len(tables(out.replace("\\|", "¦"))[0]) == 3
    _, err = run("runs", "--results", tmp_path, "--where", "model.a=7", expect=2)
    assert err == "broadopt-table: --where model.a=7: no run has this value; they have [1, [2, (b 3)]]\n"
    for number in range(3):
        own_keys = {f"key{key}": key + number for key in range(5000)}
        store(tmp_path / "many", {**recorded, "model": {**recorded["model"], **own_keys}})
    out, _ = run("runs", "--results", tmp_path / "many")
    assert len(tables(out)[0][0]) == 20 + 4
    assert "Further keys in which the runs differ: model.key1015, " in words(out)
    assert "and more (--columns)." in words(out)
