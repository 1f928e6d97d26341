"""Composing a sweep once: the same configs, the same lines and the same errors as Hydra's own way."""

import copy
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from in_process import said
from omegaconf import OmegaConf

from broadopt.config.compose import compose, register_resolvers
from broadopt.config.shipped import config_dir

Plugins.instance()  # ahead of what is derived from Hydra's own plugins
from broadopt.launchers.sweeper import OnceLoader  # noqa: E402

SWEPT = [
    ["seed=1", "method=sam"],
    ["seed=2", "method=sam"],
    ["method=sam", "seed=2"],
    ["method=sam", "seed=3"],
    ["experiment=table3/wrn28_10", "method=asam", "seed=7"],
    ["experiment=table3/wrn28_10", "method=asam", "seed=8"],
    ["method=sam", "step.rho=0.3", "seed=11", "lr=0.2"],
    ["method=sam", "step.rho=0.3", "seed=12", "lr=0.2"],
    ["collect=swa+ema", "seed=4"],
    ["collect=swa+ema", "seed=5"],
    ["seed=[1,2]"],
    ["seed=abc"],
    ["seed=${batch_size}"],
    ["seed=007"],
    ["method=fge"],
]

MIXED = (
    "recipes are compared, not methods alone: sgd by swa2018, asam by asam2021; "
    "protocol=swa2018 or protocol=asam2021 trains all by one\n"
)


@pytest.fixture
def loaders() -> Iterator[tuple[ConfigLoaderImpl, Any]]:
    register_resolvers()
    GlobalHydra.instance().clear()
    initialize_config_dir(str(config_dir()), version_base="1.3")
    plain: Any = GlobalHydra.instance().config_loader()
    yield plain, OnceLoader(copy.deepcopy(plain))
    GlobalHydra.instance().clear()


def test_every_config_of_a_sweep_is_what_hydra_composes(loaders: tuple[ConfigLoaderImpl, Any]) -> None:
    plain, once = loaders
    master = plain.load_configuration("run", ["hydra.mode=MULTIRUN"], run_mode=RunMode.MULTIRUN)
    for _ in range(2):  # what was handed out may be changed
        for overrides in SWEPT:
            expected, found = (loader.load_sweep_config(master, list(overrides)) for loader in (plain, once))
            assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
            assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
            assert type(found._get_node("seed")) is type(expected._get_node("seed"))
            found.seed, found.hydra.job.name = 99, "changed"
    assert len(once._originals) == 10


@pytest.mark.parametrize("overrides", [["model=nothing", "seed=1"], ["nothing=1", "seed=2"], ["~lr", "lr=[1"]])
def test_what_cannot_be_composed_is_the_same_error(overrides: list[str], loaders: tuple[ConfigLoaderImpl, Any]) -> None:
    plain, once = loaders
    master = plain.load_configuration("run", [], run_mode=RunMode.MULTIRUN)
    for _ in range(2):
        with pytest.raises(HydraException) as expected:
            plain.load_sweep_config(master, list(overrides))
        with pytest.raises(HydraException) as found:
            once.load_sweep_config(master, list(overrides))
        assert type(found.value) is type(expected.value)
        assert str(found.value) == str(expected.value)


def lines(*arguments: str, cwd: Path, remark: str = "") -> list[str]:
    code, output, errors = said("broadopt-run", "-m", *arguments, "plan=true", cwd=cwd)
    assert (code, errors) == (0, remark)
    return output.splitlines()


def test_seeds_are_planned_as_each_by_itself(tmp_path: Path) -> None:
    *whole, total = lines("method=sgd,asam", "model=resnet20,wrn16_8", "seed=1,2,30", cwd=tmp_path, remark=MIXED)
    single = [
        lines(f"method={method}", f"model={model}", f"seed={seed}", cwd=tmp_path)[0]
        for method in ("sgd", "asam")
        for model in ("resnet20", "wrn16_8")
        for seed in (1, 2, 30)
    ]
    assert whole == single
    assert total.startswith("12 runs, ")
    assert sum(float(line.split()[-2].replace(",", "")) for line in whole) == pytest.approx(
        float(total.split()[-2].replace(",", "")), rel=1e-3
    )


def test_a_value_that_hangs_on_the_seed_is_planned_for_each(tmp_path: Path) -> None:
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/growing.yaml").write_text("# @package _global_\nbudget: ${seed}\n")
    *whole, _ = lines("--config-dir", "own", "experiment=growing", "seed=1,2,3", cwd=tmp_path)
    assert [line.partition("seed ")[2].split()[:3] for line in whole] == [
        ["1", "1", "epochs,"],
        ["2", "2", "epochs,"],
        ["3", "3", "epochs,"],
    ]


def test_a_seed_that_breaks_its_rule_is_named_among_those_that_are_planned(tmp_path: Path) -> None:
    code, output, errors = said("broadopt-run", "-m", f"seed=1,{2**63},2,-1,abc", "plan=true", cwd=tmp_path)
    assert code == 2
    assert [line.partition("seed ")[2].split()[0] for line in output.splitlines()[:2]] == ["1", "2"]
    assert output.splitlines()[2].startswith("2 runs, ")
    expected = "expected a whole number from 0 to 2^63 - 1"
    assert errors.splitlines()[4:] == [
        f"  seed={value} plan=True: seed={shown}: {expected}"
        for value, shown in ((2**63, 2**63), (-1, -1), ("abc", '"abc"'))
    ]


def test_the_sweep_is_composed_anew_for_other_folders(tmp_path: Path) -> None:
    for name, budget in (("first", 3), ("second", 5)):
        (tmp_path / name / "experiment").mkdir(parents=True)
        (tmp_path / name / "experiment/mine.yaml").write_text(f"# @package _global_\nbudget: {budget}\n")
        folder = f"file://{os.fspath(tmp_path / name)}"
        (line,) = lines(f"hydra.searchpath=[{folder}]", "experiment=mine", "seed=1", cwd=tmp_path)[:1]
        assert f" {budget} epochs, " in line


def test_a_choice_of_several_collectors_is_composed_in_a_process_without_hydra() -> None:
    """As in the workers of joblib, which get the command's sources of configs by cloudpickle."""
    compose([])
    sources = GlobalHydra.instance().config_loader().get_sources()
    packed = cloudpickle.dumps([one for one in sources if one.scheme() == "several"])
    GlobalHydra.instance().clear()
    (source,) = pickle.loads(packed)
    assert source.is_config("collect/swa+ema")
    assert not source.is_config("collect/swa+emma")
    assert set(source.load_config("collect/swa+ema").config.collect.also) == {"ema"}
