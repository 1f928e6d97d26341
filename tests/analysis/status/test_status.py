"""Where a table stands: real runs in every state through the real commands, and the commands that fill the rest."""

import csv
import errno
import fcntl
import io
import json
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import BIN, OWN, PATIENCE, STARTUP, Process, finish, start, until
from filelock import FileLock
from printed import cells
from stored import RESNET20, record, run, seal, store

from broadopt.analysis.comparing import costs
from broadopt.analysis.status import state as standing
from broadopt.analysis.status.estimate import Estimates
from broadopt.analysis.status.state import look
from broadopt.analysis.tables import published
from broadopt.analysis.tables.stored_recipes import StoredRecipes
from broadopt.config.compose import compose, recipe_of, run_config
from broadopt.config.identity import identity_of
from broadopt.config.run_config import EXECUTION
from broadopt.config.shipped import paper_dir
from broadopt.devices import rates
from broadopt.runs import heartbeat, results

TOP = Path(__file__).parents[3]

# ---- a table of two cells that trains in seconds: broadopt with another table3


TABLE = """\
table: table3
title: "A small table"
paper: "none"
protocol: asam2021
precision: fp32
sources: {}
columns:
  sgd: {title: SGD, method: sgd, metric: best}
  sam: {title: SAM, method: sam, metric: best}
rows:
  - name: "Small"
    dataset: digits
    model: small
    experiment: table3/small
    budget: 2
    cells:
      sgd: {mean: 50.0, std: 1.0, source: [], n: 3}
      sam: {mean: 50.0, std: 1.0, source: [], n: 3}
footnotes: []
"""
EXPERIMENT = """\
# @package _global_
defaults:
  - override /dataset: digits
  - override /model: small
  - override /protocol: asam2021
budget: 2
batch_size: 32
"""
STEPS_PER_EPOCH = 45
SEEDS = "1-4"


