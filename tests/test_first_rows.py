"""The scripts that make the first rows on a GPU, rehearsed without one."""

import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from command import PATIENCE, until

from broadopt.config.compose import compose, run_config

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
import vgg19_heads  # noqa: E402 - a script


def first_rows(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    command = [SCRIPTS / "first_rows.sh", *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)


def test_every_sweep_of_the_script_composes() -> None:
    text = (SCRIPTS / "first_rows.sh").read_text()
    sweeps = re.findall(r'^ *rows experiment=(\S+) method=(\S+) "?seed=', text, flags=re.MULTILINE)
    pairs = [pair for rows, methods in sweeps for pair in product(rows.split(","), methods.split(","))]
    recipes = [run_config(compose([f"experiment={row}", f"method={method}"])).recipe for row, method in pairs]
    vgg16 = [("vgg16", "swa", 200), ("vgg16", "fge", 200), ("vgg16", "sgd", 200)]
    assert [(recipe.model.name, recipe.method, recipe.budget) for recipe in recipes[:3]] == vgg16
    assert [recipe.model.name for recipe in recipes[3:]] == [
        *["resnet20"] * 3,
        *["vgg19_bn"] * 3,
        *["preresnet164"] * 6,
    ]


@pytest.mark.long
def test_the_most_wanted_rows_are_planned_first(tmp_path: Path) -> None:
    done = first_rows("12", "plan=true", cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if " seed " in line]
    made = [(line[0], line[1], line[2], int(line[5]), float(line[6])) for line in lines]
    vgg16 = [("swa", 300), ("fge", 200), ("sgd", 200)]
    assert made[:3] == [("cifar10", "vgg16", method, 1, epochs) for method, epochs in vgg16]
    assert made[3:9] == [("cifar10", "vgg16", method, seed, epochs) for method, epochs in vgg16 for seed in (2, 3)]
    assert made[9:15] == [
        ("cifar100", model, method, 1, epochs)
        for model in ("resnet20", "vgg19_bn")
        for method, epochs in (("sgd", 400), ("sam", 200), ("asam", 200))
    ]
    resnet164 = [("swa", 225), ("fge", 150), ("sgd", 150)]
    assert made[15:] == [
        (dataset, "preresnet164", method, 1, epochs)
        for dataset in ("cifar10", "cifar100")
        for method, epochs in resnet164
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "nothing given: expected the hours that it may take, first_rows.sh 12"),
        (("budget=1",), "budget=1 given: expected the hours that it may take, first_rows.sh 12"),
        (("0.03",), "0.03 hours: expected more than RESERVE=120 seconds"),
    ],
)
def test_the_time_limit_has_to_be_given(arguments: tuple[str, ...], line: str, tmp_path: Path) -> None:
    done = first_rows(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"first_rows.sh: {line}\n")


@pytest.mark.parametrize("script", [("first_rows.sh", "1"), ("reproduce_table3.sh",)], ids=lambda words: words[0])
@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda one: one.name)
def test_a_signal_to_the_script_has_the_sweep_save_its_state(
    signal_: signal.Signals, script: tuple[str, ...], tmp_path: Path
) -> None:
    """What runs in the place of broadopt-run says when it is there and that it was asked to end; SIGINT comes to the
    whole process group, as from a terminal.
    """
    scripts, ready, saved = tmp_path / "scripts", tmp_path / "ready", tmp_path / "saved"
    scripts.mkdir()
    for name in (script[0], "reproduce.sh"):
        shutil.copy(SCRIPTS / name, scripts)
    (tmp_path / "broadopt-run").write_text(
        f"#!/bin/bash\ntrap 'echo TERM >> {saved}; exit 75' TERM\necho $$ > {ready}.part\n"
        f"mv {ready}.part {ready}\nwhile :; do sleep 0.1; done\n"
    )
    (tmp_path / "broadopt-run").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([scripts / script[0], *script[1:]], env=environment, start_new_session=True)
    try:
        until(ready.exists, process)
        (os.killpg if signal_ == signal.SIGINT else os.kill)(process.pid, signal_)
        assert process.wait(PATIENCE) == 75
        assert saved.read_text() == "TERM\n"
        with pytest.raises(ProcessLookupError):
            os.kill(int(ready.read_text()), 0)
    finally:
        process.kill()
        process.wait()
        if ready.exists():
            with suppress(ProcessLookupError):
                os.kill(int(ready.read_text()), signal.SIGKILL)


