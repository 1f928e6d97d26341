"""Hours of a run: by measured rates, else derived from operations, and always called one or the other."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from broadopt.devices import rates
from broadopt.devices.rates import Rate, duration, kind_of, rate_of, shown, total
from broadopt.runs.results import sealed

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
import rates as script

RESNET: dict[str, Any] = {"name": "resnet20", "_target_": "broadopt.models.resnet.ResNet", "depth": 20}
XEON = "CPU (Intel(R) Xeon(R) Processor)"


def rate(device: str, speed: float, *, precision: str = "bf16", threads: int | None = None) -> Rate:
    return Rate(RESNET, device, threads, precision, speed, 3, "results/a", 40_818_944)


RATES = (
    rate("NVIDIA H100 80GB HBM3", 100_000.0),
    rate("NVIDIA H100 80GB HBM3", 60_000.0, precision="fp32"),
    rate(XEON, 200.0, threads=1),
    rate(XEON, 300.0, threads=2),
)


def test_the_committed_table_is_what_the_committed_results_give() -> None:
    assert yaml.safe_load(rates.TABLE.read_text())["rates"] == script.rates(script.RESULTS), "python scripts/rates.py"
    names = {"resnet20", "densenet121", "preresnet110", "preresnet164", "vgg16", "vgg19_bn", "wrn28_10"}
    names |= {"pyramidnet272", "resnet32", "resnet56", "resnext29_32x4d", "shakeshake26_2x64d", "wrn16_8", "wrn28_2"}
    assert {row.model["name"] for row in rates.measured()} == names


def test_all_rates_were_measured_with_batches_of_one_size() -> None:
    files = sorted(script.RESULTS.glob("benchmark/gpu*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())["rows"] if row["part"] == "rates"]
    assert {row["batch"] for row in rows} == {rates.BATCH}
    runs = [run for name in script.COUNTED for run in script.read_all(script.RESULTS / name)[0]]
    assert runs
    assert {run["config"]["batch_size"] for run in runs} == {rates.BATCH}


def test_rates_of_a_gpu_check_are_taken_into_the_table(tmp_path: Path) -> None:
    row = {"part": "rates", "network": "resnet20", "variant": "as auto chooses", "precision": "bf16"}
    rows = [row | {"sgd, images/s": 90_000.04}, row | {"sgd, images/s": 5.0, "variant": "compiled"}, {"part": "resume"}]
    (tmp_path / "benchmark").mkdir()
    content = {"environment": {"device": "NVIDIA H100 80GB HBM3"}, "rows": rows}
    (tmp_path / "benchmark/gpu.json").write_text(json.dumps(content))
    (found,) = script.rates(tmp_path)
    model = found.pop("model")
    assert model == RESNET
    assert found == {
        "device": "NVIDIA H100 80GB HBM3",
        "threads": None,
        "precision": "bf16",
        "images_per_second": 90_000.0,
        "runs": 1,
        "source": "results/benchmark/gpu.json",
        "macs": 40_818_944,
    }


def test_a_row_of_a_gpu_check_says_how_its_network_was_configured_otherwise(tmp_path: Path) -> None:
    row = {"part": "rates", "network": "vgg19_bn", "variant": "as auto chooses", "precision": "bf16"}
    row |= {"sgd, images/s": 1.0, "overrides": ["model.head=linear"]}
    (tmp_path / "benchmark").mkdir()
    content = {"environment": {"device": "NVIDIA H100 80GB HBM3"}, "rows": [row]}
    (tmp_path / "benchmark/gpu.json").write_text(json.dumps(content))
    (found,) = script.rates(tmp_path)
    assert (found["model"]["head"], found["macs"]) == ("linear", 398_182_400)
    rows = json.loads((script.RESULTS / "benchmark/gpu_recorded.json").read_text())["rows"]
    heads = [row["overrides"] for row in rows if row.get("network") == "vgg19_bn" and row["part"] == "rates"]
    assert heads == [["model.head=torchvision"]] * 2, "the default when it was measured"


def test_a_run_that_went_on_on_another_kind_of_device_has_no_rate(tmp_path: Path) -> None:
    folder = tmp_path / script.COUNTED[0]
    shutil.copytree(script.RESULTS / script.COUNTED[0], folder)
    before = {row["precision"]: row["runs"] for row in script.rates(tmp_path)}
    path = min(folder.rglob("result.json"))
    result = json.loads(path.read_text())
    result["environment"]["carried_out_on"] = [{"device": "NVIDIA H100 80GB HBM3"}, {"threads": 1}]
    path.write_bytes(sealed(result))
    after = {row["precision"]: row["runs"] for row in script.rates(tmp_path)}
    assert after == before | {"fp32": before["fp32"] - 1}


@pytest.mark.parametrize(
    ("device", "threads", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", None, "auto", 100_000.0),
        ("H100", None, "bf16", 100_000.0),
        ("H100", None, "fp32", 60_000.0),
        (XEON, 2, "auto", 300.0),
        (XEON, 4, "auto", None),
        ("H100", 1, "bf16", None),
        ("A100", None, "bf16", None),
    ],
)
def test_a_rate_counts_for_its_kind_of_device_alone(
    device: str, threads: int | None, precision: str, expected: float | None
) -> None:
    found = rate_of(RESNET, device=device, threads=threads, precision=precision, rates=RATES)
    assert (found and found.images_per_second) == expected
    assert rate_of({**RESNET, "depth": 56}, device=device, threads=threads, precision=precision, rates=RATES) is None


def test_hours_say_whether_they_are_measured_or_derived() -> None:
    work: dict[str, Any] = {"images": 3.6e8, "flops": 3.6e18}
    measured = duration(RESNET, **work, precision="auto", rates=RATES)
    assert measured.hours == 1.0
    assert str(measured) == (
        "about 1.0 h on an NVIDIA H100 80GB HBM3 in bf16, measured: 100,000 images/s a gradient (3 runs)"
    )
    cpu = duration(RESNET, **work, precision="auto", device=XEON, threads=1, rates=RATES)
    assert str(cpu) == f"about 500 h on 1 thread of a {XEON} in bf16, measured: 200 images/s a gradient (3 runs)"
    # 3.6e18 operations at 0.1 x 989.4e12 a second; a CPU whose rate is not known is spoken of as an H100.
    for device, threads in (("NVIDIA H100 80GB HBM3", None), ("CPU (AMD EPYC)", 2)):
        derived = duration(RESNET, **work, precision="bf16", device=device, threads=threads, rates=())
        assert str(derived) == "about 10 h on an H100 at 10 % of its bf16 peak, derived, not measured"
        assert derived.hours == pytest.approx(3.6e18 / 98.94e12 / 3600)
    elsewhere = duration(RESNET, **work, precision="bf16", device="CPU (AMD EPYC)", threads=2, rates=RATES)
    assert elsewhere == measured, "as an H100's, where it is measured too"
    a100 = duration(RESNET, **work, precision="fp32", device="NVIDIA A100-SXM4-80GB", rates=())
    assert str(a100) == "about 513 h on an A100 at 10 % of its fp32 peak, derived, not measured"
    assert [one.brief for one in (measured, cpu, a100)] == [
        "about 1.0 h on an H100 (by measured rate)",
        "about 500 h on 1 thread of a CPU (by measured rate)",
        "about 513 h on an A100 (derived)",
    ]


def test_hours_of_different_kinds_of_devices_are_not_added() -> None:
    work: dict[str, Any] = {"images": 3.6e8, "flops": 3.6e18, "precision": "bf16"}
    h100 = duration(RESNET, **work, rates=RATES)
    derived = duration(RESNET, **work, device="NVIDIA H100 PCIe", rates=())
    one, two = (duration(RESNET, **work, device=XEON, threads=1, rates=RATES[2:3]) for _ in range(2))
    four = duration(RESNET, **work, device=XEON, threads=4, rates=[rate(XEON, 500.0, threads=4)])
    assert total([h100]) == "about 1.0 h on an H100 by measured rates"
    assert total([h100, derived, h100]) == (
        "about 2.0 h on an H100 by measured rates and about 10 h on an H100 derived, not measured"
    )
    assert total([derived, one, four, h100, two]) == (
        "about 1.0 h on an H100 by measured rates, about 10 h on an H100 derived, not measured, "
        f"about 1,000 h on 1 thread of a {XEON} by measured rates and about 200 h on 4 threads of a {XEON} by measured "
        "rates"
    )


@pytest.mark.parametrize(
    ("device", "threads", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", None, "an H100"),
        ("CPU (AMD EPYC)", 2, "2 threads of a CPU (AMD EPYC)"),
        ("CPU (AMD EPYC)", None, "a CPU (AMD EPYC)"),
        ("NVIDIA L4", None, "NVIDIA L4"),
    ],
)
def test_devices_are_called_by_their_kind(device: str, threads: int | None, kind: str) -> None:
    assert kind_of(device, threads) == kind


def test_hours_of_a_network_without_a_rate_are_those_of_the_nearest_one_of_its_class() -> None:
    """3.6e18 operations, at 6 a multiply-add: of 20 MMACs, of 95, or of 600. 95 are 2.4 times 40 and 200 are 2.1 times
    95, though there are more between them.
    """
    deep = {**RESNET, "name": "deep", "depth": 110}
    known = (
        Rate(RESNET, "NVIDIA H100 80GB HBM3", None, "bf16", 50_000.0, 1, "results/a", 40_000_000),
        Rate(deep, "NVIDIA H100 80GB HBM3", None, "bf16", 25_000.0, 1, "results/a", 200_000_000),
        Rate(RESNET, XEON, 2, "bf16", 300.0, 1, "results/a", 40_000_000),
    )
    other = {**RESNET, "depth": 14}
    for macs, speed, whose in (
        (20e6, 12e12, "another variant of resnet20"),
        (95e6, 30e12, "deep"),
        (600e6, 30e12, "deep"),
    ):
        work: dict[str, Any] = {"images": 3.6e18 / 6 / macs, "flops": 3.6e18, "precision": "auto"}
        for device in ("NVIDIA H100 PCIe", "CPU (AMD EPYC)"):
            found = duration(other, **work, device=device, threads=None if "H100" in device else 2, rates=known)
            assert found.hours == pytest.approx(3.6e18 / speed / 3600)
            assert not found.is_measured
            place = "on an NVIDIA H100 80GB HBM3 in bf16"
            assert found.words == f"{place}, derived from the {speed / 1e12:.3g} TFLOP/s of {whose}, not measured"
        assert "at 10 % of its fp32 peak" in duration(other, **{**work, "precision": "fp32"}, rates=known).words
        assert "at 10 % of its bf16 peak" in duration({"_target_": "own.Net"}, **work, rates=known).words
    assert "10 % of its" in duration(RESNET | {"depth": 8}, images=0.0, flops=0.0, precision="bf16", rates=known).words


@pytest.mark.parametrize(
    ("hours", "text"), [(0.0138, "0.014"), (0.5, "0.5"), (1.0, "1.0"), (9.96, "10.0"), (1234.5, "1,234")]
)
def test_hours_have_two_digits(hours: float, text: str) -> None:
    assert shown(hours) == text
