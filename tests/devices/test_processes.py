"""One run on two processes, connected by Gloo, as on two devices. They are started by torchrun where it has a part in
what is tested, else forked with all that it would give them.

The oracle is one process on the same batches, in float64; for step.perturbation=share it is written out here.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import forked as children
import impatient
import processes
import pytest
import torch
import torch.nn.functional as F
from command import (
    OWN,
    SMALL,
    STARTUP,
    Process,
    finish,
    folders,
    history,
    outcome,
    result,
    same_outcome,
    start,
    until,
)
from torch import Tensor, distributed, nn

from broadopt.config.compose import compose, run_config
from broadopt.data.datasets import read
from broadopt.devices import processes as module
from broadopt.devices.processes import Processes
from broadopt.errors import InputError, RunFailed
from broadopt.launchers.ended import speaks
from broadopt.runs.folders import run_folder
from broadopt.training.build import build

PLAIN = "+model.batch_norm=false"
NORMED = "+model.batch_norm=true"
"""BN normalises by each process's share; without it N processes compute what one does."""
METHODS = {method: (f"method={method}", PLAIN) for method in ("sgd", "sam", "asam", "swa", "fge", "msam", "gsam")}
METHODS |= {method: (f"method={method}", PLAIN) for method in ("friendly_sam", "looksam")}
METHODS |= {f"{method} clip": (f"method={method}", "clip=0.05", PLAIN) for method in ("sgd", "sam", "looksam")}
SHARING = {
    "sam": ("method=sam", "step.perturbation=share", PLAIN),
    "asam": ("method=asam", "step.perturbation=share", PLAIN),
    "sam_on": ("method=sam_on", "step.perturbation=share", "dataset.validation=38", NORMED),
}
TRAININGS = [
    *METHODS.values(),
    *SHARING.values(),
    ("method=sgd", NORMED),
]
COMMAND = (*SMALL, "method=sam", "collect=swa", "budget=2")
"""A run of three epochs, in the last of which the average is evaluated."""


def torchrun(*command: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start two processes of a script or module."""
    path = os.pathsep.join([str(OWN), str(STARTUP)])
    variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment
    call = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    return subprocess.Popen(call, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def broadopt(*arguments: str, cwd: Path, **environment: str) -> "subprocess.Popen[str]":
    """Start `torchrun --nproc-per-node 2 -m broadopt.run ARGUMENTS`."""
    return torchrun("-m", "broadopt.run", *arguments, cwd=cwd, **environment)


def forked(*arguments: str, cwd: Path, program: str = "broadopt-run") -> "list[subprocess.CompletedProcess[str]]":
    """Both processes of torchrun --nproc-per-node 2 with a program, with its variables and its store."""
    with both(*arguments, cwd=cwd, program=program) as started:
        return [finish(process) for process in started]


@contextmanager
def both(*arguments: str, cwd: Path, program: str = "broadopt-run") -> Iterator[list[Process]]:
    """The same while they are on it."""
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = {
        "TORCHELASTIC_RUN_ID": "forked",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
    }
    started = [start(*arguments, cwd=cwd, program=program, RANK=rank, LOCAL_RANK=rank, **given) for rank in ("0", "1")]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
        del store  # which the processes have asked until their ends


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes, started once, have left what each of TRAININGS ends with."""
    folder = tmp_path_factory.mktemp("of_two")
    for done in forked(str(folder), *map(" ".join, TRAININGS), cwd=folder, program=processes.__file__):
        assert done.returncode == 0, done.stderr
    return folder


def of_two(folder: Path, *overrides: str) -> dict[str, Any]:
    """What the first of two processes ends with; the second's weights and optimizer states are the same bit for bit."""
    place = TRAININGS.index(overrides)
    first, second = (torch.load(folder / f"{place}-{rank}.pt", weights_only=True) for rank in (0, 1))
    parameters = [name for name in first["weights"] if name not in first["statistics"]]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in parameters)
    for own, other in zip(first["states"].values(), second["states"].values(), strict=True):
        assert own.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in own.items())
    assert first["history"] == second["history"]
    return first


def of_one(*overrides: str) -> dict[str, Any]:
    """What one process ends with."""
    return processes.outcome(processes.training(*overrides))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


def figures(rows: Iterable[dict[str, float]]) -> list[Tensor]:
    return [torch.tensor(list(row.values()), dtype=torch.float64) for row in rows]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_compute_what_one_does_on_the_same_batches(method: str, trained_by_two: Path) -> None:
    found, expected = of_two(trained_by_two, *METHODS[method]), of_one(*METHODS[method])
    close(found["weights"], expected["weights"])
    close(found["states"], expected["states"])
    close(figures(found["history"]), figures(expected["history"]))
    close(figures(found["collected"].values()), figures(expected["collected"].values()))
    assert found["gradients"] == expected["gradients"]


