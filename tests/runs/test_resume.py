"""Runs that are stopped, killed or damaged, and what becomes of them when the same command is given again."""

import hashlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from command import PATIENCE, SMALL, Sweep, finish, folders, halted, result, run, same_outcome, start, stopped, until

from broadopt.errors import Interrupted
from broadopt.runs import checkpoint
from broadopt.signals import SIGNALS, Stop

STEPS_PER_EPOCH = 45
# Method, signal, the pass in which it comes, the step whose end is saved. One budget is 90 steps, SWA runs for 135.
INTERRUPTIONS = [
    pytest.param("sgd", signal.SIGTERM, "train 20", 20, id="in the first epoch"),
    pytest.param("swa", signal.SIGINT, "train 100", 90, id="while BN statistics are re-estimated"),
    pytest.param("fge", signal.SIGUSR1, "test 8", 73, id="while a snapshot predicts"),
    pytest.param("sam", signal.SIGUSR2, "train 122", 61, id="in the second pass of a step"),
    pytest.param("asam", signal.SIGTERM, "test 2", 45, id="while the test set is evaluated"),
]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*checkpoint*"))


def limited(size: int, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """broadopt-run whose files may have `size` bytes; this process, of which it has the limit, only while it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        process = start(*arguments, cwd=cwd)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return finish(process)


@pytest.mark.parametrize(("method", "by", "at", "step"), INTERRUPTIONS)
def test_an_interrupted_run_goes_on_to_the_same_figures_bit_for_bit(
    five_runs: Sweep, tmp_path: Path, method: str, by: signal.Signals, at: str, step: int
) -> None:
    command = (*SMALL, "budget=2", f"method={method}")
    process = stopped(*command, cwd=tmp_path, at=at, by=by)
    assert process.returncode == 75
    assert process.stderr.splitlines()[-1] == f"broadopt-run: stopped by {by.name}: run the same command to go on"
    (folder,) = folders(tmp_path)
    found = result(folder)
    assert found["state"] == "interrupted"
    assert checkpoints(folder) == [f"checkpoint-{step:010d}.ckpt"]
    assert found["epochs"] == step / STEPS_PER_EPOCH

    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    place = folder.relative_to(tmp_path)
    assert f"going on from {place}/checkpoint-{step:010d}.ckpt" in again.stderr.splitlines()
    assert same_outcome(folder, five_runs.folders[method])
    assert checkpoints(folder) == []


def test_a_killed_run_goes_on_from_its_newest_checkpoint(five_runs: Sweep, tmp_path: Path) -> None:
    command = (*SMALL, "budget=2", "method=swa", "checkpoint.minutes=0")
    assert stopped(*command, cwd=tmp_path, at="train 60", by=signal.SIGKILL).returncode == -signal.SIGKILL
    (folder,) = folders(tmp_path)
    assert not (folder / "result.json").exists()
    assert checkpoints(folder) == ["checkpoint-0000000058.ckpt", "checkpoint-0000000059.ckpt"]
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert f"going on from {folder.relative_to(tmp_path)}/checkpoint-0000000059.ckpt" in again.stderr.splitlines()
    assert same_outcome(folder, five_runs.folders["swa"])
    assert checkpoints(folder) == []


def header(payload: bytes, identity: str) -> bytes:
    """The first line of a checkpoint that fits its content."""
    digest = hashlib.sha256(payload).hexdigest()
    fields = {"format": checkpoint.FORMAT, "identity": identity, "step": 1, "length": len(payload), "sha256": digest}
    return json.dumps(fields).encode() + b"\n"


class Touch:
    """Unpickling it runs a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def archive(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_checkpoints_that_cannot_be_trusted_are_passed_over_for_an_older_one(five_runs: Sweep, tmp_path: Path) -> None:
    command = (*SMALL, "budget=2")
    stopped(*command, cwd=tmp_path, at="train 20", by=signal.SIGTERM)
    (folder,) = folders(tmp_path)
    valid, identity = (folder / "checkpoint-0000000020.ckpt").read_bytes(), result(folder)["identity"]
    executed = tmp_path / "executed"
    flipped = bytearray(valid)
    flipped[-1000] ^= 1
    legacy, zipped = pickle.dumps(Touch(executed), protocol=2), archive(Touch(executed))
    damaged = {
        30: (b"", "not JSON, perhaps truncated (Expecting value: "),
        31: (b"\x80 garbage", "not JSON, perhaps truncated ('utf-8' codec can't decode byte"),
        32: (valid[:-100], "truncated or damaged"),
        33: (bytes(flipped), "truncated or damaged"),
        34: (valid.replace(identity.encode(), b"0" * 64, 1), "it belongs to another run"),
        35: (valid.replace(b'"format": 2', b'"format": 9', 1), "not of format 2"),
        36: (header(legacy, identity) + legacy, "Weights only load failed"),
        37: (header(zipped, identity) + zipped, "Weights only load failed"),
        38: (header(b"nothing", identity) + b"nothing", "Weights only load failed"),
    }
    for step, (content, _) in damaged.items():
        (folder / f"checkpoint-{step:010d}.ckpt").write_bytes(content)
    (folder / ".checkpoint-0000000039.ckpt.1.tmp").write_bytes(valid[:1000])

    process = run(*command, cwd=tmp_path)
    assert process.returncode == 0
    *passed, going_on = process.stderr.splitlines()
    place = folder.relative_to(tmp_path)
    for line, (step, (_, reason)) in zip(passed, sorted(damaged.items(), reverse=True), strict=True):
        assert line.startswith(f"checkpoint {place}/checkpoint-{step:010d}.ckpt is passed over: {reason}")
    assert going_on == f"going on from {place}/checkpoint-0000000020.ckpt"
    assert not executed.exists()
    assert same_outcome(folder, five_runs.folders["sgd"])
    assert checkpoints(folder) == []


def test_the_code_in_that_checkpoint_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_a_second_interrupt_ends_the_process_at_once(tmp_path: Path) -> None:
    sent = 0
    with halted(*SMALL, "budget=2", cwd=tmp_path, at="train 20") as process:

        def has_ended() -> bool:
            nonlocal sent
            if process.poll() is None:
                process.send_signal(signal.SIGINT)  # two that are sent at once may arrive as one
                sent += 1
            return process.poll() is not None

        until(has_ended)
    assert process.returncode == -signal.SIGINT
    assert sent >= 2
    (folder,) = folders(tmp_path)
    left = {path.name for path in folder.iterdir()} - {"code.diff"}  # there where the checkout has changes
    assert left == {".lock", "config.yaml", "progress.json"}


def test_a_signal_ends_a_sweep_which_goes_on_where_it_was(five_runs: Sweep, tmp_path: Path) -> None:
    command = ("-m", *SMALL, "budget=2", "seed=2,1,3")
    process = stopped(*command, cwd=tmp_path, at="train 100", by=signal.SIGTERM)
    assert process.returncode == 75
    assert process.stderr == "broadopt-run: stopped by SIGTERM: run the same command to go on\n"
    states = {found["seed"]: found["state"] for found in map(result, folders(tmp_path))}
    assert states == {2: "finished", 1: "interrupted"}
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.count("already finished: ") == 1
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 3
    assert same_outcome(folders(tmp_path)[0], five_runs.folders["sgd"])


def test_a_forced_run_goes_on_without_force(tmp_path: Path) -> None:
    command = ("-m", *SMALL, "budget=0.2", "seed=1,2")
    assert run(*command, cwd=tmp_path).returncode == 0
    process = stopped(*command, "force=true", cwd=tmp_path, at="train 12", by=signal.SIGTERM)  # in the second run
    assert process.returncode == 75
    assert process.stderr.endswith(": stopped by SIGTERM: run the same command without force=true to go on\n")
    again = run(*command, cwd=tmp_path)
    assert again.returncode == 0
    assert (again.stdout.count("already finished: "), again.stderr.count("going on from")) == (1, 1)


def test_a_checkpoint_that_cannot_be_written_fails_the_run(tmp_path: Path) -> None:
    # Enough for config.yaml and result.json, as on a disk that is nearly full.
    process = limited(5000, *SMALL, "budget=2", "checkpoint.minutes=0", cwd=tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert "File too large" in line
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "failed"
    assert checkpoints(folder) == []


def test_a_result_that_cannot_be_written_fails_the_run(tmp_path: Path) -> None:
    process = limited(2000, *SMALL, "budget=0.1", cwd=tmp_path)
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("broadopt-run: [Errno 27] File too large")
    (folder,) = folders(tmp_path)
    assert not (folder / "result.json").exists()


def test_the_two_newest_checkpoints_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (1, 9, 10):
        checkpoint.save(tmp_path, {"weights": torch.full((3,), float(step))}, identity="a", step=step)
    assert checkpoints(tmp_path) == ["checkpoint-0000000009.ckpt", "checkpoint-0000000010.ckpt"]
    loaded = checkpoint.load(tmp_path, identity="a", device="cpu")
    assert loaded is not None
    assert torch.equal(loaded["weights"], torch.full((3,), 10.0))
    assert checkpoint.load(tmp_path, identity="b", device="cpu") is None


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("format", 9, "not of format 2"),
        ("identity", "b", "it belongs to another run"),
        ("length", 3, "truncated or damaged"),
    ],
)
def test_a_checkpoint_larger_than_the_memory_is_passed_over_unread(
    field: str, value: object, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, size = tmp_path / "checkpoint-0000000001.ckpt", 1 << 42
    fields = {"format": checkpoint.FORMAT, "identity": "a", "step": 1, "sha256": "", "length": 0}
    line = json.dumps(fields | {"length": size, field: value}).encode() + b"\n"
    path.write_bytes(line)
    os.truncate(path, len(line) + size)
    assert checkpoint.newest(tmp_path, identity="a", device="cpu") is None
    assert caplog.messages == [f"checkpoint {path} is passed over: {reason}"]


def test_no_name_of_a_checkpoint_reaches_the_terminal_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint-\x1b[9m.ckpt").write_bytes(b"")
    checkpoint.save(tmp_path, {}, identity="a", step=1)
    (tmp_path / "checkpoint-0000000001.ckpt").rename(tmp_path / "checkpoint-\x1b[31m.ckpt")
    assert checkpoint.load(tmp_path, identity="a", device="cpu") == {}
    assert len(caplog.messages) == 2
    assert all(message.isprintable() for message in caplog.messages)


def test_the_handlers_of_before_are_back_after_a_run() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stop() as stop:
        assert all(signal.getsignal(number) == stop._note for number in SIGNALS)
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.requested == "SIGUSR1"
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_is_obeyed_at_once_where_there_is_nothing_to_save() -> None:
    with Stop() as stop, pytest.raises(Interrupted, match="SIGHUP"):
        signal.raise_signal(signal.SIGHUP)
    assert stop.requested == "SIGHUP"


def test_a_forked_child_takes_a_signal_as_if_nobody_had_asked_for_it() -> None:
    ready, its_ready = os.pipe()
    with Stop() as stop:
        child = os.fork()
        if child == 0:
            os.write(its_ready, b".")  # what arrives while Python forks is lost
            for _ in range(100 * PATIENCE):
                time.sleep(0.01)  # signal.pause() would not end by what arrives right before it
            os._exit(70)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert stop.requested is None


def test_a_run_that_was_begun_goes_on_in_its_own_precision(tmp_path: Path) -> None:
    """With precision=auto, on a machine that would choose another one by itself."""
    command = tuple(word for word in (*SMALL, "budget=1", "method=sam") if not word.startswith("precision="))
    first = stopped(*command, "precision=bf16", cwd=tmp_path, at="train 60", by=signal.SIGTERM)
    assert first.returncode == 75, first.stderr
    (begun,) = folders(tmp_path)
    (tmp_path / "new").mkdir()
    assert run(*command, "precision=auto", cwd=tmp_path / "new").returncode == 0
    here = result(folders(tmp_path / "new")[0])["config"]["precision"]
    said = f"precision=auto: bf16, in which this run was {{}}; a new one is in {here} here"

    again = run(*command, "precision=auto", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert folders(tmp_path) == [begun]
    assert result(begun)["config"]["precision"] == "bf16"
    assert again.stderr.splitlines().count(said.format("begun")) == (here != "bf16")

    finished = run(*command, "precision=auto", cwd=tmp_path)
    assert "already finished" in finished.stdout
    assert finished.stderr.splitlines().count(said.format("finished")) == (here != "bf16")

    asked = run(*command, "precision=fp32", cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert sorted(result(folder)["config"]["precision"] for folder in folders(tmp_path)) == ["bf16", "fp32"]
    both = run(*command, "precision=auto", cwd=tmp_path)
    preferred = next(folder for folder in folders(tmp_path) if (folder == begun) == (here == "bf16"))
    assert f"already finished: {preferred.relative_to(tmp_path)} " in both.stdout
    assert "precision=auto" not in both.stderr
