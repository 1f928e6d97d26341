"""Plain values out of files of unknown origin: YAML and JSON within bounds."""

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from broadopt.config.compose import compose, run_config
from broadopt.files import DEPTH, read_bytes, read_json, read_yaml, replacing

LIMIT = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "file"


def test_two_writers_of_one_process_number_do_not_take_each_others_files(file: Path) -> None:
    """As those of two containers that share a folder."""
    with contextlib.ExitStack() as late:
        with replacing(file) as first:
            second = late.enter_context(replacing(file))
            first.write(b"whole")
            second.write(b"un")
            second.flush()
        assert file.read_bytes() == b"whole"
        second.write(b"finished")
    assert file.read_bytes() == b"unfinished"
    assert [*file.parent.iterdir()] == [file]


def test_no_text_comes_back_as_a_number(file: Path) -> None:
    """All short ones of the characters that numbers are made of: a folder may have any of them for a name."""
    texts = ["".join(some) for length in range(1, 6) for some in itertools.product("1_.e+", repeat=length)]
    texts += ["9_E5", "1_e-3", "2._e2", "1_000.5_e3", "+.5_", "-._5e1", "1.5_0e-3", "1_0e1_0", ".inf", "1:30.5"]
    file.write_text(OmegaConf.to_yaml({"texts": texts}))
    assert read_yaml(file, limit=2**20)["texts"] == texts


def test_every_number_comes_back(file: Path) -> None:
    numbers = [0, -7, 10**20, 0.1, -1e-300, 1e22, 1.5e16, 123456.789, 5e-324, float("inf"), -float("inf")]
    file.write_text(OmegaConf.to_yaml({"numbers": numbers}))
    found = read_yaml(file, limit=LIMIT)["numbers"]
    assert found == numbers
    assert [*map(type, found)] == [*map(type, numbers)]


@pytest.mark.parametrize("method", ["sgd", "swa", "fge", "sam", "asam"])
def test_the_config_of_a_run_is_read_as_it_was_written(file: Path, method: str) -> None:
    overrides = [f"method={method}", "step.p=inf"] if method in ("sam", "asam") else [f"method={method}"]
    values = run_config(compose(overrides)).values()
    file.write_text(OmegaConf.to_yaml(values))
    assert read_yaml(file, limit=LIMIT) == values == OmegaConf.to_container(OmegaConf.load(file))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5e3", 1500.0),
        ("+.5", 0.5),
        ("-.inf", -float("inf")),
        ("012", 10),
        ("0x1f", 31),
        ("1_000", 1000),
        ("yes", True),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ("2020-01-01", "2020-01-01"),
        ("1:30", "1:30"),
        ("cuda:0", "cuda:0"),
        ("{a: [1, b], c: {}}", {"a": [1, "b"], "c": {}}),
        ("<<: {a: 1}", {"<<": {"a": 1}}),
    ],
)
def test_yaml_gives_plain_values(file: Path, text: str, value: Any) -> None:
    file.write_text(text)
    found = read_yaml(file, limit=LIMIT)
    assert found == value
    assert type(found) is type(value)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

BAD_YAML = {
    "nine levels of aliases": (LAUGHS, "line 1: anchors, aliases and tags are not read"),
    "an alias to itself": ("&a [*a]", "line 1: anchors, aliases and tags are not read"),
    "a tag": ("a: 1\nb: !!python/object/apply:os.system [ls]", "line 2: anchors, aliases and tags are not read"),
    "a tag of a number": ("!!int x", "line 1: anchors, aliases and tags are not read"),
    "brackets": ("[" * 500_000, f"line 1: nested more than {DEPTH} deep"),
    "braces": ("{" * 500_000, f"line 1: nested more than {DEPTH} deep"),
    "dashes": ("- " * 250_000, f"line 1: nested more than {DEPTH} deep"),
    "questions": ("? " * 250_000, f"line 1: nested more than {DEPTH} deep"),
    "a key twice": ("a: 1\nb: 2\na: 3", "line 3: the key a twice"),
    "a key that is a list": ("? [a]\n: b", "line 1: found unhashable key"),
    "an escape": ("\x1b[31m: {", "special characters are not allowed"),
    "a number of 5000 digits": ("9" * 5000, "Exceeds the limit"),
    "a number to base 60 of many digits": ("1" + ":59" * 100_000 + ": {", "line 1: "),
    "bytes of no encoding": (b"\xff\xfe\xff", "unacceptable character #x00ff: truncated data"),
    "two documents": ("a: 1\n---\nb: 2", "but found another document"),
    "a colon too many": ("a: b: c", "line 1: mapping values are not allowed here"),
}


@pytest.mark.parametrize("name", BAD_YAML)
def test_bad_yaml_is_refused_at_once_in_one_line(file: Path, name: str) -> None:
    text, words = BAD_YAML[name]
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_yaml(file, limit=LIMIT)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 400_000, f"nested more than {DEPTH} deep"),
        ("[" * (DEPTH + 2) + "]" * (DEPTH + 2), f"nested more than {DEPTH} deep"),
        ('{"a":' * 100_000, f"nested more than {DEPTH} deep"),
        ("NaN", "NaN is no JSON number"),
        ("[-Infinity]", "-Infinity is no JSON number"),
        ('{"a": [1e999]}', "a number that no float can hold"),
        ("9" * 5000, "not JSON"),
        ("", "not JSON, perhaps truncated"),
        ("\x1b[31m", "not JSON"),
    ],
)
def test_bad_json_is_refused_in_one_line(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=r"\S") as caught:
        read_json(file, limit=LIMIT)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_json_as_deep_as_allowed_is_read(file: Path) -> None:
    value: Any = 1
    for _ in range(DEPTH):
        value = [value]
    file.write_text(json.dumps(value))
    assert read_json(file, limit=LIMIT) == value


def test_the_limit_holds_for_what_a_file_says_and_for_what_it_gives(file: Path) -> None:
    file.write_bytes(b"12345")
    assert read_bytes(file, limit=5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, expected 4 at most"):
        read_bytes(file, limit=4)
    # Files of /proc have no size and give something all the same.
    with pytest.raises(ValueError, match="11 bytes, expected 10 at most"):
        read_bytes(Path("/proc/self/status"), limit=10)


def test_what_is_no_file_is_refused_and_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(ValueError, match="a device, a FIFO or a socket, not a regular file"):
        read_bytes(file, limit=1)
    with pytest.raises(ValueError, match="a folder, not a regular file"):
        read_bytes(file.parent, limit=1)
