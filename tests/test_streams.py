"""Streams that are closed, full or know few characters, half an environment, places that cannot be: a line or a saved
run, never a traceback. Through the real commands: forked ones write to what they are given as a new interpreter does;
where a stream is closed, another locale is set or another user asks, each is a new interpreter.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import fork_server
import pytest
from command import BIN, OWN, PATIENCE, SMALL, STARTUP, folders, needs_full, result, until
from in_process import said

from broadopt import streams

TINY = (*SMALL, "budget=0.1")
NO_SPACE = "cannot be written: No space left on device\n"
USUAL = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(OWN), str(STARTUP)])}
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(
    program: str, *arguments: str, to: str = "", cwd: Path, ahead: str = "", **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    """A command with the redirections `to`, started by bash; what it leaves of stdout and stderr is read."""
    words = shlex.join([str(BIN / program), *arguments])
    variables = os.environ | USUAL | ({"FORK_SERVER": "no"} if ahead else {}) | environment
    return subprocess.run(["bash", "-c", f"{ahead} {words} {to}"], cwd=cwd, env=variables, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def served() -> None:
    """The server that forks what is not to be new."""
    if fork_server.takes(fork_server.environment_of_server()):
        fork_server.server()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run, in a results folder with a name beyond ASCII and UTF-8."""
    cwd = tmp_path_factory.mktemp("finished")
    odd = os.fsdecode("é\xff".encode("latin-1"))
    process = shell("broadopt-run", *TINY, f"results_dir={odd}/données", cwd=cwd, **ASCII)
    assert (process.returncode, process.stderr) == (0, b"")
    return cwd / odd / "données"


def test_a_path_beyond_the_locale_is_written_as_it_is(finished: Path) -> None:
    (folder,) = finished.glob("runs/*/*/*/*")
    assert result(folder)["state"] == "finished"
    assert {"config.yaml", "history.csv"} <= {path.name for path in folder.iterdir()}
    process = shell("broadopt-table", "runs", "--results", str(finished), cwd=finished, **ASCII)
    assert (process.returncode, process.stderr) == (0, b"")
    assert "mean ± sample standard deviation" in process.stdout.decode("utf-8")
    process = shell("broadopt-table", "table3", "--missing", "--results", str(finished), cwd=finished, **ASCII)
    assert (process.returncode, process.stderr) == (0, b"")
    assert os.fsencode(finished) in process.stdout


