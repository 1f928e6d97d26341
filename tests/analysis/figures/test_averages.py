"""Ensembles, averages, iterates and calibration of trained runs: against closed forms, stored results, and numpy."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command import OWN, folders
from command import SMALL as SMALL_NETWORK
from in_process import read_csv, said
from safetensors.torch import load_file

from broadopt import snapshots
from broadopt.analysis.figures.catalogue import FIGURES
from broadopt.analysis.landscape.distances import power_law
from broadopt.analysis.landscape.probabilities import at_spread
from broadopt.runs import results

Runs = dict[str, Path]

SMALL = (*SMALL_NETWORK, "batch_size=128")
TRUST = "trust=own_network"


@pytest.fixture(scope="module", autouse=True)
def own_network() -> Iterator[None]:
    """The network of the runs can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(OWN))
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """SWA and FGE with their snapshots, SGD without."""
    cwd = tmp_path_factory.mktemp("averages")
    collected = ("budget=2", "collect.start=0.25", "collect.cycle=0.25", "keep=snapshots")
    for method, words in (("swa", collected), ("fge", collected), ("sgd", ("budget=1",))):
        code, _, errors = said("broadopt-run", *SMALL, f"method={method}", *words, cwd=cwd)
        assert code == 0, errors
    return {folder.parent.name: folder for folder in folders(cwd)}


