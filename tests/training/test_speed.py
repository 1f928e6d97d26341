"""Whatever makes a run faster leaves what it computes as it is, up to rounding."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from processes import NETWORK
from torch import nn
from torch._dynamo.utils import counters

from broadopt.config.compose import compose, run_config
from broadopt.config.run_config import RunConfig
from broadopt.data.datasets import Dataset, Images, read
from broadopt.devices.device import choose_memory_format, choose_precision, set_flags
from broadopt.errors import InputError
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines

CPU = torch.device("cpu")


RESNET = ("model=resnet20", "model.depth=8")


def trained(
    *overrides: str, network: Sequence[str] = RESNET, precision: str = "fp32", double: bool = False
) -> Training:
    """Three steps on 16 digits each, which are all that there are, and what the collector makes of it; without dropout,
    whose numbers a compiled network draws in another way.

    With `double` the network computes in float64: what is a matter of rounding there is 1e-9 times smaller, what is not
    stays.
    """
    small = ("experiment=quickstart", *network, "budget=1", "batch_size=16")
    run = run_config(compose([*small, f"precision={precision}", *overrides]))
    set_flags(precision, deterministic=run.execution.deterministic)
    training = Training(build(run, digits(run), CPU), stop=Stop(), reporter=EpochLines())
    for module in training.parts.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if double:
        model = training.parts.model.double()
        model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    training.run(lambda: None, minutes=1e9)
    set_flags("fp32", deterministic=False)
    return training


def digits(run: RunConfig) -> Dataset:
    """As many as three batches have, and thirty to test on: in float64 a pass over all takes seconds."""
    whole = read(run.recipe.dataset)
    train, test = (
        Images(images.pixels[:count], images.labels[:count])
        for images, count in ((whole.train, 3 * 16), (whole.test, 30))
    )
    return replace(whole, train=train, test=test)


def figures(training: Training) -> dict[str, float]:
    """Every number that a training reports, by its place."""
    progress = training.progress
    rows: dict[str, Any] = {f"epoch {row['epoch']}": row for row in progress.history}
    return {
        f"{place} {name}": value for place, row in (rows | progress.collected).items() for name, value in row.items()
    }


@pytest.mark.parametrize(
    "method", [("method=sgd",), ("method=swa", "collect.budgets=[1]"), ("method=asam",)], ids="-".join
)
def test_memory_format_changes_a_result_by_rounding_alone(method: tuple[str, ...]) -> None:
    first, second = (trained(*method, f"memory_format={name}", double=True) for name in ("channels_last", "contiguous"))
    assert [training.parts.settings["memory_format"] for training in (first, second)] == ["channels_last", "contiguous"]
    for training, layout in ((first, torch.channels_last), (second, torch.contiguous_format)):
        filters = [weight for weight in training.parts.model.parameters() if weight.dim() == 4]
        assert all(weight.is_contiguous(memory_format=layout) for weight in filters)
    assert first.progress.gradient_evaluations == second.progress.gradient_evaluations
    assert figures(first) == pytest.approx(figures(second), rel=1e-9)
    weights = zip(first.parts.model.parameters(), second.parts.model.parameters(), strict=True)
    for weight, other in weights:
        torch.testing.assert_close(weight, other, rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++, which is not here")
def test_compile_changes_a_result_by_rounding_alone() -> None:
    """The predictor of SWA is a copy of the compiled network, a small one: g++ takes a second for each of its parts."""
    sam_swa, network = ("method=sam", "collect=swa", "collect.budgets=[1]"), (*NETWORK, "+model.batch_norm=true")
    torch.compiler.reset()
    found = []
    for flag in ("false", "true"):
        counters.clear()
        found.append(trained(*sam_swa, f"compile={flag}", network=network, double=True))
        assert bool(counters["stats"]["unique_graphs"]) == (flag == "true")
    first, second = found
    assert [training.parts.settings["compile"] for training in (first, second)] == [False, True]
    assert figures(first) == pytest.approx(figures(second), rel=1e-9)


def test_deterministic_is_what_a_cpu_computes_anyway() -> None:
    first, second = (trained("method=asam", f"deterministic={flag}") for flag in ("false", "true"))
    assert figures(first) == figures(second)


def test_the_switches_of_a_run_are_those_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    backends = torch.backends
    try:
        set_flags("tf32", deterministic=True)
        assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert not backends.cudnn.benchmark
    finally:
        set_flags("fp32", deterministic=False)
    assert backends.cuda.matmul.fp32_precision == backends.cudnn.conv.fp32_precision == "ieee"
    assert not torch.are_deterministic_algorithms_enabled()
    assert backends.cudnn.benchmark


def test_bf16_stays_near_fp32() -> None:
    loss, other = (trained(precision=name).progress.history[0]["train_loss"] for name in ("fp32", "bf16"))
    assert 0 < abs(loss - other) < 0.01 * loss


def test_the_loss_of_bf16_logits_is_computed_in_float32() -> None:
    made = trained("label_smoothing=0.1", network=(*NETWORK, "+model.batch_norm=true"), precision="bf16")
    given, logits = next(iter(made.parts.data.inputs(0))), []
    made.parts.model.register_forward_hook(lambda module, inputs, output: logits.append(output.detach()))
    made.train_on(*given)
    assert logits[0].dtype == torch.bfloat16
    labels = made.parts.data.batch(*given)[1]
    expected = nn.functional.cross_entropy(logits[0].float(), labels, label_smoothing=0.1)
    assert torch.equal(made.stepper.last_loss, expected)


def test_auto_takes_the_memory_format_that_was_measured_faster() -> None:
    cuda = torch.device("cuda")
    assert choose_memory_format("auto", "resnet20", CPU) == torch.channels_last
    assert choose_memory_format("auto", "vgg16", CPU) == torch.contiguous_format
    assert choose_memory_format("auto", "resnet20", CPU, second_order=True) == torch.contiguous_format
    assert choose_memory_format("auto", "resnet20", cuda, second_order=True) == torch.channels_last
    assert choose_memory_format("auto", "vgg16", cuda) == torch.channels_last
    assert choose_memory_format("channels_last", "vgg16", CPU) == torch.channels_last
    assert choose_memory_format("contiguous", "resnet20", cuda) == torch.contiguous_format


def test_tf32_needs_a_gpu() -> None:
    assert choose_precision("tf32", torch.device("cuda")) == "tf32"
    with pytest.raises(InputError, match="precision=tf32: expected a CUDA device"):
        choose_precision("tf32", CPU)