def test_characters_that_a_stream_does_not_know_are_spelled(tmp_path: Path) -> None:
    process = shell("broadopt-run", *TINY, "results_dir=données", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert (process.returncode, process.stderr) == (0, b"")
    assert rb": donn\xe9es/runs/digits/small/sgd/seed1-" in process.stdout
    assert (tmp_path / "données").is_dir()
    process = shell("broadopt-run", "model=é", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert process.returncode == 2
    assert process.stderr.startswith(rb"broadopt-run: model=\xe9: expected one of ")


RUNS = {
    ">&-": (0, ""),
    "2>&-": (0, ""),
    "<&- >&- 2>&-": (0, ""),
    ">/dev/full": (1, f"broadopt-run: stdout {NO_SPACE}"),
    "2>/dev/full": (0, ""),
    ">/dev/full 2>/dev/full": (1, ""),
}


@needs_full
@pytest.mark.parametrize("to", RUNS)
def test_a_run_is_saved_whatever_becomes_of_what_it_says(to: str, tmp_path: Path) -> None:
    process = shell("broadopt-run", *TINY, to=to, cwd=tmp_path)
    assert (process.returncode, process.stderr.decode()) == RUNS[to]
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "finished"
    said = process.stdout.decode()
    assert ("finished: " in said) == (">" not in to.replace("2>", ""))
    kept = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"finished: results/" not in kept  # nothing that was printed went into a file with the stream's number


WORDS = {
    ("broadopt-run", "epochs=3", "2>&-"): (2, ""),
    ("broadopt-run", "epochs=3", "2>/dev/full"): (2, ""),
    ("broadopt-run", "plan=true", ">/dev/full"): (1, f"broadopt-run: stdout {NO_SPACE}"),
    ("broadopt-run", "--help", ">/dev/full"): (1, f"broadopt-run: stdout {NO_SPACE}"),
    ("broadopt-run", "--version", ">/dev/full"): (1, f"broadopt-run: stdout {NO_SPACE}"),
    ("broadopt-run", "--cfg job", ">/dev/full"): (1, f"broadopt-run: stdout {NO_SPACE}"),
    ("broadopt-run", "-sc install=bash", ">/dev/full"): (1, f"broadopt-run: stdout {NO_SPACE}"),
    ("broadopt-run", "--version", ">&-"): (0, ""),
    ("broadopt-table", "nothing", "2>&-"): (2, ""),
    ("broadopt-table", "nothing", "2>/dev/full"): (2, ""),
    ("broadopt-table", "--help", ">/dev/full"): (1, f"broadopt-table: stdout {NO_SPACE}"),
    ("broadopt-table", "--completion bash", ">/dev/full"): (1, f"broadopt-table: stdout {NO_SPACE}"),
    ("broadopt-table", "runs", ">/dev/full"): (2, f"broadopt-table: the table {NO_SPACE}"),
    ("broadopt-table", "runs --watch", ">/dev/full"): (2, f"broadopt-table: the table {NO_SPACE}"),
    ("broadopt-table", "runs", ">&-"): (0, ""),
    ("broadopt-report", "nothing", "2>&-"): (2, ""),
    ("broadopt-report", "--help", ">/dev/full"): (1, f"broadopt-report: stdout {NO_SPACE}"),
    ("broadopt-table", "runs", "2>&- >&-"): (0, ""),
}


@needs_full
@pytest.mark.parametrize("words", WORDS, ids=map(" ".join, WORDS))
def test_what_was_asked_for_is_written_or_reported(words: tuple[str, str, str], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    program, arguments, to = words
    process = shell(program, *arguments.split(), to=to, cwd=tmp_path)
    assert (process.returncode, process.stderr.decode()) == WORDS[words]
    assert process.stdout == b""


PIPES = {
    ("broadopt-run", "plan=true"): 75,
    ("broadopt-run", "-m seed=1,2 plan=true"): 75,
    ("broadopt-run", "--help"): 75,
    ("broadopt-run", " ".join(TINY)): 75,
    ("broadopt-table", "runs"): 0,
    ("broadopt-table", "runs --watch"): 0,
    ("broadopt-table", "--help"): 0,
    ("broadopt-report", "--help"): 0,
}


@pytest.mark.parametrize("words", PIPES, ids=map(" ".join, PIPES))
def test_a_closed_pipe_ends_a_command_quietly(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    reading, writing = os.pipe()
    os.close(reading)
    variables = os.environ | USUAL
    command = [str(BIN / words[0]), *words[1].split()]
    process = subprocess.run(command, cwd=tmp_path, env=variables, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (process.returncode, process.stderr.decode()) == (PIPES[words], "")
    trains = words == ("broadopt-run", " ".join(TINY))
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["interrupted"] * trains


def test_a_pipe_of_messages_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    process = shell("broadopt-run", "-m", *TINY, "seed=1,x", to="2> >(exec true) | cat", cwd=tmp_path)
    assert process.stdout.count(b"finished: ") == 1
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "finished"


def full_pipe() -> tuple[int, int, int]:
    """A pipe whose writing end does not block, and the bytes that fill it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filled = 0
    with suppress(BlockingIOError):
        while True:
            filled += os.write(writing, bytes(4096))
    return reading, writing, filled


@pytest.mark.parametrize("kind", [streams.Waiting, streams.Messages, streams.Output])
def test_a_full_stream_that_does_not_block_is_waited_for(kind: type[streams.Waiting]) -> None:
    reading, writing, filled = full_pipe()
    with kind(writing, "w") as stream, ThreadPoolExecutor() as pool:
        written = pool.submit(stream.write, b"a message")
        time.sleep(0.1)
        assert not written.done()
        assert os.read(reading, filled) == bytes(filled)
        assert written.result(PATIENCE) == len(b"a message")
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"a message"


def test_a_run_waits_for_the_reader_of_streams_that_do_not_block(tmp_path: Path) -> None:
    reading, writing, filled = full_pipe()
    command = [str(BIN / "broadopt-run"), *TINY]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | USUAL, stdout=writing, stderr=writing) as process:
        os.close(writing)
        until(lambda: list(tmp_path.rglob("config.yaml")) or process.poll() is not None)
        time.sleep(0.5)  # by then it has something to say
        with open(reading, "rb") as pipe:
            told = pipe.read()[filled:].decode()
    assert process.returncode == 0, told
    assert "\nfinished: " in told
    assert "Error" not in told
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"]


HALVES = {
    "": "WORLD_SIZE is not set",
    "WORLD_SIZE=2": "RANK is not set",
    "WORLD_SIZE=two RANK=0": "WORLD_SIZE is 'two'",
    "WORLD_SIZE=2 RANK=0": "LOCAL_RANK is not set",
    "WORLD_SIZE=1 RANK=0 LOCAL_RANK=0": "MASTER_PORT is not set",
}


@pytest.mark.parametrize("variables", HALVES)
def test_half_of_the_environment_of_torchrun_is_one_line(variables: str, tmp_path: Path) -> None:
    given = dict(pair.split("=") for pair in variables.split())
    code, output, errors = said("broadopt-run", *TINY, cwd=tmp_path, TORCHELASTIC_RUN_ID="x", **given)
    expected = "but TORCHELASTIC_RUN_ID is set: expected all variables of torchrun, or none of them"
    assert (code, output, errors) == (2, "", f"broadopt-run: {HALVES[variables]}, {expected}\n")
    assert list(tmp_path.iterdir()) == []


LONG = "a" * 300
PLACES = {
    ("broadopt-run", f"experiment=quickstart results_dir={LONG}"): "File name too long",
    ("broadopt-run", f"experiment=quickstart results_dir={'/'.join(['a' * 200] * 25)}"): "File name too long",
    ("broadopt-run", f"-m experiment=quickstart results_dir={LONG}"): "File name too long",
    ("broadopt-run", f"experiment=quickstart model.name={LONG}"): "expected a name of at most 200 characters",
    ("broadopt-run", "experiment=quickstart results_dir=file"): "Not a directory",
    ("broadopt-run", "-m experiment=quickstart results_dir=file"): "Not a directory",
    ("broadopt-run", f"dataset=cifar10 data_dir={LONG}"): "File name too long",
    ("broadopt-run", f"dataset=image_folder dataset.path={LONG}"): "File name too long",
    ("broadopt-run", f"repeat={LONG}"): "File name too long",
    ("broadopt-run", f"--config-dir {LONG}"): "not found",
    ("broadopt-table", f"runs --results {LONG}"): "does not exist",
    ("broadopt-table", "runs --results file"): "is not a folder",
    ("broadopt-table", f"runs --results . --output {LONG}"): "File name too long",
    ("broadopt-table", "runs --results . --output file/t.md"): "Not a directory",
}


@pytest.mark.parametrize("words", PLACES, ids=lambda words: " ".join(words)[:60])
def test_a_place_that_cannot_be_is_one_line(words: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    program, arguments = words
    code, output, errors = said(program, *arguments.split(), cwd=tmp_path)
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith(f"{program}: ")
    assert PLACES[words] in line
    assert (tmp_path / "file").read_text() == "in the way"
    assert not list(tmp_path.rglob("result.json"))


UNKNOWN_USER = [
    *("setpriv", "--reuid", "12345", "--inh-caps", "+dac_override,+dac_read_search"),
    *("--ambient-caps", "+dac_override,+dac_read_search", "env", "-u", "HOME", "-u", "XDG_CACHE_HOME"),
]
"""A user whom the system does not know and who has no home, as in many a container, but may read this checkout."""


@pytest.fixture
def nowhere_at_home(tmp_path: Path) -> str:
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to be another user")
    if subprocess.run([*UNKNOWN_USER, sys.executable, "-c", ""], capture_output=True).returncode != 0:
        pytest.skip("this system lets nobody be another user")
    tmp_path.chmod(0o777)
    return shlex.join(UNKNOWN_USER)


def test_a_user_without_a_home_has_runs_and_tables(nowhere_at_home: str, tmp_path: Path) -> None:
    pictures(tmp_path / "pets")
    own = ("dataset=image_folder", f"dataset.path={tmp_path / 'pets'}", "batch_size=2")
    process = shell("broadopt-run", *TINY, *own, cwd=tmp_path, ahead=nowhere_at_home)
    assert process.returncode == 0, process.stderr
    assert b"Traceback" not in process.stderr
    (folder,) = folders(tmp_path)
    assert folder.stat().st_uid == 12345
    for arguments in ("runs", "table3 --status"):
        process = shell("broadopt-table", *arguments.split(), cwd=tmp_path, ahead=nowhere_at_home)
        assert (process.returncode, process.stderr) == (0, b"")
    process = shell("broadopt-run", "results_dir=~/x", cwd=tmp_path, ahead=nowhere_at_home)
    assert process.returncode == 2
    assert process.stderr.startswith(b"broadopt-run: results_dir=~/x: there is no home folder ~; ")


def pictures(root: Path) -> None:
    """Eight small images in two classes."""
    from PIL import Image

    for split in ("train", "test"):
        for place, kind in enumerate(("cat", "dog")):
            (root / split / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40), (99 * place, 40 * number, 7)).save(root / split / kind / f"{number}.png")


@pytest.mark.parametrize(
    "command",
    [
        ("broadopt-table", "table3", "--missing", "--seeds", "1-100", "--results", "."),
        ("broadopt-report", ".", "-o", "/dev/stdout"),
    ],
    ids=" ".join,
)
def test_ctrl_c_ends_a_command_without_a_word(command: tuple[str, ...], finished: Path) -> None:
    """In the midst of what it writes, which is more than its reader has room for."""
    words = [str(BIN / command[0]), *command[1:]]
    with subprocess.Popen(
        words, cwd=finished, bufsize=0, pipesize=4096, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE) == 130
        assert process.stderr.read() == b""


AT_IMPORT = """
import importlib.abc, os, signal, sys, time

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == os.environ["AT"]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

sys.meta_path.insert(0, Interrupting())
"""
"""A sitecustomize.py by which a module that is looked for brings Ctrl-C."""


@pytest.mark.parametrize(
    ("command", "at"),
    [
        (("broadopt-run", "experiment=quickstart"), "hydra"),
        (("broadopt-run", "experiment=quickstart"), "broadopt.runs.objective"),
        (("-m", "broadopt.run", "experiment=quickstart"), "hydra"),
        (("broadopt-table", "table3"), "broadopt.analysis.tables.request"),
        (("broadopt-table", "table3"), "broadopt.analysis.tables.formats"),
        (("broadopt-report", "."), "broadopt.analysis.reporting.request"),
        (("broadopt-figure", "--help"), "broadopt.analysis.figures.catalogue"),
        (("broadopt-export", "--help"), "broadopt.trackers.choose"),
    ],
)
def test_ctrl_c_ends_a_command_that_imports_without_a_word(command: tuple[str, ...], at: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT)
    words = command if command[0] == "-m" else (str(BIN / command[0]), *command[1:])
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "AT": at, "FORK_SERVER": "no"}
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, timeout=PATIENCE
    )
    assert done.returncode in (130, -signal.SIGINT)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_command_in_the_background_is_loaded_past_ctrl_c(tmp_path: Path) -> None:
    """Where SIGINT is ignored, as of what a script starts by &, it stays so."""
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.replace("time.sleep(5)", "pass"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "AT": "hydra", "FORK_SERVER": "no"}
    words = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(BIN / "broadopt-run"), "--version"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")
