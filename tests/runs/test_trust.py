"""What decides the figures of a run is compared before they are believed: identity, own code, machine."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command import (
    BIN,
    OWN,
    PATIENCE,
    SMALL,
    Sweep,
    finish,
    folders,
    go_on,
    halted,
    result,
    run,
    same_outcome,
    start,
    stopped,
    until,
)
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from broadopt.config.compose import compose, run_config
from broadopt.config.identity import identity_of
from broadopt.config.instantiate import instantiated
from broadopt.devices import provenance
from broadopt.errors import InputError
from broadopt.launchers.local import new_folder, threads_of_a_run
from broadopt.models.build import network
from broadopt.predictor import NAME, described, load
from broadopt.runs import results

SGD = (*SMALL, "budget=0.1", "method=sgd")

NETWORK = """
from torch import nn
from helper import WIDTH

class Net(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, num_classes + WIDTH)

    def forward(self, images):
        return self.linear(images.flatten(1))
"""


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """A command on a network of the user's own, in files that the test may edit."""
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/net.yaml").write_text("_target_: net.Net\n")
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "helper.py").write_text("WIDTH = 0\n")
    command = (
        "--config-dir",
        str(tmp_path / "configs"),
        "experiment=quickstart",
        "model=net",
        "device=cpu",
        "budget=0.1",
    )

    def carry_out(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        return run(*command, "precision=fp32", *arguments, cwd=tmp_path, PYTHONPATH=str(tmp_path), **environment)

    return carry_out


# ---- 1: another run's files


def test_the_result_of_another_run_is_not_believed(tmp_path: Path) -> None:
    assert run(*SGD, cwd=tmp_path).returncode == run(*SGD, "seed=2", cwd=tmp_path).returncode == 0
    first, second = folders(tmp_path)
    before = result(second)
    shutil.copy(first / "result.json", second / "result.json")
    again = run(*SGD, "seed=2", cwd=tmp_path)
    assert again.returncode == 0
    assert "already finished" not in again.stdout
    assert "it belongs to another run" in again.stderr
    assert result(second)["metrics"] == before["metrics"]
    assert (second / "result.1.json").read_bytes() == (first / "result.json").read_bytes()


def test_a_config_of_another_run_is_not_repeated(tmp_path: Path) -> None:
    run(*SGD, cwd=tmp_path)
    run(*SGD, "lr=0.01", cwd=tmp_path)
    first, second = folders(tmp_path)
    shutil.copy(first / "config.yaml", second / "config.yaml")
    refused = run(f"repeat={second}", "results_dir=again", "trust=own_network", cwd=tmp_path)
    assert refused.returncode == 2
    assert "its config.yaml is not that of the run in its result.json: they differ in " in refused.stderr
    assert not (tmp_path / "again").exists()


# ---- 2: own code


def test_a_network_that_was_edited_makes_another_run(
    own: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert own().returncode == 0
    assert "already finished" in own().stdout
    (tmp_path / "net.py").write_text(NETWORK.replace("images.flatten(1)", "2 * images.flatten(1)"))
    assert "\nfinished: " in own().stdout
    assert len(folders(tmp_path)) == 2
    (tmp_path / "helper.py").write_text("WIDTH = 0  # what the network imports counts as well\n")
    assert "\nfinished: " in own().stdout
    assert len(folders(tmp_path)) == 3
    codes = [result(folder)["config"]["code"] for folder in folders(tmp_path)]
    assert all(set(code) == {"net", "helper"} for code in codes)
    assert len({json.dumps(code) for code in codes}) == 3


def test_weights_of_a_network_that_was_edited_are_said_to_be_so_and_measured_anew(
    own: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    assert own().returncode == 0
    (folder,) = folders(tmp_path)
    few = ("--images", "20", "--train-images", "20", "--directions", "1", "--points", "2", "--device", "cpu")
    variables = {"PYTHONPATH": str(tmp_path)}

    def figure() -> tuple[list[str], str]:
        """The warnings and the numbers of a figure that reads two files of the run."""
        arguments = ("rays", str(folder), "trust=net", *few, "--format", "png")
        done = finish(start(*arguments, cwd=tmp_path, program="broadopt-figure", **variables))
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "trained with" in line], (
            tmp_path / "rays.csv"
        ).read_text()

    none, first = figure()
    assert none == []
    (tmp_path / "net.py").write_text(NETWORK.replace("images.flatten(1)", "2 * images.flatten(1)"))
    recorded, path = result(folder)["config"]["code"]["net"], folder / "predictor.safetensors"
    (line,), edited = figure()
    assert line.endswith(f"recorded {recorded}): its weights may compute something else")
    assert "net is not what the run was trained with (sha256:" in line
    assert edited != first
    code = f"from broadopt.predictor import load; [load({str(folder)!r}, trust='net') for _ in range(2)]"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(f"{path}: net is not what the run was trained with (sha256:")
    assert done.stderr.count("\n") == 1
    (tmp_path / "net.py").write_text(NETWORK)
    assert figure() == ([], first)  # and not the numbers of the edited one, which lie there


def test_runs_of_broadopts_own_networks_record_no_code(five_runs: Sweep, tmp_path: Path) -> None:
    assert set(result(five_runs.folders["sgd"])["config"]["code"]) == {"own_network"}
    assert run("experiment=quickstart", "model.depth=8", "budget=0.02", cwd=tmp_path).returncode == 0
    assert "code" not in result(folders(tmp_path)[0])["config"]


def test_a_run_of_own_code_that_recorded_less_than_it_was_given_is_not_believed(
    five_runs: Sweep, tmp_path: Path
) -> None:
    """Former versions recorded no model.gamma=ones, not even of a network of the user's own with another default."""
    former = tmp_path / "results/runs/digits/small/sgd" / five_runs.folders["sgd"].name
    shutil.copytree(five_runs.folders["sgd"], former)
    config = former / "config.yaml"
    config.write_text(config.read_text().replace("  batch_norm: true\n", "  batch_norm: true\n  gamma: ones\n"))
    for state, command in (("finished", SMALL), ("interrupted", (*SMALL, "force=true"))):
        stored = result(former) | {"state": state}
        results.write(former, stored)
        refused = run(*command, "budget=2", "method=sgd", cwd=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr.rstrip().endswith(
            f"{former.relative_to(tmp_path)}: its config.yaml has model.gamma, which was not recorded when it was "
            "made, and this run has none: it may be another; expected another results_dir, or that folder moved away"
        )
        assert result(former) == result(former) | stored | {"checksum": result(former)["checksum"]}
    refused = run(f"repeat={former}", "results_dir=again", "trust=own_network", cwd=tmp_path)
    assert refused.returncode == 2
    assert "its config.yaml is not that of the run in its result.json: they differ in model" in refused.stderr


# ---- 3: threads


def test_a_run_that_goes_on_with_another_number_of_threads_says_so(tmp_path: Path) -> None:
    command = (*SMALL, "budget=1", "method=sgd")
    assert stopped(*command, cwd=tmp_path, at="train 20", by=signal.SIGTERM).returncode == 75
    again = run(*command, cwd=tmp_path, OMP_NUM_THREADS="2")
    assert again.returncode == 0
    assert "with threads 1, this machine has threads 2: figures can differ by rounding" in again.stderr
    assert "OMP_NUM_THREADS=1 gives the same" in again.stderr
    machines = result(folders(tmp_path)[0])["environment"]["carried_out_on"]
    assert [machine["threads"] for machine in machines] == [1, 2]


def test_repeat_compares_the_machines(tmp_path: Path) -> None:
    run(*SGD, cwd=tmp_path)
    (folder,) = folders(tmp_path)
    command = (f"repeat={folder}", "results_dir=again", "trust=own_network")
    same = run(*command, cwd=tmp_path)
    assert same.returncode == 0, same.stderr
    assert "figures can differ" not in same.stderr
    other = run(*command, "force=true", cwd=tmp_path, OMP_NUM_THREADS="2")
    assert "the repeated run was made with threads 1, this machine has threads 2" in other.stderr


def test_the_local_launcher_heeds_omp_num_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of_a_run(3) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads_of_a_run(3) == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert threads_of_a_run(16) == 1


# ---- 5 and 6: signals, and the predictor


def test_a_signal_while_the_predictor_is_made_loses_nothing(five_runs: Sweep, tmp_path: Path) -> None:
    command = (*SMALL, "budget=2", "method=swa")
    # 135 steps, re-estimations of 45 batches at each of three evaluation points, and then that of the predictor.
    assert stopped(*command, cwd=tmp_path, at="train 280", by=signal.SIGTERM).returncode == 75
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "interrupted"
    assert [path.name for path in folder.glob("*.ckpt")] == ["checkpoint-0000000135.ckpt"]
    assert run(*command, cwd=tmp_path).returncode == 0
    assert same_outcome(folder, five_runs.folders["swa"])
    kept, expected = (load_file(place / NAME) for place in (folder, five_runs.folders["swa"]))
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())
    assert kept.keys() == expected.keys()


EXPORT = """
import sys, torch
from broadopt.predictor import load
for folder in sys.argv[1:]:
    network, images = load(folder, trust="own_network"), torch.rand(2, 3, 32, 32)
    assert network.classes == tuple("0123456789")
    assert torch.equal(torch.export.export(network, (images,)).module()(images), network(images))
    print("equal")
"""


def test_finished_runs_keep_their_predictor_which_can_be_exported(five_runs: Sweep) -> None:
    """In a process of its own: torch.export minds how an earlier run has set torch's switches."""
    kept = [str(five_runs.folders[method]) for method in ("sgd", "swa", "sam", "asam")]
    variables = os.environ | {"PYTHONPATH": str(OWN)}
    done = subprocess.run([sys.executable, "-c", EXPORT, *kept], env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "equal\n" * 4), done.stderr


def test_an_ensemble_keeps_no_predictor_and_says_so(five_runs: Sweep) -> None:
    with pytest.raises(InputError, match="not FGE or SWAG, which are not one network"):
        load(five_runs.folders["fge"])


def test_a_finished_run_without_the_predictor_that_is_asked_for_says_so(tmp_path: Path) -> None:
    assert run(*SGD, "checkpoint.predictor=false", cwd=tmp_path).returncode == 0
    assert not (folders(tmp_path)[0] / NAME).exists()
    assert "it has kept no predictor.safetensors: force=true" in run(*SGD, cwd=tmp_path).stdout
    again = run(*SGD, "checkpoint.predictor=false", cwd=tmp_path).stdout
    assert again.startswith("already finished: ")
    assert "it has kept no" not in again


def test_a_closed_terminal_saves_the_state(tmp_path: Path) -> None:
    command = (*SMALL, "budget=1", "method=sgd")
    with halted(*command, cwd=tmp_path, at="train 20") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)  # the shell sends one as well
        go_on(tmp_path)
        assert finish(process).returncode == 75
    assert [path.name for path in folders(tmp_path)[0].glob("*.ckpt")] == ["checkpoint-0000000020.ckpt"]


def test_nohup_goes_on(tmp_path: Path) -> None:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(OWN), "HALT": "train 3"}
    variables["HALT_FILE"] = str(tmp_path / "halted")
    command = ["nohup", str(BIN / "broadopt-run"), *SGD]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until((tmp_path / "halted").exists, process)
    process.send_signal(signal.SIGHUP)
    go_on(tmp_path)
    assert process.wait(timeout=PATIENCE) == 0


