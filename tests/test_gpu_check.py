"""The check that is made where a GPU is at hand, made on the CPU: the command works, and fails where it should."""

import json
import signal
import subprocess
from pathlib import Path

import torch
from command import Process, finish, start

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu_check.py"
SMALLER = """
import measure
whole_parts_of = measure.parts_of
def parts_of(*keys, **named):
    parts = whole_parts_of(*keys, "model.depth=8", **named)
    parts.model.register_forward_pre_hook(lambda _, inputs: (inputs[0][..., ::4, ::4],))
    return parts
measure.parts_of = parts_of
"""
"""In place of every network ResNet-8, which is shown a sixteenth of the pixels: what is checked here is the command."""


def started(*arguments: str, folder: Path, before: str = "") -> Process:
    """The script, run as a user runs it, after the Python statements `before`."""
    script = folder / "check.py"
    path = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})"
    script.write_text(f"{path}\n{before}\nimport runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")
    return start(*arguments, cwd=SCRIPT.parent, program=str(script))


def check(*arguments: str, folder: Path, before: str = "") -> "subprocess.CompletedProcess[str]":
    """The script to its end."""
    return finish(started(*arguments, folder=folder, before=before))


def test_the_gpu_check_passes_on_a_cpu(tmp_path: Path) -> None:
    path = tmp_path / "check.json"
    parts = ("gradients", "training", "resume", "waiting", "rates", "convolutions")
    few = ("--batch", "4", "--steps", "1", "--rounds", "1", "--limit", "1000", "--networks", "resnet20")
    done = check("--device", "cpu", "--parts", *parts, *few, "--json", str(path), folder=tmp_path, before=SMALLER)
    assert done.returncode == 0, done.stderr
    assert "17 checks, 0 failed, " in done.stdout
    content = json.loads(path.read_text())
    counts = {"gradients": 2, "training": 7, "resume": 7, "rates": 2, "convolutions": 1}
    assert [row["part"] for row in content["rows"]] == [part for part, count in counts.items() for _ in range(count)]
    assert content["command"].endswith("--json check.json"), "without a folder of this machine"
    assert content["environment"]["machine"].startswith(f"torch {torch.__version__}, ")
    for line in ("waiting: there is nothing to wait for on a CPU", "rates: a CPU records nothing"):
        assert f"\n{line}" in done.stdout


def test_a_part_ends_at_its_limit_and_the_next_begins(tmp_path: Path) -> None:
    parts = ("--parts", "training", "gradients", "--limit", "0.0001")
    done = check("--device", "cpu", *parts, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1:3] == ["training: ended by its limit of 0.0025 s", "gradients: ended by its limit of 0.006 s"]
    assert lines[-1].startswith("0 checks, 0 failed, ")


def test_a_signal_leaves_what_was_measured(tmp_path: Path) -> None:
    """It comes in the third training: that of the second method."""
    stands = "import signal; from broadopt.training.loop import Training; run, calls = Training.run, []\n"
    stands += "def third(self, *given, **named):\n    calls.append(self)\n"
    stands += "    if len(calls) == 3: print('standing', flush=True); signal.pause()\n"
    stands += "    run(self, *given, **named)\nTraining.run = third"
    path = tmp_path / "check.json"
    parts = ("--parts", "training", "waiting", "--limit", "1000", "--json", str(path))
    process = started("--device", "cpu", *parts, folder=tmp_path, before=stands)
    assert process.stdout is not None
    while (line := process.stdout.readline()) != "standing\n":
        assert line, "the check has ended"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert (process.returncode, errors) == (75, "")
    lines = output.splitlines()
    assert lines[0] == "ended by SIGTERM: not made, or not to the end: training, waiting"
    assert lines[-1].startswith("1 checks, 0 failed, ")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["check"].startswith("sgd: ")
    assert row["passed"] == "yes"


def test_a_resumed_run_that_differs_fails_the_gpu_check(tmp_path: Path) -> None:
    forgetful = "from broadopt.training.loop import Training; whole = Training.state_dict\n"
    forgetful += "def broken(self): state = whole(self); state['optimizer']['state'] = {}; return state\n"
    forgetful += "Training.state_dict = broken"
    few = ("--parts", "resume", "--networks", "resnet20", "--limit", "1000")
    done = check("--device", "cpu", *few, folder=tmp_path, before=SMALLER + forgetful)
    assert done.returncode == 1, done.stderr
    assert "7 checks, 7 failed, " in done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("failed: resume: ")]
    assert [line.split()[2] for line in failed] == ["sgd", "sam", "asam", "swa", "fge", "sam+swa", "sgd+adamw"]


def test_no_gpu_is_one_line(tmp_path: Path) -> None:
    done = check(folder=tmp_path, before="import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''")
    assert done.returncode == 2
    assert (
        done.stderr
        == "gpu_check.py: device=cuda: this machine has no CUDA device; expected cpu, auto or one that exists\n"
    )