@pytest.mark.parametrize("method", SHARING)
def test_a_perturbation_of_each_share_is_m_sharpness(method: str, trained_by_two: Path) -> None:
    """Against one process that takes the same shares one after the other."""
    found = of_two(trained_by_two, *SHARING[method])
    made = processes.training(*(word for word in SHARING[method] if word != "step.perturbation=share"))
    step, epsilon = made.parts.step, made.parts.step.epsilon
    chosen = [weight for weight in step.parameters if step.perturbed is None or weight in step.perturbed]
    for epoch in range(2):
        for images, labels in made.parts.data.train(epoch):
            weights, mean = step.parameters, [torch.zeros_like(weight) for weight in step.parameters]
            for rank in (0, 1):
                part = Processes(rank, 2).share(len(labels))
                share = (part.stop - part.start) / len(labels)
                gradient = gradients_of(made.parts.model, chosen, images[part], labels[part])
                with torch.no_grad():
                    before = [weight.clone() for weight in weights]
                    for weight, change in zip(chosen, epsilon(chosen, gradient), strict=True):
                        weight.add_(change)
                above = gradients_of(made.parts.model, weights, images[part], labels[part])
                with torch.no_grad():
                    for weight, value, total, slope in zip(weights, before, mean, above, strict=True):
                        weight.copy_(value)
                        total.add_(slope, alpha=share)
            for group in step.optimizer.param_groups:
                group["lr"] = found["history"][epoch]["lr"]
            for weight, total in zip(weights, mean, strict=True):
                weight.grad = total
            step.optimizer.step()
    names = [name for name, _ in made.parts.model.named_parameters()]
    close({name: found["weights"][name] for name in names}, dict(made.parts.model.named_parameters()))
    other = of_one(*(word for word in SHARING[method] if word != "step.perturbation=share"))
    assert not torch.allclose(found["weights"]["linear.weight"], other["weights"]["linear.weight"], rtol=1e-6)


def gradients_of(model: nn.Module, weights: list[Tensor], images: Tensor, labels: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(F.cross_entropy(model(images), labels), weights))


def test_statistics_of_bn_estimated_by_two_processes_are_those_of_all_batches(trained_by_two: Path) -> None:
    found = of_two(trained_by_two, "method=sgd", NORMED)
    alone = processes.training("method=sgd", NORMED)
    alone.parts.model.load_state_dict(found["weights"])
    alone.progress.step = 16
    alone.reestimate(alone.parts.model)
    for name in ("features.1.running_mean", "features.1.running_var"):
        close(found["statistics"][name], alone.parts.model.get_buffer(name))


def test_figures_of_two_processes_are_those_of_the_first_ones_network(trained_by_two: Path) -> None:
    """Each has seen other images, and so has other statistics of BN while it trains."""
    found = of_two(trained_by_two, "method=sgd", NORMED)
    alone = processes.training("method=sgd", NORMED)
    alone.parts.model.load_state_dict(found["weights"])
    expected = alone.evaluator.metrics(alone.evaluator.predict(alone.parts.model), where="")
    last = found["history"][-1]
    close(figures([{name: last[name] for name in expected}]), figures([expected]))


