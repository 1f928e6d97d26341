"""spectrum, sharpness and normalisation on trained networks: the commands, their files, and the numbers in them."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from command import SMALL, folders, result, run
from in_process import drawn, refused, said
from kept_runs import kept_runs
from matplotlib.figure import Figure
from scipy.sparse.linalg import LinearOperator, eigsh
from stored import record, store
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from broadopt.analysis.figures.curvature.moments import Moment
from broadopt.analysis.figures.curvature.normalisation import _seen_normalisation, crossing
from broadopt.analysis.figures.curvature.scene import Scene
from broadopt.analysis.figures.curvature.sharpness import agreement, gaps
from broadopt.analysis.figures.curvature.spectrum import _over_epochs
from broadopt.analysis.figures.request import parse
from broadopt.analysis.landscape.curvature.losses import Loss
from broadopt.analysis.landscape.curvature.sharpness import Ball, sharpness_in
from broadopt.analysis.landscape.curvature.spectrum import Nodes, Spectrum
from broadopt.analysis.landscape.images import Images
from broadopt.analysis.landscape.networks import reported, snapshot
from broadopt.analysis.landscape.runs import chosen
from broadopt.analysis.landscape.store import key_of
from broadopt.data.datasets import digits
from broadopt.methods.asam import asam_perturbation, scale_of

FEW = ("--train-images", "50", "trust=own_network", "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    with kept_runs("method=sgd,sam", "lr=0.02", cwd=tmp_path_factory.mktemp("runs")) as found:
        yield found


def measured(folder: Path, count: int = 50) -> tuple[nn.Module, Tensor, Tensor]:
    """A run's network and the images that the figures take at seed 1."""
    (one,) = chosen([str(folder)], [], trust=["own_network"])
    return reported(one).model, *Images(one, device=torch.device("cpu")).train(count)


