"""Whatever is typed: no traceback, one line, a known exit code, and nothing trained."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import said

from broadopt.config.rules import RULES
from broadopt.config.shipped import options

GROUPS = ("dataset", "model", "method", "step", "collect", "schedule", "protocol", "experiment")
KEYS = [*RULES, "augmentation", "model.depth", "dataset.path", "hydra.run.dir", "step._target_", "nothing", "model.x"]
VALUES = [
    *(
        "",
        "null",
        "true",
        "1",
        "-1",
        "0",
        "0.5",
        "1e999",
        "nan",
        "inf",
        "[1,2]",
        "{a: 1}",
        "1,2",
        "'",
        '"',
        "[",
        "{",
        "${",
        "}",
    ),
    *(
        "${oc.env:HOME}",
        "${seed}",
        "${recipe:x}",
        "${.}",
        "???",
        "\\",
        "\\,",
        "a b",
        "é",
        "\u202e",
        "\U0001f600",
        "\ud800",
        "\t",
    ),
    *(
        "9" * 400,
        "0x10",
        "1_000",
        "range(3)",
        "choice(1,2)",
        "glob(*)",
        "sort(2,1)",
        "interval(0,1)",
        "tag(a,1)",
        "@x",
        "!!python/name:os",
    ),
    *("../../../etc/passwd", "/dev/null", "os.system", "*", "~", "-", "--", "=", "a=b", "a.b.c", "[[[[[[[[", "${${${"),
]
TABLE_WORDS = [
    *(
        "table1",
        "table3",
        "runs",
        "--format",
        "markdown",
        "latex",
        "csv",
        "html",
        "--results",
        "--metric",
        "last",
        "best",
    ),
    *(
        "collected",
        "--strict",
        "--status",
        "--missing",
        "--seeds",
        "1-3",
        "0",
        "-",
        "1-",
        "3-1",
        "--tflops",
        "--output",
    ),
    *("", "nowhere", "x=y", "seed=1", "\u202e", "--help", "--unknown", "9" * 50),
]
text = st.one_of(st.sampled_from(VALUES), st.text(max_size=12))
override = st.one_of(
    st.builds("{}={}".format, st.sampled_from(KEYS), text),
    st.builds("{}={}".format, st.sampled_from(GROUPS), text),
    st.builds(
        lambda group, i: f"{group}={options(group)[i % len(options(group))]}", st.sampled_from(GROUPS), st.integers(0)
    ),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++", "~", "@", "%"]), st.sampled_from(KEYS), text),
    st.builds("~{}".format, st.sampled_from(KEYS)),
    st.builds("repeat={}".format, text),
    text,
)
option = st.sampled_from(
    ["-m", "--cfg", "--resolve", "--info", "--package", "-c", "job", "-p", "--version", "-sc", "-h", "-x", "-cd"]
)
line = st.lists(st.one_of(override, override, override, option), max_size=4)


def said_in_one_line(code: int, errors: str) -> None:
    assert code in (0, 1, 2), (code, errors)
    assert "Traceback" not in errors
    if code == 2:
        assert errors.strip(), "a refusal says why"
        assert len(errors.splitlines()) == 1 or "of the sweep's runs failed" in errors or "usage:" in errors, errors


def odd_run(arguments: list[str], cwd: Path) -> None:
    code, _, errors = said("broadopt-run", *arguments, "plan=true", cwd=cwd)
    said_in_one_line(code, errors)
    assert not list(cwd.rglob("result.json"))
    assert not list(cwd.rglob("checkpoint*"))


def odd_table(arguments: list[str], cwd: Path) -> None:
    code, _, errors = said("broadopt-table", *arguments, cwd=cwd)
    said_in_one_line(code, errors)


FIXED = {"deadline": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=60, derandomize=True, **FIXED)
@given(arguments=line)
def test_an_odd_line_for_broadopt_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_run(arguments, tmp_path_factory.mktemp("odd"))


@settings(max_examples=60, derandomize=True, **FIXED)
@given(arguments=st.lists(st.sampled_from(TABLE_WORDS), max_size=5))
def test_an_odd_line_for_broadopt_table(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_table(arguments, tmp_path_factory.mktemp("odd"))


@pytest.mark.long
@settings(max_examples=1500, **FIXED)
@given(arguments=line)
def test_many_odd_lines_for_broadopt_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_run(arguments, tmp_path_factory.mktemp("odd"))


@pytest.mark.long
@settings(max_examples=1500, **FIXED)
@given(arguments=st.lists(st.sampled_from(TABLE_WORDS), max_size=6))
def test_many_odd_lines_for_broadopt_table(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_table(arguments, tmp_path_factory.mktemp("odd"))