def test_where_nothing_is_installed_the_checkout_itself_is_run(tmp_path: Path) -> None:
    """What runs in the place of python3 prints how it was called."""
    scripts, programs = tmp_path / "scripts", tmp_path / "bin"
    scripts.mkdir()
    programs.mkdir()
    for name in ("first_rows.sh", "reproduce.sh"):
        shutil.copy(SCRIPTS / name, scripts)
    (programs / "python3").write_text('#!/bin/bash\necho "$PYTHONPATH $*"\nexit 75\n')
    (programs / "python3").chmod(0o755)
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": "site"}
    done = subprocess.run([scripts / "first_rows.sh", "1"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "")
    first = "hydra/launcher=local hydra.launcher.per_gpu=1 experiment=table1/vgg16_cifar10 method=swa,fge,sgd seed=1"
    assert done.stdout == f"{tmp_path}:site -m broadopt.run -m {first}\n"


def test_the_heads_are_trained_by_the_recipe_of_the_row() -> None:
    given = Namespace(seeds=[1, 2], budget=2.0, device="cuda", results=Path("heads"), overrides=["data_dir=/data"])
    words = vgg19_heads.command(given)
    assert words[4:] == [
        *("experiment=table3/vgg19_bn", "seed=1,2", "model.head=torchvision,hidden4096", "method=sgd,sam,asam"),
        *("budget=2", "precision=fp32", "device=cuda", "results_dir=heads", "data_dir=/data"),
    ]
    single = [f"{key}={values.split(',')[-1]}" for key, _, values in (word.partition("=") for word in words[4:])]
    recipe = run_config(compose(single)).recipe
    assert (recipe.model.target["head"], recipe.method, recipe.seed) == ("hidden4096", "asam", 2)
    assert (recipe.budget, recipe.precision, recipe.dataset.name) == (2.0, "fp32", "cifar100")


def ended(head: str, method: str, accuracy: float, state: str = "finished") -> dict[str, Any]:
    last = {"test_accuracy": accuracy} if state == "finished" else {}
    config = {"model": {"head": head}, "budget": 2.0, "seed": 1, "precision": "fp32"}
    return {"state": state, "method": method, "config": config, "metrics": {"last": last}}


def test_the_runs_above_three_times_chance_are_counted() -> None:
    results = [
        ended("torchvision", "sgd", 3.01),
        ended("torchvision", "sgd", 3.0),
        ended("torchvision", "sgd", 0.0, "failed"),
        ended("torchvision", "sgd", 0.0, "interrupted"),
        ended("hidden4096", "asam", 20.0),
    ]
    rehearsed = [ended("torchvision", "sgd", 9.0) for _ in range(3)]
    for result, (key, value) in zip(rehearsed, {"budget": 0.1, "seed": 6, "precision": "bf16"}.items(), strict=True):
        result["config"][key] = value
    found = vgg19_heads.counts([*results, *rehearsed], budget=2, seeds=[1, 2, 3, 4, 5])
    assert found["torchvision", "sgd"] == (1, 3)
    assert found["hidden4096", "asam"] == (1, 1)
    assert len(found) == 6
    assert sum(count for _, count in found.values()) == 4


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="has a GPU")
def test_without_a_gpu_the_heads_are_not_trained() -> None:
    done = subprocess.run([sys.executable, SCRIPTS / "vgg19_heads.py"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vgg19_heads.py: this machine has no CUDA device; --device cpu rehearses\n"