def test_a_signal_ahead_of_the_loop_ends_the_command_at_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data/.cifar-10-python.tar.gz.lock"):
        process = start("dataset=cifar10", "data_dir=data", cwd=tmp_path)
        assert process.stderr is not None
        assert "another process is downloading" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert finish(process).returncode == 75


# ---- 7: numbers that are not finite


def test_statistics_that_are_not_finite_fail_the_run(tmp_path: Path) -> None:
    process = run(*SMALL, "budget=1", "method=sgd", "augmentation.std=[1e-20,1e-20,1e-20]", "lr=1e-30", cwd=tmp_path)
    assert process.returncode == 1
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "failed"
    assert "running_var is not finite in epoch 1" in result(folder)["failure"]["reason"]
    assert not list(folder.glob("*.ckpt"))


# ---- 8 and 11: names of folders and files


def test_two_sweeps_of_the_same_second_have_folders_of_their_own(tmp_path: Path) -> None:
    made = [new_folder(tmp_path / "local" / "2026-01-01_00-00-00") for _ in range(3)]
    assert [path.name for path in made] == ["2026-01-01_00-00-00", "2026-01-01_00-00-00-2", "2026-01-01_00-00-00-3"]


def test_a_result_set_aside_takes_its_history_along_whenever_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "result.json").write_text("old result")
    (tmp_path / "history.csv").write_text("old history")

    replace = os.replace
    for renames in (0, 1):
        left = [True] * renames

        def killed(*paths: Path, left: list[bool] = left) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", killed)
            with pytest.raises(KeyboardInterrupt):
                results.set_aside(tmp_path)
        assert (tmp_path / "result.json").read_text() == "old result"
        assert (tmp_path / "history.csv").read_text() == "old history"
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", lambda *arguments, **options: killed(left=[]))
        with pytest.raises(KeyboardInterrupt):
            results.set_aside(tmp_path)
    aside = [path for path in tmp_path.iterdir() if path.read_text() == "old result"]
    assert [path.name for path in aside] == [path.name for path in tmp_path.glob("result.*.json")]
    assert (
        aside[0].with_name(aside[0].name.replace("result", "history").replace("json", "csv")).read_text()
        == "old history"
    )


