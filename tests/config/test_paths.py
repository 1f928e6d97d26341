"""Paths as people type them: in any language, with blanks and brackets, from the home folder on."""

import shlex
import subprocess
from pathlib import Path

import pytest
from command import BIN, SMALL, run
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import said
from omegaconf import OmegaConf

from broadopt.config.arguments import quoted_path
from broadopt.config.messages import quoted
from broadopt.config.rules import RULES

ODD = (
    "été",
    "été (1)",
    "a#b",
    "データ",
    "it's",
    'the "best"',
    "[x]{y}",
    "a=b:c",
    "2024",
    "1",
    "0",
    "1e3",
    "back\\",
    "a@b!c",
    "%a;b",
    "Mueller, Jan",
    "a,b",
    r"a\ b",
    r"a\,b",
    "9" * 200,
)


@pytest.mark.parametrize("name", ODD)
def test_a_path_passes_as_it_is_typed(name: str, tmp_path: Path) -> None:
    images = tmp_path / name
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (images / split / kind).mkdir(parents=True)
    typed = ("dataset=image_folder", f"dataset.path={images}")
    code, output, errors = said("broadopt-run", *typed, "--cfg", "job", "--resolve", cwd=tmp_path)
    assert (code, errors) == (0, "")
    assert OmegaConf.create(output).dataset.path == str(images)
    code, _, errors = said(
        "broadopt-run", "dataset=image_folder", f"dataset.path={name}/none", "plan=true", cwd=tmp_path
    )
    assert code == 2
    assert errors.startswith(f"broadopt-run: {name}/none/train: ")


def test_paths_of_a_sweep_and_those_in_quotes_are_hydras() -> None:
    for typed in ("data_dir=a,b", r"data_dir=a\,b", r"data_dir=a\ b"):
        assert quoted_path(typed, sweep=True) == typed
    for typed in ("data_dir='a, b'", 'data_dir="a"', "data_dir=${oc.env:HOME}/x", "data_dir=choice(a,b)"):
        assert quoted_path(typed, sweep=False) == typed
    whole = "data_dir=" + "1" * 5000
    assert quoted_path(whole, sweep=False) == whole.replace("=", '="') + '"'


@settings(max_examples=300)
@given(path=st.text(st.characters(exclude_characters="\0,$", exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_read_back_from_its_quotes(path: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(path)}").value() == path


@pytest.mark.parametrize("key", ["seed", "lr", "method", "nothing", "step.rho"])
def test_what_is_no_path_is_left_to_hydra(key: str) -> None:
    assert quoted_path(f"{key}=é (1)", sweep=False) == f"{key}=é (1)"


def test_every_key_of_a_folder_is_a_path() -> None:
    assert {key for key, rule in RULES.items() if rule.is_path} == {
        "data_dir", "results_dir", "dataset.path", "dataset.data_dir", "dataset.noise",
    }  # fmt: skip
    assert {key for key, rule in RULES.items() if rule.words == "a folder"} == {
        key for key, rule in RULES.items() if rule.is_path and not rule.names
    }


@pytest.mark.parametrize("override", ["model.name=é (1)", "model.name=a#b", "nothing=it's é"])
def test_the_quotes_of_any_other_value_are_shown_ready_to_paste(override: str, tmp_path: Path) -> None:
    code, _, errors = said("broadopt-run", override, cwd=tmp_path)
    line = errors.strip()
    assert code == 2
    start, _, pasted = line.partition("; in quotes: ")
    assert start == f"broadopt-run: {override}: expected KEY=VALUE or GROUP=CHOICE"
    (argument,) = shlex.split(pasted)
    key, _, value = override.partition("=")
    read = OverridesParser.create().parse_override(argument)
    assert (read.key_or_group, read.value()) == (key, value)


def test_no_quotes_are_shown_for_a_number(tmp_path: Path) -> None:
    code, _, errors = said("broadopt-run", "lr=1#", cwd=tmp_path)
    assert (code, errors) == (2, "broadopt-run: lr=1#: expected KEY=VALUE or GROUP=CHOICE\n")


def test_the_home_folder_is_expanded_in_every_path(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "home"), "BROADOPT_DATA": "~/data"}
    results = tmp_path / "home/résultats (1)"
    process = run("-m", *SMALL, "budget=0.1", "seed=1", "results_dir=~/résultats (1)", cwd=tmp_path, **home)
    assert (process.returncode, process.stderr) == (0, "")
    (folder,) = results.glob("runs/*/*/*/seed1-*")
    assert OmegaConf.load(folder / "config.yaml").data_dir == str(tmp_path / "home/data")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]

    repeat = ("repeat=~/" + str(folder.relative_to(tmp_path / "home")), "results_dir=~/again", "trust=own_network")
    process = run(*repeat, cwd=tmp_path, **home)
    assert (process.returncode, process.stderr) == (0, "")
    assert len(list((tmp_path / "home/again").glob("runs/*/*/*/seed1-*"))) == 1

    command = [BIN / "broadopt-table", "runs", "--results=~/résultats (1)", "--output=~/out.md"]
    subprocess.run(command, cwd=tmp_path, env={**home, "XDG_CACHE_HOME": str(tmp_path / "cache")}, check=True)
    assert "small" in (tmp_path / "home/out.md").read_text()


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("broadopt-run", ["results_dir=~nobody-here/x"]),
        ("broadopt-run", ["data_dir=~nobody-here/x"]),
        ("broadopt-run", ["repeat=~nobody-here/x"]),
        ("broadopt-run", ["--config-dir=~nobody-here/x"]),
        ("broadopt-table", ["runs", "--results", "~nobody-here/x"]),
        ("broadopt-table", ["runs", "--output", "~nobody-here/x"]),
    ],
)
def test_a_home_folder_that_is_not_there_is_one_line(program: str, arguments: list[str], tmp_path: Path) -> None:
    code, output, errors = said(program, *arguments, cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith(f"{program}: ")
    assert errors.endswith("there is no home folder ~nobody-here; ./~nobody-here/x for a folder of that name\n")
    assert list(tmp_path.iterdir()) == []
