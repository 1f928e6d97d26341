"""What plan=true says of a run's evaluations. The oracle is the training itself, whose passes are counted as they are
made.
"""

import re
from collections import Counter
from pathlib import Path

import command
import pytest
import torch
from command import folders, result, run
from in_process import said

from broadopt.analysis.status.estimate import Estimates
from broadopt.analysis.status.state import look
from broadopt.config.compose import compose, run_config
from broadopt.data.datasets import read, size
from broadopt.devices.rates import duration
from broadopt.errors import InputError
from broadopt.runs import results
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.evaluate import Evaluator
from broadopt.training.loop import Training
from broadopt.training.planning.page import summary
from broadopt.training.planning.price import Price, price
from broadopt.training.progress import EpochLines

CPU = torch.device("cpu")
SMALL = ("experiment=quickstart", "model=resnet20", "model.depth=8", "batch_size=359", "precision=fp32", "lr=0.01")
OWN = "model.name=mine model._target_=own_network.Small ~model.depth +model.batch_norm"
"""A smaller network: what is passed over does not depend on it, but for its having BN."""
TRAININGS = (
    ("", "method=sgd budget=1.3"),
    (f"{OWN}=true", "method=sgd budget=3 evaluate_every=2"),
    (f"{OWN}=true", "method=swa budget=2"),
    (f"{OWN}=false", "method=swa budget=2"),
    (f"{OWN}=true", "method=fge budget=2 collect.start=0.5 collect.cycle=0.125"),
    (f"{OWN}=true", "collect=ema budget=2"),
    (f"{OWN}=true", "collect=ema collect.bn=own budget=2"),
    (f"{OWN}=true", "collect=lawa budget=2"),
    (f"{OWN}=true", "collect=swag collect.samples=3 collect.budgets=[1,1.5] budget=2"),
    (f"{OWN}=true", "method=sam collect=swa+ema+lawa+swag collect.also.swag.samples=2 budget=2 dataset.validation=100"),
)