@dataclass(frozen=True)
class Place:
    """A folder to start commands in, and the environment in which they find the small table."""

    cwd: Path
    environment: Mapping[str, str]

    def train(self, *arguments: str, **environment: str) -> Process:
        """Start a run of the table."""
        overrides = ("experiment=table3/small", "device=cpu", "precision=fp32", *arguments)
        return start("--config-dir", str(self.cwd.parent / "own"), *overrides, cwd=self.cwd, **environment)

    def table(self, *arguments: str) -> str:
        """What broadopt-table prints."""
        command = [str(BIN / "broadopt-table"), "table3", *arguments]
        done = subprocess.run(
            command, cwd=self.cwd, env=os.environ | self.environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def standings(self) -> dict[tuple[str, int], dict[str, str]]:
        """The lines of --status as CSV, by method and seed."""
        text = self.table("--status", "--seeds", SEEDS, "--format", "csv")
        return {(row["method"], int(row["seed"])): row for row in csv.DictReader(io.StringIO(text))}

    def missing(self) -> list[str]:
        """The lines of --missing."""
        return self.table("--missing", "--seeds", SEEDS, "device=cpu").splitlines()

    def halted(self, *arguments: str, at: str) -> Process:
        """A run that stands still at the pass `at` until its file `halted` is removed."""
        file = self.cwd / "-".join(["halted", *arguments])
        process = self.train(*arguments, HALT=at, HALT_FILE=str(file))
        until(file.exists, process)
        return process

    def folder(self, method: str, seed: int) -> Path:
        """The run folder."""
        (folder,) = (self.cwd / "results/runs/digits/small").glob(f"{method}/seed{seed}-*")
        return folder


@contextmanager
def small_table(top: Path) -> Iterator[Place]:
    for name in ("broadopt", "configs"):
        shutil.copytree(TOP / name, top / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    configs = {"experiment/table3/small.yaml": EXPERIMENT, "model/small.yaml": (OWN / "model/small.yaml").read_text()}
    files = {f"code/configs/{path}": content for path, content in configs.items()}
    files |= {f"own/{path}": content for path, content in configs.items()}  # for runs of the code that is not copied
    for path, content in (files | {"code/results/paper/table3.yaml": TABLE}).items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text(content)
    (top / "cwd").mkdir()
    environment = {"PYTHONPATH": os.pathsep.join([str(top / "code"), str(OWN)]), "OMP_NUM_THREADS": "1"}
    yield Place(top / "cwd", environment)


def with_files_of_at_most(size: int, place: Place, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """A run on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        return finish(place.train(*arguments))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@dataclass(frozen=True)
class Disturbed:
    """The small table with a run in each state, and what was seen at that time."""

    place: Place
    standings: Mapping[tuple[str, int], Mapping[str, str]]
    page: str
    missing: list[str]
    beats: tuple[dict, dict]
    """The first and the last sign of life of the halted run."""


def beat_later_than(moment: float, place: Place) -> dict:
    """Wait for a sign of life of the run that is halted."""
    found: dict = {}

    def came() -> bool:
        found.update(heartbeat.read(place.folder("sgd", 2)) or {})
        return found.get("time", 0) > moment

    until(came)
    return found


@contextmanager
def disturbed_table(tmp_path: Path) -> Iterator[Disturbed]:
    with small_table(tmp_path) as place:
        running = place.halted("method=sgd", "seed=2", at="train 60")
        try:
            first = beat_later_than(0, place)
            assert finish(place.train("method=sgd", "seed=1")).returncode == 0
            stopped = place.halted("method=sgd", "seed=3", at="train 30")
            stopped.send_signal(signal.SIGTERM)
            (place.cwd / "halted-method=sgd-seed=3").unlink()
            assert finish(stopped).returncode == 75
            for seed, minutes, at in ((1, 0, "train 140"), (2, 10, "train 20")):
                killed = place.halted("method=sam", f"seed={seed}", f"checkpoint.minutes={minutes}", at=at)
                killed.kill()
                finish(killed)
            assert with_files_of_at_most(5000, place, "method=sam", "seed=3", "checkpoint.minutes=0").returncode == 1
            last = beat_later_than(first["time"] + heartbeat.INTERVAL / 2, place)
            page = place.table("--status", "--seeds", SEEDS)
            yield Disturbed(place, place.standings(), page, place.missing(), (first, last))
        finally:
            running.kill()
            finish(running)


def test_a_disturbed_table_is_told_run_by_run_and_completed_by_the_printed_commands(tmp_path: Path) -> None:
    # One test, since the runs take half a minute: what is checked at each point has a function of its own.
    with disturbed_table(tmp_path) as disturbed:
        every_state_is_told_from_the_others(disturbed)
        each_run_is_told_where_it_stands(disturbed)
        the_page_counts_the_states_of_each_cell(disturbed)
        a_sign_of_life_comes_again_while_the_loop_waits(disturbed)
        who_ends_takes_the_sign_of_life_along(disturbed)
        locks_are_looked_at(disturbed)
        the_commands_are_those_of_the_runs_that_are_neither_finished_nor_running(disturbed)
        the_printed_commands_and_nothing_else_complete_the_table(disturbed)


def every_state_is_told_from_the_others(disturbed: Disturbed) -> None:
    assert {place: row["state"] for place, row in disturbed.standings.items()} == {
        ("sgd", 1): "finished",
        ("sgd", 2): "running",
        ("sgd", 3): "interrupted",
        ("sgd", 4): "missing",
        ("sam", 1): "interrupted",
        ("sam", 2): "interrupted",
        ("sam", 3): "failed",
        ("sam", 4): "missing",
    }


def each_run_is_told_where_it_stands(disturbed: Disturbed) -> None:
    words = {place: row["words"] for place, row in disturbed.standings.items()}
    host = os.uname().nodename
    assert words["sgd", 1] == words["sgd", 4] == ""
    # It stands in its 60th step of 2 x 45.
    assert words["sgd", 2].startswith("epoch 1.3 of 2, ")
    assert words["sgd", 2].endswith(f" left, on {host}")
    assert words["sgd", 3] == "goes on from epoch 0.7 of 2"
    # 140 passes are 70 steps of SAM; the checkpoint of the 69th is the newest.
    assert words["sam", 1].startswith(f"died on {host} in epoch ")
    assert words["sam", 1].endswith("; goes on from epoch 1.5 of 2")
    assert words["sam", 2].endswith("; from scratch: no checkpoint")
    assert "File too large" in words["sam", 3]
    assert float(disturbed.standings["sgd", 3]["epoch"]) == pytest.approx(30 / STEPS_PER_EPOCH, abs=1e-6)
    assert float(disturbed.standings["sam", 1]["epoch"]) == pytest.approx(69 / STEPS_PER_EPOCH, abs=1e-6)


def the_page_counts_the_states_of_each_cell(disturbed: Disturbed) -> None:
    assert "8 runs: 1 finished, 1 running, 3 interrupted, 1 failed, 2 missing." in " ".join(disturbed.page.split())
    lines = [cells(line) for line in disturbed.page.splitlines()]
    counts = {line[1]: line[2:7] for line in lines if len(line) == 10 and line[1] in ("SGD", "SAM")}
    assert counts == {"SGD": ["1", "1", "1", "", "1"], "SAM": ["", "", "2", "1", "1"]}


def a_sign_of_life_comes_again_while_the_loop_waits(disturbed: Disturbed) -> None:
    first, last = disturbed.beats
    assert last["time"] - first["time"] > heartbeat.INTERVAL / 2
    assert last["step"] == 59
    assert last["threads"] >= 1
    assert last["identity"] == identity_of(last["config"])
    assert last["moved"] < last["time"]


def who_ends_takes_the_sign_of_life_along(disturbed: Disturbed) -> None:
    left = {
        path.parent.parent.name + path.parent.name[:5] for path in disturbed.place.cwd.glob("results/**/progress.json")
    }
    assert left == {"sgdseed2", "samseed1", "samseed2"}


def the_commands_are_those_of_the_runs_that_are_neither_finished_nor_running(disturbed: Disturbed) -> None:
    assert disturbed.missing == [
        f"broadopt-run experiment=table3/small method={method} seed={seed} precision=fp32 device=cpu"
        for method, seed in (("sgd", 3), ("sgd", 4), ("sam", 1), ("sam", 2), ("sam", 3), ("sam", 4))
    ]


def locks_are_looked_at(disturbed: Disturbed) -> None:
    assert heartbeat.is_held(disturbed.place.folder("sgd", 2))
    assert not heartbeat.is_held(disturbed.place.folder("sgd", 1))


def shell_of(place: Place) -> dict[str, str]:
    """An environment in which broadopt-run has the experiment of the small table, as if it were one of its own."""
    command = place.cwd.parent / "bin/broadopt-run"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{BIN}/broadopt-run" --config-dir "{place.cwd.parent}/own" "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    return {"PATH": path, "PYTHONPATH": os.pathsep.join([str(OWN), str(STARTUP)]), "OMP_NUM_THREADS": "1"}


def the_printed_commands_and_nothing_else_complete_the_table(disturbed: Disturbed) -> None:
    place = disturbed.place
    (place.cwd / "halted-method=sgd-seed=2").unlink()
    shell = subprocess.run(
        ["sh", "-e"],
        input="\n".join(disturbed.missing),
        cwd=place.cwd,
        env=os.environ | shell_of(place),
        text=True,
        capture_output=True,
    )
    assert shell.returncode == 0, shell.stderr
    assert {row["state"] for row in place.standings().values()} == {"finished"}
    assert place.missing() == []
    assert place.table("--status", "--seeds", SEEDS).count("estimated from") == 1
    # Another recipe is another table: nothing of what was kept of the first is taken for it.
    experiment = place.cwd.parent / "code/configs/experiment/table3/small.yaml"
    experiment.write_text(EXPERIMENT.replace("budget: 2", "budget: 3"))
    assert len(place.missing()) == 8


# ---- the published tables


def identities(lines: list[str]) -> list[str]:
    """The identities of printed commands, composed from them, in fp32."""
    found = []
    for line in lines:
        program, *overrides, last = shlex.split(line)
        name, _, seed = last.partition("=")
        assert (program, name) == ("broadopt-run", "seed")
        found.append(identity_of(recipe_of(overrides) | {"seed": int(seed), "precision": "fp32"}))
    assert recipe_of(shlex.split(lines[-1])[1:])["seed"] == int(seed)
    return found


@pytest.mark.parametrize("name", ["table1", "table3"])
def test_the_commands_make_exactly_the_runs_that_are_not_there(name: str, tmp_path: Path) -> None:
    table = published.load(name, folder=paper_dir())
    columns = {method: [column for column in table.columns if column.method == method] for method in table.methods}
    wanted = []
    for row in table.rows:
        for method in table.methods:
            recipe = record(f"experiment={row.experiment}", f"method={method}")
            if any(row.cells[column.name].mean is not None for column in columns[method]):
                wanted += [recipe | {"seed": seed} for seed in (1, 2, 3)]
    there = [wanted.pop(0), wanted.pop(4), wanted.pop()]
    store(tmp_path, there[0])
    store(tmp_path, there[1])
    store(tmp_path, there[2])
    out, _ = run(name, "--missing", "--results", tmp_path)
    without_place = [re.sub(f"( precision=fp32)? results_dir={tmp_path}$", "", line) for line in out.splitlines()]
    assert sorted(identities(without_place)) == sorted(map(identity_of, wanted))
    assert all(f" results_dir={tmp_path}" in line for line in out.splitlines())


def commands_of(out: str, row: str, method: str) -> list[str]:
    prefix = f"broadopt-run experiment={row} method={method} "
    return [line.removeprefix(prefix) for line in out.splitlines() if line.startswith(prefix)]


def test_a_command_gives_the_precision_that_its_cell_holds(tmp_path: Path) -> None:
    for seed in (1, 2):
        store(tmp_path / "results", record(RESNET20, "method=sgd", seed=seed, precision="bf16"))
    store(tmp_path / "results", record(RESNET20, "method=sgd", seed=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        out, _ = run("table3", "--missing", "precision=fp32", "data_dir=/data")
        page, _ = run("table3", "--status")
    assert commands_of(out, "table3/resnet20", "sgd") == ["seed=3 precision=bf16 data_dir=/data"]
    assert commands_of(out, "table3/resnet20", "sam")[0] == "seed=1 precision=fp32 data_dir=/data"
    words = " ".join(page.split())
    assert "no part of it: ResNet-20 SGD seed 3 (fp32, its cell holds bf16)." in words


def test_the_results_folder_is_that_in_which_the_runs_lie(tmp_path: Path) -> None:
    root = tmp_path / "results"
    store(root, record(RESNET20, "method=sgd"))
    expected, _ = run("table3", "--missing", "--results", root, "--seeds", "1")
    out, err = run("table3", "--missing", "--results", root / "runs", "--seeds", "1")
    assert out == expected
    assert err == f"broadopt-table: {root}/runs holds no runs/: read from {root}\n"
    page, _ = run("table3", "--status", "--results", root / "runs", "--seeds", "1")
    assert "24 runs: 1 finished, 23 missing." in " ".join(page.split())
    # A folder above is the one that the first run will be made in.
    out, err = run("table3", "--missing", "--results", tmp_path, "--seeds", "1")
    assert out.count("\n") == expected.count("\n") + 1
    words = f"holds no runs/ (yet): every run counts as missing; those of {root} are not looked at"
    assert err == f"broadopt-table: {tmp_path} {words}\n"


def test_a_results_folder_of_any_name_reaches_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "it's, a=folder"
    out, err = run("table3", "--missing", "--results", folder)
    line = shlex.split(out.splitlines()[0])
    assert run_config(compose(line[1:])).execution.results_dir == str(folder)
    assert err == f"broadopt-table: results folder {folder} does not exist (yet): every run counts as missing\n"


def status(folder: Path, *arguments: str) -> dict[tuple[str, str], dict[str, str]]:
    """Of each cell of table3 its hours and what they are estimated from, by network and method."""
    out, _ = run("table3", "--status", "--results", folder, "--format", "csv", *arguments)
    rows = list(csv.DictReader(io.StringIO(out)))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        cells[row["model"], row["method"]] = (
            row if row["state"] != "finished" else cells.get((row["model"], row["method"]), row)
        )
    return cells


def test_hours_needed_are_worked_out_from_what_the_same_network_has_measured(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"))  # 5001 images/s
    cells = status(tmp_path)
    sgd, sam, other = (cells[place] for place in (("resnet20", "sgd"), ("resnet20", "sam"), ("vgg19_bn", "sgd")))
    assert sgd["estimated_from"] == "measured"
    assert float(sgd["device_hours_needed"]) == pytest.approx(400 * 50_000 / 5001 / 3600, abs=1e-6)
    # Half as many images a second with two gradients a step, for 200 epochs.
    assert sam["estimated_from"] == "other method"
    assert float(sam["device_hours_needed"]) == pytest.approx(200 * 50_000 / (5001 / 2) / 3600, abs=1e-6)
    # 417 MMACs x 2 x 3 x 50,000 images x 400 epochs at the 81.12 TFLOP/s that this VGG has with another head on an H100
    assert other["estimated_from"] == "flops"
    assert float(other["device_hours_needed"]) == pytest.approx(50.09e15 / 81.12e12 / 3600, rel=1e-3)


def test_a_step_that_varies_is_estimated_by_finished_runs_of_the_same_length(tmp_path: Path) -> None:
    """Late SAM is sharp in the last 57 % of one budget, and in 71 % of the 1.5 that SWA trains."""
    late = [RESNET20, "method=late_sam"]
    short, long, other = (record(*late, *keys) for keys in ([], ["collect=swa"], ["batch_size=64"]))
    store(tmp_path, short, cost={"passes": 1.57, "images_per_second": 3000.0})
    store(tmp_path, record(*late, seed=2), state="interrupted", cost={"passes": 1.57, "images_per_second": 5000.0})
    found = Estimates(look(tmp_path), tflops=None)
    assert (found.of(short).source, found.of(short).seconds_per_epoch) == ("measured", 50_000 / 3000)
    assert found.of(long).source == "unknown"
    assert found.of(other).source == "unknown"
    sam = found.of(record(RESNET20, "method=sam"))
    assert (sam.source, sam.seconds_per_epoch) == ("other method", pytest.approx(50_000 / (3000 * 1.57 / 2)))
    store(tmp_path, record(*late, "collect=swa", seed=3), cost={"passes": 1.71, "images_per_second": 2800.0})
    found = Estimates(look(tmp_path), tflops=None)
    assert [found.of(one).seconds_per_epoch for one in (short, long)] == [50_000 / 3000, 50_000 / 2800]


def test_a_step_that_varies_needs_no_batch_size_to_be_read(tmp_path: Path) -> None:
    late = record(RESNET20, "method=late_sam")
    own = {key: value for key, value in late.items() if key != "batch_size"}
    store(tmp_path, own, cost={"passes": 1.57, "images_per_second": 3000.0})
    found = Estimates(look(tmp_path), tflops=None)
    assert (found.of(own).source, found.of(own).seconds_per_epoch) == ("measured", 50_000 / 3000)
    assert found.of(late).source == "unknown"
    assert "1 run: 1 finished." in " ".join(run("runs", "--status", "--results", tmp_path)[0].split())


def test_every_hour_is_called_measured_or_derived(tmp_path: Path) -> None:
    for seed in (1, 2):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed))
    page, _ = run("table3", "--status", "--results", tmp_path)
    text = " ".join(page.split())
    # One run of SGD is missing, and has been measured; 9 of five networks have a rate of a GPU; others are derived.
    apart = (
        r"([\d.]+) needed \(([\d.]+) by measured rates and ([\d.]+) derived, not measured\) on (an H100|devices that)"
    )
    found = {where: tuple(map(float, hours)) for *hours, where in re.findall(apart, text)}
    gpu = {rate.model["name"]: rate.images_per_second for rate in rates.measured() if "H100" in rate.device}
    known = ("densenet121", "resnet56", "resnext29_32x4d", "wrn28_2", "wrn28_10")
    inverse = sum(9 / gpu[name] for name in known)
    for where, images in (("an H100", inverse), ("devices that", 1 / 5001.5)):
        needed, by_rate, derived = found.pop(where)
        assert by_rate == pytest.approx(400 * 50_000 * images / 3600, abs=0.05)
        assert needed == pytest.approx(by_rate + derived, abs=0.11)
    assert not found
    assert "spent (measured) on devices that are not recorded" in text
    lines = [line for line in page.splitlines() if line.startswith("|")]
    lines = [line for line in lines[2:] if line.count("|") == 11]
    assert len(lines) == 24
    assert all(line.split("|")[-2].strip().startswith(("measured: ", "derived from", "on an ")) for line in lines)
    place = "on an NVIDIA H100 80GB HBM3 in bf16, "
    assert sum(place + "measured: " in line for line in lines) == 15
    assert sum(place + "derived from the 34.5 TFLOP/s of pyramidnet272, not measured" in line for line in lines) == 3
    derived_of_its_own = "derived from the 81.1 TFLOP/s of another variant of vgg19_bn, not measured"
    assert sum(place + derived_of_its_own in line for line in lines) == 3


def on_cpu(folder: Path, threads: object) -> None:
    """Let the result of a run be that of a CPU with so many threads."""
    stored = json.loads((folder / "result.json").read_text())
    environment = stored["environment"] | {"device": "CPU (AMD EPYC)", "threads": threads}
    seal(folder, {key: value for key, value in stored.items() if key != "checksum"} | {"environment": environment})


def test_hours_of_different_kinds_of_devices_are_not_added(tmp_path: Path) -> None:
    h100, hour = "NVIDIA H100 80GB HBM3", {"train_seconds": 3600.0, "images_per_second": 5000.0}
    on_cpu(store(tmp_path, record(RESNET20, "method=sgd"), cost=hour | {"images_per_second": 500.0}), 1)
    store(tmp_path, record(RESNET20, "method=sgd", seed=2), device=h100, cost=hour)
    store(tmp_path, record(RESNET20, "method=sgd", seed=3), device=h100, cost=hour)
    store(tmp_path, record(RESNET20, "method=sam"), device=h100, cost=hour)
    page, _ = run("table3", "--status", "--results", tmp_path)
    text = " ".join(page.split())
    assert (
        "Device hours: 1.0 spent (measured) on 1 thread of a CPU (AMD EPYC) and 3.0 spent (measured) on an H100, "
        in text
    )
    assert (
        "h spent on devices of several kinds: ResNet-20, SGD: 1.0 on 1 thread of a CPU (AMD EPYC) and 2.0 on an H100."
        in text
    )
    cells = status(tmp_path)
    assert (cells["resnet20", "sam"]["spent_on"], cells["resnet20", "sam"]["needed_on"]) == ("", "an H100")
    assert cells["resnet20", "sgd"]["needed_on"] == ""
    page, _ = run("table3", "--status", "--results", tmp_path, "--tflops", "100")
    text = " ".join(page.split())
    assert re.search(r" needed \([^)]*\) on a device of 100 TFLOP/s and [\d.]+ needed \([^)]*\) on an H100\.", text)


def test_a_rate_is_that_of_as_many_threads(tmp_path: Path) -> None:
    speeds = {1: 100.0, 2: 400.0, 3: 410.0}
    for seed, speed in speeds.items():
        folder = store(tmp_path, record(RESNET20, "method=sgd", seed=seed), cost={"images_per_second": speed})
        on_cpu(folder, 1 if seed == 1 else 4)
    one = Estimates(look(tmp_path), tflops=None).of(record(RESNET20, "method=sgd", seed=4))
    assert (one.seconds_per_epoch, one.kind) == (50_000 / 405, "4 threads of a CPU (AMD EPYC)")
    assert one.words == "measured: 405 img/s, 4 threads of a CPU (AMD EPYC) fp32"


def test_a_rate_is_of_the_precision_that_the_cell_holds(tmp_path: Path) -> None:
    """SAM in bf16 three times, at 5,000 images/s; of SGD one run in fp32, at 1,000, and one more has to be made."""
    for seed in (1, 2, 3):
        store(tmp_path, record(RESNET20, "method=sam", seed=seed, precision="bf16"), cost={"images_per_second": 5000.0})
        store(tmp_path, record(RESNET20, "method=sgd", "lr=0.2", seed=seed, precision="bf16"),
              cost={"images_per_second": 9000.0})  # fmt: skip
    store(tmp_path, record(RESNET20, "method=sgd", precision="fp32"), cost={"images_per_second": 1000.0})
    cells = status(tmp_path, "--seeds", "1-2")
    needed = {method: float(cells["resnet20", method]["device_hours_needed"]) for method in ("sgd", "asam")}
    assert needed["sgd"] == pytest.approx(400 * 50_000 / 1000 / 3600)
    page, _ = run("table3", "--status", "--results", tmp_path)
    (line,) = (line for line in page.splitlines() if line.startswith("| ResNet-20 "))
    assert "measured: 1,000 img/s, None fp32" in line
    assert needed["asam"] > 0  # of a cell without runs the precision is open: any rate is better than none
    alone = Estimates(look(tmp_path), tflops=None).of(record(RESNET20, "method=asam", precision="fp32"))
    assert alone.words == "derived from the rate of sgd, by gradients: 500 img/s, None fp32"


def test_a_rate_is_of_batches_of_the_same_size_where_there_are_such(tmp_path: Path) -> None:
    for seed in (1, 2):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), cost={"images_per_second": 9000.0})
    store(tmp_path, record(RESNET20, "method=sgd", "batch_size=32"), cost={"images_per_second": 3000.0})
    estimates = Estimates(look(tmp_path), tflops=None)
    wanted = {size: record(RESNET20, "method=sgd", "seed=7", f"batch_size={size}") for size in (32, 64, 128)}
    found = {size: estimates.of(one).seconds_per_epoch for size, one in wanted.items()}
    assert found == {32: 50_000 / 3000, 64: 50_000 / 9000, 128: 50_000 / 9000}


def test_hours_of_a_cell_in_fp32_are_not_those_that_an_h100_takes_in_bf16(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"), state="failed", cost={"images_per_second": 0.0})
    page, _ = run("table3", "--status", "--results", tmp_path)
    line, _ = (line for line in page.splitlines() if line.startswith("| ResNet-20 "))  # the cell and its failed run
    assert "on an H100 at 10 % of its fp32 peak, derived, not measured" in line


@pytest.mark.parametrize("option", ["step.chunk=32", "step.layers=normalisation"])
def test_steps_of_chunks_or_of_some_layers_take_a_time_of_their_own(option: str, tmp_path: Path) -> None:
    """As many gradients; but 4 passes of 32 images are not one of 128, and the first pass of SAM-ON is shorter."""
    store(tmp_path, record(RESNET20, "method=sam", option), cost={"images_per_second": 100.0})
    estimates = Estimates(look(tmp_path), tflops=None)
    assert estimates.of(record(RESNET20, "method=sam", "step.rho=0.2", option)).source == "measured"
    found = estimates.of(record(RESNET20, "method=sam"))
    assert (found.source, found.words) == (
        "other method", "derived from the rate of sam, by gradients: 100 img/s, None fp32",
    )  # fmt: skip


def moved(folder: Path) -> None:
    """Let the result of a run be that of one that was begun on another machine."""
    stored = json.loads((folder / "result.json").read_text())
    machines = [{"threads": 1, "instruction_set": "AVX2"}, {"device": "NVIDIA H100 80GB HBM3"}]
    environment = stored["environment"] | {"carried_out_on": machines}
    seal(folder, {key: value for key, value in stored.items() if key != "checksum"} | {"environment": environment})


def test_the_seconds_of_a_run_that_has_moved_are_those_of_no_machine(tmp_path: Path) -> None:
    h100, hour = "NVIDIA H100 80GB HBM3", {"train_seconds": 3600.0, "images_per_second": 5000.0}
    store(tmp_path, record(RESNET20, "method=sgd", seed=2), device=h100, cost=hour)
    for seed in (3, 4):
        recorded = record(RESNET20, "method=sgd", seed=seed)
        moved(store(tmp_path, recorded, device=h100, cost=hour | {"images_per_second": 100.0}))
    page, _ = run("table3", "--status", "--results", tmp_path, "--seeds", "1-4")
    text = " ".join(page.split())
    assert "1.0 spent (measured) on an H100 and 2.0 spent (measured) on several kinds of device, " in text
    assert f"measured: 5,000 img/s, {h100} fp32" in text


@pytest.mark.parametrize("machines", [None, [], [{"threads": 1}], "ab", 2, {"a": 1, "b": 2}])
def test_what_is_no_list_of_machines_says_nothing_of_a_move(machines: object, tmp_path: Path) -> None:
    recorded = record(RESNET20, "method=sgd")
    folder = store(tmp_path, recorded, device="NVIDIA H100 80GB HBM3")
    stored = json.loads((folder / "result.json").read_text())
    environment = stored["environment"] | {"carried_out_on": machines}
    seal(folder, {key: value for key, value in stored.items() if key != "checksum"} | {"environment": environment})
    assert standing.run_of(look(tmp_path), recorded, identity_of(recorded)).device.kind == "an H100"


@pytest.mark.parametrize("threads", [None, True, 0, -1, "4", 2.0, 10**9, [1]])
def test_threads_that_can_be_none_are_not_believed(threads: object, tmp_path: Path) -> None:
    recorded = record(RESNET20, "method=sgd")
    on_cpu(store(tmp_path, recorded), threads)
    assert standing.run_of(look(tmp_path), recorded, identity_of(recorded)).device.kind == "a CPU (AMD EPYC)"


def test_hours_of_a_network_that_never_ran_come_from_its_operations(tmp_path: Path) -> None:
    cells = status(tmp_path, "--tflops", "100")
    # 5.243 GMACs x 2 x 3 forward passes a gradient x 2 gradients x 50,000 images x 200 epochs = 629.2 PFLOPs
    wide = cells["wrn28_10", "asam"]
    assert wide["estimated_from"] == "flops"
    assert float(wide["device_hours_needed"]) == pytest.approx(629.2e15 / 100e12 / 3600, rel=1e-4)
    page, _ = run("table3", "--status", "--results", tmp_path, "--tflops", "100")
    assert "629.2 PFLOPs at 100 TFLOP/s" in page


def test_diverged_runs_are_counted_as_the_tables_count_them(tmp_path: Path) -> None:
    for seed, accuracy in ((1, 1.0), (2, 1.49), (3, 1.5)):  # of 100 classes
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed), last=accuracy)
    store(tmp_path, record(RESNET20, "method=sam"), state="failed")
    store(tmp_path, record(RESNET20, "method=asam"))
    page, _ = run("table3", "--status", "--results", tmp_path)
    words = " ".join(page.split())
    assert (
        "Of the runs that have ended: ResNet-20, SGD: 2 of 3 diverged; ResNet-20, SAM: 1 of 1 diverged (failed, or at "
        "chance on the test set at the end)." in words
    )
    assert "| finished | diverged: its last test accuracy is 1.00 % |" in words
    assert words.count("diverged: its last") == 2
    other, _ = run("table3", "--status", "--results", tmp_path / "none")
    assert "have ended" not in other


def test_the_rate_is_that_of_the_device_that_most_runs_had(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        folder = store(tmp_path, record(RESNET20, "method=sgd", seed=seed, precision="bf16" if seed < 3 else "fp32"))
        assert (folder / "result.json").exists()
    page, _ = run("table3", "--status", "--results", tmp_path)
    (line,) = (line for line in page.splitlines() if line.startswith("| ResNet-20 "))
    assert "measured: 5,002 img/s, None bf16" in line  # the median of 5001 and 5002


def test_seeds_are_said_and_others_are_named(tmp_path: Path) -> None:
    for seed in (1, 2, 7):
        store(tmp_path, record(RESNET20, "method=sgd", seed=seed))
    page, _ = run("table3", "--status", "--results", tmp_path, "--seeds", "2-3,9")
    words = " ".join(page.split())
    assert "Seeds 2-3, 9 of each cell (--seeds). 72 runs: 1 finished, 71 missing." in words
    assert "Finished runs of other seeds, which the table counts as well: 2 (seeds 1, 7)" in words


def test_cells_that_the_paper_does_not_have_are_not_asked_for(tmp_path: Path) -> None:
    out, _ = run("table1", "--status", "--results", tmp_path)
    words = " ".join(out.split())
    assert "66 runs: 66 missing" in words
    assert "since the paper has no value: PyramidNet-272 (300) FGE, ShakeShake-2x64d (1800) FGE." in words


def test_a_result_that_cannot_be_trusted_leaves_its_run_missing(tmp_path: Path) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"))
    content = (folder / "result.json").read_text()
    (folder / "result.json").write_text(content.replace('"test_accuracy": 70.0', '"test_accuracy": 80.0'))
    page, _ = run("table3", "--status", "--results", tmp_path, "--strict", expect=1)
    assert "| missing | its result.json is left out, see below" in page
    assert "its checksum does not fit: edited or damaged" in page
    out, err = run("table3", "--missing", "--results", tmp_path, "--seeds", "1")
    assert len(out.splitlines()) == 24
    assert "its checksum does not fit" in err


def test_runs_are_shown_by_config_whether_they_belong_to_a_table_or_not(tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"))
    store(tmp_path, record(RESNET20, "method=asam", "step.rho=0.7"), state="failed")
    out, _ = run("runs", "--status", "--results", tmp_path)
    assert "2 runs: 1 finished, 1 failed." in " ".join(out.split())
    assert "asam2021; budget 200; step.rho 0.7 instead of 1; fp32" in out


@pytest.mark.parametrize("name", ["latex", "html"])
def test_the_other_formats_show_the_same(name: str, tmp_path: Path) -> None:
    store(tmp_path, record(RESNET20, "method=sgd"), state="failed")
    out, _ = run("table3", "--status", "--results", tmp_path, "--format", name)
    assert "no reason given" in out


OF_EXECUTION = {
    "precision": "fp32", "device": "cuda:1", "memory_format": "contiguous", "compile": "true", "graphs": "false",
    "deterministic": "true", "data_dir": "/data", "force": "true", "wait": "true", "plan": "true", "tracker": "wandb",
    "objective": "test_nll", "keep": "snapshots", "trunk": "none", "checkpoint.minutes": "30",
    "checkpoint.predictor": "false",
}  # fmt: skip
"""Every key that says how a run is carried out, but for results_dir, and its precision."""


def test_every_key_of_the_execution_goes_into_the_missing_commands(tmp_path: Path) -> None:
    assert {key.partition(".")[0] for key in OF_EXECUTION} == {"precision", *EXECUTION} - {"results_dir"}
    words = [f"{key}={value}" for key, value in OF_EXECUTION.items()]
    out, _ = run("table3", "--missing", "--seeds", "1", *words, "--results", tmp_path)
    assert len(out.splitlines()) == 24
    assert all(set(words) <= set(shlex.split(line)) for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["table3", "--missing", "lr=0.5"],
         f"lr=0.5: expected KEY=VALUE with one of {', '.join(OF_EXECUTION)} or hydra.KEY"),
        (["table3", "--missing", "data_dri=/a"],
         f"data_dri=/a: expected KEY=VALUE with one of {', '.join(OF_EXECUTION)} or hydra.KEY"
         '; did you mean "data_dir"?'),
        (["table3", "device=cpu"], "device=cpu does not go with a table of results; see broadopt-table --help"),
        (["table3", "--status", "--missing"],
         "argument --missing: not allowed with argument --status; see broadopt-table --help"),
        (["table3", "--status", "--seeds", "3-1"],
         "--seeds 3-1: expected whole numbers and ranges of them, as 1-5 or 1,2,7"),
        (["table3", "--seeds", "1"], "--seeds does not go with a table of results; see broadopt-table --help"),
        (["table3", "--watch", "0"], "--watch 0: expected a number > 0 and <= 86400"),
        (["table3", "--watch", "--output", "a"], "--output does not go with --watch; see broadopt-table --help"),
        (["table3", "--status", "--tflops", "many"], "--tflops many: expected a number > 0"),
        (["table3", "--missing", "--format", "csv"],
         "--format does not go with --missing; see broadopt-table --help"),
        (["table1", "--missing", "trunk=share", "keep=snapshots"],
         "trunk=share: the weights of epochs that another run has trained cannot be kept; expected keep=none with it, "
         "or trunk=none"),
        (["table3", "--missing", "data_dir=/it's here", "objective=validation_accuracy"],
         "objective=validation_accuracy: expected dataset.validation=5000, or as many, with it"),
        (["runs", "--missing"], "--missing is for the papers' tables: no paper says what runs there should be"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], line: str) -> None:
    assert run(*arguments, expect=2) == ("", f"broadopt-table: {line}\n")


@pytest.mark.parametrize(
    "overrides",
    [
        ["trunk=share", "keep=none"],
        ["trunk=share", "keep=snapshots", "trunk=none"],
        ["trunk=share", "keep=${oc.env:K}"],
    ],
)
def test_what_goes_together_is_added_to_the_commands(overrides: list[str], tmp_path: Path) -> None:
    out, _ = run("table3", "--missing", "--seeds", "1", "--results", tmp_path, *overrides)
    assert all(shlex.split(line)[-len(overrides) :] == overrides for line in out.splitlines())
    assert len(out.splitlines()) == 24


# ---- the live view


def watching(tmp_path: Path, **streams: int) -> "subprocess.Popen[bytes]":
    (tmp_path / "results").mkdir()
    return subprocess.Popen([BIN / "broadopt-table", "table3", "--watch", "0.1"], cwd=tmp_path, **streams)


def test_watch_shows_the_status_again_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with watching(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        seen = 0
        while seen < 2:
            line = process.stdout.readline()
            assert line, "the command has ended"
            seen += b"72 missing" in line
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert errors == b""
    assert b"\x1b" not in rest


def test_watch_clears_the_terminal_before_each_look(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with watching(tmp_path, stdout=theirs) as process:
        os.close(theirs)
        seen = b""
        while seen.count(b"\x1b[2J") < 2:
            seen += os.read(ours, 4096)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            try:
                os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert seen.startswith(b"\x1b[2J\x1b[3J\x1b[H")


# ---- the parts


def with_heartbeat(root: Path) -> tuple[dict, Path, dict]:
    """A recorded config, its run folder, and the heartbeat of a process that has left it."""
    recorded = record(RESNET20, "method=sgd")
    folder = results.run_folder(root, recorded)
    folder.mkdir(parents=True)
    with heartbeat.Heartbeat(folder, recorded, device="CPU (AMD EPYC)", threads=2):
        return recorded, folder, json.loads((folder / "progress.json").read_text())


def test_hours_are_those_of_all_devices_of_a_run_and_its_rate_that_of_one(tmp_path: Path) -> None:
    alone = record(RESNET20, "method=sgd")
    together = alone | {"processes": 4}
    store(tmp_path, together, cost={"train_seconds": 100.0, "images_per_second": 5000.0})
    folder = look(tmp_path)
    assert standing.run_of(folder, together, identity_of(together)).seconds == 400.0
    assert Estimates(folder, tflops=None).of(alone).seconds_per_epoch == 50_000 / 1250


@pytest.mark.parametrize(("figures", "seconds"), [({}, 1510.0), ({"trunk_epochs": 150}, 10.0)])
def test_a_run_that_is_on_has_not_spent_the_epochs_of_its_trunk(
    figures: dict[str, int], seconds: float, tmp_path: Path
) -> None:
    recorded, folder, progress = with_heartbeat(tmp_path)
    where = {"epoch": 151, "epochs": 400.0, "images_per_epoch": 50_000, "images_per_second": 5000.0}
    (folder / "progress.json").write_text(json.dumps(progress | where | figures))
    found = standing.run_of(look(tmp_path), recorded, identity_of(recorded))
    assert (found.seconds, found.device.kind) == (seconds, "2 threads of a CPU (AMD EPYC)")


ELSEWHERE = [{"threads": 4, "instruction_set": "AVX2"}, {"device": "NVIDIA A100-SXM4-40GB"}]
"""Kinds of device that a run was carried out on."""


def test_seconds_of_several_kinds_of_device_are_those_of_none(tmp_path: Path) -> None:
    moved, stayed = (record(RESNET20, "method=sgd", seed=seed) for seed in (1, 2))
    path = store(tmp_path, moved, device="NVIDIA A100-SXM4-40GB", cost={"images_per_second": 100.0})
    result = json.loads((path / "result.json").read_text())
    result["environment"]["carried_out_on"] = ELSEWHERE
    seal(path, result)
    alone = look(tmp_path)
    assert standing.run_of(alone, moved, identity_of(moved)).device.kind == "several kinds of device"
    assert "100 img/s" not in Estimates(alone, tflops=None).of(stayed).words
    store(tmp_path, stayed, device="NVIDIA A100-SXM4-40GB")
    assert "measured: 5,002 img/s, NVIDIA A100" in Estimates(look(tmp_path), tflops=None).of(stayed).words
    assert "0.0 spent (measured) on several kinds of device" in run("table3", "--status", "--results", tmp_path)[0]
    assert costs.machine(result) is None
    assert costs.machine(result | {"environment": {"device": "NVIDIA A100-SXM4-40GB"}}) is not None


def test_a_run_that_has_moved_has_the_rate_of_where_it_is_and_the_seconds_of_both(tmp_path: Path) -> None:
    recorded, folder, progress = with_heartbeat(tmp_path)
    where = {"epoch": 151, "epochs": 400.0, "images_per_epoch": 50_000, "images_per_second": 5000.0}
    (folder / "progress.json").write_text(json.dumps(progress | where | {"epochs_elsewhere": 150.0}))
    found = standing.run_of(look(tmp_path), recorded, identity_of(recorded))
    assert (found.seconds, found.device.kind) == (10.0, "several kinds of device")
    assert Estimates(look(tmp_path), tflops=None).of(recorded).seconds_per_epoch == 10.0
    before = store(tmp_path / "before", recorded, state="interrupted", cost={"train_seconds": 700.0})
    shutil.copy(before / "result.json", folder)
    found = standing.run_of(look(tmp_path), recorded, identity_of(recorded))
    assert (found.seconds, found.device.kind) == (710.0, "several kinds of device")


def test_the_seconds_of_a_trunk_are_spent_once(tmp_path: Path) -> None:
    """Three hours, of which the second run has taken two from the first."""
    cost = {"train_seconds": 3 * 3600.0}
    store(tmp_path, record(RESNET20, "method=sgd"), device="NVIDIA H100 80GB HBM3", cost=cost)
    other = record(RESNET20, "method=sgd", "weight_decay=1e-3")
    folder = store(tmp_path, other, device="NVIDIA H100 80GB HBM3", cost=cost)
    trunk = {"identity": "ab" * 32, "epochs": 200, "run": "runs/cifar100/resnet20/sgd/a", "train_seconds": 2 * 3600.0}
    stored = json.loads((folder / "result.json").read_text())
    seal(folder, {key: value for key, value in stored.items() if key != "checksum"} | {"trunk": trunk})
    page, _ = run("runs", "--status", "--results", tmp_path)
    assert "Device hours: 4.0 spent (measured) on an H100" in " ".join(page.split())


def test_a_checkpoint_whose_epoch_is_not_known_is_no_start_from_scratch(tmp_path: Path) -> None:
    recorded = record(RESNET20, "method=sgd")
    folder = results.run_folder(tmp_path, recorded)
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    words = []
    for _ in range(2):
        words.append(standing.run_of(look(tmp_path), recorded, identity_of(recorded)).words)
        (folder / "checkpoint-0000000391.ckpt").touch()
    assert words == ["from scratch: no checkpoint", "goes on from its checkpoint"]


@pytest.mark.parametrize(
    ("own", "server", "state"),
    [
        pytest.param(0, 0, "running", id="fresh"),
        pytest.param(-3600, 0, "running", id="its clock is an hour behind, the file server's is not"),
        pytest.param(0, -3600, "running", id="the file server's clock is an hour behind"),
        pytest.param(90, 90, "running", id="both are ahead of ours by a minute and a half"),
        pytest.param(-130, -130, "interrupted", id="two minutes old"),
    ],
)
def test_on_another_machine_the_age_of_the_sign_of_life_decides(
    tmp_path: Path, own: int, server: int, state: str
) -> None:
    recorded, folder, progress = with_heartbeat(tmp_path)
    now = time.time()
    (folder / "progress.json").write_text(json.dumps(progress | {"machine": "another", "time": now + own}))
    os.utime(folder / "progress.json", (now + server, now + server))
    found = standing.run_of(standing.look(tmp_path), recorded, identity_of(recorded))
    assert found.state == state


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (130, "interrupted")])
def test_where_there_are_no_locks_the_age_decides_on_its_own_machine_too(
    tmp_path: Path, age: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run trains on there, and must not be started a second time."""

    def refused(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "refused")

    recorded, folder, progress = with_heartbeat(tmp_path)
    then = time.time() - age
    (folder / ".lock").touch()
    (folder / "progress.json").write_text(json.dumps(progress | {"machine": heartbeat.machine(), "time": then}))
    os.utime(folder / "progress.json", (then, then))
    monkeypatch.setattr(fcntl, "flock", refused)
    assert standing.run_of(standing.look(tmp_path), recorded, identity_of(recorded)).state == state


def test_a_lock_is_seen_by_several_at_once_and_neither_made_nor_kept(tmp_path: Path) -> None:
    assert not heartbeat.is_held(tmp_path)
    assert list(tmp_path.iterdir()) == []
    lock = FileLock(tmp_path / ".lock")
    with lock:
        assert heartbeat.is_held(tmp_path)
    with open(tmp_path / ".lock") as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        assert not heartbeat.is_held(tmp_path)
    with lock.acquire(timeout=0):
        pass


def position(*figures: float) -> heartbeat.Position:
    names = ("step", "steps", "steps_per_epoch", "images_per_epoch", "images_per_second")
    return heartbeat.Position(**dict(zip(names, figures, strict=True)))


def test_a_sign_of_life_that_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "progress.json").mkdir()
    with heartbeat.Heartbeat(tmp_path, record(RESNET20), device="a device") as beat:
        beat.follow(lambda: position(1, 2, 3, 4, 5.0))
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path}/progress.json cannot be written, other machines take this run for dead: ")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_rate_and_time_left_come_from_the_steps_since_the_start() -> None:
    first = position(100, 1000, 10, 320, 0.0)
    # 50 steps in 25 s: 2 steps/s; 850 are left; an epoch of 320 images has 10 steps.
    figures = heartbeat._figures(first, position(150, 1000, 10, 320, 0.0), seconds=25.0)
    assert figures["seconds_left"] == 425.0
    assert figures["images_per_second"] == 64.0
    assert (figures["epoch"], figures["epochs"]) == (15.0, 100.0)
    # Once the loop has measured its rate, that is the one.
    measured = heartbeat._figures(first, position(150, 1000, 10, 320, 80.0), seconds=25.0)
    assert measured["images_per_second"] == 80.0
    assert heartbeat._figures(first, first, seconds=0.0)["seconds_left"] is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_a_damaged_sign_of_life_is_named(tmp_path: Path, content: str) -> None:
    folder = store(tmp_path, record(RESNET20, "method=sgd"), state="interrupted")
    (folder / "progress.json").write_text(content)
    out, _ = run("table3", "--status", "--results", tmp_path)
    assert "1 interrupted" in " ".join(out.split())
    assert f"- left out: {folder.relative_to(tmp_path)}/progress.json: " in out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (3570, "1 h 0 min"), (8000, "2 h 13 min"), (200_000, "2 d 7 h")],
)
def test_durations_are_told_in_words(seconds: float, words: str) -> None:
    assert standing.duration(seconds) == words


def test_recipes_are_composed_once_for_several_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [RESNET20, "method=sam"]
    first = StoredRecipes(tmp_path / "folder/recipes.json")
    composed = first(overrides)
    first.save()
    monkeypatch.delattr("broadopt.analysis.tables.stored_recipes.recipe_of")
    assert StoredRecipes(tmp_path / "folder/recipes.json")(overrides) == composed


WRONG = {json.dumps([RESNET20, "method=sam"]): {"budget": 1}}


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"state": "another", "recipes": WRONG})])
def test_kept_recipes_of_another_state_are_composed_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / "recipes.json").write_text(content)
    overrides = [RESNET20, "method=sam"]
    assert StoredRecipes(tmp_path / "recipes.json")(overrides) == recipe_of(overrides)
