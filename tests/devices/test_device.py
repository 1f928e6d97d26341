"""The training loop on a device that refuses what only a GPU would: to mix devices and to be waited for in a step.

That device is torch's "meta": tensors without values, which cannot be read back and work with no other device's.
"""

import resource
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from broadopt.config.compose import compose, run_config
from broadopt.data.datasets import Dataset, Images
from broadopt.devices.device import automatic_precisions, choose_device, choose_precision, peak_memory
from broadopt.devices.processes import device_of
from broadopt.devices.sharing import keep_to_share
from broadopt.errors import InputError
from broadopt.signals import Stop
from broadopt.training.build import build
from broadopt.training.evaluate import log_probabilities
from broadopt.training.loop import Training
from broadopt.training.progress import EpochLines

META = torch.device("meta")


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """meta knows no autocast, which is off in fp32 anyway."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def training(*overrides: str) -> Training:
    """ResNet-8 on 40 images in batches of 16, all on the meta device."""
    pixels, labels = torch.zeros(40, 3, 32, 32, dtype=torch.uint8), torch.arange(40) % 10
    dataset = Dataset("blank", tuple("0123456789"), Images(pixels, labels), Images(pixels[:20], labels[:20]), None)
    small = ("model=resnet20", "model.depth=8", "batch_size=16", "budget=1", "precision=fp32")
    run = run_config(compose([*small, *overrides]))
    made = Training(build(run, dataset, META), stop=Stop(), reporter=EpochLines())
    for group in made.parts.step.optimizer.param_groups:
        group["fused"] = None  # the fused kernel is not there for meta; its foreach twin is
    return made


@pytest.mark.parametrize("augmentation", ["standard", "augmentation.cutout=8", "augmentation.cutmix=1"])
@pytest.mark.parametrize("method", ["sgd", "sam", "asam"])
def test_steps_stay_on_their_device_and_never_wait_for_it(method: str, augmentation: str) -> None:
    made = training(f"method={method}", *[augmentation] * ("=" in augmentation))
    for images, labels in made.parts.data.train(0):
        made.train_on(images, labels)
    assert made.progress.step == 3
    assert made.progress.gradient_evaluations == 3 * made.parts.step.passes
    stepper = made.stepper
    assert {value.device for value in (stepper.loss_sum, stepper.hits, stepper.last_loss)} == {META}
    state = made.parts.step.optimizer.state_dict()["state"]
    assert {entry["momentum_buffer"].device for entry in state.values()} == {META}


@pytest.mark.parametrize("method", ["swa", "fge"])
def test_evaluation_and_collection_stay_on_their_device_and_never_wait_for_it(method: str) -> None:
    made = training(f"method={method}")
    batches = made.parts.data.held_out()["test"]
    outputs = log_probabilities(made.parts.model, batches, autocast=made.evaluator.autocast, before_batch=lambda: None)
    assert (outputs.device, outputs.dtype, outputs.shape) == (META, torch.float64, (20, 10))
    for _ in range(2):
        made.parts.collector.collect(made.parts.model, made.evaluator.predict)
    read = made.parts.collector.predict(made.parts.model, made.evaluator.predict, made.reestimate)
    assert (read["test"].device, read["test"].shape) == (META, (20, 10))


def test_a_gpu_comes_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda.set_per_process_memory_fraction refuses a device without: several runs could not share a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    chosen = [choose_device(name) for name in ("auto", "cuda", "cuda:0", "cuda:1", "cpu")]
    assert [str(device) for device in chosen] == ["cuda:1", "cuda:1", "cuda:0", "cuda:1", "cpu"]
    with pytest.raises(InputError, match="device=cuda:2: this machine has 2 CUDA devices"):
        choose_device("cuda:2")


def test_each_process_of_torchrun_has_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == "auto"
    given = {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "8", "RANK": "7", "LOCAL_RANK": "3", "MASTER_PORT": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert [device_of(name) for name in ("auto", "cuda", "cpu")] == ["cuda:3", "cuda:3", "cpu"]
    with pytest.raises(InputError, match="device=cuda:0: 8 processes cannot share a GPU"):
        device_of("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == "auto"


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_takes_bf16_on_gpus_that_multiply_in_it(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older ones emulate it."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation or capability >= (8, 0)
    )
    assert choose_precision("auto", gpu) == precision
    assert automatic_precisions(gpu) == (("fp32", "bf16") if precision == "bf16" else ("fp32",))


@pytest.mark.parametrize(("runs", "share"), [(None, None), ("1", None), ("4", 0.95 / 4)])
def test_runs_that_share_a_gpu_have_equal_parts_of_its_memory(
    runs: str | None, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, kept = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: kept.append(given))
    monkeypatch.delenv("BROADOPT_PER_GPU", raising=False)
    if runs is not None:
        monkeypatch.setenv("BROADOPT_PER_GPU", runs)
    keep_to_share(gpu)
    keep_to_share(torch.device("cpu"))
    assert kept == ([] if share is None else [(share, gpu)])


@pytest.mark.parametrize(("system", "unit"), [("linux", 1024), ("darwin", 1)])
def test_the_memory_of_a_process_is_in_bytes(system: str, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda whose: SimpleNamespace(ru_maxrss=5000))
    assert peak_memory(torch.device("cpu")) == 5000 * unit


def test_that_device_does_refuse_a_mixture_and_a_read_back() -> None:
    there, here = torch.empty(3, device=META), torch.empty(3)
    with pytest.raises(RuntimeError, match="is not on the expected device meta"):
        there + here
    with pytest.raises(RuntimeError, match="meta"):
        there.sum().item()