@pytest.mark.parametrize(("network", "overrides"), TRAININGS)
def test_a_plan_counts_the_passes_that_the_run_makes(
    network: str, overrides: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the images that the network sees outside its steps, in evaluation mode and not."""
    monkeypatch.syspath_prepend(str(command.OWN))
    config = run_config(compose([*SMALL, *network.split(), *overrides.split()]))
    parts = build(config, read(config.recipe.dataset), CPU)
    training, seen, evaluating = Training(parts, stop=Stop(), reporter=EpochLines()), Counter(), []
    for name in ("predict", "reestimate"):
        original = getattr(Evaluator, name)

        def noted(*arguments, original=original, **options):  # type: ignore[no-untyped-def]
            evaluating.append(True)
            try:
                return original(*arguments, **options)
            finally:
                evaluating.pop()

        monkeypatch.setattr(Evaluator, name, noted)

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if evaluating:  # deep copies of the network are counted by the same hook
            seen["training" if module.training else "held out"] += len(inputs[0])

    parts.model.register_forward_pre_hook(count)
    training.run(lambda: None, minutes=1e9)

    planned = price(config.recipe)
    assert planned.evaluations is not None
    found = size(config.recipe.dataset)
    held_out = found.test + config.recipe.dataset.validation
    assert seen["held out"] == planned.evaluations.held_out * held_out
    assert seen["training"] == planned.evaluations.training * planned.images
    assert planned.evaluation_flops == 2 * planned.macs * (seen["held out"] + seen["training"])


def test_the_hours_of_the_evaluations_are_those_of_their_operations() -> None:
    """A pass is a third of a gradient: SGD's 200 evaluations of 10,000 images beside 200 epochs of 50,000."""
    cost = price(run_config(compose(["model=resnet20", "dataset=cifar10", "method=sgd", "budget=200"])).recipe)
    time = duration({}, images=1, flops=cost.flops, precision="bf16")
    own = Price.of(cost, time)
    assert own.evaluations == pytest.approx(time.hours / 15, rel=1e-12)
    twice, unknown = summary([own, own]), summary([own, Price(1.0, time, None)])
    assert f"evaluations about {2 * own.evaluations:.2g} h more" in twice
    assert "evaluations come on top" in unknown


def test_a_sweep_is_planned_in_hours_of_each_kind_of_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a CPU the rate of ResNet-20 is known, and that of VGG-16 is a GPU's."""
    monkeypatch.setattr("broadopt.training.planning.price.device_name", lambda device: "CPU (AMD EPYC)")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    given = ("-m", "dataset=cifar10", "method=sgd,swa", "device=cpu", "precision=bf16", "plan=true")
    code, out, err = said("broadopt-run", *given, "model=resnet20,vgg16", "trunk=share", cwd=tmp_path)
    assert code == 0, err
    *_, shared, summed = out.splitlines()
    hours = [re.search(r"about \S+ h on .*? \(by measured rate\)", line) for line in out.splitlines()]
    assert sorted(found[0] for found in hours[:-2] if found) == [
        "about 0.044 h on an H100 (by measured rate)",
        "about 0.066 h on an H100 (by measured rate)",
        "about 3.1 h on 1 thread of a CPU (by measured rate)",
        "about 4.7 h on 1 thread of a CPU (by measured rate)",
    ]
    cpu = "on 1 thread of a CPU (AMD EPYC)"
    assert shared.endswith(f" budgets, about 6.6 of 7.9 h {cpu} and about 0.093 of 0.11 h on an H100")
    assert re.fullmatch(
        rf"4 runs, about 7.9 h {re.escape(cpu)} by measured rates and about 0.11 h on an H100 by measured rates, "
        rf"evaluations about 0.54 h more {re.escape(cpu)} and about 0.0074 h more on an H100, \S+ PFLOPs",
        summed,
    )


def test_a_plan_says_of_a_measured_rate_that_it_is_of_batches_of_another_size(tmp_path: Path) -> None:
    said_of = {}
    for count in (32, 128):
        given = ("method=sgd", "model=wrn28_10", "protocol=asam2021", f"batch_size={count}", "plan=true")
        code, out, err = said("broadopt-run", *given, cwd=tmp_path)
        assert code == 0, err
        said_of[count] = next(line for line in out.splitlines() if line.startswith("  time "))
    assert "measured: 9,411 images/s a gradient (1 run), of batches of 128; evaluations about " in said_of[32]
    assert "measured: 9,411 images/s a gradient (1 run); evaluations about " in said_of[128]


def test_a_plan_says_nothing_of_a_collector_that_says_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine.py").write_text(
        "from broadopt.methods.swa import WeightAverage\n\n\nclass Mine(WeightAverage):\n    passes = None\n"
    )
    given = (*SMALL, "collect=swa", "collect._target_=mine.Mine", "budget=2", "plan=true")
    done = run(*given, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "; evaluations come on top\n" in done.stdout
    assert "passes over" not in done.stdout


NEAREST = """
import torch
from torch import nn


class Nearest(nn.Module):
    def __init__(self, *, num_classes):
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(num_classes, 3 * 32 * 32))

    def forward(self, images):
        return -torch.cdist(images.flatten(1), self.prototypes)
"""


def test_a_network_whose_operations_cannot_be_counted_is_planned_and_trained_once(tmp_path: Path) -> None:
    (tmp_path / "nearest.py").write_text(NEAREST)
    (tmp_path / "configs/model").mkdir(parents=True)
    (tmp_path / "configs/model/nearest.yaml").write_text("_target_: nearest.Nearest\n")
    given = ("--config-dir", "configs", SMALL[0], "method=swa", "budget=0.2", "precision=fp32")

    def carried_out(*more: str, model: str = "nearest") -> str:
        done = run(*given, "device=cpu", f"model={model}", *more, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        return done.stdout

    page = carried_out("plan=true")
    assert "  network    Nearest(): 30,720 parameters, operations could not be counted\n" in page
    assert "  time       unknown; evaluations come on top\n" in page
    assert "PFLOPs" not in page
    (*_, both) = carried_out("-m", "plan=true", "seed=1,2").splitlines()
    assert both == "2 runs, hours unknown, evaluations come on top, operations could not be counted"
    assert " budgets, operations could not be counted\n" in carried_out("-m", "plan=true", "trunk=share", "seed=1,2")
    (*_, mixed) = carried_out("-m", "plan=true", model="nearest,resnet20").splitlines()
    assert mixed.startswith("2 runs, about ")
    assert mixed.endswith(" PFLOPs, operations could not be counted of 1 of them")

    assert "\nfinished: " in carried_out()
    assert carried_out().startswith("already finished: ")
    (folder,) = folders(tmp_path)
    stored = result(folder)
    assert stored["cost"]["macs"] is None
    results.write(folder, stored | {"cost": stored["cost"] | {"macs": 0}})  # as earlier versions did
    assert carried_out().startswith("already finished: ")
    estimates = Estimates(look(tmp_path / "results"), tflops=1.0)
    assert estimates.flops(stored["config"]) is None


@pytest.mark.parametrize("given", ["dataset.validation=1438", "dataset.validation=100000", "batch_size=1439"])
def test_a_plan_refuses_what_the_run_refuses_in_the_same_words(given: str) -> None:
    recipe = run_config(compose([*SMALL, given])).recipe
    with pytest.raises(InputError) as planned:
        price(recipe)
    with pytest.raises(InputError) as carried_out:
        build(run_config(compose([*SMALL, given])), read(recipe.dataset), CPU)
    assert str(planned.value).startswith(f"{given}: expected a whole number from ")
    assert str(planned.value) == str(carried_out.value)


@pytest.mark.parametrize(
    "given",
    [
        "dataset.noise=asymmetric dataset.label_noise=0.2",
        "dataset=cifar100 dataset.coarse=true dataset.noise=asymmetric dataset.label_noise=0.2",
    ],
)
def test_a_plan_refuses_noise_of_classes_that_have_none(given: str) -> None:
    with pytest.raises(InputError, match=r"^dataset\.noise=asymmetric: expected the classes of CIFAR-10 or "):
        price(run_config(compose([*SMALL, *given.split()])).recipe)


@pytest.mark.parametrize("given", ["dataset=cifar10", "dataset=cifar100"])
def test_a_plan_takes_noise_of_classes_that_have_it(given: str) -> None:
    noisy = ("dataset.noise=asymmetric", "dataset.label_noise=0.2", given)
    assert price(run_config(compose([*SMALL, *noisy])).recipe).images == 50_000


def test_second_derivatives_of_compiled_networks_are_refused_with_the_config() -> None:
    with pytest.raises(InputError, match=r"^step\.second_order=true: compiled networks have no second derivative"):
        run_config(compose([*SMALL, "method=sam", "step.second_order=true", "compile=true"]))


def test_a_plan_takes_the_largest_batch_that_a_run_takes() -> None:
    cost = price(run_config(compose([*SMALL, "dataset.validation=1338", "batch_size=100"])).recipe)
    assert (cost.images, cost.steps) == (100, 3)
    with pytest.raises(InputError, match=r"^batch_size=101: expected a whole number from 1 to 100, "):
        price(run_config(compose([*SMALL, "dataset.validation=1338", "batch_size=101"])).recipe)


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("collect=swa schedule.tail=constant schedule.high=null", "schedule.high=null: schedule.tail=constant needs a"),
        ("schedule.shape=foo", "schedule.shape=foo: expected one of constant, linear, cosine, steps"),
        ("augmentation.std=[0,1,1]", "augmentation.std=[0, 1, 1]: expected three numbers above 0"),
        ("augmentation.border=mean augmentation.autoaugment=true", "augmentation.border=mean: expected black with"),
    ],
)
def test_a_plan_refuses_schedules_and_augmentations_that_the_run_refuses(
    given: str, expected: str, sweep: bool, tmp_path: Path
) -> None:
    overrides = [*SMALL, *given.split()]
    with pytest.raises(InputError, match=re.escape(expected)):
        build(run_config(compose(overrides)), read(run_config(compose([*SMALL])).recipe.dataset), CPU)
    code, out, err = said("broadopt-run", *["-m"] * sweep, "plan=true", *overrides, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert expected in err


def test_plan_and_run_warn_of_evaluation_points_behind_epochs_of_lr_0(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    overrides = [*SMALL, "method=sam", "protocol=asam2021", "collect=ema+swa"]
    warning = (
        "schedule: the lr is 0 from epoch 3 to 4.5, so that no weight changes before the evaluation points swa 1.25, "
        "swa 1.5; expected none after that, or a schedule that goes on"
    )
    config = run_config(compose(overrides))
    build(config, read(config.recipe.dataset), CPU)
    assert warning in caplog.messages
    for sweep in ([], ["-m"]):
        code, _, err = said("broadopt-run", *sweep, "plan=true", *overrides, cwd=tmp_path)
        assert (code, err) == (0, f"{warning}\n")
