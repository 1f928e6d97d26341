"""The measurement by which precision=auto chooses on a CPU; its figure is the machine's own and never asserted."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from torch import nn

from broadopt.config.compose import compose, run_config
from broadopt.devices import probe
from broadopt.devices.device import choose_precision
from broadopt.devices.probe import Convolution, convolutions, gain_of_bf16
from broadopt.devices.processes import ALONE
from broadopt.models.resnet import ResNet
from broadopt.training.execute import decided


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(probe, "computes_in_bf16", lambda: True)
    return tmp_path / "broadopt/bf16.json"


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4))


def test_the_convolutions_that_hold_most_of_a_network_are_found() -> None:
    found = convolutions(ResNet(depth=20, num_classes=10))
    three = (3, 3)
    assert found == [
        (Convolution(16, 16, three, (1, 1), 1, size=32), 6),
        (Convolution(32, 32, three, (1, 1), 1, size=16), 5),
        (Convolution(64, 64, three, (1, 1), 1, size=8), 5),
    ]
    assert [kind.macs for kind, _ in found] == [2_359_296] * 3
    grouped = Convolution(8, 8, three, (2, 2), 4, size=32)
    assert dict(convolutions(small()))[grouped] == 1
    assert grouped.macs == 16 * 16 * 8 * 2 * 9


def test_a_network_is_measured_once(own_cache: Path) -> None:
    def never() -> nn.Module:
        raise AssertionError("it is known")

    first = gain_of_bf16(small, key="small", processor="this")
    assert first > 0
    assert gain_of_bf16(never, key="small", processor="this") == first
    assert json.loads(own_cache.read_text()) == {f"this | torch {torch.__version__} | small": first}
    with pytest.raises(AssertionError, match="it is known"):
        gain_of_bf16(never, key="small", processor="another")
    with pytest.raises(AssertionError, match="it is known"):
        gain_of_bf16(never, key="another", processor="this")


def test_runs_that_begin_together_measure_once(own_cache: Path) -> None:
    begun, others_wait = Event(), Event()
    made: list[int] = []

    def slow() -> nn.Module:
        begun.set()
        assert others_wait.wait(60)
        made.append(1)
        return small()

    with ThreadPoolExecutor() as pool:
        first = pool.submit(gain_of_bf16, slow, key="small", processor="this")
        assert begun.wait(60)
        others = [pool.submit(gain_of_bf16, slow, key="small", processor="this") for _ in range(2)]
        others_wait.set()
        assert {one.result() for one in others} == {first.result()}
    assert len(made) == 1


def test_a_lock_that_is_not_given_back_holds_no_run_for_long(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATIENCE", 0.1)
    own_cache.parent.mkdir()
    with FileLock(own_cache.with_suffix(".lock")):
        assert gain_of_bf16(small, key="small", processor="this") > 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "b"}', "\0"])
def test_a_file_that_cannot_be_used_is_made_anew(content: str, own_cache: Path) -> None:
    own_cache.parent.mkdir()
    own_cache.write_text(content)
    found = gain_of_bf16(small, key="small", processor="this")
    assert list(json.loads(own_cache.read_text()).values()) == [found]


def test_without_a_place_for_it_every_run_measures(own_cache: Path) -> None:
    own_cache.parent.write_text("no folder")
    assert gain_of_bf16(small, key="small", processor="this") > 0


def test_a_measurement_leaves_threads_and_draws_as_they_were() -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)  # the measurement itself takes one
    try:
        gain_of_bf16(small, key="small", processor="this")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_processor_without_bf16_is_not_measured(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(probe, "computes_in_bf16", lambda: False)
    assert gain_of_bf16(small, key="small", processor="this") == 0
    assert not own_cache.exists()


def test_a_network_without_convolutions_stays_in_fp32() -> None:
    assert gain_of_bf16(lambda: nn.Sequential(nn.Flatten()), key="flat", processor="this") == 0


def test_auto_takes_bf16_on_a_cpu_that_gains_by_it() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, lambda: True) == "bf16"
    assert choose_precision("auto", cpu, lambda: False) == choose_precision("auto", cpu) == "fp32"
    assert choose_precision("fp32", cpu, lambda: True) == "fp32"


@pytest.mark.parametrize(("gain", "precision"), [(1.0999, "fp32"), (1.1, "bf16"), (2.0, "bf16"), (0.0, "fp32")])
def test_a_gain_of_a_tenth_is_enough(
    gain: float, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broadopt.training.execute.gain_of_bf16", lambda *_: gain)
    run = run_config(compose(["experiment=quickstart", "precision=auto", f"results_dir={tmp_path}"]))
    dataset = SimpleNamespace(name="digits", classes="0123456789", fingerprint="0" * 16)
    assert decided(run, dataset, torch.device("cpu"), ALONE).precision == precision  # type: ignore[arg-type]
