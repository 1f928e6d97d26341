"""A run and a sweep as a user starts them: what they leave, what they say, who may write."""

import csv
import re
import shutil
import signal
from pathlib import Path

import pytest
from command import PATIENCE, SMALL, Sweep, finish, folders, go_on, halted, result, run, same_outcome, start
from omegaconf import OmegaConf

from broadopt.config.identity import AS_WITHOUT

EPOCHS = {"asam": 2, "fge": 2, "sam": 2, "sgd": 2, "swa": 3}


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file, by name."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_a_shipped_network_trains_on_the_embedded_digits(tmp_path: Path) -> None:
    process = run("experiment=quickstart", "budget=0.1", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stderr == ""
    (folder,) = folders(tmp_path)
    found = result(folder)
    assert folder == tmp_path / f"results/runs/digits/resnet20/sgd/seed1-{found['identity'][:8]}"
    assert f"last  test accuracy {found['metrics']['last']['test_accuracy']:.2f} %" in process.stdout
    decided = re.compile(
        rf"precision=auto: {found['config']['precision']}( \(bf16 has \d+\.\d\d times the rate of fp32\))?, "
        "memory_format=auto: channels_last on this CPU"
    )
    assert decided.fullmatch(process.stdout.splitlines()[1])
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


def test_a_sweep_makes_one_folder_a_run(five_runs: Sweep) -> None:
    assert five_runs.process.returncode == 0
    assert list(five_runs.folders) == list(EPOCHS)
    assert folders(five_runs.cwd) == sorted(five_runs.folders.values())


@pytest.mark.parametrize("method", EPOCHS)
def test_a_finished_run_leaves_its_result_its_history_and_its_config(five_runs: Sweep, method: str) -> None:
    folder = five_runs.folders[method]
    predictor = set() if method == "fge" else {"predictor.safetensors"}  # an ensemble is not one network
    expected = {".lock", "config.yaml", "history.csv", "result.json"} | predictor
    # Of a checkout with changes that are not committed, these are kept as well.
    assert {path.name for path in folder.iterdir()} - {"code.diff"} == expected
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [float(row["epoch"]) for row in rows] == [1 + epoch for epoch in range(EPOCHS[method])]
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "train_accuracy", "test_accuracy", "test_nll", "test_ece"]
    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    recorded = result(folder)["config"]
    recorded["dataset"].pop("fingerprint")
    recorded.pop("code")
    assert isinstance(config, dict)
    for key, value in AS_WITHOUT.items():
        group, _, leaf = key.rpartition(".")
        node = config[group] if group else config
        if node.get(leaf) == value:
            node.pop(leaf, None)
    assert {key: config[key] for key in recorded} == recorded


def test_a_composition_is_named_by_its_step_and_its_collector(tmp_path: Path) -> None:
    process = run("-m", *SMALL, "budget=0.1", "step=sgd,sam,asam", "collect=none,swa,fge", cwd=tmp_path)
    assert process.returncode == 0
    names = {"sgd", "swa", "fge", "sam", "sam+swa", "sam+fge", "asam", "asam+swa", "asam+fge"}
    assert {folder.parent.name for folder in folders(tmp_path)} == names
    assert {result(folder)["method"] for folder in folders(tmp_path)} == names
    again = run("-m", *SMALL, "budget=0.1", "method=sgd,swa,fge,sam,asam", cwd=tmp_path)
    assert again.stdout.count("already finished: ") == 5
    assert len(folders(tmp_path)) == 9


def test_the_same_command_again_shows_the_stored_result_and_trains_nothing(five_runs: Sweep) -> None:
    folder = five_runs.folders["swa"]
    before = content(folder)
    process = run(*SMALL, "budget=2", "method=swa", cwd=five_runs.cwd)
    assert process.returncode == 0
    head, *summary = process.stdout.splitlines()
    assert head == f"already finished: {folder.relative_to(five_runs.cwd)} (force=true runs it anew)"
    assert "\n".join(summary) in five_runs.process.stdout
    assert content(folder) == before