# ---- 12: a stranger's folder


def test_repeat_and_load_run_no_code_that_the_caller_did_not_name(five_runs: Sweep, tmp_path: Path) -> None:
    refused = run(f"repeat={five_runs.folders['sgd']}", cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "it names own_network.Small, which is not broadopt's: trust=own_network runs that code" in refused.stderr
    with pytest.raises(InputError, match="trust=own_network"):
        load(five_runs.folders["sgd"])


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "broadopt.methods.step.torch.load",
        "broadopt.models.resnet.nn.Module",
        "torchvision.models.os.system",
    ],
)
def test_targets_that_lead_out_of_broadopt_are_foreign(target: str, five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.folders["sgd"], tmp_path / "folder")
    config = tmp_path / "folder/config.yaml"
    config.write_text(config.read_text().replace("broadopt.methods.step.Plain", target))
    assert target in config.read_text()
    refused = run("repeat=folder", "trust=own_network", cwd=tmp_path)
    assert refused.returncode == 2
    assert f"it names {target}, which is not broadopt's" in refused.stderr


@pytest.fixture
def made_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """An interpolation that makes a node of a module in tmp_path, and the file that its code would leave."""
    left = tmp_path / "left"
    (tmp_path / "made_code.py").write_text(
        f"from pathlib import Path\n\n\ndef made():\n    Path({str(left)!r}).touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "${oc.create:{_target_:made_code.made}}", left


def test_an_interpolation_in_a_config_makes_no_code(
    five_runs: Sweep, tmp_path: Path, made_code: tuple[str, Path]
) -> None:
    words, left = made_code
    shutil.copytree(five_runs.folders["sam"], tmp_path / "folder")
    config = tmp_path / "folder/config.yaml"
    content = yaml.safe_load(config.read_text())
    content["step"]["rho"] = words
    config.write_text(yaml.safe_dump(content))
    refused = run("repeat=folder", "trust=own_network", cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"found '{words}'; expected a value, not an interpolation" in refused.stderr
    assert not left.exists()


def test_an_interpolation_in_a_predictor_makes_no_code(
    five_runs: Sweep, tmp_path: Path, made_code: tuple[str, Path]
) -> None:
    words, left = made_code
    path = five_runs.folders["sam"] / "predictor.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    recipe = json.loads(metadata["recipe"])
    recipe["model"]["depth"] = words
    metadata |= {"recipe": json.dumps(recipe), "identity": identity_of(recipe)}
    save_file(load_file(path), tmp_path / path.name, metadata=metadata)
    with pytest.raises(InputError, match="expected a value, not an interpolation"):
        load(tmp_path, trust="own_network")
    assert not left.exists()


@pytest.mark.parametrize("classes", ["20000000", "0", "-1"])
def test_a_predictor_of_any_number_of_classes_builds_no_network(classes: str, tmp_path: Path) -> None:
    """Of an older file, whose recipe stands beside it."""
    values = run_config(compose(["experiment=quickstart"])).values()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    save_file({"weight": torch.zeros(1)}, tmp_path / NAME, metadata={"classes": classes})
    with pytest.raises(InputError) as refused:
        load(tmp_path)
    assert str(refused.value) == f"{tmp_path / NAME}: classes={classes}: expected a number from 1 to 100,000"


def test_a_predictor_whose_network_fills_all_memory_is_refused_by_the_sizes_of_its_tensors(tmp_path: Path) -> None:
    """Its largest convolution has 23 * 10^12 weights, which no machine has room for."""
    recipe = run_config(compose(["experiment=quickstart", "model=wrn28_2", "model.widen_factor=100000"])).recipe
    save_file({"head.weight": torch.zeros(1)}, tmp_path / NAME, metadata=described(recipe, "0123456789"))
    with pytest.raises(InputError, match=r"Error\(s\) in loading state_dict for WideResNet"):
        load(tmp_path)


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "broadopt.models.resnet.ResNet", "depth": 6 * 10**9 + 2},
        {"_target_": "broadopt.models.pyramidnet.PyramidNet", "depth": 9 * 10**12 + 2, "alpha": 200}
        | {"rounding": "floor", "shakedrop": False},
        {"_target_": "torchvision.models.densenet.DenseNet", "block_config": [10**9]},
    ],
    ids=["ResNet", "PyramidNet", "DenseNet"],
)
def test_a_predictor_whose_network_has_endless_layers_is_refused_by_the_number_of_its_tensors(
    node: dict[str, Any], tmp_path: Path
) -> None:
    """A build of them all would take years, and all memory."""
    recipe = run_config(compose(["experiment=quickstart"])).recipe
    recipe = replace(recipe, model=replace(recipe.model, target=node))
    save_file({"head.weight": torch.zeros(1)}, tmp_path / NAME, metadata=described(recipe, "0123456789"))
    with pytest.raises(InputError) as refused:
        load(tmp_path)
    assert str(refused.value) == f"{tmp_path / NAME}: it has 1 tensors, and its network more than 1,002"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mean": [10**400, 0.5, 0.5]}, "int too large to convert to float"),
        ({"mean": [math.inf, 0.5, 0.5]}, "not JSON, perhaps truncated (Infinity is no JSON number)"),
        ({"mean": None}, "nested more than 32 deep"),
    ],
)
def test_a_predictor_of_impossible_values_is_refused_in_a_line(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    recipe = run_config(compose(["experiment=quickstart"])).recipe
    record = recipe.record()
    record["augmentation"] |= values
    metadata = described(recipe, "0123456789") | {"recipe": json.dumps(record), "identity": identity_of(record)}
    metadata["recipe"] = metadata["recipe"].replace('"mean": null', f'"mean": {"[" * 100_000}{"]" * 100_000}')
    save_file(network(recipe.model, 10).state_dict(), tmp_path / NAME, metadata=metadata)
    with pytest.raises(InputError) as refused:
        load(tmp_path)
    assert str(refused.value) == f"{tmp_path / NAME}: {said}"


def test_what_is_instantiated_holds_no_interpolation(made_code: tuple[str, Path]) -> None:
    words, left = made_code
    for value in (words, [words], {"deeper": words}):
        with pytest.raises(InputError, match=r"schedule: found .*; expected a value, not an interpolation"):
            instantiated("schedule", {"_target_": "broadopt.methods.schedule.Schedule", "lr": value, "budget": 1})
    assert not left.exists()


# ---- 16: failures ahead of the loop


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["momentum=0", "nesterov=true"], "nesterov=true: expected momentum > 0 with it, or nesterov=false"),
        (["budget=1e308"], "budget=1e+308: expected a number of epochs > 0, at most a million"),
        (["method=swa", "collect.cycle=1e-9"], "collection points; expected 1,000,000 at most"),
        (["method=fge", "collect.cycle=1e-9"], "collection points; expected 1,000,000 at most"),
    ],
)
def test_input_that_cannot_be_trained_on_is_one_line(overrides: list[str], said: str, tmp_path: Path) -> None:
    process = run(*SMALL, *overrides, cwd=tmp_path)
    assert process.returncode == 2
    assert said in process.stderr
    assert process.stderr.count("\n") == 1
    assert not (tmp_path / "results/runs").exists()


