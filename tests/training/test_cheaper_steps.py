"""Steps whose cost varies, in broadopt's own loop: the plan's count is the run's, a resumed run has the same bits."""

import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from command import SMALL, folders, result, run
from torch import nn

from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.errors import InputError, RunFailed
from broadopt.methods.asam import asam
from broadopt.methods.collect import Nothing
from broadopt.methods.sam import sam
from broadopt.methods.step import Step
from broadopt.methods.steps.friendly import FriendlySAM
from broadopt.methods.steps.gsam import gsam
from broadopt.methods.steps.looksam import LookSAM
from broadopt.methods.steps.msam import MSAM
from broadopt.methods.steps.optimizers import adamw
from broadopt.methods.steps.sharp_steps import Course, gradients
from broadopt.training.loop import Training
from broadopt.training.planning.price import price

sys.path.append(str(Path(__file__).parents[1] / "methods"))
from short_training import sgd, training

Make = Callable[[nn.Module, torch.optim.Optimizer], Step]

STEPS = 12
"""Three epochs of 16, 16, 16 and 10 pictures."""

COUNTED: dict[str, tuple[Make, float]] = {
    "late": (partial(sam, rho=0.1, from_=0.43), STEPS + 6),  # 0.43 of 12 steps are 5.16
    "in the middle": (partial(sam, rho=0.1, from_=0.25, until=0.75), STEPS + 6),
    "every fifth": (partial(asam, rho=0.5, every=5), STEPS + 3),
    "a quarter of the batch": (partial(sam, rho=0.1, ascent=0.25), STEPS + 9 * 4 / 16 + 3 * 2 / 10),
    "half of it, late": (partial(sam, rho=0.1, ascent=0.5, from_=0.5), STEPS + 6 * 0.5),
    "half of each chunk": (partial(sam, rho=0.1, ascent=0.5, chunk=8), STEPS + 12 * 0.5),
    "normalisation": (partial(sam, rho=0.1, layers="normalisation"), 2 * STEPS),
    "looksam": (partial(LookSAM, rho=0.1, every=4), STEPS + 3),
    "looksam, late, half": (partial(LookSAM, rho=0.1, every=4, from_=0.3, ascent=0.5), STEPS + 2 * 0.5),
    "gsam": (partial(gsam, rho=0.1), 2 * STEPS),
    "friendly": (partial(FriendlySAM, rho=0.1, every=2), STEPS + 6),
    "msam": (partial(MSAM, rho=0.1), STEPS),
    "second order": (partial(sam, rho=0.1, second_order=True), 4 * STEPS),
    "second order, half, late": (partial(sam, rho=0.1, second_order=True, ascent=0.5, from_=0.5), STEPS + 6 * 1.5),
}


def made(name: str, optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd) -> Training:
    with torch.random.fork_rng():
        return training(Nothing(), budget=3, step=COUNTED[name][0], optimizer=optimizer)


def state_of(one: Training) -> dict[str, Any]:
    """As a checkpoint holds it."""
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def carried_on(one: Training, first: int, last: int) -> None:
    """Train from step `first` to before step `last`."""
    for step in range(first, last):
        epoch, batch = divmod(step, 4)
        one.train_on(*next(iter(one.parts.data.train(epoch, batch))))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(list(model.parameters()), lr=0.01, weight_decay=0.01)


KEPT = ("looksam", "friendly", "msam")
"""Steps that read what they have left in the optimizer's state."""


