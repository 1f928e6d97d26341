"""Tab completion of both commands, by the protocol of the shells and in the shells themselves."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command import BIN
from in_process import said

from broadopt.analysis.tables.request import FORMATS, METRICS, TABLES
from broadopt.config.rules import RULES
from broadopt.config.shipped import options


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "own/method").mkdir(parents=True)
    (tmp_path / "own/method/mine.yaml").write_text("# @package _global_\n")
    (tmp_path / "results").mkdir()
    return tmp_path


def offered(typed: str, cwd: Path, shell: str = "bash") -> set[str]:
    """What the tab key offers behind `typed`."""
    code, output, errors = said("broadopt-run", "-sc", f"query={shell}", cwd=cwd, COMP_LINE=f"broadopt-run {typed}")
    assert (code, errors) == (0, "")
    words = output.removesuffix("\n").split("\n" if shell == "fish" else " ")
    assert words == sorted(words)
    return set(words)


LISTS = {
    "experiment=table3/": {f"experiment={name}" for name in options("experiment") if name.startswith("table3/")},
    "experiment=table3/wrn": {"experiment=table3/wrn28_2", "experiment=table3/wrn28_10"},
    "precision=": {"precision=auto", "precision=fp32", "precision=tf32", "precision=bf16"},
    "device=c": {"device=cpu", "device=cuda", "device=cuda:0"},
    "memory_format=": {"memory_format=auto", "memory_format=channels_last", "memory_format=contiguous"},
    "step.bn=": {"step.bn=both", "step.bn=first"},
    "collect.bn=": {"collect.bn=reestimate", "collect.bn=own"},
    "collect=swa+e": {"collect=swa+ema"},
    "-m collect=swa,ema+swa+": {f"collect=swa,ema+swa+{name}" for name in ("fge", "lawa", "swa_paper", "swag")},
    "collect=swa+ema collect.also.ema.h": {"collect.also.ema.half_life="},
    "-m method=sgd,sa": {"method=sgd,sam", "method=sgd,sam_on"},
    "step.lay": {""},
    "method=sam step.layers=": {"step.layers=all", "step.layers=normalisation"},
    "method=sam step.e": {"step.every="},
    "optimizer=": {"optimizer=adamw", "optimizer=sgd"},
    "method=sam ++step.noise=f": {"++step.noise=fresh"},
    "method=asam step.p": {"step.p=", "step.perturbation="},
    "check": {"checkpoint."},
    "checkpoint.": {"checkpoint.minutes=", "checkpoint.predictor="},
    "expe": {"experiment="},
    "rep": {"repeat="},
    "hydra/launcher=": {"hydra/launcher=local", "hydra/launcher=slurm"},
    "hydra/launcher=local hydra.launcher.": {
        "hydra.launcher.gpus=",
        "hydra.launcher.n_jobs=",
        "hydra.launcher.per_gpu=",
    },
    "--config-d": {"--config-dir"},
    "--config-dir own method=m": {"method=mine", "method=msam"},
    "results_dir=res": {"results_dir=results/"},
    "repeat=./o": {"repeat=./own/"},
    "lr=0.1 seed=": {""},
    "method=nothing lr=0.1 mom": {"momentum="},
}


@pytest.mark.parametrize("typed", LISTS)
def test_a_word_is_completed(typed: str, place: Path) -> None:
    assert offered(typed, place) == LISTS[typed]


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule.kind is bool])
def test_every_flag_completes_its_values(key: str, place: Path) -> None:
    assert offered(f"{key}=", place) == {f"{key}=true", f"{key}=false"}


@pytest.mark.parametrize("key", [key for key, rule in RULES.items() if rule.names])
def test_every_value_that_is_offered_is_valid(key: str) -> None:
    rule = RULES[key]
    assert all(rule.kind is bool or rule.test(rule.meant(name)) for name in rule.names)


def test_fish_has_one_suggestion_a_line(place: Path) -> None:
    assert offered("method=s", place, shell="fish") == {"method=sam", "method=sam_on", "method=sgd", "method=swa"}


@pytest.mark.parametrize("word", ["-c", "--config-dir", "--package", "-cn", "dataset=null", "method=", "lr=[1,"])
def test_a_word_that_is_not_finished_hinders_no_completion(word: str, place: Path) -> None:
    assert offered(f"{word} weight_", place) == {"weight_decay="}


@pytest.mark.parametrize("arguments", ["-sc", "-sc install", "-sc install=tcsh", "-sc query=bash install=bash"])
def test_completion_without_what_it_is_for_is_one_line(arguments: str, place: Path) -> None:
    code, output, errors = said("broadopt-run", *arguments.split(), cwd=place)
    assert (code, output) == (2, "")
    assert (
        errors == "broadopt-run: -sc: expected install=SHELL, uninstall=SHELL or query=SHELL, of bash, zsh and fish\n"
    )


def in_bash(script: str, cwd: Path) -> list[str]:
    environment = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.run(["bash", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.splitlines()


WORDS = {
    "ta": {"table1", "table3"},
    "table3 --f": {"--format"},
    "table3 --format ": {*FORMATS, "json", "parquet"},
    "runs --equal-cost ": {"gradients", "seconds"},
    "table3 --metric l": {"last"},
    "--results ": set(),
    "": {*TABLES, "--help", "--results", "--metric", "--format", "--output", "--strict", "--status", "--missing"}
    | {"--watch", "--seeds", "--tflops", "--completion", "--where", "--columns", "--sort", "--per-run", "--against"}
    | {"--detect", "--reach", "--at-epoch", "--equal-cost"},
}


def test_bash_completes_broadopt_table(place: Path) -> None:
    lines = ['eval "$(broadopt-table --completion bash)"']
    for typed in WORDS:
        words = ["broadopt-table", *typed.split()] + [""] * (typed.endswith(" ") or not typed)
        quoted = " ".join(f"'{word}'" for word in words)
        lines += [f"COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}", "_broadopt_table", 'echo "${COMPREPLY[*]}"']
    *found, registered = in_bash("\n".join([*lines, "complete -p broadopt-table"]), place)
    assert [set(line.split()) for line in found] == list(WORDS.values())
    assert registered == "complete -o default -F _broadopt_table broadopt-table"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_the_same_words(shell: str, place: Path) -> None:
    code, output, errors = said("broadopt-table", "--completion", shell, cwd=place)
    assert (code, errors) == (0, "")
    assert all(word in output for word in (*TABLES, *FORMATS, *METRICS, "watch", "tflops"))
    if shutil.which(shell):
        subprocess.run([shell, "-c", output], check=True)


def test_a_shell_that_is_not_known_is_one_line(place: Path) -> None:
    code, _, errors = said("broadopt-table", "--completion", "tcsh", cwd=place)
    assert (code, errors) == (2, 'broadopt-table: --completion "tcsh" is none of bash, zsh, fish\n')