def test_a_run_that_cannot_be_built_is_failed_and_the_sweep_names_it(tmp_path: Path) -> None:
    process = run("-m", *SGD, "seed=1,2", cwd=tmp_path, HUNGRY="init 1")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert "1 of the sweep's runs failed:" in process.stderr
    first, second = folders(tmp_path)
    assert result(first)["state"] == "failed"
    assert result(first)["failure"]["reason"].startswith("model._target_=own_network.Small: ")
    assert result(second)["state"] == "finished"


def test_a_run_that_cannot_be_built_again_leaves_what_is_there(tmp_path: Path) -> None:
    command = (*SMALL, "budget=1", "method=sgd")
    assert stopped(*command, cwd=tmp_path, at="train 20", by=signal.SIGTERM).returncode == 75
    (folder,) = folders(tmp_path)
    interrupted = (folder / "result.json").read_bytes()
    (checkpoint,) = folder.glob("*.ckpt")
    saved = checkpoint.read_bytes()
    assert run(*command, cwd=tmp_path, HUNGRY="init 1").returncode == 1
    assert (folder / "result.json").read_bytes() == interrupted
    again = run(*command, cwd=tmp_path)
    assert (again.returncode, again.stderr.count("going on from")) == (0, 1)
    finished, history = ((folder / name).read_bytes() for name in ("result.json", "history.csv"))
    assert run(*command, "force=true", cwd=tmp_path, HUNGRY="init 1").returncode == 1
    assert [(folder / name).read_bytes() for name in ("result.json", "history.csv")] == [finished, history]
    assert not list(folder.glob("*.1.*"))
    assert (folder / "predictor.safetensors").exists()
    # A run that is made anew begins at its first step, whatever a copy of its folder has brought along.
    checkpoint.write_bytes(saved)
    anew = run(*command, "force=true", cwd=tmp_path)
    assert (anew.returncode, anew.stderr.count("going on from")) == (0, 0)
    assert (folder / "result.1.json").read_bytes() == finished
    assert (folder / "history.csv").read_bytes() == (folder / "history.1.csv").read_bytes() == history
    assert list(folder.glob("*.ckpt")) == []


