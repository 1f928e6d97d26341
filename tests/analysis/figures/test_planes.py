"""plane, rays and line on trained networks: the command, its files, and the numbers in them."""

import json
import os
import shlex
import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from command import PATIENCE, SMALL, Process, folders, go_on, result, run, start, until
from in_process import drawn, refused, said
from kept_runs import kept_runs
from matplotlib.figure import Figure
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from broadopt import predictor, snapshots
from broadopt.analysis.figures.catalogue import FIGURES
from broadopt.analysis.figures.looks import End, name_lines
from broadopt.analysis.figures.output import Drawing, styled, write
from broadopt.analysis.figures.request import Request
from broadopt.analysis.figures.surfaces.planes import levels, square
from broadopt.analysis.landscape.networks import flat, mark_at
from broadopt.analysis.landscape.runs import chosen
from broadopt.analysis.landscape.store import partial
from broadopt.config.identity import identity_of
from broadopt.errors import InputError

FEW = ("--images", "60", "--train-images", "64", "trust=own_network", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    with kept_runs("method=sgd,swa,fge", cwd=tmp_path_factory.mktemp("runs")) as found:
        yield found


def start_figure(*arguments: str, cwd: Path, **environment: str) -> Process:
    """broadopt-figure as a process of its own."""
    return start(*arguments, cwd=cwd, program="broadopt-figure", **environment)


def test_runs_are_found_again_with_their_own_bn_statistics(runs: Mapping[str, Path], tmp_path: Path) -> None:
    """On the whole test set the marked points have the errors that the runs have reported, to the last image."""
    table, _, _ = drawn("line", runs["sgd"], runs["swa"], "--points", 3, *FEW[2:], cwd=tmp_path)
    stored = table[table["kind"] == "stored"].set_index("label")["test_error"]
    sgd, swa = result(runs["sgd"])["metrics"], result(runs["swa"])["metrics"]
    assert stored["SGD"] == pytest.approx(100 - sgd["last"]["test_accuracy"], abs=1e-9)
    assert stored["SWA"] == pytest.approx(100 - swa["collected"]["1.5"]["test_accuracy"], abs=1e-9)
    assert stored["SGD"] != stored["SWA"]


def test_line_writes_its_files_and_is_drawn_again_from_them(runs: Mapping[str, Path], tmp_path: Path) -> None:
    arguments = (runs["sgd"], runs["swa"], "--points", 7, *FEW)
    table, seen, errors = drawn("line", *arguments, cwd=tmp_path)

    assert "7/7" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.csv", "line.png", "line.svg"]
    with Image.open(tmp_path / "line.png") as picture:
        assert picture.size[0] == 3.4 * 300
        assert "60 of 359 test images" in picture.text["Description"]
    lines = (tmp_path / "line.csv").read_text().splitlines()
    assert lines[1] == f"# run SGD: {runs['sgd']} ({runs['sgd'].name[-8:]})"
    assert "at each point on the same 64 augmented training images in batches of 32; fp32 on cpu; " in lines[3]
    assert lines[4] == f"# {seen.strip()}"

    length = table.loc[table["kind"] == "mark", "distance"].max()
    weights = [flat(predictor.load(runs[name], trust="own_network").model) for name in ("sgd", "swa")]
    assert length == pytest.approx(float((weights[0] - weights[1]).norm()), rel=1e-6)
    assert table.loc[table["kind"] == "line", "distance"].tolist() == pytest.approx(np.linspace(-length, 2 * length, 7))
    # The line passes through both runs, so there it has what they have.
    columns = ["test_error", "train_error", "test_nll", "train_objective", "norm"]
    for place in (0, length):
        found = table[np.isclose(table["distance"], place) & (table["kind"] != "stored")]
        assert len(found) == 2
        assert found[columns].iloc[0].tolist() == pytest.approx(found[columns].iloc[1].tolist(), rel=1e-4)

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    _, again, errors = drawn("line", *arguments, cwd=tmp_path)
    assert again == seen
    assert "point/s" not in errors
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def with_other_statistics(folder: Path, root: Path) -> Path:
    """A copy of a run below `root` whose network has the same weights and other BN statistics."""
    copy = root.joinpath(*folder.parts[-6:])
    shutil.copytree(folder, copy)
    with safe_open(copy / predictor.NAME, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    changed = [name for name in tensors if name.endswith("running_mean")]
    assert changed
    save_file(tensors | {name: tensors[name] + 1 for name in changed}, copy / predictor.NAME, metadata=metadata)
    return copy


@pytest.mark.parametrize("figure", ["line", "plane"])
def test_networks_that_differ_in_their_bn_statistics_alone_have_rows_of_their_own(
    runs: Mapping[str, Path], tmp_path: Path, figure: str
) -> None:
    """Drawn over a finished figure of the same weights: what is known of one network is not shown for the other."""
    options = ("--points", 2) if figure == "line" else ("--grid", 2)
    other = with_other_statistics(runs["swa"], tmp_path / "other")
    (tmp_path / "anew").mkdir()
    before, _, _ = drawn(figure, runs["sgd"], runs["swa"], *options, *FEW, cwd=tmp_path)
    over, _, _ = drawn(figure, runs["sgd"], other, *options, *FEW, cwd=tmp_path)
    anew, _, _ = drawn(figure, runs["sgd"], other, *options, *FEW, cwd=tmp_path / "anew")
    pandas.testing.assert_frame_equal(over, anew)
    stored = [table[(table["kind"] == "stored") & (table["label"] == "SWA")] for table in (before, anew)]
    assert stored[0]["test_nll"].item() != stored[1]["test_nll"].item()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as processes of their own have (command.py): another number rounds sums in another way, so that
    rows, and the key with the grid's coordinates, are others.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_grid_goes_on(runs: Mapping[str, Path], tmp_path: Path) -> None:
    arguments = ["plane", str(runs["fge"]), "--grid", "3", *FEW, "--seed", "5", "--format", "svg"]
    # Two test passes a point (test and training images), seven rows of marks ahead: in the third row of the grid.
    process = start_figure(*arguments, cwd=tmp_path, HALT="test 28", HALT_FILE=str(tmp_path / "halted"))
    try:
        until((tmp_path / "halted").exists, process)
        process.send_signal(signal.SIGTERM)
        go_on(tmp_path)
        _, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 75
    assert errors.splitlines()[-1] == "broadopt-figure: stopped by SIGTERM: the same command goes on"
    assert [path.name for path in tmp_path.iterdir()] == ["plane.partial.csv"]
    kept = partial(tmp_path / "plane").read_text().splitlines()[2:]
    assert 7 < len(kept) < 7 + 9

    code, _, errors = said("broadopt-figure", *arguments, cwd=tmp_path)
    assert code == 0, errors
    assert f"{len(kept) - 7}/9" in errors
    finished = (tmp_path / "plane.csv").read_text()
    assert all(line in finished for line in kept)
    code, _, _ = said("broadopt-figure", *arguments, "--output", "undisturbed", cwd=tmp_path)
    assert code == 0
    assert (tmp_path / "undisturbed.csv").read_text() == finished
    assert (tmp_path / "undisturbed.svg").read_bytes() == (tmp_path / "plane.svg").read_bytes()


def test_plane_through_snapshots_and_their_mean(runs: Mapping[str, Path], tmp_path: Path) -> None:
    table, _, _ = drawn("plane", runs["fge"], "--grid", 2, "--at", 0, 1, 2, *FEW, cwd=tmp_path)
    files = snapshots.files(runs["fge"])
    points = [flat(predictor.read(file.path, trust="own_network").model) for file in files if file.step in (0, 45, 90)]
    marks = table[table["kind"] == "mark"].set_index("label")[["x", "y"]]
    assert list(marks.index) == ["start", "FGE, epoch 1", "FGE, epoch 2", "their mean"]
    assert marks.loc["start"].tolist() == [0, 0]
    sides = [float((points[0] - points[1]).norm()), float((points[1] - points[2]).norm())]
    places = marks.to_numpy()
    assert [np.hypot(*(places[0] - places[1])), np.hypot(*(places[1] - places[2]))] == pytest.approx(sides, rel=1e-5)
    assert places[3] == pytest.approx(places[:3].mean(axis=0), abs=1e-4)
    assert table[table["kind"] == "stored"]["label"].tolist() == list(marks.index)[:3]


def test_plane_of_two_runs_has_the_start_of_the_collector(runs: Mapping[str, Path], tmp_path: Path) -> None:
    table, _, _ = drawn("plane", runs["sgd"], runs["swa"], "--grid", 2, "--no-caption", *FEW, cwd=tmp_path)
    assert table[table["kind"] == "mark"]["label"].tolist() == ["SWA, epoch 2", "SGD", "SWA"]


def test_of_the_snapshots_only_the_one_that_is_marked_is_read(runs: Mapping[str, Path], tmp_path: Path) -> None:
    copy = tmp_path.joinpath(*runs["fge"].parts[-6:])
    shutil.copytree(runs["fge"], copy)
    first, *_, last = snapshots.files(copy)
    weights = flat(predictor.read(last.path, trust="own_network").model)
    for file in snapshots.files(copy)[:-1]:
        file.path.write_bytes(b"damaged")
    (run_,) = chosen([str(copy)], [], trust=["own_network"])
    assert torch.equal(mark_at(run_, 2.0).vector, weights)
    with pytest.raises(InputError) as raised:
        mark_at(run_, 0.0)
    assert str(raised.value).startswith(f"{first.path}: ")


def test_rays_go_the_same_ways_from_each_run(runs: Mapping[str, Path], tmp_path: Path) -> None:
    options = ("--directions", 2, "--points", 3, "--distance", 2.5, *FEW)
    table, seen, _ = drawn("rays", runs["sgd"], runs["swa"], *options, cwd=tmp_path)
    assert len(table) == 2 * (1 + 2 * 2)
    assert sorted(table["distance"].unique()) == [0, 1.25, 2.5]
    assert "(mean over 2 directions ± its standard error)" in seen
    # |w + t d|^2 - |w|^2 - t^2 = 2 t <w, d>, which a direction has in common for both lengths.
    sgd = table[table["run"] == "SGD"].set_index(["direction", "distance"])["norm"] ** 2
    for direction in (0, 1):
        slopes = [(sgd[direction, t] - sgd[-1, 0.0] - t * t) / (2 * t) for t in (1.25, 2.5)]
        assert slopes[0] == pytest.approx(slopes[1], abs=1e-4)
    own, _, _ = drawn("rays", runs["swa"], *options, cwd=tmp_path)
    columns = ["direction", "distance", "test_error", "train_loss", "norm"]
    whole = table.loc[table["run"] == "SWA", columns].sort_values(["direction", "distance"])
    pandas.testing.assert_frame_equal(
        whole.reset_index(drop=True), own[columns].sort_values(["direction", "distance"]).reset_index(drop=True)
    )


NETWORK = """
import os

import torch


class Drawn(torch.nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.register_buffer("features", torch.randn(3072, 16) / 55)
        self.linear = torch.nn.Linear(16, num_classes)

    def forward(self, images):
        if "FAILS" in os.environ:
            raise KeyError("no such\\nlayer")
        return self.linear(images.flatten(1) @ self.features)
"""


def test_a_network_keeps_the_buffers_that_it_has_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without BN and dropout a run is the same network as it is stored, and as a point of a line or of a ray."""
    (tmp_path / "drawn_network.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "model").mkdir()
    (tmp_path / "model/drawn.yaml").write_text("_target_: drawn_network.Drawn\n")
    words = ("--config-dir", str(tmp_path), "experiment=quickstart", "model=drawn", "device=cpu", "precision=fp32")
    done = run("-m", *words, "budget=0.2", "method=sgd,sam", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    named = (*folders(tmp_path), "trust=drawn_network", "--device", "cpu")
    table, _, _ = drawn("line", *named, "--points", 2, cwd=tmp_path)
    marks = table[table["label"] == "SGD"].set_index("kind")
    assert marks.loc["mark", "test_nll"] == marks.loc["stored", "test_nll"]
    rays, _, _ = drawn("rays", *named, "--points", 2, "--directions", 1, cwd=tmp_path)
    start = rays[(rays["run"] == "SGD") & (rays["distance"] == 0)]
    assert start["test_nll"].tolist() == [marks.loc["stored", "test_nll"]]
    words = ("broadopt-figure", "line", *map(str, named), "--points", "3")
    code, out, errors = said(*words, cwd=tmp_path, FAILS="1")
    assert (code, out) == (1, "")
    line = "broadopt-figure: KeyError: 'no such\\nlayer' (HYDRA_FULL_ERROR=1 shows where)"
    assert errors == f"{line}\n"
    _, _, errors = said(*words, cwd=tmp_path, FAILS="1", HYDRA_FULL_ERROR="1")
    assert errors.startswith("Traceback ")
    assert errors.endswith(f"{line}\n")


def test_the_l2_term_is_that_of_all_runs_or_of_none(runs: Mapping[str, Path], tmp_path: Path) -> None:
    """One surface is drawn, which is a loss of all runs; AdamW's weight decay is a term of none."""
    (tmp_path / "trained").mkdir()
    trained = ("method=sgd", "weight_decay=0.25", "optimizer=sgd,adamw", "augmentation.pad=2", "budget=0.2")
    done = run("-m", *SMALL, *trained, cwd=tmp_path / "trained")
    assert done.returncode == 0, done.stderr
    optimizers = {result(folder)["config"].get("optimizer", {}).get("_target_", "sgd"): folder
                  for folder in folders(tmp_path / "trained")}  # fmt: skip
    decayed, adamw = optimizers["sgd"], optimizers["broadopt.methods.steps.optimizers.adamw"]

    titles: list[bool] = []

    def loss(*named: Path) -> tuple[pandas.DataFrame, str]:
        table, _, _ = drawn("rays", *named, "--directions", 1, "--points", 2, *FEW, cwd=tmp_path)
        text = (tmp_path / "rays.csv").read_text()
        titles.append("train loss with L2, nats -->" in (tmp_path / "rays.svg").read_text())
        return table, text[text.index("not augmented, ") :].split("; ")[0].removeprefix("not augmented, ")

    for folder, words in ((runs["sgd"], "plus 0.00025 ‖w‖²"), (decayed, "plus 0.125 ‖w‖²")):
        table, said_ = loss(folder)
        assert said_ == words
        expected = table["train_loss"] + result(folder)["config"]["weight_decay"] / 2 * table["norm"] ** 2
        assert table["train_objective"].tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    for others, why in (
        ((runs["sgd"], decayed), "the runs have different weight decays (0.0005, 0.25)"),
        ((runs["sgd"], adamw), "weight decay is a term of the loss with SGD, not with adamw"),
        ((adamw,), "weight decay is a term of the loss with SGD, not with adamw"),
    ):
        table, said_ = loss(*others)
        assert said_ == f"without an L2 term, since {why}"
        assert table["train_objective"].tolist() == table["train_loss"].tolist()
    assert titles == [True, True, False, False, False]
    # The runs were not augmented alike: that of the first decides, and is named where another was augmented otherwise.
    loss(runs["sgd"], decayed)
    label = (tmp_path / "rays.csv").read_text().splitlines()[1].split(":")[0].removeprefix("# run ")
    assert f"augmented training images (as {label} augments them) in batches" in (tmp_path / "rays.csv").read_text()
    loss(decayed, adamw)
    assert "augmented training images in batches" in (tmp_path / "rays.csv").read_text()


def test_what_a_figure_lacks_is_named_with_the_command_that_makes_it(runs: Mapping[str, Path], tmp_path: Path) -> None:
    sgd, swa, fge, bare = (runs[name] for name in ("sgd", "swa", "fge", "bare"))
    again = f"broadopt-run repeat={bare} precision=fp32 results_dir={bare.parents[4]} trust=own_network"
    assert refused("plane", bare, "--at", 0, 1, 2, *FEW, cwd=tmp_path) == (
        f"{bare} has kept no snapshots; {again} keep=snapshots force=true keeps them"
    )
    assert refused("line", swa, bare, *FEW, cwd=tmp_path) == (
        f"{bare} has kept no predictor.safetensors; {again} checkpoint.predictor=true force=true keeps it"
    )
    assert refused("line", sgd, fge, *FEW, cwd=tmp_path) == (
        f"{fge}: an ensemble (fge) is not one network; expected another run"
    )
    assert refused("line", sgd, swa, "--device", "cpu", cwd=tmp_path) == (
        f"{sgd}: it names own_network.Small, which is not broadopt's: trust=own_network runs that code, once you have "
        "read it"
    )
    assert refused("plane", sgd, *FEW, cwd=tmp_path) == (
        f"{sgd}: sgd collects no weights; expected a run of SWA or FGE"
    )


def test_that_command_keeps_it_where_the_run_lies_now(runs: Mapping[str, Path], tmp_path: Path) -> None:
    """In a results folder that was moved since its config.yaml was written, to one whose name a shell divides."""
    moved, elsewhere = tmp_path / "moved here's #1", tmp_path / "elsewhere"
    shutil.copytree(runs["bare"].parents[4], moved)
    elsewhere.mkdir()
    bare = moved / runs["bare"].relative_to(runs["bare"].parents[4])
    line = refused("plane", bare, "--at", 0, 1, 2, *FEW, cwd=elsewhere)
    command = line.removeprefix(f"{bare} has kept no snapshots; ").removesuffix(" keeps them")
    program, *words = shlex.split(command)
    assert program == "broadopt-run"
    done = run(*words, cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(elsewhere.iterdir()) == []
    kept, expected = ([file.path.name for file in snapshots.files(folder)] for folder in (bare, runs["sgd"]))
    assert kept == expected != []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], 'figure "plan" is none of {names}; did you mean "plane"?'),
        (["--images", "3"], "expected a figure ahead of all else, one of plane, "),
        (["line"], "line needs 2 runs: name run folders, or select them as method=sgd,swa seed=1"),
        (["line", "{sgd}"], "line needs 2 runs; found 1: {sgd}"),
        (["line", "{sgd}", "{sgd}"], "the two points are equal: expected two that span a line"),
        (["rays", "{sgd}", "{sgd}"], "rays: a run was named twice; expected different runs"),
        (["curves", "/etc"], "/etc: holds no result.json; expected the folder of a finished run"),
        (["schematic", "{sgd}"], "{sgd}: schematic is drawn without runs; expected options alone"),
        (["line", "{sgd}", "{swa}", "--points", "1"], "argument --points: 1: expected a whole number from 2 to 2001"),
        (["line", "{sgd}", "{swa}", "--margin", "x"], "argument --margin: x: expected a number > 0; see"),
        (["line", "{sgd}", "{swa}", "--at", "1"], "unknown option --at"),
        (["plane", "{sgd}", "{swa}", "--at", "1", "2", "3"], "--at names snapshots of one run; expected one RUN"),
        (["plane", "{fge}", "--at", "1", "1", "2"], "{fge}: 2 different snapshots; expected three (--at E E E names"),
        (["plane", "{fge}", "--at", "1", "1", "1"], "{fge}: 1 different snapshot; expected three (--at E E E names"),
        (["plane", "{sgd}", "--start", "1"], "--start names the third point beside two runs; expected two RUNs"),
        (["schematic", "--format", "jpg"], '--format "jpg" is none of png, svg, pdf'),
        (["schematic", "--style", "none"], "--style none: expected a matplotlib style file; there is no such file"),
        (["curves", "{sgd}", "--images", "100"], "--images: curves does not read it; see broadopt-figure curves "),
        (["spectrum", "{sgd}", "--images=100"], "--images: spectrum does not read it; see broadopt-figure spectrum "),
        (["calibration", "{sgd}", "--train-images", "9"], "--train-images: calibration does not read it; see "),
        (["trajectory", "{sgd}", "--device", "cpu"], "--device: trajectory does not read it; see "),
        (["schematic", "--seed", "2"], "--seed: schematic does not read it; see "),
        (["rays", "{sgd}", "--device", "gpu"], "--device gpu: expected auto, cpu, cuda or cuda:N"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line(arguments: list[str], message: str, runs: Mapping[str, Path], tmp_path: Path) -> None:
    words = [word.format(**runs) for word in arguments]
    reads = arguments[0] in FIGURES and "--device" in FIGURES[arguments[0]].reads and "--device" not in arguments
    trusted = FEW[-3:] if {"{sgd}", "{fge}"} & {*arguments} and reads else ()
    expected = message.format(**runs, names=", ".join(FIGURES))
    assert refused(words[0], *words[1:], *trusted, cwd=tmp_path).startswith(expected)


def test_files_that_are_no_weights_are_one_line(runs: Mapping[str, Path], tmp_path: Path) -> None:
    """A FIFO, at which a reader would wait for ever, and weights whose recipe is no recipe."""
    copy = tmp_path.joinpath(*runs["sgd"].parts[-6:])
    shutil.copytree(runs["sgd"], copy, ignore=shutil.ignore_patterns("snapshots", "*.safetensors"))
    (tmp_path / "cwd").mkdir()
    os.mkfifo(copy / predictor.NAME)
    assert refused("rays", copy, *FEW, cwd=tmp_path / "cwd") == (
        f"{copy / predictor.NAME}: a device, a FIFO or a socket, not a regular file"
    )
    (copy / predictor.NAME).unlink()
    for record in ("[]", "7", "{}"):
        metadata = {"identity": identity_of(json.loads(record)), "recipe": record, "classes": "[0, 1]"}
        save_file({"weight": torch.zeros(1)}, copy / predictor.NAME, metadata=metadata)
        line = refused("rays", copy, *FEW, cwd=tmp_path / "cwd")
        assert line.startswith(f"{copy / predictor.NAME}: ")


def test_a_style_that_cannot_be_rendered_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "style").write_text("savefig.dpi: 100000000\n")
    code, out, err = said("broadopt-figure", "schematic", "--style", "style", cwd=tmp_path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("broadopt-figure: the figure cannot be rendered: Image size of ")
    assert [path.name for path in tmp_path.iterdir()] == ["style"]


@pytest.mark.parametrize("count", [1, 9])
def test_names_that_are_no_mathtext_are_drawn_as_they_are(tmp_path: Path, count: int) -> None:
    """At the ends of few lines, in the legend of many, and in the caption."""
    request = Request(figure="rays", runs=(), options=Namespace(), output=tmp_path / "rays", formats=("svg",))
    with styled(None):
        figure = Figure()
        axes = figure.subplots()
        (line,) = axes.plot([0, 1], [0, 1])
        axes.margins(0)
        name_lines(axes, [End(1, 1, "own $run_$ of {mine", line, "k")] * count)
        rows = pandas.DataFrame({"x": [1]})
        write(Drawing(figure=figure, rows=rows, caption="of $run_$ {mine", seen=""), request)
    drawn = (tmp_path / "rays.svg").read_text()
    assert drawn.count("<!-- own $run_$ of {mine -->") == count
    assert drawn.count("<!-- of $run_$ {mine -->") == 1


def test_levels_double_their_distance_to_the_least() -> None:
    found = levels(np.array([[1.0, 3.0], [np.nan, 2.0]]))
    assert found == [1 + 2 / 2**power for power in range(7, 0, -1)]
    assert levels(np.array([[1.0, 1.0]])) == []


def test_a_grid_is_square_around_its_points() -> None:
    assert square([(0, 0), (4, 0), (1, 2)], 0.25) == [(-1, 5), (-2, 4)]
