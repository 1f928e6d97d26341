"""broadopt-report as users run it: one page of stored results, in numbers those of broadopt-table."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pages
import pytest
from filelock import FileLock
from pages import Page, page
from stored import RESNET20, VGG16, record, store
from stored import run as table

from broadopt.analysis.reporting import curves, figures
from broadopt.analysis.reporting.gathered import gather
from broadopt.analysis.reporting.repeating import Repeats
from broadopt.analysis.status import state
from broadopt.config.compose import recipe_of
from broadopt.config.identity import identity_of
from broadopt.runs import results
from broadopt.runs.heartbeat import Heartbeat

PACKAGE = Path(figures.__file__).parent
SHORT = (RESNET20, "budget=10")
SWEEP = "cifar100, resnet20, protocol asam2021, budget 10 epochs instead of 400 or 200, fp32"
HOSTILE = "<script>alert(1)<b>"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
REASON = "loss ]]> is </td><script>alert(2)</script> \x1b[2J nan"


def edited(folder: Path, **values: object) -> None:
    """Change fields of a stored result, with the checksum that fits."""
    found = json.loads((folder / "result.json").read_text())
    results.write(folder, {**{key: value for key, value in found.items() if key != "checksum"}, **values})


END = {10: None}
"""The history of a run of which no epoch but the last was evaluated."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cells of both tables, a sweep over rho, runs that failed, were interrupted and are running; images."""
    root = tmp_path_factory.mktemp("report") / "results"
    for seed, last in ((1, 69.0), (2, 69.5), (3, 71.0)):
        store(root, record(RESNET20, "method=sgd", seed=seed), last=last, history=END)
        store(root, record(RESNET20, "method=sam", seed=seed), last=last + 1, history=END)
    store(root, record(RESNET20, "method=asam", seed=1), last=72.0, history=END)
    store(root, record(VGG16, "method=swa"), last=70.0, collected={"1": 73.0, "1.25": 74.0, "1.5": 75.0}, history=END)
    for seed in (1, 2):
        cost = {"macs": 40_000_000, "passes": 1, "images_per_epoch": 50_000, "train_seconds": 100.0}
        history = {epoch: 20.0 + 5 * epoch + seed for epoch in range(1, 11)}
        store(root, record(*SHORT, "method=sgd", seed=seed), last=70 + seed, history=history, device="H100", cost=cost)
        for rho in (0.05, 0.5):
            slow = {"passes": 2, "train_seconds": 210.0}
            recorded = record(*SHORT, "method=sam", f"step.rho={rho}", seed=seed)
            store(root, recorded, last=72 + rho + seed**2, device="H100", cost=cost | slow, history=END)
    failed = store(root, record(*SHORT, "method=asam", seed=3), state="failed")
    edited(failed, failure={"reason": REASON, "epoch": 3})
    store(root, record(*SHORT, "method=asam", seed=4), state="interrupted")
    (failed / "config.yaml").write_text("budget: 10\n")
    (root / "figures").mkdir()
    (root / "figures/dot.png").write_bytes(PIXEL)
    (root / "figures/large.svg").write_text("<svg>" + " " * figures.LIMIT)
    (root / "figures/none.png").write_text("<script>alert(3)</script>")
    (root / "figures/notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def said(folder: Path) -> str:
    return pages.run("results", "-o", "report.html", cwd=folder.parent)


@pytest.fixture(scope="module")
def made(folder: Path, said: str) -> Page:
    return page(folder.parent / "report.html")


# ---- structure


def test_the_page_is_one_file_that_loads_nothing(folder: Path, made: Page) -> None:
    content = (folder.parent / "report.html").read_text(encoding="utf-8")
    assert content.startswith('<!DOCTYPE html>\n<html lang="en">')
    assert not re.search(r"https?:|//[a-z]+\.|url\((?!#)|@import", content)
    assert not made.root.all("link", "iframe", "object", "embed", "base", "form")
    assert [image.attributes["src"][:22] for image in made.root.all("img")] == ["data:image/png;base64,"]
    assert not [element for element in everything(made) if any(name.startswith("on") for name in element.attributes)]


def everything(made: Page) -> list[pages.Element]:
    waiting, found = [made.root], []
    while waiting:
        element = waiting.pop()
        waiting += element.inside
        found.append(element)
    return found


def test_style_and_script_are_what_the_policy_names(made: Page) -> None:
    (policy,) = [
        meta.attributes["content"]
        for meta in made.root.all("meta")
        if meta.attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    for kind in ("style", "script"):
        content = made.root.one(kind).text
        assert content == (PACKAGE / f"page.{'css' if kind == 'style' else 'js'}").read_text()
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert len((PACKAGE / "page.js").read_bytes()) < 10_000


def test_it_can_be_read_by_keyboard_and_screen_reader(made: Page) -> None:
    assert made.root.one("h1").text == "broadopt report: results"
    assert len(made.root.all("main")) == len(made.root.all("header")) == 1
    ids = [element.attributes["id"] for element in everything(made) if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    skip = made.root.one("body").all("a")[0]
    assert skip.attributes == {"class": "skip", "href": "#main"}
    for element in everything(made):
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert set(element.attributes.get(name, "").split()) <= set(ids)
        if element.tag == "a":
            assert element.attributes["href"].removeprefix("#") in ids
        if element.attributes.get("role") == "region":
            assert element.attributes["tabindex"] == "0"
            assert element.one("table").one("caption").attributes["id"] == element.attributes["aria-labelledby"]
    levels = [int(heading.tag[1]) for heading in made.root.all("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert len(made.root.all("input")) == len(made.root.all("label")) == len(made.root.all("table"))


def test_every_table_says_what_it_is_and_what_its_cells_belong_to(made: Page) -> None:
    tables = made.root.all("table")
    assert len(tables) >= 8
    for one in tables:
        assert one.one("caption").text.strip()
        assert {head.attributes["scope"] for head in one.one("thead").all("th")} == {"col"}
        widths = {len(row.all("th", "td")) for row in one.all("tr")}
        assert len(widths) == 1
        for row in one.one("tbody").all("tr"):
            assert row.all("th", "td")[0].attributes["scope"] == "row"


def test_no_cell_is_bold(made: Page) -> None:
    assert not made.root.all("b", "strong", "em")
    style = (PACKAGE / "page.css").read_text()
    assert re.findall(r"font-weight: *(\S+);", style) == ["normal"]
    assert "th, td {" in style.split("font-weight")[0].rpartition("}")[2]


def test_drawings_have_a_title_and_a_description(made: Page) -> None:
    (drawn,) = [svg for svg in made.root.all("svg") if svg.attributes.get("role") == "img"]
    assert drawn.one("title").text == f"Test accuracy over epochs: {SWEEP}"
    assert drawn in made.section(SWEEP).all("svg")
    assert drawn.one("desc").text == "sgd (n = 2): 26.50 % after epoch 1, 71.50 % after epoch 10."


# ---- numbers


def test_the_published_table_has_the_numbers_of_broadopt_table(folder: Path, made: Page) -> None:
    for name in ("table1", "table3"):
        out, _ = table(name, "--results", folder, "--format", "csv")
        records = [row for row in csv.DictReader(io.StringIO(out)) if row["table"] == name]
        header, *rows = made.table(f"{name}-values")
        assert header == [
            *("data", "network", "method", "which", "n", "broadopt", "95 % interval", "Δ"),
            *("paper", "paper n", "precision"),
        ]
        shown = {(row[1], row[0], row[2]): dict(zip(header, row, strict=True)) for row in rows}
        kept = [row for row in records if row["n"] != "0" or row["paper_mean"]]
        assert len(shown) == len(rows) == len(kept)
        for row in kept:
            line = shown[row["row"], {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[row["dataset"]], row["column"]]
            assert line["which"] == f"{row['metric']} {row['key']}".strip()
            assert line["n"] == row["n"].replace("0", "")
            spread = f" ± {float(row['std']):.2f}" if row["std"] else ""
            assert line["broadopt"] == (f"{float(row['mean']):.2f}{spread}" if row["mean"] else "")
            assert line["Δ"] == (f"{float(row['difference']):+.2f}" if row["difference"] else "")
            assert line["paper"].partition(" ")[0] == (f"{float(row['paper_mean']):.2f}" if row["paper_mean"] else "")


def test_a_cell_has_the_interval_of_its_mean(made: Page) -> None:
    rows = [row for row in made.table("table3-values") if row[1:2] == ["ResNet-20"]]
    # Three seeds, 69, 69.5 and 71: mean 69.83, deviation 1.04, t 4.303.
    assert rows[0][2:9] == ["SGD", "best", "3", "69.83 ± 1.04", "67.25 to 72.42", "+0.07", "69.76 ± 0.44"]
    assert rows[2][4:7] == ["1", "72.00", ""]


def test_the_sweep_has_the_numbers_of_broadopt_table(folder: Path, made: Page) -> None:
    out, _ = table("runs", "--results", folder, "--against", "sgd", "--format", "html")
    shown = [
        [[cell.text for cell in row.all("th", "td")] for row in one.all("tr")]
        for one in made.root.all("table")
        if one.attributes["id"].startswith("sweep-")
    ]
    there = [
        [[cell.text for cell in row.all("th", "td")] for row in one.all("tr")] for one in Page(out).root.all("table")
    ]
    assert len(shown) == len(there) >= 10
    for mine, its in zip(shown, there, strict=True):
        kept = [index for index, _ in enumerate(its[0]) if any(row[index] for row in its[1:])]
        assert [row[: len(kept)] for row in mine] == [[row[index] for index in kept] for row in its]
        assert mine[0][len(kept) :] in ([], ["PFLOPs"])


def test_costs_have_the_operations_of_a_run_and_its_time_beside_that_of_sgd(made: Page) -> None:
    section = made.section(SWEEP)
    header, *rows = made.table(section.all("table")[-1].attributes["id"])
    # 2 operations x 40e6 x 3 passes x 50,000 images x 10 epochs are 0.12e15; SAM takes two gradients.
    assert [(row[0], row[header.index("x sgd")], row[header.index("PFLOPs")]) for row in rows] == [
        ("sgd", "1.00", "0.12"),
        ("sam", "2.10", "0.24"),
        ("sam", "2.10", "0.24"),
        ("asam", "", "0.24"),
    ]


def test_a_curve_is_the_mean_over_seeds_with_a_band_of_one_deviation(made: Page) -> None:
    section = made.section(SWEEP)
    points = section.one("polyline").attributes["points"].split()
    band = section.one("polygon").attributes["points"].split()
    assert (len(points), len(band)) == (10, 20)
    places = [tuple(map(float, point.split(","))) for point in points]
    assert places[-1][0] == curves.RIGHT
    assert places[0][0] == pytest.approx(curves.LEFT + (curves.RIGHT - curves.LEFT) / 10, abs=0.05)
    # Each epoch is 5 points above the one before: equal steps down the page.
    steps = {round(after[1] - before[1], 0) for before, after in pairwise(places)}
    assert len(steps) == 1
    above, below = (float(point.split(",")[1]) for point in (band[9], band[10]))
    assert places[-1][1] - above == pytest.approx(below - places[-1][1], abs=0.11)
    # Two seeds that are 1 apart: a deviation of 0.71, where 5 points are one step.
    assert (below - above) / 2 / (places[-2][1] - places[-1][1]) == pytest.approx(0.5**0.5 / 5, abs=0.01)


def test_a_long_curve_is_thinned_and_ends_where_it_ends(tmp_path: Path) -> None:
    for seed in (1, 2):
        history = {epoch: 70 - 60 / epoch + seed for epoch in range(1, 1801)}
        store(tmp_path, record(RESNET20, "budget=1800", "method=sgd", seed=seed), history=history)
    pages.run(tmp_path, "-o", "long.html", cwd=tmp_path)
    found = page(tmp_path / "long.html")
    points = found.root.one("polyline").attributes["points"].split()
    assert len(points) == curves.MOST_POINTS
    assert float(points[-1].split(",")[0]) == curves.RIGHT
    assert "71.47 % after epoch 1800" in found.root.all("desc")[0].text
    assert "Of long runs not every epoch is drawn." in found.root.one("figcaption").text


def test_of_many_lines_the_best_are_drawn(tmp_path: Path) -> None:
    sam = record(*SHORT, "method=sam")
    for rank in range(1, 11):
        history = {1: 10.0 + rank, 2: 20.0 + rank}
        recorded = {**sam, "step": {**sam["step"], "rho": rank / 100}}
        (store(tmp_path, recorded, last=20.0 + rank, history=history) / "config.yaml").touch()
    store(tmp_path, record(*SHORT, "method=sgd"), last=15.0, history={1: 10.0, 2: 15.0})
    pages.run(tmp_path, "-o", "page.html", cwd=tmp_path)
    found = page(tmp_path / "page.html").root.one("figure")
    drawn = ["sgd (n = 1)", *(f"sam, step.rho {rank / 100:g} (n = 1)" for rank in range(4, 11))]
    assert [item.text.strip() for item in found.all("li")] == drawn
    assert [polyline.attributes["class"] for polyline in found.all("polyline")] == [
        f"curve style-{number}" for number in range(8)
    ]
    assert not found.all("polygon")
    assert "3 lines of the table are not drawn" in found.one("figcaption").text


def test_without_statsmodels_there_are_no_differences(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels", None)  # as Python has it for what cannot be imported
    pages.run("results", "-o", "without.html", cwd=folder.parent)
    found = page(folder.parent / "without.html")
    note = "Differences to SGD need statsmodels: pip install '.[statistics]' in the checkout."
    assert note in found.section("Sweeps").text
    assert "Δ to sgd" not in found.root.text


# ---- runs, their states, and how to repeat them


def test_runs_without_final_figures_say_why(folder: Path, made: Page) -> None:
    header, *rows = made.table("unfinished-runs")
    assert header[3:6] == ["seed", "state", "reason"]
    assert [row[:6] for row in rows] == [
        ["cifar100", "resnet20", "asam", "3", "failed", REASON.replace("\x1b", r"\x1b")],
        ["cifar100", "resnet20", "asam", "4", "interrupted", "from scratch: no checkpoint"],
    ]
    (failed,) = (folder / "runs").glob("*/*/asam/seed3-*")
    assert rows[0][6] == f"broadopt-run repeat={failed.relative_to(folder.parent)} precision=fp32 results_dir=results"


def test_the_overrides_of_a_run_make_its_config(folder: Path, made: Page) -> None:
    header, *rows = made.table("all-runs")
    stored = {result["folder"]: result for result in results.read_all(folder)[0]}
    identities = {result["identity"] for result in stored.values()}
    assert len(rows) == len(stored) == 16
    found = set()
    for row in rows:
        program, *words = shlex.split(row[header.index("how to repeat")])
        assert program == "broadopt-run"
        if words[0].startswith("repeat="):
            continue
        values = dict(word.split("=", 1) for word in words)
        composed = recipe_of([word for word in words if not word.startswith(("seed=", "precision="))])
        found.add(identity_of({**composed, "seed": int(values["seed"]), "precision": values["precision"]}))
    assert len(found) == 15
    assert found < identities


def test_overrides_are_those_in_which_a_run_differs(tmp_path: Path) -> None:
    own = {"name": "small_net", "_target_": "small_net.small_net", "width": 16}
    store(tmp_path, record(*SHORT, "method=fge", "schedule.low=null"), last=60.0)
    store(tmp_path, record(*SHORT, "method=swa", "collect.budgets=[1,1.25]", precision="bf16"), last=60.0)
    store(tmp_path, record(*SHORT, "method=sam", "collect=swa", seed=7), last=60.0)
    store(tmp_path, {**record(*SHORT, "method=sgd"), "model": own}, last=60.0)
    pages.run(tmp_path, "-o", "page.html", cwd=tmp_path)
    header, *rows = page(tmp_path / "page.html").table("all-runs")
    start, where = "broadopt-run dataset=cifar100 model=resnet20 protocol=asam2021", f"results_dir={tmp_path}"
    assert {row[2]: row[header.index("how to repeat")] for row in rows} == {
        "fge": f"{start} method=fge budget=10 schedule.low=null seed=1 precision=fp32 {where}",
        "swa": f"{start} method=swa budget=10 'collect.budgets=[1,1.25]' seed=1 precision=bf16 {where}",
        "sam+swa": f"{start} method=sam collect=swa budget=10 seed=7 precision=fp32 {where}",
        "sgd": "",
    }
    assert "An empty cell: the folder has no config.yaml" in page(tmp_path / "page.html").section("All runs").text


def test_a_run_is_repeated_as_it_was_decided(tmp_path: Path) -> None:
    """Its config.yaml may leave the precision to the machine, and never has the number of processes."""
    recorded = {**record(*SHORT, "method=sgd", precision="bf16"), "processes": 2}
    repeats, start = Repeats(recipe_of), "torchrun --nproc-per-node 2 -m broadopt.run"
    words = "dataset=cifar100 model=resnet20 protocol=asam2021 method=sgd budget=10 seed=1 precision=bf16"
    assert repeats.command(recorded, tmp_path, Path("results")) == f"{start} {words}"
    (tmp_path / "config.yaml").touch()
    again = f"{start} repeat={tmp_path} precision=bf16 results_dir=results"
    assert repeats.command(recorded, tmp_path, Path("results")) == again


@pytest.mark.parametrize("key", ["schedule", "optimizer", "experiment", "hydra", "hydra.searchpath"])
@pytest.mark.parametrize("value", [False, [1], "sam", ["x/y"]])
def test_a_recorded_config_gives_no_override_of_what_is_no_key_of_a_recipe(key: str, value: object) -> None:
    recorded, composed = record(*SHORT, "method=sgd"), []

    def compose(words: list[str]) -> dict[str, object]:
        composed.append(words)
        return recipe_of(words)

    assert Repeats(compose).command({**recorded, key: value}, Path("none"), Path("results")) == ""
    assert not any(word.startswith(f"{key}=") for words in composed for word in words)


@pytest.mark.parametrize("name", ["1", "true", "null", "resnet20+vgg16", "elsewhere"])
@pytest.mark.parametrize("group", ["model", "dataset"])
def test_what_is_no_choice_of_a_group_is_not_given_for_one(group: str, name: str) -> None:
    recorded = record(*SHORT, "method=sgd")
    recorded[group] = {**recorded[group], "name": name}
    assert Repeats(recipe_of).command(recorded, Path("none"), Path("results")) == ""


def test_a_begun_cell_says_which_runs_it_lacks(made: Page) -> None:
    assert made.table("table3-missing")[1:] == [
        ["ResNet-20", "ASAM", seed, "missing", "not run yet", command]
        for seed, command in (
            ("2", "broadopt-run experiment=table3/resnet20 method=asam seed=2 precision=fp32"),
            ("3", "broadopt-run experiment=table3/resnet20 method=asam seed=3 precision=fp32"),
        )
    ]
    assert (
        "broadopt-table table3 --missing prints the commands."
        in made.section("Table 3 of Kwon et al. 2021 (ASAM)").text
    )


def test_more_seeds_can_be_asked_for(folder: Path) -> None:
    pages.run("results", "--seeds", "1-4", "-o", "four.html", cwd=folder.parent)
    assert [row[2] for row in page(folder.parent / "four.html").table("table3-missing")[1:]] == list("44234")


def test_a_running_run_is_shown(tmp_path: Path) -> None:
    recorded = record(*SHORT, "method=sgd")
    run_folder = results.run_folder(tmp_path, recorded)
    run_folder.mkdir(parents=True)
    with FileLock(run_folder / ".lock"), Heartbeat(run_folder, recorded, device="a device"):
        pages.run(tmp_path, "-o", "page.html", cwd=tmp_path)
    (row,) = page(tmp_path / "page.html").table("unfinished-runs")[1:]
    assert row[:5] == ["cifar100", "resnet20", "sgd", "1", "running"]


def test_images_that_are_small_are_in_the_page_and_others_are_named(made: Page, said: str) -> None:
    assert [image.attributes["alt"] for image in made.root.all("img")] == ["Image dot.png of the results folder"]
    assert base64.b64decode(made.root.one("img").attributes["src"].partition(",")[2]) == PIXEL
    expected = [
        f"not shown: results/figures/large.svg: {figures.LIMIT + 5:,} bytes, expected {figures.LIMIT:,} at most",
        "not shown: results/figures/none.png: not a PNG image",
    ]
    assert said.splitlines() == [f"broadopt-report: {line}" for line in expected]
    assert [words.text for words in made.section("Files left out").all("p")] == expected


def test_a_figure_that_is_there_as_png_and_svg_is_shown_once(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/plane.png").write_bytes(PIXEL)
    for name in ("plane.svg", "rays.svg"):
        (tmp_path / "figures" / name).write_text("<svg></svg>")
    found, left_out = figures.collect([tmp_path])
    assert [figure.source.partition(";")[0] for figure in found] == ["data:image/png", "data:image/svg+xml"]
    assert left_out == []


def test_figures_in_folders_below_come_last_and_under_their_paths(tmp_path: Path) -> None:
    (tmp_path / "figures/a/b").mkdir(parents=True)
    (tmp_path / "figures/round").symlink_to(tmp_path / "figures")
    for name in ("plane.png", "a/plane.png", "a/b/line.png", "z.png"):
        (tmp_path / "figures" / name).write_bytes(PIXEL)
    for name in ("a/plane.svg", "a/z.svg"):  # of the first there is a PNG beside it, of the other in another folder
        (tmp_path / "figures" / name).write_text("<svg></svg>")
    (tmp_path / "figures/a/b/bad.png").write_text("no image")
    found, left_out = figures.collect([tmp_path])
    assert [figure.name for figure in found] == ["plane.png", "z.png", "a/b/line.png", "a/plane.png", "a/z.svg"]
    assert left_out == [f"{tmp_path}/figures/a/b/bad.png: not a PNG image"]


# ---- what anyone may have written


def test_nothing_of_a_result_becomes_markup(tmp_path: Path) -> None:
    root = tmp_path / "<img src=x onerror=alert(4)>"
    recorded = {**record(*SHORT, "method=sam"), "method": HOSTILE, "protocol": "a\"b'&amp;"}
    recorded["step"] = {**recorded["step"], "rho": "\u202e]]></svg><script>alert(5)</script>\x1b[31m"}
    recorded["model"] = {**recorded["model"], "name": "--><style>*{display:none}"}
    failed = store(root, {**recorded, "seed": 2}, state="failed")
    edited(failed, failure={"reason": REASON})
    store(root, recorded, history={1: 20.0, 2: 30.0})
    plain = {**recorded, "step": {**recorded["step"], "rho": 0.05}}
    store(root, plain, history={1: 20.0, 2: 31.0})
    other = root / "runs" / "<script>alert(6)"
    other.mkdir()
    (other / "result.json").write_text("{")
    said = pages.run(root, "-o", "page.html", cwd=tmp_path)
    content = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = Page(content)
    assert len(found.root.all("script")) == len(found.root.all("style")) == 1
    assert not found.root.all("img", "b")
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", content)
    text = found.root.one("main").text
    for words in (
        HOSTILE,
        r"\u202e]]></svg><script>alert(5)</script>\x1b[31m",
        "a\"b'&amp;",
        "--><style>*{display:none}",
    ):
        assert words in text
    assert REASON.replace("\x1b", r"\x1b") in text
    assert "runs/<script>alert(6): not JSON" in text
    assert found.root.one("h1").text == f"broadopt report: {root}"
    assert "\x1b" not in said
    # Nothing of it is put on a command line either.
    assert "how to repeat" not in text


# ---- size


def test_a_run_more_costs_less_than_two_kilobytes(tmp_path: Path) -> None:
    sizes = []
    for seeds in (range(1, 11), range(11, 61)):
        for seed in seeds:
            history = {epoch: 50.0 + epoch + seed / 100 for epoch in range(1, 11)}
            store(tmp_path, record(*SHORT, "method=sgd", seed=seed), last=60.0 + seed / 10, history=history)
        pages.run(tmp_path, "-o", "page.html", cwd=tmp_path)
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert 0 < (sizes[1] - sizes[0]) / 50 < 2000
    assert sizes[0] < 100_000
    assert len(page(tmp_path / "page.html").root.all("polyline")) == 1


def test_the_same_results_make_the_same_page(folder: Path, said: str) -> None:
    first = (folder.parent / "report.html").read_bytes()
    pages.run("results", "--strict", "-o", "again.html", cwd=folder.parent)  # images do not count
    assert (folder.parent / "again.html").read_bytes() == first


# ---- selection, command line


def test_runs_can_be_selected(folder: Path) -> None:
    arguments = ("--where", "method=sam", "--where", "budget=10", "-o", "sam.html")
    pages.run("results", *arguments, cwd=folder.parent)
    found = page(folder.parent / "sam.html")
    assert {tuple(row[2:4]) for row in found.table("all-runs")[1:]} == {("sam", "1"), ("sam", "2")}
    assert "Only runs with method=sam and budget=10." in found.root.one("header").text
    assert not [one for one in found.root.all("table") if one.attributes["id"].endswith("-missing")]


def test_runs_that_have_only_a_heartbeat_can_be_selected(tmp_path: Path) -> None:
    for seed, keys in ((1, ()), (2, ("step.ascent=0.5",))):
        store(tmp_path, record(*SHORT, "method=sam", *keys, seed=seed))
    recorded = record(*SHORT, "method=sam", seed=3)
    run_folder = results.run_folder(tmp_path, recorded)
    run_folder.mkdir(parents=True)
    seeds = {}
    with FileLock(run_folder / ".lock"), Heartbeat(run_folder, recorded, device="a device"):
        for where in ("seed=3", "seed=1,3", "step.ascent=1", "step.ascent=0.5"):
            pages.run(tmp_path, "-o", "page.html", "--where", where, cwd=tmp_path)
            seeds[where] = [row[3] for row in page(tmp_path / "page.html").table("all-runs")[1:]]
        refused = pages.run(tmp_path, "--where", "seed=4", cwd=tmp_path, expect=2)
    # Without the key recorded a run is one of its first value, whether it has a result or a heartbeat.
    assert seeds == {"seed=3": ["3"], "seed=1,3": ["1", "3"], "step.ascent=1": ["1", "3"], "step.ascent=0.5": ["2"]}
    assert refused == "broadopt-report: --where seed=4: no run has this value; they have 1, 2, 3\n"


def test_several_folders_are_one_report(folder: Path, tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd", seed=4), last=70.5)
    store(tmp_path, record(RESNET20, "method=asam", seed=1), last=72.0, history=END)  # a copy counts once
    pages.run(folder, tmp_path, "-o", "page.html", cwd=tmp_path)
    rows = [row for row in page(tmp_path / "page.html").table("table3-values") if row[1] == "ResNet-20"]
    assert [row[4] for row in rows] == ["4", "3", "1"]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
@pytest.mark.parametrize(("reached", "counted"), [((3.0, 8.0, 5.0), 1), ((3.0, 4.0, 5.0), 2)])
def test_of_copies_of_an_unfinished_run_the_farthest_counts(
    tmp_path: Path, order: tuple[int, ...], reached: tuple[float, ...], counted: int
) -> None:
    """Two were killed and have left their heartbeats, the third was interrupted and has left its result."""
    recorded, roots = record(*SHORT, "method=asam"), [tmp_path / name for name in "abc"]
    for root, epoch in zip(roots[:2], reached, strict=False):
        run_folder = results.run_folder(root, recorded)
        run_folder.mkdir(parents=True)
        with Heartbeat(run_folder, recorded, device="a device"):
            left = json.loads((run_folder / "progress.json").read_text())
        (run_folder / "progress.json").write_text(json.dumps({**left, "epoch": epoch, "epochs": 10.0}))
    edited(store(roots[2], recorded, state="interrupted"), epochs=reached[2])
    for root in roots:  # what is saved is known by the figures of the one that counts
        (results.run_folder(root, recorded) / "checkpoint-0000000001.ckpt").touch()
    found = gather([roots[place] for place in order])
    run = state.run_of(found.folder, recorded, identity_of(recorded))
    assert found.place_of(recorded) == (roots[counted], results.run_folder(roots[counted], recorded))
    assert (run.state, f"in epoch {reached[counted]}" in run.words) == ("interrupted", counted < 2)


def test_a_run_goes_on_in_the_folder_that_it_was_found_in(tmp_path: Path) -> None:
    """Each of these has its checkpoint in the second folder: a result, a heartbeat, a config.yaml or none of them."""
    first, second = Path("first"), Path("sec ond's: #2")
    asam = "broadopt-run experiment=table3/resnet20 method=asam"
    store(tmp_path / first, record(RESNET20, "method=asam", seed=1), last=72.0)
    store(tmp_path / second, record(RESNET20, "method=asam", seed=2), state="interrupted")
    third = results.run_folder(tmp_path / second, record(RESNET20, "method=asam", seed=3))
    third.mkdir(parents=True)
    with Heartbeat(third, record(RESNET20, "method=asam", seed=3), device="a device"):
        left = (third / "progress.json").read_bytes()
    (third / "progress.json").write_bytes(left)  # as a process leaves it that was killed
    (third / "config.yaml").write_text("budget: 10\n")
    results.run_folder(tmp_path / second, record(RESNET20, "method=asam", seed=4)).mkdir()
    pages.run(first, second, "--seeds", "1-5", "-o", "page.html", cwd=tmp_path)
    found = page(tmp_path / "page.html")
    place = """results_dir="sec ond's: #2\""""
    commands = [shlex.split(row[5]) for row in found.table("table3-missing")[1:]]
    assert commands == [
        [*asam.split(), f"seed={seed}", "precision=fp32", place if seed < 5 else "results_dir=first"]
        for seed in (2, 3, 4, 5)
    ]
    unfinished = {row[3]: shlex.split(row[6]) for row in found.table("unfinished-runs")[1:]}
    assert unfinished["2"][-3:] == ["seed=2", "precision=fp32", place]
    again = unfinished["3"]
    assert again == ["broadopt-run", f"repeat={third.relative_to(tmp_path)}", "precision=fp32", f"results_dir={second}"]


BAD = {
    ("nowhere",): "results folder nowhere does not exist: RESULTS names the folder that holds runs/",
    ("file",): "results folder file is not a folder: RESULTS names the folder that holds runs/",
    ("empty",): "results folder empty: no run to report on; expected a folder that broadopt-run has written to",
    (
        "empty",
        "empty/.",
    ): "results folder empty: no run to report on; expected a folder that broadopt-run has written to",
    ("",): "an empty name: expected a results folder, and behind -o a file",
    ("two",): "results folder two holds no runs/, but 2 of its folders do: two/a two/b",
    ("one", "-o", "empty"): "--output empty cannot be written: Is a directory; expected a file, as empty/report.html",
    ("one", "-o", "nowhere/page.html"): "--output nowhere/page.html cannot be written: No such file or directory",
    ("one", "-o", "/dev/full"): "--output /dev/full cannot be written: No space left on device",
    ("one", "-o", ""): "an empty name: expected a results folder, and behind -o a file",
    ("one", "--otput", "x"): 'unknown option --otput; did you mean "--output"?',
    ("one", "--against", "sdg"): '--against sdg: no finished run of this method; there are sgd; did you mean "sgd"?',
    ("one", "--where", "metod=sgd"): '--where metod: no run has a key of this name; did you mean "method"?',
    ("method=sgd",): "method=sgd: expected a results folder; runs are selected by --where method=sgd",
    ("one", "--seeds", "x"): "--seeds x: expected whole numbers and ranges of them, as 1-5 or 1,2,7",
}


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_line(bad: Path, arguments: tuple[str, ...]) -> None:
    assert pages.run(*arguments, cwd=bad, expect=2) == f"broadopt-report: {BAD[arguments]}\n"


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("bad")
    (cwd / "file").touch()
    (cwd / "empty").mkdir()
    for name in ("a", "b"):
        (cwd / "two" / name / "runs").mkdir(parents=True)
    store(cwd / "one", record(*SHORT, "method=sgd"), history=END)
    return cwd


def test_the_page_goes_where_it_is_asked_to(bad: Path) -> None:
    (bad / "kept.html").write_text("before")
    (bad / "link.html").symlink_to("kept.html")
    assert pages.run("one", "-o", "link.html", cwd=bad) == ""
    assert (bad / "link.html").is_symlink()
    assert page(bad / "kept.html").root.one("h1").text == "broadopt report: one"
    assert pages.run("one", "-o", os.devnull, cwd=bad) == ""
    assert Path(os.devnull).is_char_device()
    assert not [path for path in bad.iterdir() if path.name.endswith(".tmp")]


def test_the_command_is_installed_and_writes_report_html(bad: Path, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("broadopt-report")
    done = subprocess.run([program, bad / "one"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert page(tmp_path / "report.html").root.one("h1").text == f"broadopt report: {bad / 'one'}"


def test_a_file_that_is_left_out_is_named_and_strict_ends_with_1(tmp_path: Path) -> None:
    store(tmp_path, record(*SHORT, "method=sgd", seed=1), history=END)
    damaged = store(tmp_path, record(*SHORT, "method=sgd", seed=2))
    (damaged / "result.json").write_text("{}")
    line = f"left out: {damaged.relative_to(tmp_path)}: not of schema 1"
    assert pages.run(tmp_path, "--strict", cwd=tmp_path, expect=1) == f"broadopt-report: {line}\n"
    found = page(tmp_path / "report.html")
    assert found.section("Files left out").one("p").text == line
    assert len(found.table("all-runs")) == 2