def test_each_process_draws_noise_of_its_own() -> None:
    parts = processes.training("method=sgd", PLAIN).parts
    seeds = [replace(parts, processes=Processes(rank, 3)).noise_seed("noise", 5) for rank in range(3)]
    assert len(set(seeds)) == 3
    assert seeds[0] == parts.noise_seed("noise", 5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that two processes have carried out undisturbed, and what they printed."""
    cwd = tmp_path_factory.mktemp("whole")
    first, second = forked(*COMMAND, cwd=cwd)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    return cwd, first.stdout + second.stdout


def test_a_run_that_torchrun_was_asked_to_end_goes_on_bit_for_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    halt = {"HALT": "train 60", "HALT_UNTIL": "SIGTERM", "HALT_FILE": str(tmp_path / "halted-PID")}
    process = broadopt(*COMMAND, cwd=tmp_path, **halt)
    until(lambda: len(list(tmp_path.glob("halted-*"))) == 2, process)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to both
    assert finish(process).returncode != 0
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "interrupted"
    (left,) = folder.glob("checkpoint-*.ckpt")
    assert int(left.stem.removeprefix("checkpoint-")) % 10 == 0

    again, other = forked(*COMMAND, cwd=tmp_path)
    assert again.returncode == other.returncode == 0, again.stderr + other.stderr
    assert f"going on from {folder.relative_to(tmp_path)}/{left.name}" in again.stderr
    (reference,) = folders(whole[0])
    assert same_outcome(folder, reference)
    assert result(folder)["config"]["processes"] == result(folder)["environment"]["processes"] == 2


def test_a_run_of_two_processes_that_one_repeats_is_said_to_be_another(whole: tuple[Path, str], tmp_path: Path) -> None:
    (folder,) = folders(whole[0])
    done = finish(start(f"repeat={folder}", "results_dir=results", "trust=own_network", cwd=tmp_path))
    assert done.returncode == 0
    assert done.stderr == (
        "processes: 2 in the repeated run, 1 here, which makes another run; expected torchrun --nproc-per-node 2 "
        "-m broadopt.run repeat=... to repeat that one\n"
    )
    both = forked(f"repeat={folder}", "results_dir=again", "trust=own_network", cwd=tmp_path)
    assert [(done.returncode, done.stderr) for done in both] == [(0, ""), (0, "")]
    assert same_outcome(folder, tmp_path / "again" / folder.relative_to(whole[0] / "results"))


def test_two_processes_behind_a_closed_pipe_save_and_go_on_bit_for_bit(whole: tuple[Path, str], tmp_path: Path) -> None:
    with both(*COMMAND, cwd=tmp_path) as started:
        assert started[0].stdout is not None
        while not started[0].stdout.readline().startswith("epoch 1/3: "):
            assert started[0].poll() is None
        started[0].stdout.close()
        assert [finish(process).returncode for process in started] == [75, 75]
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "interrupted"
    assert list(folder.glob("checkpoint-*.ckpt"))

    again = forked(*COMMAND, cwd=tmp_path)
    assert [process.returncode for process in again] == [0, 0], again[0].stderr
    assert "going on from" in again[0].stderr
    assert same_outcome(folder, *folders(whole[0]))


def test_the_first_process_alone_speaks_and_writes(whole: tuple[Path, str]) -> None:
    cwd, output = whole
    assert output.count("finished: ") == output.count("epoch 1/3: ") == 1
    (folder,) = folders(cwd)
    left = [".lock", "config.yaml", "history.csv", "predictor.safetensors", "result.json"]
    assert sorted({path.name for path in folder.iterdir()} - {"code.diff"}) == left
    assert len(history(folder)) == 3
    first, second = forked(*COMMAND, cwd=cwd)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert (first.stdout + second.stdout).count("already finished") == 1


DIGITS = read(run_config(compose(["experiment=quickstart"])).recipe.dataset)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "method=sam_on",
            "step.layers=normalisation: its first pass averages no gradients; expected step.perturbation=share",
        ),
        (
            "method=friendly_sam step.layers=normalisation",
            "step.layers=normalisation: its first pass averages no gradients; expected all",
        ),
        *(
            (
                f"method={method} step.ascent=0.5",
                "step.ascent=0.5: the first images of a batch are those of one device; expected 1",
            )
            for method in ("gsam", "looksam", "friendly_sam", "asam")
        ),
        (
            "method=sam step.second_order=true",
            "step.second_order=true: second derivatives are those of one device; expected false",
        ),
        ("method=gsam step.chunk=4", "step.chunk=4: chunks are those of one device; expected null"),
        (
            "method=asam step.chunk=4",
            "step.chunk=4: chunks are those of one device; expected null; "
            "step.perturbation=share perturbs by each process's share",
        ),
    ],
)
def test_a_step_of_one_device_is_refused(overrides: str, message: str) -> None:
    run = run_config(compose([*processes.SMALL, NORMED, "precision=fp32", *overrides.split()]))
    with pytest.raises(InputError) as refused:
        build(run, DIGITS, processes.CPU, Processes(0, 2))
    assert str(refused.value) == f"{message} (2 processes)"


def test_shares_of_one_process_are_refused() -> None:
    """It would be the perturbation of the whole batch, recorded as another recipe."""
    run = run_config(compose([*processes.SMALL, NORMED, "precision=fp32", "method=sam", "step.perturbation=share"]))
    with pytest.raises(InputError, match=r"^step\.perturbation=share: there is one process; expected global, or step"):
        build(run, DIGITS, processes.CPU, Processes(0, 1))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=1437", "batch_size=1437: the last batch of an epoch has 1 images for 2 processes"),
        ("step.chunk=4", "step.chunk=4: chunks are those of one device; expected null"),
        ("step.ascent=0.5", "step.ascent=0.5: the first images of a batch are those of one device; expected 1"),
        ("step.perturbation=both", 'step.perturbation="both": expected one of global, share'),
    ],
)
def test_what_two_processes_cannot_do_is_said_once(override: str, message: str, tmp_path: Path) -> None:
    first, second = forked(*SMALL, "method=sam", override, cwd=tmp_path)
    assert first.returncode == second.returncode == 2
    assert first.stderr.count(message) == 1
    assert second.stderr == ""
    assert not list(tmp_path.rglob("result.json"))


def test_two_processes_begin_together_with_what_two_have_left(tmp_path: Path) -> None:
    """LAWA takes in the last weights of SGD, and trains nothing itself."""
    for cwd, arguments in (("alone", ["collect=lawa"]), ("shared", ["-m", "collect=none,lawa", "trunk=share"])):
        (tmp_path / cwd).mkdir()
        ended = forked(*SMALL, "budget=1", *arguments, cwd=tmp_path / cwd)
        assert [process.returncode for process in ended] == [0, 0], ended[0].stderr
    (expected,), (found, sgd) = folders(tmp_path / "alone"), folders(tmp_path / "shared")
    (line,) = [line for line in "".join(process.stderr for process in ended).splitlines() if line.startswith("begins")]
    assert line.startswith(f"begins with 1 epoch of runs/digits/small/sgd/{sgd.name}, from results/trunks/")
    assert sum(line.startswith("epoch") for line in ended[0].stdout.splitlines()) == 1
    assert outcome(result(found)) == outcome(result(expected)) | {"trunk": result(found)["trunk"]}
    assert history(found) == history(expected)


def test_a_sweep_ends_in_all_processes_where_one_has_failed_alone(tmp_path: Path) -> None:
    """The first, whose run folder cannot be written: the other waits for it in the midst of that run."""
    sweep = (*SMALL, "budget=0.1", "-m", "seed=1,2")
    recipe = children.run_of("budget=0.1").recipe.decided(precision="fp32", fingerprint=None, processes=2)
    (run_folder(tmp_path / "results", recipe.record()) / ".lock").mkdir(parents=True)
    first, other = forked(*sweep, cwd=tmp_path, program=impatient.__file__)
    assert (first.returncode, other.returncode) == (1, 1), first.stderr + other.stderr
    assert "seed=1: results_dir: results/runs/" in first.stderr
    assert first.stderr.endswith(
        "broadopt-run: one of the processes has failed alone: the sweep ends here; the same command goes on with it\n"
    )
    assert not list(tmp_path.rglob("result.json"))


def test_what_all_processes_fail_by_is_said_once(tmp_path: Path) -> None:
    first, other = forked(*SMALL, "budget=0.1", "lr=1e30", cwd=tmp_path)
    assert (first.returncode, other.returncode) == (1, 1), first.stderr + other.stderr
    (line,) = first.stderr.splitlines()
    assert line.startswith("broadopt-run: ")
    assert " is not finite in epoch 1 at lr 1e+30; last finite loss: " in line
    assert other.stderr == ""


def test_what_is_not_finite_in_one_process_fails_all_by_one_line() -> None:
    made = processes.training("method=sgd", PLAIN)
    others = SimpleNamespace(gathered=lambda own: [own, "the loss is not finite in epoch 1"])
    made.parts = replace(made.parts, processes=others)
    with pytest.raises(RunFailed, match=r"^the loss is not finite in epoch 1$"):
        made.check_finite()


def test_what_one_process_has_met_alone_it_says_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    store = distributed.HashStore()
    monkeypatch.setattr(module, "_store", lambda: store)
    monkeypatch.setattr(module, "FIRST_SPEAKS", timedelta(seconds=0.1))
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "2")
    assert speaks("all: have met it \udce4")
    monkeypatch.setenv("RANK", "0")
    assert speaks("all: have met it \udce4")
    monkeypatch.setenv("RANK", "1")
    assert not speaks("all: have met it \udce4")
    assert speaks("this one: alone")
    monkeypatch.delenv("MASTER_PORT")
    assert not speaks("this one: alone")


def test_a_failure_of_all_processes_ends_one_run_of_a_sweep(tmp_path: Path) -> None:
    first, other = forked(*SMALL, "budget=0.1", "-m", "lr=1e30,0.1", cwd=tmp_path, program=impatient.__file__)
    assert (first.returncode, other.returncode) == (1, 1), first.stderr + other.stderr
    assert "failed alone" not in first.stderr + other.stderr
    assert first.stderr.count(" is not finite in epoch 1 at lr 1e+30; ") == 2, "when it happens, and at the end"
    assert other.stderr == ""
    states = {found["config"]["lr"]: found["state"] for found in map(result, folders(tmp_path))}
    assert states == {1e30: "failed", 0.1: "finished"}
