"""Compositions that the tests keep are those that Hydra makes, flags and errors included."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kept_compositions
import pytest
from hydra.errors import HydraException
from in_process import said
from omegaconf import Container, OmegaConf

from broadopt.config.compose import compose

LINES = [
    (),
    ("experiment=table3/resnet20", "method=asam", "step.rho=0.5"),
    ("experiment=table3/resnet20", "method=asam", "~seed", "+step.other={a:[1]}", "hydra.mode=RUN"),
    ("method=swa", "collect=swa+ema"),
    ("collect=swa+ema", "method=swa", "schedule=constant"),
    ("hydra/launcher=slurm", "method=sam"),
    ("+method=sam",),
    ("~method=sam",),
    ("methd=sam",),
    ("experiment=nothing",),
    ("seed=1,2",),
]


def shape(node: Any) -> list[Any]:
    """What a node is besides its value: flags, types, key, and the nodes that are its own."""
    found = [node._metadata.flags, str(node._metadata.ref_type), str(node._metadata.object_type), node._metadata.key]
    if isinstance(node, Container) and not (node._is_none() or node._is_missing() or node._is_interpolation()):
        keys = range(len(node)) if OmegaConf.is_list(node) else list(node)
        children = [node._get_node(key) for key in keys]
        assert all(child._get_parent() is node for child in children)
        found.append([shape(child) for child in children])
    return found


def composed(words: Sequence[str]) -> object:
    try:
        config = compose(words)
    except HydraException as error:
        return type(error), str(error)
    found = OmegaConf.to_yaml(config), shape(config)
    OmegaConf.set_struct(config, False)
    config.dataset.name = config.budget = config.later = "changed"  # in nobody else's
    return found


@pytest.mark.parametrize("words", LINES, ids=" ".join)
def test_what_is_kept_is_what_hydra_composes(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = composed(words), composed(words)
    monkeypatch.setattr(kept_compositions, "_sources", lambda repo, known: None)
    assert first == second == composed(words)


def test_what_is_composed_of_files_of_others_is_composed_anew(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for depth in (8, 14):
        (tmp_path / "model/mine.yaml").write_text(f"name: mine\ndepth: {depth}\n")
        code, config, errors = said(
            "broadopt-run", "--config-dir", str(tmp_path), "model=mine", "--cfg", "job", cwd=tmp_path
        )
        assert (code, errors) == (0, "")
        assert f"\n  depth: {depth}\n" in config
