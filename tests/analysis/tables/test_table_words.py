"""What a newcomer types to broadopt-table, and the one right answer to it."""

from pathlib import Path

import pytest
from in_process import said

LINES = {
    "table2": 'table "table2" is none of table1, table3, label_noise, runs',
    "tables": 'table "tables" is none of table1, table3, label_noise, runs',
    "Table3": 'table "Table3" is none of table1, table3, label_noise, runs; did you mean "table3"?',
    "asam": 'table "asam" is none of table1, table3, label_noise, runs; did you mean "table3"?',
    "all": 'table "all" is none of table1, table3, label_noise, runs; did you mean "runs"?',
    "runs --result x": 'unknown option --result; did you mean "--results"?',
    "runs --result=x": 'unknown option --result=x; did you mean "--results"?',
    "runs --results-dir x": 'unknown option --results-dir; did you mean "--results"?',
    "runs -o x": 'unknown option -o; did you mean "--output"?',
    "table3 --seed 3": 'unknown option --seed; did you mean "--seeds"?',
    "table3 --csv": 'unknown option --csv; did you mean "--format"?',
    "table3 --Format csv": 'unknown option --Format; did you mean "--format"?',
    "table3 --verbose": "unknown option --verbose; see broadopt-table --help",
    "table3 --format md": '--format "md" is none of markdown, latex, csv, html; did you mean "markdown"?',
    "table3 --format json": "--format json goes with runs --per-run, which writes a row a run",
    "table3 --metric accuracy": '--metric "accuracy" is none of last, best, collected',
    "table3 folder": "folder: expected an option; the folder of results is --results folder",
    "table3 results_dir=folder": 'results_dir=folder: expected an option; did you mean "--results"?',
    "table3 format=csv": 'format=csv: expected an option; did you mean "--format"?',
    "table3 x=1": "x=1: expected an option; runs are selected by --where x=1",
    "runs step.rho=0.05": "step.rho=0.05: expected an option; runs are selected by --where step.rho=0.05",
    "runs --filter x": 'unknown option --filter; did you mean "--where"?',
    "runs --baseline sgd": 'unknown option --baseline; did you mean "--against"?',
    "runs --json": 'unknown option --json; did you mean "--per-run"?',
    "table3 --missing results_dir=folder": "results_dir=folder: expected KEY=VALUE with one of precision, device, "
    "memory_format, compile, graphs, deterministic, data_dir, force, wait, plan, tracker, objective, keep, trunk, "
    "checkpoint.minutes, checkpoint.predictor or hydra.KEY; --results names it",
    "table1 --missing hydra/launcher=local": "hydra/launcher=local: that is for the runs of a sweep, and each of these "
    "commands is a single run",
    "table1 --missing hydra.launcher.n_jobs=2": "hydra.launcher.n_jobs=2: that is for the runs of a sweep, and each of "
    "these commands is a single run",
    "table1 --missing hydra.sweep.dir=x": "hydra.sweep.dir=x: that is for the runs of a sweep, and each of these "
    "commands is a single run",
    "table1 --missing wait=maybe": 'wait="maybe": expected true or false',
    "table1 --missing device=gpu": 'device="gpu": expected auto, cpu, cuda or cuda:N; did you mean "cuda"?',
    "table1 --missing device=cpu,cuda": "device=cpu,cuda: several values are a sweep, and each of these commands is a "
    "single run",
    "table1 --missing trunk=foo": 'trunk="foo": expected one of none, share',
    "table1 --missing precision=[": "precision=[: expected one of auto, fp32, tf32, bf16",
    "table1 --missing checkpoint.minutes=-1": "checkpoint.minutes=-1: expected a number of minutes >= 0",
    "table3 --watch 1e10": "--watch 1e10: expected a number > 0 and <= 86400",
    "table3 --watch nan": "--watch nan: expected a number > 0 and <= 86400",
    "table3 --status --tflops 1e400": "--tflops 1e400: expected a number > 0",
}


@pytest.mark.parametrize("typed", LINES)
def test_a_word_of_a_newcomer_is_answered(typed: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert said("broadopt-table", *typed.split(), cwd=tmp_path) == (2, "", f"broadopt-table: {LINES[typed]}\n")
