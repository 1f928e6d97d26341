"""Whatever is typed: no traceback, one line, a known exit code, and nothing trained."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from in_process import said

from broadopt.config.habits import RENAMED, SENTENCES
from broadopt.config.rules import RULES
from broadopt.config.shipped import options

HABITS = [*SENTENCES, *RENAMED, "rho", "optimizer.lr", "trainer.max_epochs", "n-epochs", "Seed", "LR"]
"""Keys of other programs."""
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
    *("été", "/data/été (1)", "a#b", "~", "~/x", "~nobody/x", "it's", 'the "best"', "データ", "a" * 300, "back\\"),
    *("1..3", "1-3", "[1, 2]", "yes", "gpu", "fp16", "NHWC"),
    *("SAM", "CIFAR10", "ResNet20", "wrn-28-10", "resnet20.yaml", "./resnet20", "table3", "table3/*", "glob(table3/*)"),
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
        "--completion",
        "--result",
        "-o",
    ),
    *("table2", "Table3", "md", "bash", "~", "~/x", "~nobody/x", "results_dir=x", "été", "a" * 300, "1e10"),
    *("", "nowhere", "x=y", "seed=1", "\u202e", "--help", "--unknown", "9" * 50),
]
PATHS = [key for key, rule in RULES.items() if rule.is_path]
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
    st.builds("{}={}".format, st.sampled_from(HABITS), text),
    st.builds("{}={}".format, st.sampled_from(PATHS), text),
    st.builds("--{}={}".format, st.sampled_from([*HABITS, *KEYS]), text),
    st.builds("--{}".format, st.sampled_from([*HABITS, *KEYS])),
    text,
)
option = st.sampled_from(
    [
        *("-m", "--cfg", "--resolve", "--info", "--package", "-c", "job", "-p", "--version", "-sc", "-h", "-x", "-cd"),
        *("query=bash", "install=fish", "uninstall=zsh", "query=tcsh", "--config-dir=~/x", "-cd=été"),
    ]
)
line = st.lists(st.one_of(override, override, override, option), max_size=4)


COUNTS: Counter[tuple[str, object]] = Counter()
"""How many command lines of a program ended with a code, or were completed."""


@pytest.fixture(scope="module", autouse=True)
def counted() -> Iterator[None]:
    """At the end, what the command lines came to."""
    yield
    for (program, outcome), count in sorted(COUNTS.items(), key=str):
        print(f"{program}: {count} command lines, {outcome}")


REMARKS = ("only Hydra's own files go there", "recipes are compared, not methods alone")
"""Of lines that may stand ahead of a refusal: each is about something else on the command line."""


def said_in_one_line(code: int, errors: str) -> None:
    assert code in (0, 1, 2), (code, errors)
    assert "Traceback" not in errors
    if code == 2:
        assert errors.strip(), "a refusal says why"
        lines = [line for line in errors.splitlines() if not any(remark in line for remark in REMARKS)]
        assert len(lines) == 1 or "of the sweep's runs failed" in errors or "usage:" in errors, errors


def odd_run(arguments: list[str], cwd: Path) -> None:
    code, _, errors = said("broadopt-run", *arguments, "plan=true", cwd=cwd, HOME=str(cwd))
    COUNTS["broadopt-run", f"exit code {code}"] += 1
    said_in_one_line(code, errors)
    assert not list(cwd.rglob("result.json"))
    assert not list(cwd.rglob("checkpoint*"))


def odd_table(arguments: list[str], cwd: Path) -> None:
    code, _, errors = said("broadopt-table", *arguments, cwd=cwd, HOME=str(cwd))
    COUNTS["broadopt-table", f"exit code {code}"] += 1
    said_in_one_line(code, errors)


def odd_completion(typed: str, cwd: Path) -> None:
    code, output, errors = said("broadopt-run", "-sc", "query=bash", cwd=cwd, HOME=str(cwd), COMP_LINE=typed)
    COUNTS["broadopt-run", "completed"] += 1
    assert (code, errors) == (0, ""), (code, errors)
    assert len(output.splitlines()) <= 1


FIXED = {
    "suppress_health_check": list(HealthCheck),
    "print_blob": True,
    "phases": (Phase.explicit, Phase.generate),  # a line that fails is shown as it is: to shorten it takes minutes
}


@settings(max_examples=60, **FIXED)
@given(arguments=line)
def test_an_odd_line_for_broadopt_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_run(arguments, tmp_path_factory.mktemp("odd"))


@settings(max_examples=60, **FIXED)
@given(arguments=st.lists(st.sampled_from(TABLE_WORDS), max_size=5))
def test_an_odd_line_for_broadopt_table(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_table(arguments, tmp_path_factory.mktemp("odd"))


@pytest.mark.long
@settings(max_examples=1500, derandomize=False, **FIXED)
@given(arguments=line)
def test_many_odd_lines_for_broadopt_run(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_run(arguments, tmp_path_factory.mktemp("odd"))


@pytest.mark.long
@settings(max_examples=1500, derandomize=False, **FIXED)
@given(arguments=st.lists(st.sampled_from(TABLE_WORDS), max_size=6))
def test_many_odd_lines_for_broadopt_table(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_table(arguments, tmp_path_factory.mktemp("odd"))


typed_line = st.builds(
    lambda words, last: " ".join(["broadopt-run", *words, last]),
    st.lists(st.one_of(override, option), max_size=2),
    st.one_of(override, option, st.sampled_from([*KEYS, "experiment=table3/", "precision=", "", "+step.", "~"])),
).filter(lambda typed: not set(typed) & {"\0", "\ud800"})  # neither can stand in a shell's line


@settings(max_examples=30, **FIXED)
@given(typed=typed_line)
def test_an_odd_line_is_completed(typed: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_completion(typed, tmp_path_factory.mktemp("odd"))


@pytest.mark.long
@settings(max_examples=500, derandomize=False, **FIXED)
@given(typed=typed_line)
def test_many_odd_lines_are_completed(typed: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    odd_completion(typed, tmp_path_factory.mktemp("odd"))
