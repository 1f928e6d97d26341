"""Configs that the tests keep are those that are in the files."""

from pathlib import Path

import hydra
import kept_configs
import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from yaml import YAMLError, load

from broadopt.config.shipped import config_dir

FILES = [path for folder in (config_dir(), Path(hydra.__file__).parent / "conf") for path in folder.rglob("*.yaml")]


def test_what_is_kept_is_what_a_file_holds_and_each_time_another_object() -> None:
    assert len(FILES) > 80
    for path in FILES:
        first, second = OmegaConf.load(path), OmegaConf.load(path)
        assert first is not second
        with path.open(encoding="utf-8") as file:
            plain = load(file, Loader=get_yaml_loader())
        fresh = OmegaConf.create({} if plain is None else plain)
        assert isinstance(second, DictConfig)
        first["changed"] = True
        assert "changed" not in second
        for other in (second, OmegaConf.load(path)):  # interpolations as they are written
            assert OmegaConf.to_container(other) == OmegaConf.to_container(fresh)
            assert OmegaConf.to_yaml(other) == OmegaConf.to_yaml(fresh)


def test_a_file_that_has_changed_is_read_anew_and_an_error_names_it(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("lr: 1e-1\n")
    assert OmegaConf.load(path) == {"lr": 0.1}
    path.write_text("lr: 2e-1\n")
    with path.open() as file:
        assert OmegaConf.load(file) == {"lr": 0.2}
    assert "lr: 2e-1\n" in kept_configs.kept or not kept_configs.is_installed()
    path.write_text("lr: [\n")
    with pytest.raises(YAMLError) as error:
        OmegaConf.load(path)
    assert str(path) in str(error.value)
