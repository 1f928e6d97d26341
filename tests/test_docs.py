"""README and docs/ are followed as they stand: files written, commands and Python run, and what comes of it."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path

import documents
import pandas
import pytest
import torch
from documents import DOCUMENTS, Ran, blocks, followed, prepared, section, text
from torch import nn


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which README was followed."""
    return prepared(tmp_path)


def output_of(ran: list[Ran], pattern: str) -> str:
    """What the one line that `pattern` is found in has printed."""
    (found,) = [one.output for one in ran if re.search(pattern, one.line)]
    return found


def result_of(folder: Path, place: str) -> dict:
    (path,) = (folder / "results/runs").glob(f"{place}/result.json")
    return json.loads(path.read_text())


def of_small_net(folder: Path) -> Iterator[tuple[dict, pandas.DataFrame]]:
    """Result and history of SGD's runs on the small network."""
    for path in (folder / "results/runs/digits/small_net/sgd").glob("*/result.json"):
        yield json.loads(path.read_text()), pandas.read_csv(path.with_name("history.csv"))


def test_readme(folder: Path) -> None:
    ran = followed("README.md", folder)

    assert "Would install broadopt-" in output_of(ran, "^pip install")
    assert output_of(ran, "-m experiment=quickstart").count("finished: results/runs/digits/resnet20/") == 5
    assert "**digits, resnet20, protocol swa2018, budget 0.1 epochs" in output_of(ran, "^broadopt-table runs  ")
    assert "asam on wrn28_10, cifar100, protocol asam2021" in output_of(ran, "table3/wrn28_10")
    assert "asam, small_net, digits, seed 1" in output_of(ran, "model=small_net experiment=quickstart method=asam")
    assert "/small_net/random_sam/seed1-" in output_of(ran, "step=random_sam")
    assert "swa on resnet20, cifar100, protocol ours" in output_of(ran, "protocol=ours")
    for line in (
        "budget           30.0  what we can afford",
        "lr               0.2  searched on 5,000 held-out images",
    ):
        assert re.sub(r"\s+", " ", line) in re.sub(r"[ ]+", " ", output_of(ran, "protocol=ours"))
    sweep = output_of(ran, "method=sgd,sam,asam")
    assert (sweep.count("\nfinished: "), sweep.count("already finished: ")) == (8, 1)  # ASAM's run of the section above
    check_the_csv(folder)
    check_pandas(folder, output_of(ran, "load_results"))


def check_the_csv(folder: Path) -> None:
    """runs.csv has the mean of the three SAM runs on the small network."""
    runs = [
        json.loads(path.read_text()) for path in (folder / "results/runs/digits/small_net/sam").glob("*/result.json")
    ]
    with (folder / "runs.csv").open() as lines:
        (row,) = [
            row
            for row in csv.DictReader(lines)
            if (row["model"], row["method"], row["quantity"], row["metric"])
            == ("small_net", "sam", "test_accuracy", "last")
        ]
    accuracies = [run["metrics"]["last"]["test_accuracy"] for run in runs]
    assert (row["n"], len(runs)) == ("3", 3)
    assert float(row["mean"]) == pytest.approx(sum(accuracies) / 3, abs=1e-6)


def check_pandas(folder: Path, printed: str) -> None:
    """README's lines print a line a network and method; SAM's on the small network is that of its three runs."""
    paths = list((folder / "results/runs").glob("digits/small_net/sam/*/result.json"))
    series = pandas.Series([json.loads(path.read_text())["metrics"]["last"]["test_accuracy"] for path in paths])
    (line,) = [line for line in printed.splitlines() if line.split()[0] == "sam" and line.split()[-1] == "3"]
    assert [float(word) for word in line.split()[1:3]] == pytest.approx([series.mean(), series.std()], abs=1e-4)


def test_howto(folder: Path) -> None:
    ran = followed("docs/howto.md", folder)

    noisy = output_of(ran, "dataset.label_noise=0.4 dataset.validation=200")
    assert "finished: " in noisy
    assert "best of 6 by validation accuracy: " in output_of(ran, "hydra/sweeper=optuna").splitlines()[-1]
    assert "finished: again/runs/digits/resnet20/sgd/seed1-b1a30e55" in output_of(ran, "repeat=")
    assert output_of(ran, "hydra/launcher=local").rstrip().splitlines()[-1].startswith("4 runs, ")
    assert "asam on wrn28_10" in output_of(ran, "^torchrun")
    assert "Table 3" in output_of(ran, "--watch")
    assert "trunk=share: trains 519 of 700 epochs" in output_of(ran, "trunk=share plan=true")
    assert (
        len(list((folder / "merged/runs").rglob("result.json")))
        == len(list((folder / "results/runs").rglob("result.json"))) - 3  # of code of one's own, made below
    )
    assert (folder / "kept.html").read_text().count('src="data:image/') == 1
    interval = result_of(folder, "digits/small_net/interval_sam+swa/*")
    assert interval["cost"]["gradient_evaluations"] == 68 + 13  # 68 steps of 1.5 epochs, every fifth with two gradients
    schedules = {
        result["config"]["schedule"]["_target_"]: result["config"]["lr"] / float(history["lr"].iloc[-1])
        for result, history in of_small_net(folder)
    }
    assert schedules["halving.halving"] == 2**4  # in the last fifth of the budget
    assert result_of(folder, "two_colours/small_net/sgd/*")["config"]["dataset"]["fingerprint"].startswith("sha256:")


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path.stem not in ("README", "howto")], ids=str)
def test_the_other_documents(document: Path, folder: Path) -> None:
    for ran in followed(document, folder):
        if remark := re.search(r"# .*: ([\d.]+) device hours needed", ran.line):
            assert f" {remark[1]} needed" in " ".join(ran.output.split())


def test_only_what_cannot_be_run_is_substituted() -> None:
    used: set[str] = set()
    lines = [
        line
        for document in DOCUMENTS
        for block in blocks(text(document))
        if block.language == "bash"
        for line in documents.lines_of(block)
    ]
    changed = [line for line in lines if documents.substituted(line, used) != re.sub(r"\s+# .*$", "", line.strip())]
    assert used == set(documents.SUBSTITUTES), "a substitute without a command"
    assert len(changed) < 0.6 * len(lines)


def test_the_methods_serve_a_loop_of_ones_own() -> None:
    namespace: dict = {}
    exec(blocks(section("docs/howto.md", "The methods in a loop of your own"))[0].content, namespace)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    batches = [(torch.randn(6, 3, 8, 8), torch.arange(6) % 5) for _ in range(3)]
    test_images = torch.randn(7, 3, 8, 8)
    weights = []

    class Recorded(list):
        """The batches, noting the weights at the end of each epoch."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from batches
            weights.append([parameter.detach().clone() for parameter in model.parameters()])

    network, probabilities = namespace["train"](model, Recorded(batches), test_images, 4)

    assert probabilities.sum(dim=1).tolist() == pytest.approx([1.0] * 7)
    for averaged, *seen in zip(network.parameters(), *weights[:4], strict=True):
        torch.testing.assert_close(averaged, torch.stack(seen).mean(dim=0))
    inputs = torch.cat([network[0](images) for images, _ in batches])
    torch.testing.assert_close(network[1].running_mean, inputs.mean(dim=(0, 2, 3)))
