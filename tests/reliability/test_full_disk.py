"""Places where nothing can be written, a folder that goes away, and a machine without memory."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command import PATIENCE, SMALL, Sweep, folders, go_on, halted, result, run, same_outcome

COMMAND = (*SMALL, "budget=2", "method=asam")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, 1 MiB large, at tmp_path/results."""
    place = tmp_path / "results"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    while os.path.ismount(place):  # twice where a test has mounted over it
        subprocess.run(["umount", "--lazy", place], check=True)


def make_read_only(place: Path) -> None:
    """By a second mount over the first, since files are open there."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)


def fill(place: Path) -> None:
    with open(place / "filling", "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_full_disk_fails_the_run_which_goes_on_when_there_is_room(
    small_disk: Path, five_runs: Sweep, tmp_path: Path
) -> None:
    command = (*COMMAND, "checkpoint.minutes=0")
    with halted(*command, cwd=tmp_path, at="train 40") as process:
        fill(small_disk)
        go_on(tmp_path)
        output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert "No space left on device" in errors
    assert "Traceback" not in errors
    (folder,) = folders(tmp_path)
    kept = sorted(path.name for path in folder.glob("checkpoint-*.ckpt"))
    assert kept == [f"checkpoint-{step:010d}.ckpt" for step in (18, 19)]
    assert not list(folder.glob(".checkpoint-*"))

    (small_disk / "filling").unlink()
    again = run(*COMMAND, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert kept[-1] in again.stderr
    assert same_outcome(folder, five_runs.folders["asam"])


def test_a_failure_on_a_full_disk_is_written_where_there_is_room_for_it(small_disk: Path, tmp_path: Path) -> None:
    with halted(*COMMAND, "checkpoint.minutes=0", cwd=tmp_path, at="train 40") as process:
        fill(small_disk)
        with open(small_disk / "filling", "r+b") as file:
            file.truncate(os.path.getsize(small_disk / "filling") - 16384)
        go_on(tmp_path)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "failed"
    assert "No space left on device" in result(folder)["failure"]["reason"]


def test_a_disk_that_becomes_read_only_fails_the_run_and_keeps_its_checkpoint(
    small_disk: Path, five_runs: Sweep, tmp_path: Path
) -> None:
    with halted(*COMMAND, "checkpoint.minutes=0", cwd=tmp_path, at="train 40") as process:
        make_read_only(small_disk)
        go_on(tmp_path)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "Read-only file system" in errors
    assert "Traceback" not in errors
    refused = run(*COMMAND, cwd=tmp_path)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "cannot be written (Read-only file system)" in line
    subprocess.run(["umount", small_disk], check=True)
    again = run(*COMMAND, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert same_outcome(folders(tmp_path)[0], five_runs.folders["asam"])


def test_a_folder_that_vanishes_fails_the_run_in_one_line(tmp_path: Path) -> None:
    with halted(*COMMAND, "checkpoint.minutes=0", cwd=tmp_path, at="train 40") as process:
        shutil.rmtree(tmp_path / "results")
        go_on(tmp_path)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "No such file or directory" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert not list((tmp_path / "results").rglob("result.json"))


def test_too_little_memory_fails_the_run_which_goes_on_where_there_is_more(five_runs: Sweep, tmp_path: Path) -> None:
    command = (*COMMAND, "checkpoint.minutes=0")
    failed = run(*command, cwd=tmp_path, HUNGRY="train 40")
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "can't allocate memory" in line
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "failed"
    assert "can't allocate memory" in result(folder)["failure"]["reason"]
    again = run(*COMMAND, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "checkpoint-0000000019.ckpt" in again.stderr
    assert same_outcome(folder, five_runs.folders["asam"])


def test_a_signal_while_the_run_is_built_ends_it_at_once(five_runs: Sweep, tmp_path: Path) -> None:
    with halted(*COMMAND, cwd=tmp_path, at="init 1") as process:
        process.send_signal(signal.SIGUSR1)
        go_on(tmp_path)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert folders(tmp_path) == []
    assert run(*COMMAND, cwd=tmp_path).returncode == 0
    (folder,) = folders(tmp_path)
    assert same_outcome(folder, five_runs.folders["asam"])
