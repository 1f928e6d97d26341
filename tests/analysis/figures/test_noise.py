"""Accuracy against label noise: the numbers behind the figure, worked out by hand, from stored runs."""

from pathlib import Path

import pytest
from in_process import read_csv, said
from stored import record, store

from broadopt.analysis.figures.catalogue import FIGURES, function_of
from broadopt.analysis.figures.request import parse

ROW = "experiment=label_noise/resnet32"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SGD and SAM at two shares, two seeds each; SWA at one; one run on the labels of a file."""
    root = tmp_path_factory.mktemp("noise") / "results"
    reported = {"1": 60.0, "1.5": 61.0, "ema 1.5": 62.0}
    for share in (0.2, 0.4):
        for seed in (1, 2):
            noise = f"dataset.label_noise={share}"
            sgd, sam = 90 - 50 * share + seed, 95 - 50 * share + 2 * seed
            store(root, record(ROW, noise, seed=seed), last=sgd, best=99.0)
            store(root, record(ROW, "method=sam", noise, seed=seed), last=sam, best=99.5)
    store(root, record(ROW, "method=swa", "dataset.label_noise=0.2"), last=50.0, collected=reported)
    store(root, record(ROW, "method=asam", "dataset.noise=labels.npy"))
    return root


def drawn(results: Path, cwd: Path, *words: str) -> tuple[int, str, str]:
    return said("broadopt-figure", "noise", *words, "--results", str(results), "--format", "png", cwd=cwd)


def test_a_line_has_the_mean_of_the_seeds_at_each_share(results: Path, tmp_path: Path) -> None:
    code, output, errors = drawn(results, tmp_path, "method=sgd,sam,swa")
    assert code == 0, errors
    assert "all labels" not in (tmp_path / "noise.csv").read_text()
    request = parse(["noise", "method=sgd,sam,swa", "--results", str(results)])
    (axes,) = function_of(FIGURES["noise"])(request).figure.axes
    assert axes.get_xlabel() == "training labels that are wrong, %"
    rows = read_csv(tmp_path / "noise.csv")
    assert rows[["line", "label_noise", "test_accuracy", "seeds"]].values.tolist() == [
        ["SGD", 0.2, 81.5, 2],
        ["SGD", 0.4, 71.5, 2],
        ["SAM", 0.2, 88.0, 2],
        ["SAM", 0.4, 78.0, 2],
        ["SWA", 0.2, 61.0, 1],  # what it reports: the average after all budgets, not the last weights
    ]
    # SAM is 6 and 7 points better, seed by seed: 6.5 ± 12.706 sd / sqrt(2) with sd = sqrt(1/2).
    assert output == (
        "With 20 % wrong labels, mean ± std (seeds): SGD 81.50 ± 0.71 (2) %; SAM 88.00 ± 1.41 (2) %, +6.50 to SGD (95 "
        "% interval +0.15 to +12.85, paired); SWA 61.00 (1) %, -20.50 to SGD (one seed: no interval can be given).\n"
    )


def test_runs_without_wrong_labels_are_where_every_kind_of_noise_begins(tmp_path: Path) -> None:
    """In the lines of both kinds, and each counted once a seed: their number of seeds is that of the runs."""
    root = tmp_path / "results"
    for seed in (1, 2):
        store(root, record(ROW, "dataset.label_noise=0", seed=seed), last=90.0 + seed)
        for kind, accuracy in (("symmetric", 70.0), ("asymmetric", 60.0)):
            noise = (f"dataset.noise={kind}", "dataset.label_noise=0.4")
            store(root, record(ROW, *noise, seed=seed), last=accuracy + seed)
    code, output, errors = drawn(root, tmp_path, "method=sgd")
    assert code == 0, errors
    columns = ["line", "label_noise", "test_accuracy", "seeds"]
    assert sorted(read_csv(tmp_path / "noise.csv")[columns].values.tolist()) == [
        ["SGD, noise asymmetric", 0.0, 91.5, 2],
        ["SGD, noise asymmetric", 0.4, 61.5, 2],
        ["SGD, noise symmetric", 0.0, 91.5, 2],
        ["SGD, noise symmetric", 0.4, 71.5, 2],
    ]
    assert output.startswith("With 40 % label noise, ")
    assert (
        "is wrong (symmetric and asymmetric); methods of one seed and kind have the same wrong labels."
        in (tmp_path / "noise.csv").read_text()
    )
    request = parse(["noise", "method=sgd", "--results", str(root)])
    (axes,) = function_of(FIGURES["noise"])(request).figure.axes
    assert axes.get_xlabel() == "label noise, %"
    assert [container.lines[0].get_linestyle() for container in axes.containers] == ["-", "--"]


def test_the_zero_of_one_kind_of_noise_is_on_its_line(tmp_path: Path) -> None:
    """And runs without wrong labels are of no kind of noise in the caption; what they share is not compared."""
    root = tmp_path / "results"
    store(root, record(ROW, "dataset.label_noise=0"), last=90.0)
    store(root, record(ROW, "dataset.noise=asymmetric", "dataset.label_noise=0.4"), last=60.0)
    code, output, errors = drawn(root, tmp_path, "method=sgd")
    assert code == 0, errors
    columns = ["line", "label_noise", "test_accuracy"]
    assert read_csv(tmp_path / "noise.csv")[columns].values.tolist() == [["SGD", 0.0, 90.0], ["SGD", 0.4, 60.0]]
    assert output == "With 40 % label noise, mean ± std (seeds): SGD 60.00 (1) %.\n"
    assert (
        "is wrong (asymmetric); methods of one seed have the same wrong labels. With asymmetric noise the share is "
        "that of each class which is taken for another: five of the ten of CIFAR-10, so that half the share of all "
        "labels is wrong, and all of CIFAR-100.\n" in (tmp_path / "noise.csv").read_text()
    )
    store(root, record(ROW, "dataset.label_noise=0.2"), last=80.0)
    code, output, errors = drawn(root, tmp_path, "method=sgd", "dataset.label_noise=0,0.2,0.4")
    assert code == 0, errors
    assert output == (
        "With 0 % label noise, mean ± std (seeds): SGD, noise symmetric 90.00 (1) %; SGD, noise asymmetric: the same "
        "runs as SGD, noise symmetric.\n"
    )


def test_a_run_that_is_named_twice_is_refused(results: Path, tmp_path: Path) -> None:
    """Once by its folder and once by words: it is no second seed."""
    folder = next(results.glob("runs/*/*/sgd/*"))
    code, output, errors = drawn(results, tmp_path, str(folder), "method=sgd")
    assert (code, output) == (2, "")
    assert errors == "broadopt-figure: noise: a run was named twice; expected different runs\n"


def test_the_best_epoch_is_drawn_where_it_is_asked_for(results: Path, tmp_path: Path) -> None:
    code, _, errors = drawn(results, tmp_path, "method=sgd,sam", "--metric", "best")
    assert code == 0, errors
    assert read_csv(tmp_path / "noise.csv")["test_accuracy"].tolist() == [99.0, 99.0, 99.5, 99.5]
    assert "of the best epoch, chosen on the test set" in (tmp_path / "noise.csv").read_text()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("method=sgd,sam", "dataset.label_noise=0.2"),
            "noise: expected runs of a method at two shares of wrong labels",
        ),
        (("method=sgd,asam",), "its labels are of a file, of which no share is recorded"),
        (("method=sgd,sam", "--metric", "lst"), '--metric "lst" is none of reported, last, best'),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    results: Path, tmp_path: Path, words: tuple[str, ...], line: str
) -> None:
    code, output, errors = drawn(results, tmp_path, *words)
    assert (code, output, len(errors.strip().splitlines())) == (2, "", 1), errors
    assert line in errors
    assert list(tmp_path.iterdir()) == []
