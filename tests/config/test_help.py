"""--help, tab completion, and the order of a command line."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import BIN, SMALL, folders, result, run

import broadopt
from broadopt.config.shipped import config_dir

GROUPS = (
    *("collect", "dataset", "experiment", "experiment/label_noise", "experiment/table1", "experiment/table3"),
    *("method", "model", "optimizer", "protocol", "schedule", "step"),
)
INTERNAL = {"augmentation._target_", "dataset.name", "model.name", "method.name", "method.step", "method.collect"}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def keys(node: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all values of a config file."""
    found = []
    for key, value in node.items():
        nested = isinstance(value, dict)
        found += keys(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


@pytest.fixture(scope="module")
def help_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    process = run("--help", cwd=tmp_path_factory.mktemp("help"))
    assert process.returncode == 0
    assert process.stderr == ""
    return process.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_help_lists_every_choice_of_a_group(help_page: str, group: str) -> None:
    (line,) = (line for line in help_page.splitlines() if line.startswith(f"{group}: "))
    assert line.removeprefix(f"{group}: ").split(", ") == choices(group)


def test_those_are_all_the_groups() -> None:
    folders_of_choices = {path.parent for path in config_dir().rglob("*.yaml")} - {config_dir()}
    names = {path.relative_to(config_dir()).as_posix() for path in folders_of_choices}
    assert names == {*GROUPS, "hydra/launcher", "hydra/sweeper"}


def test_help_names_every_key_that_a_user_gives(help_page: str) -> None:
    run_yaml = yaml.safe_load((config_dir() / "run.yaml").read_text())
    given = {key for key in keys(run_yaml) if not key.startswith(("hydra.", "defaults"))} - INTERNAL
    assert {"seed", "budget", "checkpoint.minutes", "dataset.validation", "plan"} <= given
    assert [key for key in sorted(given) if f"{key}=" not in help_page] == []


def test_help_tells_the_exit_codes_and_how_to_complete(help_page: str) -> None:
    codes = "Exit codes: 0 finished, 1 the run failed, 2 bad input, 3 another process is on the run, 75 interrupted"
    assert codes in " ".join(help_page.split())
    assert 'eval "$(broadopt-run -sc install=bash)"' in help_page
    assert "hydra/launcher=slurm and hydra/launcher=local distribute a sweep" in help_page


def test_help_leads_nowhere_that_an_installation_lacks(help_page: str, tmp_path: Path) -> None:
    """docs/ does not travel with the wheel, and the published tables lie elsewhere in it."""
    (command,) = re.findall(r"broadopt-run (hydra/launcher=local --cfg .*)", help_page)
    shown = run(*command.split(), cwd=tmp_path).stdout
    assert {"n_jobs", "gpus", "per_gpu"} < yaml.safe_load(shown).keys()
    page = subprocess.run([BIN / "broadopt-table", "--help"], capture_output=True, text=True, check=True).stdout
    (published,) = re.findall(r"^ +(/.*)/\*\.yaml$", page, flags=re.MULTILINE)
    assert (Path(published) / "table1.yaml").is_file()
    assert "docs/reference.md" not in help_page + page


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_does_not_import_torch(option: str, tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", str(BIN / "broadopt-run"), option]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.splitlines()}
    assert "broadopt.config" in imported
    assert not imported & {"torch", "torchvision", "numpy", "pandas", "sklearn", "scipy", "matplotlib"}


def completions(typed: str, cwd: Path) -> set[str]:
    """What the shell offers behind `typed`, by the protocol of Hydra's completion."""
    process = run("-sc", "query=bash", cwd=cwd, COMP_LINE=typed, COMP_POINT=str(len(typed)))
    assert process.returncode == 0
    return set(process.stdout.split())


def test_the_tab_key_completes_groups_keys_and_choices(tmp_path: Path) -> None:
    assert completions("broadopt-run method=", tmp_path) == {f"method={choice}" for choice in choices("method")}
    assert completions("broadopt-run model=wrn28", tmp_path) == {"model=wrn28_10", "model=wrn28_2"}
    assert completions("broadopt-run method=sam label_", tmp_path) == {"label_smoothing="}
    assert {"method=", "model=", "momentum="} <= completions("broadopt-run m", tmp_path)


def test_bash_takes_the_completion_and_offers_what_it_gives(tmp_path: Path) -> None:
    script = """
        eval "$(broadopt-run -sc install=bash)"
        COMP_LINE="broadopt-run method=s" COMP_POINT=21 COMP_WORDS=(broadopt-run method=s) COMP_CWORD=1
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
        complete -p broadopt-run
    """
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    offered, registered = process.stdout.splitlines()
    assert set(offered.split()) == {"method=sam", "method=sam_on", "method=sgd", "method=swa"}
    assert "-F hydra_bash_completion broadopt-run" in registered


def test_options_may_follow_overrides(tmp_path: Path) -> None:
    options, overrides = SMALL[:2], SMALL[2:]
    process = run(*overrides, "method=sam", "-m", "seed=1,2", *options, "budget=0.1", cwd=tmp_path)
    assert process.returncode == 0
    assert [(result(path)["method"], result(path)["seed"]) for path in folders(tmp_path)] == [("sam", 1), ("sam", 2)]


def test_the_config_of_a_run_is_shown_without_running_it(tmp_path: Path) -> None:
    process = run("experiment=table3/resnet20", "method=asam", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert process.returncode == 0
    shown = yaml.safe_load(process.stdout)
    assert (shown["lr"], shown["budget"], shown["step"]["rho"]) == (0.1, 200, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_broadopts() -> None:
    done = subprocess.run([BIN / "broadopt-run", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"broadopt {broadopt.__version__}\n"