def test_what_a_process_left_that_died_after_its_result_is_removed(five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.folders["sgd"].parent, tmp_path / "results/runs/digits/small/sgd")
    (folder,) = folders(tmp_path)
    before = content(folder)
    for name in ("checkpoint-0000000090.ckpt", "progress.json", ".result.json.7.tmp"):
        (folder / name).touch()
    process = run(*SMALL, "budget=2", cwd=tmp_path)
    assert process.stdout.startswith("already finished: ")
    assert content(folder) == before


def test_how_a_run_is_carried_out_is_no_part_of_its_identity(five_runs: Sweep) -> None:
    options = ("device=auto", "checkpoint.minutes=0", "wait=true", "data_dir=elsewhere")
    arguments = [argument for argument in SMALL if argument != "device=cpu"]
    process = run(*arguments, "budget=2.0", "lr=1e-1", *options, cwd=five_runs.cwd)
    assert process.stdout.startswith("already finished: ")


def test_force_runs_anew_and_keeps_the_old_result_beside_the_new_one(five_runs: Sweep, tmp_path: Path) -> None:
    shutil.copytree(five_runs.folders["asam"].parent, tmp_path / "results/runs/digits/small/asam")
    (folder,) = folders(tmp_path)
    before = content(folder)
    process = run(*SMALL, "budget=2", "method=asam", "force=true", cwd=tmp_path)
    assert process.returncode == 0
    assert "epoch 2/2: lr " in process.stdout
    after = content(folder)
    assert set(after) == {*before, "result.1.json", "history.1.csv"}
    assert after["result.1.json"] == before["result.json"]
    assert after["history.1.csv"][1] == before["history.csv"][1]
    assert after["result.json"][0] > before["result.json"][0]
    # A run alone and one in a sweep, minutes or days apart, give the same figures bit for bit.
    assert same_outcome(folder, five_runs.folders["asam"])


def test_of_two_processes_on_one_run_one_trains_and_the_other_leaves_it_or_waits(tmp_path: Path) -> None:
    command = (*SMALL, "budget=0.5")
    with halted(*command, cwd=tmp_path, at="train 5") as trains:
        other = run(*command, cwd=tmp_path)
        assert other.returncode == 3
        (folder,) = folders(tmp_path)
        place = f"another process is on {folder.relative_to(tmp_path)}: "
        assert other.stdout == f"{place}left to it (wait=true waits for it to end)\n"
        waits, is_stopped = (start(*command, "wait=true", cwd=tmp_path) for _ in range(2))
        for process in (waits, is_stopped):
            assert process.stdout is not None
            assert process.stdout.readline() == f"{place}waiting for it to end\n"
        is_stopped.send_signal(signal.SIGTERM)
        assert finish(is_stopped).returncode == 75
        assert not (folder / "result.json").exists()
        go_on(tmp_path)
        assert finish(trains).returncode == 0
        outcome_of_waiting = finish(waits)
    assert outcome_of_waiting.returncode == 0
    assert outcome_of_waiting.stdout.startswith("already finished: ")
    assert folders(tmp_path) == [folder]


def test_a_reader_that_leaves_interrupts_the_run_which_goes_on_bit_for_bit(five_runs: Sweep, tmp_path: Path) -> None:
    with halted(*SMALL, "method=asam", "budget=2", cwd=tmp_path, at="train 40") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        go_on(tmp_path)
        assert process.wait(timeout=PATIENCE) == 75
    (folder,) = folders(tmp_path)
    assert result(folder)["state"] == "interrupted"
    again = run(*SMALL, "method=asam", "budget=2", cwd=tmp_path)
    assert again.returncode == 0
    assert "going on from" in again.stderr
    assert same_outcome(folder, five_runs.folders["asam"])