@pytest.mark.parametrize(("name", "optimizer"), [*((name, sgd) for name in COUNTED), *((name, adam) for name in KEPT)])
def test_a_run_takes_the_gradients_that_were_counted_and_resumes_with_the_same_bits(
    name: str, optimizer: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    whole, resumed, counted = made(name, optimizer), made(name, optimizer), COUNTED[name][1]
    carried_on(whole, 0, 6)
    state = state_of(whole)
    carried_on(whole, 6, 12)
    resumed.load_state_dict(state)
    carried_on(resumed, 6, 12)
    found, expected = state_of(resumed), state_of(whole)
    for part in ("model", "optimizer", "sums"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert expected["model"]["classifier.weight"].ne(made(name).parts.model.classifier.weight).any()
    course = Course.of(images=58, batch_size=16, budget=3, epochs=3)
    assert gradients(whole.parts.step, course) == pytest.approx(counted, rel=1e-14)
    for one in (whole, resumed):
        assert one.progress.gradient_evaluations == pytest.approx(counted, rel=1e-14)


def test_what_a_step_keeps_is_checked_for_finite_values() -> None:
    one = made("looksam")
    carried_on(one, 0, 1)
    one.check_finite()
    weight = one.parts.model.classifier.weight
    one.parts.step.optimizer.state[weight]["looksam_direction"][0, 0] = float("nan")
    with pytest.raises(RunFailed, match=r"^optimizer 4 looksam_direction is not finite in epoch 1"):
        one.check_finite()


def test_train_loss_and_accuracy_are_those_of_the_images_of_the_first_passes() -> None:
    part, whole = made("a quarter of the batch"), made("normalisation")
    for one in (part, whole):
        carried_on(one, 0, 4)
    assert part.stepper.sums().images == 4 + 4 + 4 + 2
    assert whole.stepper.sums().images == 58
    assert part.stepper.sums().hits <= 14


PLANNED = {
    "method=late_sam": 78_200 + 44_574,  # from step 33,626 of 78,200
    "method=sam step.from=0.25 step.until=0.75": 78_200 * 1.5,
    "method=asam step.every=5": 78_200 * 1.2,
    "method=sam step.ascent=0.25": 78_200 * 1.25,  # the last batch of an epoch has 80 images
    "method=sam_on": 2 * 78_200,
    "method=sam collect=swa step.until=1": 78_200 * 2.5,
    "method=sam": 2 * 78_200,
    "method=looksam step.every=10": 1.1 * 78_200,
    "method=msam": 78_200,
    "method=msam optimizer=adamw": 78_200,
    "method=friendly_sam": 2 * 78_200,
    "method=gsam": 2 * 78_200,
    "method=sam step.second_order=true": 4 * 78_200,
}


@pytest.mark.parametrize(("overrides", "counted"), PLANNED.items())
def test_the_plan_counts_the_gradients_of_the_whole_run(overrides: str, counted: float) -> None:
    recipe = run_config(compose([*overrides.split(), "model=resnet20", "dataset=cifar100"])).recipe
    planned = price(recipe)
    assert planned.gradient_evaluations == counted
    assert planned.passes == counted / planned.steps
    assert planned.flops == pytest.approx(6 * planned.macs * counted / planned.steps * planned.epochs * 50_000)


def test_the_command_plans_what_its_result_counts(tmp_path: Path) -> None:
    given = (*SMALL, "method=late_sam", "budget=0.3", "step.ascent=0.3125")  # 14 steps of 32 digits, 8 sharp ones by 10
    plan, done = (run(*given, *more, cwd=tmp_path) for more in (["plan=true"], []))
    assert (plan.returncode, done.returncode) == (0, 0), plan.stderr + done.stderr
    assert "14 steps of 32" in plan.stdout
    assert "16.5 gradient evaluations" in plan.stdout
    (folder,) = folders(tmp_path)
    cost = result(folder)["cost"]
    assert (cost["gradient_evaluations"], cost["passes"]) == (16.5, 16.5 / 14)


def test_a_method_of_a_part_of_the_training_is_its_step_and_its_record_says_when() -> None:
    sam, late, on = (recipe_of([f"method={name}"]) for name in ("sam", "late_sam", "sam_on"))
    assert late == sam | {"method": "late_sam", "step": sam["step"] | {"from": 0.43}}
    assert on == sam | {"method": "sam_on", "step": sam["step"] | {"layers": "normalisation"}}
    assert not {"from", "until", "every", "ascent", "layers"} & sam["step"].keys()


def test_second_derivatives_of_a_compiled_network_are_refused() -> None:
    message = "step.second_order=true: compiled networks have no second derivative; expected compile=false"
    with pytest.raises(InputError, match=f"^{message}$"):
        processes.training("method=sam", "step.second_order=true", "compile=true", "+model.batch_norm=true")


@pytest.mark.parametrize(("key", "value"), [("from", 0.5), ("every", 2), ("ascent", 0.5), ("layers", "all")])
def test_keys_of_sharp_steps_are_refused_for_a_plain_one(key: str, value: object) -> None:
    recipe = run_config(compose(["method=sgd", f"++step.{key}={value}"])).recipe
    with pytest.raises(InputError, match=f"^unknown key step.{key}; step=asam .*has it"):
        price(recipe)