def test_a_checkpoint_of_another_network_is_one_line(
    own: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text("import os\nWIDTH = 0\nBIAS = 'BIAS' in os.environ\n")
    (tmp_path / "net.py").write_text(
        NETWORK.replace("num_classes + WIDTH)", "num_classes, bias=BIAS)").replace("import WIDTH", "import BIAS")
    )
    process = start(
        *("--config-dir", str(tmp_path / "configs"), "experiment=quickstart", "model=net", "device=cpu", "budget=1000"),
        *("precision=fp32", "checkpoint.minutes=0"),
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path),
    )
    until(lambda: list(tmp_path.glob("results/runs/*/*/*/*/*.ckpt")), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    again = own("budget=1000", BIAS="yes")
    assert again.returncode == 1
    assert "does not fit this network, step or collector" in again.stderr
    assert "Traceback" not in again.stderr


# ---- 19, 20 and 24


def test_a_run_that_another_process_is_on_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    with halted(*SGD, cwd=tmp_path, at="train 3") as process:
        left = run(*SGD, cwd=tmp_path)
        assert left.returncode == 3
        assert left.stdout.endswith("left to it (wait=true waits for it to end)\n")
        assert (
            left.stderr
            == "broadopt-run: 1 run is not finished: another process is on it; give the same command later\n"
        )
        go_on(tmp_path)
        assert finish(process).returncode == 0
    assert run(*SGD, cwd=tmp_path).returncode == 0


def test_provenance_is_that_of_broadopts_own_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, changes = provenance.code.__wrapped__().commit, provenance.difference()
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert (provenance.code.__wrapped__().commit, provenance.difference()) == (before, changes)
    assert before is None or len(before.rstrip("+")) == 40


def test_what_an_earlier_environment_says_is_shown_on_one_line_and_is_no_command(
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = {"threads": "2; \x1b[2J" + "x" * 1000}
    provenance.say_where_rounding_differs(before, torch.device("cpu"), what="the repeated run was made")
    (line,) = caplog.messages
    assert line.isprintable()
    assert len(line) < 300
    assert "OMP_NUM_THREADS" not in line


GPU = "NVIDIA H100 80GB HBM3"
ROUNDS = "figures can differ by rounding, which grows"


@pytest.mark.parametrize(
    ("before", "device", "said"),
    [
        (
            {"device": GPU, "threads": 16},
            "cpu",
            f"on the GPU {GPU}, this process is on a CPU",
        ),
        ({"device": GPU}, "cpu", f"on the GPU {GPU}, this process is on a CPU"),
        ({"device": "AMD EPYC", "threads": 1}, "cuda", f"on a CPU, this process is on the GPU {GPU}"),
        ({"threads": 1, "instruction_set": "AVX2"}, "cuda", f"on a CPU, this process is on the GPU {GPU}"),
        ({"device": "Tesla T4", "threads": 1}, "cuda", f"with device Tesla T4, this machine has device {GPU}"),
        ({"device": GPU, "threads": 1}, "cuda", ""),
        ({"device": GPU}, "cuda", ""),
        ({}, "cuda", ""),
        ({}, "cpu", ""),
    ],
)
def test_a_gpu_rounds_otherwise_than_a_cpu(
    before: dict[str, object], device: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provenance, "device_name", lambda device: GPU)
    provenance.say_where_rounding_differs(before, torch.device(device), what="the repeated run was made")
    assert caplog.messages == ([f"the repeated run was made {said}: {ROUNDS}"] if said else [])


def test_a_difference_is_kept_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_git", lambda *words: "x" * 300_000 if words[0] == "diff" else "broadopt/new.py\n")
    assert provenance.difference() == "x" * provenance.LONGEST_DIFFERENCE + "\n[cut off]\n"
    monkeypatch.setattr(provenance, "_git", lambda *words: "changed\n" if words[0] == "diff" else "broadopt/new.py\n")
    assert provenance.difference() == "changed\nuntracked: broadopt/new.py\n"


def test_a_network_with_the_wrong_number_of_outputs_is_one_line(
    own: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    (tmp_path / "helper.py").write_text("WIDTH = 2\n")
    process = own()
    assert process.returncode == 2
    assert "for one image the network gives [1, 12]; expected logits [1, 10]" in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_last_batch_of_one_image_is_said(tmp_path: Path) -> None:
    process = run(*SGD, "batch_size=1437", cwd=tmp_path)
    assert process.returncode == 0
    assert "batch_size=1437: the last batch of each epoch has a single image" in process.stderr
