"""What a finished run leaves is enough to make it anew, and to use its network."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from command import SMALL, folders, history, result, run, same_outcome
from safetensors import safe_open
from torch import nn

from broadopt.config.compose import compose, run_config
from broadopt.config.identity import identity_of
from broadopt.data.datasets import digits
from broadopt.errors import InputError
from broadopt.predictor import load
from broadopt.runs import results
from broadopt.runs.repeat import repeated

HOWTO = (Path(__file__).parents[2] / "docs/howto.md").read_text()
QUICK = ("experiment=quickstart", "model=resnet20", "model.depth=8", "budget=0.2", "collect.budgets=[1]")


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that left its network: SAM with SWA, ResNet-8, in fp32 as a predictor computes."""
    cwd = tmp_path_factory.mktemp("left")
    done = run(*QUICK, "method=sam", "collect=swa", "checkpoint.predictor=true", "precision=fp32", cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(cwd)
    return folder


def test_a_run_is_repeated_bit_for_bit_from_its_folder(left: Path, tmp_path: Path) -> None:
    done = run(f"repeat={left}", "checkpoint.predictor=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    assert folder.name == left.name
    assert same_outcome(folder, left)
    assert not (folder / "predictor.safetensors").exists()


def test_a_run_of_a_former_version_is_repeated(left: Path, tmp_path: Path) -> None:
    text = (left / "config.yaml").read_text()
    assert "\ngraphs: auto\n" in text
    for name, words in {"now": text, "former": text.replace("\ngraphs: auto\n", "\ncuda_graphs: true\n")}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(words)
    once_more = repeated([f"repeat={tmp_path / 'former'}"]).run
    assert once_more == repeated([f"repeat={tmp_path / 'now'}"]).run
    assert once_more.execution.graphs == "auto"


def test_another_seed_may_be_given(left: Path, tmp_path: Path) -> None:
    done = run(f"repeat={left}", "seed=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    config, expected = result(folder)["config"], result(left)["config"]
    assert config == expected | {"seed": 5}
    assert history(folder) != history(left)


def test_a_finished_result_is_set_aside_only_where_that_is_typed(left: Path, tmp_path: Path) -> None:
    """Whatever the first run was told: its config.yaml may be another's, with the folder of one's own results in it."""
    text = (left / "config.yaml").read_text()
    for key in ("force", "wait", "plan"):
        assert f"\n{key}: false\n" in text
        text = text.replace(f"\n{key}: false\n", f"\n{key}: true\n")
    shutil.copytree(left.parents[4], tmp_path / "results")
    (own,) = folders(tmp_path)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text(text)
    done = run("repeat=other", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (
        0,
        f"already finished: {own.relative_to(tmp_path)} (force=true runs it anew)",
    )
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    typed = repeated([f"repeat={tmp_path / 'other'}", "force=true", "wait=true"]).run.execution
    assert (typed.force, typed.wait, typed.plan) == (True, True, False)


@pytest.mark.parametrize(
    "path",
    ["my #1", "sec ond's: #2", "2026-11-27", "2024", "no", "null", "@x", "a: b", "{", "[x]", '"x"', "a,b", "1e3"],
)
def test_a_path_is_what_is_typed(path: str, left: Path) -> None:
    execution = repeated([f"repeat={left}", f"results_dir={path}", f"data_dir={path}"]).run.execution
    assert (execution.results_dir, execution.data_dir) == (path, path)


def test_other_values_are_read_as_without_repeat(left: Path) -> None:
    typed = ("checkpoint.minutes=1e-3", "seed=1_0", "graphs=true", "tracker=[wandb]", "device='cpu'")
    run = repeated([f"repeat={left}", *typed]).run
    execution = run.execution
    found = (execution.checkpoint.minutes, run.recipe.seed, execution.graphs, execution.tracker, execution.device)
    assert found == (0.001, 10, "true", ["wandb"], "cpu")


def recorded(*words: str, folder: Path) -> str:
    """repeat= for a config.yaml, without a result, of the run that `words` make."""
    folder.mkdir()
    values = run_config(compose(["experiment=quickstart", *words])).values()
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return f"repeat={folder}"


def test_cifar_is_read_from_where_it_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed, else in BROADOPT_DATA, else as the first time."""
    repeat = recorded("dataset=cifar10", "data_dir=/old", folder=tmp_path / "run")

    def places(*typed: str) -> tuple[str, str]:
        run = repeated([repeat, *typed]).run
        return run.execution.data_dir, run.recipe.dataset.target["data_dir"]

    monkeypatch.delenv("BROADOPT_DATA", raising=False)
    assert places() == ("/old", "/old")
    assert places("data_dir=/new") == ("/new", "/new")
    for typed in (("data_dir=/new", "dataset.data_dir=/own"), ("dataset.data_dir=/own", "data_dir=/new")):
        assert places(*typed) == ("/new", "/own")
    monkeypatch.setenv("BROADOPT_DATA", "/here")
    assert places() == ("/here", "/here")
    assert places("data_dir=/new") == ("/new", "/new")


def test_images_and_labels_of_files_may_lie_elsewhere(tmp_path: Path) -> None:
    folders_ = recorded("dataset=image_folder", "dataset.path=/old", folder=tmp_path / "images")
    assert repeated([folders_, "dataset.path=/new #1"]).run.recipe.dataset.target["path"] == "/new #1"
    labels = recorded("dataset.noise=old.npy", folder=tmp_path / "labels")
    assert repeated([labels, "dataset.noise=new.npy"]).run.recipe.dataset.noise == "new.npy"
    drawn = recorded("dataset.noise=symmetric", "dataset.label_noise=0.4", folder=tmp_path / "drawn")
    for repeat, typed, said in (
        (labels, "dataset.noise=asymmetric", "a repeated run keeps its recipe; expected its file of labels"),
        (drawn, "dataset.noise=new.npy", "dataset.noise: a repeated run keeps its recipe"),
        (drawn, "dataset.path=/new", "dataset.path: a repeated run keeps its recipe"),
        (drawn, "dataset.data_dir=/new", "dataset.data_dir: a repeated run keeps its recipe"),
        (labels, "dataset.validation=10", "dataset.validation: a repeated run keeps its recipe"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            repeated([repeat, typed])


def test_the_data_of_a_repeated_run_are_those_of_the_first(tmp_path: Path) -> None:
    """By their fingerprint, wherever they lie."""
    labels = digits().train.labels.numpy()
    numpy.save(tmp_path / "old.npy", labels)
    numpy.save(tmp_path / "other.npy", (labels + 1) % 10)
    done = run(*SMALL, "budget=0.1", "dataset.noise=old.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    (tmp_path / "old.npy").rename(tmp_path / "new #1.npy")
    again = (f"repeat={folder}", "results_dir=again", "trust=own_network")
    refused = run(*again, "dataset.noise=other.npy", cwd=tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith("broadopt-run: digits: these images or labels are not those of the repeated run (")
    assert result(folder)["config"]["dataset"]["fingerprint"] in line
    assert not (tmp_path / "again").exists()
    done = run(*again, "dataset.noise=new #1.npy", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert same_outcome(folder, tmp_path / "again" / folder.relative_to(tmp_path / "results"))


def test_published_data_are_expected_as_such(tmp_path: Path, small_cifar: Callable[..., Path]) -> None:
    """Their fingerprint is null, which is not any."""
    small_cifar()
    words = ("dataset=cifar10", f"data_dir={tmp_path}", "dataset.verify=false", "budget=1", "batch_size=4")
    done = run(*SMALL, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    found = result(folder)
    found["config"]["dataset"]["fingerprint"] = None
    published = results.run_folder(tmp_path / "published", found["config"])
    shutil.copytree(folder, published)
    results.write(published, found | {"identity": identity_of(found["config"])})
    again = (f"repeat={published}", "results_dir=again", "trust=own_network", f"data_dir={tmp_path}")
    refused = run(*again, cwd=tmp_path)
    assert refused.returncode == 2, refused.stdout
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("broadopt-run: ")]
    assert "these images or labels are not those of the repeated run (fingerprint sha256:" in line
    assert ", there published); " in line
    assert not (tmp_path / "again").exists()


def test_a_precision_that_was_left_to_the_machine_may_be_given(tmp_path: Path) -> None:
    """By it the run that the folder holds goes on or is made again, and not one that this machine decides for."""
    done = run(*SMALL, "precision=bf16", "budget=0.1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    command = (f"repeat={folder}", "results_dir=again", "trust=own_network")
    refused = run(*command, "precision=fp32", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (
        2,
        "broadopt-run: precision=fp32: a repeated run keeps its recipe; expected precision=bf16\n",
    )
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("\nprecision: bf16\n", "\nprecision: auto\n"))
    again = run(*command, "precision=bf16", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert same_outcome(folder, tmp_path / "again" / folder.relative_to(tmp_path / "results"))
    other = run(*command, "precision=fp32", cwd=tmp_path)
    assert other.returncode == 0
    assert other.stderr == (
        "precision: bf16 in the repeated run, fp32 here, which makes another run; expected precision=bf16 to repeat "
        "that one\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("repeat=nowhere",), "repeat=nowhere: expected a run folder, one with a config.yaml"),
        (("repeat=LEFT", "lr=0.2"), "lr: a repeated run keeps its recipe"),
        (("repeat=LEFT", "model=vgg16"), "model: a repeated run keeps its recipe"),
        (("repeat=LEFT", "resultsdir=x"), 'a repeated run keeps its recipe; did you mean "results_dir"?'),
        (("repeat=LEFT", "seed=one"), 'seed="one": expected a whole number'),
        (("repeat=LEFT", "-m"), "-m: expected KEY=VALUE"),
        (("repeat=LEFT", "trunk=share"), "trunk=share: a repeated run trains all its epochs itself"),
        (
            ("repeat=LEFT", "plan=true"),
            "plan=true: a repeated run has the recipe of its config.yaml; expected plan=false with repeat=",
        ),
        (("repeat=LEFT", "repeat=LEFT"), "expected one run folder, found 2"),
        (("repeat=LEFT", "seed={"), "seed={: expected a whole number from 0 to 2^63 - 1"),
        (
            ("repeat=LEFT", "seed=1,2"),
            "seed=1,2: expected a whole number from 0 to 2^63 - 1; a repeated run is one run",
        ),
        (("repeat=LEFT", "seed=010"), 'seed="010": expected a whole number from 0 to 2^63 - 1'),
        (("repeat=LEFT", f"seed={'9' * 5000}"), "expected a whole number from 0 to 2^63 - 1"),
        (("repeat=LEFT", "results_dir="), 'results_dir="": expected a folder'),
    ],
)
def test_what_cannot_be_repeated_is_one_line(
    arguments: tuple[str, ...], expected: str, left: Path, tmp_path: Path
) -> None:
    done = run(*(argument.replace("LEFT", str(left)) for argument in arguments), cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert expected in line
    assert not folders(tmp_path)


@pytest.mark.parametrize("content", ["", "a: [", "3", "seed: 1", "seed: ${oops", "\x00"])
def test_a_config_that_is_none_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(content)
    done = run(f"repeat={tmp_path}", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "config.yaml") in line


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("checkpoint", 5, "checkpoint.minutes: the config.yaml of the run has no group checkpoint"),
        ("lr", 10**400, "lr=1000"),
        ("augmentation", {"mean": [10**400, 0, 0]}, "augmentation.mean=[1000"),
    ],
    ids=["no group", "a large number", "a large number in a list"],
)
def test_a_value_of_a_config_that_cannot_be_is_an_input_error(
    left: Path, key: str, value: Any, expected: str, tmp_path: Path
) -> None:
    values = yaml.safe_load((left / "config.yaml").read_text())
    values[key] = {**values[key], **value} if isinstance(value, dict) else value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as refused:
        repeated([f"repeat={tmp_path}", "trust=own_network", "checkpoint.minutes=1"])
    assert str(refused.value).startswith(expected)


def test_the_network_that_is_left_gives_the_accuracy_of_the_result(left: Path) -> None:
    """By the lines of docs/howto.md, on the test images in place of random ones."""
    code = re.search(r"```python\n(import torch\nfrom broadopt.predictor.*?)```", HOWTO, flags=re.DOTALL)
    assert code is not None
    lines, images = re.subn(r"torch\.rand\(8, 3, 32, 32\)", "digits().test.pixels.float() / 255", code[1])
    lines, folders = re.subn(r'load\(\s*".*?"\s*\)', f"load({str(left)!r})", lines)
    assert (images, folders) == (1, 1)
    namespace: dict = {"digits": digits}
    with torch.no_grad():
        exec(lines, namespace)
    assert not namespace["network"].training
    accuracy = 100 * (namespace["logits"].argmax(dim=1) == digits().test.labels).double().mean()
    assert float(accuracy) == pytest.approx(result(left)["metrics"]["collected"]["1"]["test_accuracy"], abs=1e-9)


def test_the_file_names_the_run_that_it_belongs_to(left: Path) -> None:
    with safe_open(left / "predictor.safetensors", framework="pt") as file:
        metadata = file.metadata()
    found = result(left)
    assert (metadata["identity"], json.loads(metadata["recipe"])) == (found["identity"], found["config"])
    assert json.loads(metadata["classes"]) == list("0123456789")
    assert metadata["image_size"] == "32"
    assert json.loads(metadata["mean"]) == found["config"]["augmentation"]["mean"]
    assert json.loads(metadata["std"]) == found["config"]["augmentation"]["std"]


def test_the_last_weights_are_left_by_a_run_without_a_collector(tmp_path: Path) -> None:
    done = run(*SMALL, "budget=1", "checkpoint.predictor=true", "dataset.validation=100", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = folders(tmp_path)
    import sys

    from command import OWN

    sys.path.append(str(OWN))
    network = load(folder, trust="own_network")
    assert isinstance(network, nn.Module)
    with torch.no_grad():
        hits = network(digits().test.pixels.float() / 255).argmax(dim=1) == digits().test.labels
    assert 100 * float(hits.double().mean()) == pytest.approx(result(folder)["metrics"]["last"]["test_accuracy"])


def test_an_ensemble_is_not_one_network(tmp_path: Path) -> None:
    done = run(*SMALL, "method=fge", "budget=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (folders(tmp_path)[0] / "predictor.safetensors").exists()


def test_a_folder_without_a_network_or_with_a_damaged_one_is_named(left: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected predictor.safetensors, which a finished run leaves"):
        load(tmp_path)
    for name in ("config.yaml", "predictor.safetensors"):
        (tmp_path / name).write_bytes((left / name).read_bytes())
    (tmp_path / "predictor.safetensors").write_bytes((left / "predictor.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match=str(tmp_path / "predictor.safetensors")):
        load(tmp_path)