def largest(model: nn.Module, images: Tensor, labels: Tensor, count: int) -> list[float]:
    """The Hessian's largest eigenvalues by scipy, with products by forward over reverse mode, in float64."""
    model, images = model.double(), images.double()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    sizes = [weight.numel() for weight in weights.values()]

    def loss(values: Mapping[str, Tensor]) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, dict(values), (images,)), labels)

    def product(vector: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(vector.reshape(-1)).split(sizes)
        tangent = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        _, found = torch.func.jvp(torch.func.grad(loss), (weights,), (tangent,))
        return torch.cat([found[name].flatten() for name in weights]).numpy()

    operator = LinearOperator((sum(sizes),) * 2, matvec=product, dtype=np.float64)
    start = np.random.RandomState(0).normal(size=sum(sizes))
    return sorted(eigsh(operator, k=count, which="LA", v0=start, return_eigenvectors=False))[::-1]


def test_spectra_are_those_of_the_snapshots_hessians_and_are_drawn_again_from_the_csv(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    arguments = (runs["sgd"], runs["sam"], *FEW, "--steps", "30", "--moments", "2")
    table, seen, _ = drawn("spectrum", *arguments, cwd=tmp_path)
    assert list(table.groupby(["run", "epoch"], sort=False).size()) == [30] * 4
    assert set(zip(table["run"], table["epoch"], strict=True)) == {(m, e) for m in ("SGD", "SAM") for e in (1.0, 2.0)}
    (one,) = chosen([str(runs["sam"])], [], trust=["own_network"])
    expected = largest(snapshot(one, 45).model, *measured(runs["sam"])[1:], count=5)
    own = table[(table["run"] == "SAM") & (table["epoch"] == 1)]
    assert own["eigenvalue"].head(5).tolist() == pytest.approx(expected, rel=1e-3)
    assert own["eigenvalue"].iloc[0] == pytest.approx(expected[0], rel=1e-5)
    assert own["weight"].sum() == pytest.approx(1, rel=1e-6)
    assert seen.startswith("At epoch 2: SGD λmax ")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"spectrum.csv", "spectrum.png", "spectrum.svg"}
    _, again, errors = drawn("spectrum", *arguments, cwd=tmp_path)
    assert again == seen
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "step/s" not in errors  # nothing was measured


def test_sharpness_is_that_of_the_reported_networks_and_the_adaptive_one_survives_rescaling(
    runs: Mapping[str, Path], tmp_path: Path
) -> None:
    table, seen, _ = drawn("sharpness", runs["sgd"], runs["sam"], *FEW, "--m", "20", cwd=tmp_path)
    assert len(table) == 2 * 3 * 4
    known = table.set_index(["run", "network", "ball", "p", "m"])
    loss = Loss(*measured(runs["sam"]))
    ball = Ball(rho=0.005, p=math.inf, scale="element")
    # In float32, where images that lie in memory in another way are summed in another order.
    at_once, in_chunks = sharpness_in(loss, ball, steps=5), sharpness_in(loss, Ball(rho=0.05), steps=5, m=20)
    row = known.loc[("SAM", "stored", "adaptive", math.inf, 0)]
    assert row["highest"] == pytest.approx(at_once.highest, rel=1e-5)
    assert math.isnan(row["error"])
    row = known.loc[("SAM", "stored", "plain", 2.0, 20)]
    assert row["highest"] == pytest.approx(in_chunks.highest, rel=1e-5)
    assert row["error"] == pytest.approx(in_chunks.error, rel=1e-4)
    for method in ("SGD", "SAM"):
        metrics = result(runs[method.lower()])["metrics"]["last"]
        errors = table[table["run"] == method]["test_error"]
        assert errors.unique().tolist() == [pytest.approx(100 - metrics["test_accuracy"], abs=1e-9)]
        for p in (2.0, math.inf):
            plain, adaptive = (
                [known.loc[(method, network, ball, p, 0), "highest"] for network in ("stored", "rescaled")]
                for ball in ("plain", "adaptive")
            )
            assert plain[1] > 1.2 * plain[0]
            assert adaptive[1] == adaptive[0]
    assert "adaptive sharpness by 1;" in seen
    assert seen.endswith("Kendall's τ with the generalisation gap needs 5 runs, here: 2.\n")
    assert set(gaps(table).index) == {"SGD", "SAM"}


def sharp(values: list[float], test_errors: list[float]) -> pandas.DataFrame:
    """Rows of runs that all have a train error of 1 %."""
    constant = {"network": "stored", "ball": "plain", "p": 2.0, "m": 0, "train_error": 1.0}
    images = {"train_images": 400, "test_images": 400}
    return pandas.DataFrame([
        {"run": f"run {number}", "highest": value, "test_error": error, **constant, **images}
        for number, (value, error) in enumerate(zip(values, test_errors, strict=True))
    ])  # fmt: skip


def test_tau_is_kendalls_where_there_are_enough_runs_that_differ() -> None:
    # One pair of ten is in another order: tau = (9 - 1) / 10; 10 of 120 orders are as far from even, or farther.
    assert agreement(sharp([1, 2, 3, 5, 4], [10, 11, 12, 13, 14]), "plain", 2) == pytest.approx((0.8, 10 / 120))
    assert agreement(sharp([1, 2, 3, 4], [10, 11, 12, 13]), "plain", 2) is None
    assert agreement(sharp([1, 1, 1, 1, 1], [10, 11, 12, 13, 14]), "plain", 2) is None


def test_gaps_are_differences_of_errors_with_their_standard_error() -> None:
    found = gaps(sharp([1, 2], [10, 20]))
    assert list(found.index) == ["run 1", "run 0"]
    assert found["gap"].tolist() == [19, 9]
    assert found["error"].tolist() == pytest.approx([math.sqrt((20 * 80 + 99) / 400), math.sqrt((10 * 90 + 99) / 400)])


def test_normalisation_follows_the_perturbations_of_the_training(runs: Mapping[str, Path], tmp_path: Path) -> None:
    table, seen, _ = drawn("normalisation", runs["sgd"], *FEW, "--m", "20", "--points", "5", cwd=tmp_path)
    assert len(table) == 2 * 3 * 5
    model, images, labels = measured(runs["sgd"])
    scales = {weight: scale_of(name, weight, "filter") for name, weight in model.named_parameters()}
    step = partial(asam_perturbation, eta=0.01, p=2.0, scales=scales)
    rises = []
    for start in (0, 20, 40):  # of the 50 images, the last chunk has 10
        loss = Loss(model, images[start : start + 20], labels[start : start + 20])
        before, gradients = loss.gradient()
        with torch.no_grad():
            perturbation = step(loss.parameters, gradients, rho=1.0)
            kept = [weight.clone() for weight in loss.parameters]
            torch._foreach_add_(loss.parameters, perturbation)
            rises.append(loss.value() - before)
            torch._foreach_copy_(loss.parameters, kept)
    row = table[(table["normalisation"] == "filter") & (table["p"] == 2) & (table["rho"] == 1)].iloc[0]
    mean = 0.4 * rises[0] + 0.4 * rises[1] + 0.2 * rises[2]
    squares = [(share * (rise - mean)) ** 2 for share, rise in zip((0.4, 0.4, 0.2), rises, strict=True)]
    assert row["rise"] == pytest.approx(mean, rel=1e-6)
    assert row["error"] == pytest.approx(math.sqrt(sum(squares) * 3 / 2), rel=1e-5)
    assert seen.startswith("ρ at which the loss rises by 0.1 nats, for p = 2: plain ")


def test_a_crossing_is_found_between_the_radii() -> None:
    radii = np.array([0.1, 0.2, 0.5, 1.0])
    assert crossing(radii, radii**2) == pytest.approx(math.sqrt(0.1), rel=1e-12)
    # Linear in the rise where the loss falls first: halfway from -0.1 to 0.3, between the logarithms of 0.2 and 0.5.
    assert crossing(radii, [0.0, -0.1, 0.3, 0.4]) == pytest.approx(math.sqrt(0.2 * 0.5), rel=1e-12)
    assert math.isnan(crossing(radii, radii + 1))
    assert math.isnan(crossing(radii, radii / 100))


def test_radii_that_are_all_too_large_are_said_to_be_so() -> None:
    rows = [
        {"normalisation": kind, "p": p, "rho": rho, "rise": rise, "error": 0.0}
        for kind, first in (("plain", 0.2), ("element", 0.001), ("filter", 0.01))
        for p in (2, math.inf)
        for rho, rise in ((0.1, first), (1.0, 10 * first))
    ]
    assert _seen_normalisation(pandas.DataFrame(rows)).startswith(
        "ρ at which the loss rises by 0.1 nats, for p = 2: plain below the first radius, element at none of the radii, "
        "filter 1; for p = ∞: "
    )


def test_a_rise_that_is_reached_from_a_fall_is_not_said_to_be_at_none_of_the_radii() -> None:
    rows = [
        {"normalisation": kind, "p": p, "rho": rho, "rise": rise, "error": 0.02}
        for kind in ("plain", "element", "filter")
        for p in (2, math.inf)
        for rho, rise in ((0.1, -0.1), (1.0, 0.3))
    ]
    # With one standard error more or less: at 0.45 and 0.55 of the way between the logarithms of 0.1 and 1.
    assert f"plain 0.32 ({10**-0.55:.2g} to {10**-0.45:.2g}), element 0.32 (" in _seen_normalisation(
        pandas.DataFrame(rows)
    )


def test_a_bound_outside_the_radii_is_given_as_its_side() -> None:
    rows = [
        {"normalisation": kind, "p": p, "rho": rho, "rise": rise, "error": error}
        for kind, rises, error in (
            ("plain", (0.09, 0.5), 0.02),
            ("element", (0.01, 0.11), 0.02),
            ("filter", (0.01, 0.11), 0.0),
        )
        for p in (2, math.inf)
        for rho, rise in zip((0.1, 1.0), rises, strict=True)
    ]
    seen = _seen_normalisation(pandas.DataFrame(rows))
    assert "plain 0.12 (below 0.1 to 0.15), element 0.91 (0.66 to above 1), filter 0.91; " in seen


def test_rows_of_images_that_were_not_shuffled_are_not_taken_over(tmp_path: Path) -> None:
    """Only where all training images are used: keys of fewer are those of earlier versions. Labels that are wrong in
    no image are read once, whichever kind of noise a run names.
    """
    words = ("experiment=quickstart", "model=resnet20")
    plain = record(*words)
    named = plain | {"dataset": plain["dataset"] | {"noise": "asymmetric"}}  # as earlier versions recorded it
    stored = [store(tmp_path, one) for one in (plain, named)]
    for count, is_same in ((1437, True), (1438, False), (10_000, False)):
        scene = Scene.of(parse(["sharpness", *map(str, stored), "--train-images", str(count), "--device", "cpu"]))
        runs = [[run.label, run.result["identity"], run.result["metrics"]] for run in scene.request.runs]
        earlier = key_of({"figure": "sharpness", "runs": runs, "seed": 1, "train images": count})
        assert (scene.key({}) == earlier) == is_same
        assert len({id(images) for images in scene.images.values()}) == 1


def test_a_ratio_of_eigenvalues_has_the_bound_of_both_and_none_need_be_positive() -> None:
    def moment(values: list[float]) -> Moment:
        bounds = np.full(5, 0.5)
        nodes = Nodes(values=np.array(values), weights=np.full(5, 0.2), bounds=bounds)
        return Moment(run="SGD", epoch=1.0, spectrum=Spectrum((nodes,)), parameters=10)

    assert moment([2, 3, 4, 5, 6]).ratio == pytest.approx((3, 6.5 / 1.5 - 3), rel=1e-12)
    assert moment([0.5, 3, 4, 5, 6]).ratio == (12, math.inf)
    indefinite = moment([-1, 3, 4, 5, 6])
    assert all(map(math.isnan, indefinite.ratio))
    axes = Figure().subplots()
    _over_epochs(axes, [indefinite], {"SGD": {"color": "k"}}, [indefinite.ratio[0]])
    assert all(map(math.isfinite, axes.get_ylim()))


def test_a_ball_in_which_the_loss_overflows_is_named(runs: Mapping[str, Path], tmp_path: Path) -> None:
    code, out, err = said("broadopt-figure", "sharpness", str(runs["sgd"]), *FEW, "--rho", "1e38", "1", cwd=tmp_path)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert err.endswith(
        f"\nbroadopt-figure: {runs['sgd']}: the loss is not finite at these weights, in the plain ball of rho 1e+38, "
        "p = 2; expected a smaller radius\n"
    )


@pytest.mark.parametrize(
    ("figure", "arguments", "expected"),
    [
        (
            "spectrum",
            ["{bare}"],
            "has kept no snapshots; broadopt-run repeat={bare} precision=fp32 results_dir={bare.parents[4]} "
            "trust=own_network keep=snapshots force=true keeps them",
        ),
        ("sharpness", ["{bare}"], "checkpoint.predictor=true force=true keeps it"),
        ("normalisation", ["{bare}"], "checkpoint.predictor=true force=true keeps it"),
        ("normalisation", ["{sgd}", "{sam}"], "normalisation needs 1 run; found 2"),
        ("spectrum", ["{sgd}", "{sgd}"], "spectrum: a run was named twice"),
        (
            "spectrum",
            ["{sgd}", "--epochs", "1,7"],
            "--epochs 7: expected epochs of which every run has",
        ),
        ("spectrum", ["{sgd}", "--epochs", "last"], "--epochs last: expected numbers >= 0, separated by commas"),
        ("spectrum", ["{sgd}", "--steps", "4"], "expected a whole number from 5 to 1000"),
        ("normalisation", ["{sgd}", "--rho", "1", "0.1"], "--rho 1 0.1: expected the lower end first"),
    ],
)
def test_bad_input_is_one_line(
    runs: Mapping[str, Path], tmp_path: Path, figure: str, arguments: list[str], expected: str
) -> None:
    line = refused(figure, *(one.format(**runs) for one in arguments), *FEW, cwd=tmp_path)
    assert expected.format(**runs) in line


def test_captions_say_that_labels_are_of_a_file(runs: Mapping[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", digits().train.labels.numpy())
    done = run(*SMALL, "budget=0.1", "dataset.noise=labels.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    for figure, words, labels in (
        ("sharpness", ("--m", 20), "training images, not augmented, labels of a file, as in the training; networks"),
        ("rays", ("--directions", 1, "--points", 2), "training images, not augmented, with the labels of a file, plus"),
    ):
        for one, is_said in ((folder, True), (runs["sgd"], False)):
            drawn(figure, one, *words, *FEW, cwd=tmp_path)
            assert (labels in (tmp_path / f"{figure}.csv").read_text()) == is_said