def drawn(figure: str, *words: str, cwd: Path, **environment: str) -> str:
    device = ("--device", "cpu") if "--device" in FIGURES[figure].reads else ()
    arguments = (figure, *words, TRUST, "--format", "png", *device)
    code, output, errors = said("broadopt-figure", *arguments, cwd=cwd, **environment)
    assert code == 0, errors
    assert (cwd / f"{figure}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return output


def test_the_slopes_of_a_smooth_model_are_one_and_two() -> None:
    """Softmax of a linear map, close to its mean, where the Taylor expansion holds."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    weights = 1e-3 * torch.randn(5, 24, generator=generator, dtype=torch.float64)

    def predict(vector: torch.Tensor) -> torch.Tensor:
        return (images @ vector.view(6, 4)).log_softmax(dim=1)

    swa = predict(weights.mean(dim=0))
    rows = [at_spread(predict, weights, 2 ** (-k / 2), swa=swa) for k in range(6)]
    spreads = [row["delta"] for row in rows]
    assert power_law(spreads, [row["among"] for row in rows]).slope == pytest.approx(1, abs=1e-4)
    assert power_law(spreads, [row["against_swa"] for row in rows]).slope == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("method", ["sgd", "swa", "fge"])
def test_the_calibration_error_of_a_run_is_found_again(runs: Runs, tmp_path: Path, method: str) -> None:
    output = drawn("calibration", str(runs[method]), cwd=tmp_path)
    metrics = json.loads((runs[method] / "result.json").read_text())["metrics"]
    stored = metrics["collected"][max(metrics["collected"], key=float)] if metrics["collected"] else metrics["last"]
    rows = read_csv(tmp_path / "calibration.csv")
    assert rows[["test_accuracy", "nll", "ece"]].drop_duplicates().values.tolist() == [
        [stored["test_accuracy"], stored["test_nll"], stored["test_ece"]]
    ]
    assert rows["images"].sum() == 359
    assert f"{method.upper()} NLL {stored['test_nll']:.4f} ± " in output
    assert "The ECE is that of the run's own result." in (tmp_path / "calibration.csv").read_text()


@pytest.mark.parametrize(("images", "is_taken"), [(3, True), (4, False)])
def test_few_test_images_may_be_classified_otherwise_than_in_the_training(
    runs: Runs, tmp_path: Path, images: int, is_taken: bool
) -> None:
    """Three of the 359, which are 0.84 points, but no more."""
    folder = tmp_path.joinpath(*runs["sgd"].parts[-6:])
    shutil.copytree(runs["sgd"], folder)
    stored = json.loads((folder / "result.json").read_text())
    reached = stored["metrics"]["last"]["test_accuracy"]
    stored["metrics"]["last"]["test_accuracy"] -= 100 * images / 359
    results.write(folder, {key: value for key, value in stored.items() if key != "checksum"})
    code, _, errors = said("broadopt-figure", "calibration", str(folder), TRUST, "--device", "cpu", cwd=tmp_path)
    assert code == (0 if is_taken else 2), errors
    assert is_taken or errors.startswith(
        f"broadopt-figure: {folder}: what it has kept reaches {reached:.2f} % on the test set, its result says "
    )


def test_calibration_counts_the_test_images_of_each_data_set(
    runs: Runs, tmp_path: Path, small_cifar: Callable[..., Path]
) -> None:
    small_cifar()
    words = ("dataset=cifar10", f"data_dir={tmp_path}", "dataset.verify=false", "budget=1", "batch_size=4")
    code, _, errors = said("broadopt-run", *SMALL, *words, cwd=tmp_path)
    assert code == 0, errors
    (other,) = folders(tmp_path)
    drawn("calibration", str(runs["sgd"]), str(other), cwd=tmp_path, BROADOPT_DATA=str(tmp_path))
    assert (
        " on 4 test images of cifar10 and 359 of digits, the same for all runs of a data set, "
        in (tmp_path / "calibration.csv").read_text()
    )


@pytest.mark.parametrize("figure", ["calibration", "trajectory"])
def test_a_run_that_is_named_twice_is_refused(runs: Runs, tmp_path: Path, figure: str) -> None:
    code, output, errors = said("broadopt-figure", figure, str(runs["swa"]), str(runs["swa"]), TRUST, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors == f"broadopt-figure: {figure}: a run was named twice; expected different runs\n"


def vectors(folder: Path) -> dict[int, np.ndarray]:
    """The parameters of each snapshot, by step: float64."""
    found = {}
    for path in sorted((folder / "snapshots").iterdir()):
        tensors = load_file(path)
        kept = [
            value for name, value in sorted(tensors.items()) if "running_" not in name and "num_batches" not in name
        ]
        found[int(path.stem[5:])] = np.concatenate([tensor.double().numpy().ravel() for tensor in kept])
    return found


def test_the_distances_of_iterates_are_those_that_numpy_finds(runs: Runs, tmp_path: Path) -> None:
    output = drawn("trajectory", str(runs["swa"]), "--from", "0", cwd=tmp_path)
    rows = read_csv(tmp_path / "trajectory.csv")
    weights = np.stack(list(vectors(runs["swa"]).values()))
    assert len(rows) == len(weights) > 3
    mean = weights.mean(axis=0)
    apart = np.linalg.norm(weights[:, None] - weights[None], axis=2)
    assert rows["from_mean"].tolist() == pytest.approx(np.linalg.norm(weights - mean, axis=1), rel=1e-9)
    assert rows["from_others"].tolist() == pytest.approx(apart.sum(axis=1) / (len(weights) - 1), rel=1e-9)
    assert rows["from_previous"].tolist()[1:] == pytest.approx(np.diagonal(apart, 1), rel=1e-9)
    assert rows["running_mean_from_mean"].iloc[0] == pytest.approx(rows["from_mean"].iloc[0], rel=1e-9)
    assert rows["running_mean_from_mean"].iloc[-1] == 0
    assert output.startswith(f"Distance of the iterates, mean ± standard deviation over snapshots: SWA: "
                             f"{rows['from_mean'].mean():.3g} ± ")  # fmt: skip


def test_a_collector_that_begins_with_the_training_has_all_of_it_drawn(tmp_path: Path) -> None:
    """Its start is epoch 0, which is not the lack of one: without a collector the second half is drawn."""
    words = ("method=sgd", "budget=2", "keep=snapshots")
    for collect, line in (("ema", ""), ("none", "has 2 snapshots from epoch 1 on; expected three at least")):
        cwd = tmp_path / collect
        cwd.mkdir()
        code, _, errors = said("broadopt-run", *SMALL, *words, f"collect={collect}", cwd=cwd)
        assert code == 0, errors
        code, _, errors = said("broadopt-figure", "trajectory", str(*folders(cwd)), TRUST, "--format", "png", cwd=cwd)
        assert (code, line in errors) == (2 if line else 0, True), errors
    assert read_csv(tmp_path / "ema/trajectory.csv")["epoch"].tolist() == [0, 1, 2]


def test_the_ensemble_is_drawn_from_the_snapshots_that_were_collected(runs: Runs, tmp_path: Path) -> None:
    words = ("--images", "40", "--train-images", "64", "--shares", "3", "--members", "3")
    output = drawn("ensemble", str(runs["fge"]), *words, cwd=tmp_path)
    rows = read_csv(tmp_path / "ensemble.csv")
    assert rows["share"].tolist() == [1.0, 2**-0.5, 0.5]
    collected = sorted(vectors(runs["fge"]).items())
    points = json.loads((runs["fge"] / "result.json").read_text())["metrics"]["collected"]["1"]["members"]
    assert points == 3
    # Three cycles of half an epoch, from epoch 0.5 on: their middles are at epochs 0.75, 1.25 and 1.75.
    steps = [round(epoch * collected[-1][0] / 2) for epoch in (0.75, 1.25, 1.75)]
    taken = np.stack([vector for step, vector in collected if step in steps])
    spread = np.linalg.norm(taken - taken.mean(axis=0), axis=1).max()
    assert rows["delta"].tolist() == pytest.approx([spread, spread / 2**0.5, spread / 2], rel=1e-6)
    assert (rows["among"].diff().dropna() < 0).all()
    assert output.startswith("Slopes ")
    assert (
        "40 test images; BN re-estimated at all weights on 64 augmented training images; fp32 on cpu; seed of the "
        "runs 1, of the figure 1. " in (tmp_path / "ensemble.csv").read_text()
    )


@pytest.mark.parametrize(
    ("figure", "method", "words", "line"),
    [
        (
            "trajectory",
            "sgd",
            (),
            "{0} has kept no snapshots; broadopt-run repeat={0} precision=fp32 results_dir={1} trust=own_network "
            "keep=snapshots force=true keeps them",
        ),
        ("ensemble", "sgd", (), "{}: sgd collects no weights; expected a run of SWA or FGE"),
        ("trajectory", "swa", ("--from", "99"), "{} has 0 snapshots from epoch 99 on; expected three at least"),
    ],
)
def test_what_is_lacking_is_said_in_one_line(
    runs: Runs, tmp_path: Path, figure: str, method: str, words: tuple[str, ...], line: str
) -> None:
    folder = str(runs[method])
    code, output, errors = said("broadopt-figure", figure, folder, TRUST, *words, cwd=tmp_path)
    assert (code, output, len(errors.strip().splitlines())) == (2, "", 1), errors
    assert errors.startswith(f"broadopt-figure: {line.format(folder, runs[method].parents[4])}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("epoch", [0.75, 1.25, 1.75])
@pytest.mark.parametrize("figure", ["calibration", "ensemble", "plane"])
def test_a_member_that_is_lacking_is_named_with_the_command_that_makes_all(
    runs: Runs, tmp_path: Path, figure: str, epoch: float
) -> None:
    """Also where it is the last, as of a run that has gone on without keep=snapshots."""
    moved = tmp_path / "moved here"
    shutil.copytree(runs["fge"].parents[4], moved)
    folder = moved / runs["fge"].relative_to(runs["fge"].parents[4])
    kept = snapshots.files(folder)
    # Three cycles of half an epoch, from epoch 0.5 on: their middles are at epochs 0.75, 1.25 and 1.75 of 2.
    step = round(epoch * kept[-1].step / 2)
    assert step in [file.step for file in kept]
    for file in kept:
        if file.step == step or file.step > step > 1.5 * kept[-1].step / 2:
            file.path.unlink()
    (tmp_path / "here").mkdir()
    code, output, errors = said("broadopt-figure", figure, str(folder), TRUST, "--device", "cpu", cwd=tmp_path / "here")
    assert (code, output) == (2, ""), errors
    assert errors == (
        f"broadopt-figure: {folder} has snapshots of 2 members, its ensemble has 3; broadopt-run 'repeat={folder}' "
        f"precision=fp32 'results_dir={moved}' trust=own_network keep=snapshots force=true keeps all\n"
    )
