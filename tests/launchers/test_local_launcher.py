"""hydra/launcher=local: several runs at a time on one machine."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from command import OWN, SMALL, finish, folders, result, run, same_outcome, start, until
from filelock import FileLock
from forked import as_nobody
from PIL import Image

from broadopt.launchers import gpus
from broadopt.launchers.gpus import claim
from broadopt.runs.begun import link_output

LOCAL = ("-m", "hydra/launcher=local", "hydra.launcher.n_jobs=2")
SWEEP = (*SMALL, "method=sgd,swa,asam", "budget=1", "seed=1")


def test_runs_side_by_side_give_what_they_give_one_after_the_other(tmp_path: Path) -> None:
    """With as many threads, those of OMP_NUM_THREADS: the order in which a CPU sums depends on their number."""
    (tmp_path / "serial").mkdir()
    assert run("-m", *SWEEP, cwd=tmp_path / "serial").returncode == 0
    done = run(*LOCAL, *SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nfinished: ") == 3
    assert "3 runs, 2 at a time, 1 CPU threads each" in done.stdout
    found = folders(tmp_path)
    assert [result(folder)["environment"]["threads"] for folder in found] == [1] * 3
    assert all("finished: " in (folder / "output.txt").read_text() for folder in found)
    pairs = zip(found, folders(tmp_path / "serial"), strict=True)
    assert all(same_outcome(one, other) for one, other in pairs)


def test_failed_runs_are_named_and_the_others_finish(tmp_path: Path) -> None:
    done = run(*LOCAL, *SMALL, "budget=1", "lr=0.1,1e30", cwd=tmp_path)
    assert done.returncode == 1
    assert "1 of the sweep's runs failed:" in done.stderr
    assert "features.0.weight is not finite" in done.stderr
    (failed,) = re.findall(r"^failed: .*lr=1e\+30.*\n(.*)$", done.stdout, flags=re.MULTILINE)
    assert re.fullmatch(r"  features.0.weight is not finite in epoch 1 at lr .* \(see .*\.out\)", failed), "at once"
    assert sorted(result(folder)["state"] for folder in folders(tmp_path)) == ["failed", "finished"]


def test_data_that_cannot_be_used_are_tried_once(tmp_path: Path) -> None:
    sweep = (*SMALL, "budget=0.1", "dataset=image_folder", "dataset.path=nowhere", "seed=1,2,3")
    done = run("-m", "hydra/launcher=local", *sweep, cwd=tmp_path)
    assert done.returncode == 2
    reason = "nowhere/train: cannot be listed"
    assert [path.name for path in (tmp_path / "results/local").rglob("*.out")] == ["0.out"]
    assert (done.stdout.count(reason), done.stdout.count("\nfailed: ")) == (1, 1)
    first, last = [line for line in done.stderr.splitlines() if reason in line]
    assert first.startswith("broadopt-run: ")
    assert "; no run with these data can be carried out (see " in first
    assert " seed=1 and 2 other runs with these data: " in last
    assert "broadopt-run: 3 of the sweep's runs failed:" in done.stderr


@pytest.mark.parametrize(
    ("signal_", "to_all"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGUSR2, False)],
    ids=["SIGINT of a terminal", "SIGTERM to the command", "SIGUSR2 to the command"],
)
def test_a_signal_stops_all_with_their_state_saved_and_the_command_goes_on(
    signal_: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    """A terminal's SIGINT reaches the runs as well, what is sent to the command alone does not.

    What is left is the same for all signals: the launcher goes on from it once, a command without it twice.
    """
    sweep = (*SMALL, "budget=2", "seed=1,2,3")
    command = (*LOCAL, *sweep)
    halt = {"HALT": "train 60", "HALT_UNTIL": "SIGTERM", "HALT_FILE": str(tmp_path / "halted-PID")}
    process = start(*command, cwd=tmp_path, session=True, **halt)
    until(lambda: len(list(tmp_path.glob("halted-*"))) == 2, process)
    os.kill(-process.pid if to_all else process.pid, signal_)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("3 runs, 2 at a time")
    assert process.stdout.readline() == f"{signal_.name}: the runs save their state and end\n"
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert done.stdout.count("interrupted: ") == 2
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["interrupted"] * 2
    again = run(*(command if to_all else ("-m", *sweep)), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    printed = [(folder / "output.txt").read_text() for folder in folders(tmp_path)] if to_all else [again.stderr]
    assert "".join(printed).count("going on from") == 2
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 3


def test_a_signal_counts_for_more_than_a_run_that_has_failed(tmp_path: Path) -> None:
    """As without the launcher: who starts the command again on 75 does so."""
    sweep = ("-m", "hydra/launcher=local", *SMALL, "budget=2", "lr=1e30,0.1")  # the first fails in its first epoch
    halt = {"HALT": "train 60", "HALT_UNTIL": "SIGTERM", "HALT_FILE": str(tmp_path / "halted")}
    process = start(*sweep, cwd=tmp_path, **halt)
    until((tmp_path / "halted").exists, process)
    process.send_signal(signal.SIGTERM)
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1] == "broadopt-run: stopped by SIGTERM: run the same command to go on"
    assert sorted(result(folder)["state"] for folder in folders(tmp_path)) == ["failed", "interrupted"]


def test_a_forced_run_that_did_not_begin_is_not_finished_by_its_old_result(tmp_path: Path) -> None:
    command = ("-m", "hydra/launcher=local", *SMALL, "budget=0.1", "seed=1")
    assert run(*command, cwd=tmp_path).returncode == 0
    (folder,) = folders(tmp_path)
    with FileLock(folder / ".lock"):
        done = run(*command, "force=true", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "test accuracy" not in done.stdout
    assert list(folder.glob("result.*.json")) == []


def test_a_runs_output_is_found_where_results_is_a_link_to_storage_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage" / "of" / "mine"
    (storage / "runs" / "one").mkdir(parents=True)
    (tmp_path / "results").symlink_to(storage)
    (storage / "0.out").write_text("what it printed")
    for output in (storage / "0.out", tmp_path / "results" / "0.out"):  # as Slurm's launcher and the local one name it
        monkeypatch.setenv("BROADOPT_OUTPUT", str(output))
        for root in (storage, tmp_path / "results"):
            link_output(root / "runs" / "one")
            assert (root / "runs" / "one" / "output.txt").read_text() == "what it printed"


def test_users_of_a_machine_share_the_claims_on_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder as /tmp, where a file that a stricter umask has made is another user's."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o1777)
        for gpu in (0, 1):
            (folder / f"broadopt-gpu-{gpu}.lock").touch(mode=0o644)

        def claimed() -> list[int | str]:
            found = [claim([gpu], folder=folder, given_up=iter([False, True]).__next__) for gpu in (0, 1, 2)]
            return [one[0] for one in found if one is not None]

        ours = claim([0], folder=folder)
        assert ours is not None
        assert as_nobody(claimed) == [1, 2]
        assert (folder / "broadopt-gpu-2.lock").stat().st_mode & 0o777 == 0o666


def test_a_signal_ends_the_waiting_for_a_gpu(tmp_path: Path) -> None:
    held = claim([0], folder=tmp_path)
    assert held is not None
    command = (*LOCAL, "hydra.launcher.gpus=[0]", *SMALL, "seed=1,2")
    process = start(*command, cwd=tmp_path, TMPDIR=str(tmp_path))
    assert process.stdout is not None
    assert "1 GPU;" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert finish(process).returncode == 75
    for descriptor in held[1]:
        os.close(descriptor)
    assert folders(tmp_path) == []


def test_a_gpu_is_claimed_by_one_run_and_free_again_when_it_has_died(tmp_path: Path) -> None:
    (first, [descriptor]), (second, [other]) = claimed(tmp_path), claimed(tmp_path)
    assert (first, second) == (0, 1)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor])
    os.close(descriptor)
    os.close(other)
    third, [descriptor] = claimed(tmp_path)  # the child still has GPU 0
    assert third == 1
    os.close(descriptor)
    child.kill()
    child.wait()
    again, [descriptor] = claimed(tmp_path)
    assert again == 0
    os.close(descriptor)


def test_what_a_run_waits_for_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpus, "MOMENT", 0.1)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    held = [claimed(tmp_path), claimed(tmp_path)]
    assert capsys.readouterr().out == ""
    assert claim([0, 1], folder=tmp_path, given_up=iter([False] * 4 + [True]).__next__) is None
    line = f"waiting for a GPU: other runs hold {tmp_path}/broadopt-gpu-0.lock, {tmp_path}/broadopt-gpu-1.lock\n"
    assert capsys.readouterr().out == line
    for _, [descriptor] in held:
        os.close(descriptor)


@pytest.mark.parametrize("per_gpu", [1, 2])
def test_jobs_of_slurm_whose_gpus_have_the_same_numbers_do_not_wait_for_each_other(
    per_gpu: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    for job in ("12", "13"):
        monkeypatch.setenv("SLURM_JOB_ID", job)
        first, second = (claimed(tmp_path, per_gpu=per_gpu) for _ in range(2))
        assert [first[0], second[0]] == [0, 1]
        assert is_taken(tmp_path, per_gpu=1)  # within a job
        held += [*first[1], *second[1]]
    names = {"broadopt-gpu-job12-0.lock", "broadopt-gpu-job13-1.lock"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    for descriptor in held:
        os.close(descriptor)


def claimed(folder: Path, *, per_gpu: int = 1) -> tuple[int | str, list[int]]:
    found = claim([0, 1], folder=folder, per_gpu=per_gpu)
    assert found is not None
    return found


def is_taken(folder: Path, *, per_gpu: int) -> bool:
    """Whether no run of so many a GPU would find a place now."""
    answers = iter([False, True])
    found = claim([0, 1], folder=folder, per_gpu=per_gpu, given_up=lambda: next(answers))
    for descriptor in found[1] if found else []:
        os.close(descriptor)
    return found is None


def test_a_gpu_is_shared_by_as_many_runs_as_are_asked_for_and_by_none_that_wants_it_for_itself(tmp_path: Path) -> None:
    held = [claimed(tmp_path, per_gpu=2) for _ in range(4)]
    assert [gpu for gpu, _ in held] == [0, 1, 0, 1]  # each has one before any has two
    assert is_taken(tmp_path, per_gpu=2)
    assert is_taken(tmp_path, per_gpu=3)  # a third of the memory beside two halves
    for gpu, descriptors in (held[1], held[3]):
        assert is_taken(tmp_path, per_gpu=1)
        assert gpu == 1
        for descriptor in descriptors:
            os.close(descriptor)
    alone, [descriptor] = claimed(tmp_path)
    assert alone == 1
    assert is_taken(tmp_path, per_gpu=2)
    os.close(descriptor)
    for _, descriptors in (held[0], held[2]):
        for descriptor in descriptors:
            os.close(descriptor)


def test_runs_share_a_gpu_with_runs_of_the_same_number_alone(tmp_path: Path) -> None:
    (two, of_two), (three, of_three) = claimed(tmp_path, per_gpu=2), claimed(tmp_path, per_gpu=3)
    assert (two, three) == (0, 1)  # where GPU 0 has room for another half
    beside = [claimed(tmp_path, per_gpu=per_gpu) for per_gpu in (3, 2, 3)]
    assert [gpu for gpu, _ in beside] == [1, 0, 1]
    assert is_taken(tmp_path, per_gpu=2)
    for descriptors in (of_two, beside[1][1]):
        for descriptor in descriptors:
            os.close(descriptor)
    again, descriptors = claimed(tmp_path, per_gpu=3)  # nobody has GPU 0 any more
    assert again == 0
    for descriptor in (*descriptors, *of_three, *beside[0][1], *beside[2][1]):
        os.close(descriptor)


def test_several_runs_share_a_gpu_at_the_same_time(tmp_path: Path) -> None:
    """The GPU is a name only: what matters is that two runs have it together, and a third waits."""
    command = (
        "-m",
        "hydra/launcher=local",
        "hydra.launcher.gpus=[0]",
        "hydra.launcher.per_gpu=2",
        *SMALL,
        "budget=0.2",
    )
    halt = {"HALT": "train 5", "HALT_FILE": str(tmp_path / "halted-PID"), "TMPDIR": str(tmp_path)}
    process = start(*command, "seed=1,2,3", cwd=tmp_path, **halt)
    until(lambda: len(list(tmp_path.glob("halted-*"))) == 2, process)
    assert is_taken_alone(tmp_path)
    (output,) = (tmp_path / "results/local").iterdir()
    assert sorted(file.name for file in output.iterdir()) == ["0.out", "1.out"]
    for file in tmp_path.glob("halted-*"):
        file.unlink()
    until(lambda: list(tmp_path.glob("halted-*")), process)
    for file in tmp_path.glob("halted-*"):
        file.unlink()
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 runs, 2 at a time, 1 GPU, 2 runs on each with 1/2 of its memory; ")
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 3


def is_taken_alone(folder: Path) -> bool:
    answers = iter([False, True])
    return claim([0], folder=folder, per_gpu=2, given_up=lambda: next(answers)) is None


def test_a_run_that_lacks_memory_on_a_shared_gpu_names_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "greedy.py").write_text(
        "import torch\n\n\nclass Greedy(torch.nn.Flatten):\n    def __init__(self, num_classes):\n"
        "        super().__init__()\n        self.layer = torch.nn.Linear(3072, num_classes)\n\n"
        "    def forward(self, images):\n        if self.training and images.shape[0] == 32:\n"
        "            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')\n"
        "        return self.layer(super().forward(images))\n"
    )
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/greedy.yaml").write_text("_target_: greedy.Greedy\n")
    own = ("--config-dir", str(tmp_path / "own"), "model=greedy", "experiment=quickstart", "device=cpu")
    options = ("hydra.launcher.gpus=[0]", "hydra.launcher.per_gpu=2")
    command = ("-m", "hydra/launcher=local", *options, *own, "precision=fp32", "budget=1", "seed=1")
    done = run(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path), TMPDIR=str(tmp_path))
    assert done.returncode == 1
    advice = "; 2 runs share the GPU: give a smaller hydra.launcher.per_gpu than 2, or a smaller batch_size"
    (folder,) = folders(tmp_path)
    reason = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. (see results/"
    assert result(folder)["failure"]["reason"].startswith(reason)
    assert result(folder)["failure"]["reason"].endswith(advice)
    assert advice in done.stderr


def test_without_a_gpu_none_is_shared(tmp_path: Path) -> None:
    command = ("-m", "hydra/launcher=local", "hydra.launcher.per_gpu=3", *SMALL, "seed=1,2")
    done = run(*command, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "broadopt-run: hydra.launcher.per_gpu=3: this machine has no GPU; hydra.launcher.n_jobs=3 carries out as many "
        "runs at a time on its CPU\n"
    )


def test_each_run_sees_the_gpu_that_it_has_claimed(tmp_path: Path) -> None:
    """Without a GPU here, what a run is told is seen in its environment."""
    from broadopt.launchers import local
    from broadopt.launchers.sweep import Planned

    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "BROADOPT_PER_GPU")
    show = [sys.executable, "-c", f"import os; print(*(os.environ[name] for name in {names}))"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Planned, "command", lambda self: show)
        patch.setattr("tempfile.tempdir", str(tmp_path))  # GPU 3 of this machine may be another sweep's
        assert (
            local.run(Planned((), "", "auto", {}, "results"), tmp_path / "out", [3], 5, local.Children(), per_gpu=2)
            == 0
        )
    assert (tmp_path / "out").read_text() == "3 5 2\n"
    assert list(tmp_path.glob("broadopt-gpu-*3.lock"))


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    for option in ("jobs=2", "n_jobs=0", "n_jobs=many", "gpus=1", "per_gpu=0"):
        argument = f"hydra.launcher.{option}"
        done = run("-m", "hydra/launcher=local", argument, *SMALL, "seed=1,2", cwd=tmp_path)
        assert done.returncode == 2, argument
        (line,) = done.stderr.splitlines()
        assert argument.split("=")[0].rpartition(".")[2] in line


def test_what_is_finished_in_the_precision_that_is_asked_for_is_not_made_again(tmp_path: Path) -> None:
    sweep = (*SMALL, "budget=0.2", "seed=1")  # SMALL says precision=fp32
    assert run("-m", *sweep, cwd=tmp_path).returncode == 0
    command = (*LOCAL, *sweep)
    again = run(*command, cwd=tmp_path)
    assert again.stdout.count("already finished: ") == 1
    automatic = run(*command, "precision=auto", cwd=tmp_path)
    assert automatic.stdout.count("already finished: ") == 1
    forced = run(*command, "force=true", cwd=tmp_path)
    assert forced.stdout.count("\nfinished: ") == 1
    other = run(*command, "precision=bf16", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert other.stdout.count("\nfinished: ") == 1
    assert len(folders(tmp_path)) == 2


def test_runs_on_other_pictures_are_other_runs(tmp_path: Path) -> None:
    for shade, name in enumerate("ab"):
        for split in ("train", "test"):
            for label in range(2):
                folder = tmp_path / name / split / f"class{label}"
                folder.mkdir(parents=True)
                for image in range(8):
                    Image.new("RGB", (32, 32), (shade * 100, label * 100, image)).save(folder / f"{image}.png")
    command = (*SMALL, "dataset=image_folder", "budget=1", "batch_size=4")
    first = run("-m", *command, "seed=1,2", f"dataset.path={tmp_path}/a", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    both = run(*LOCAL, *command, "seed=1", f"dataset.path={tmp_path}/a,{tmp_path}/b", cwd=tmp_path)
    assert both.returncode == 0, both.stderr
    assert both.stdout.count("already finished: ") == 1
    assert both.stdout.count("\nfinished: ") == 1
    assert len(folders(tmp_path)) == 3


def test_a_config_of_the_users_own_is_that_of_each_run(tmp_path: Path) -> None:
    shutil.copytree(OWN / "model", tmp_path / "mine/model")
    (tmp_path / "mine/short.yaml").write_text("defaults:\n  - run\n  - _self_\nbudget: 0.2\nclip: 3\n")
    own = ("--config-name", "short", "--config-dir", str(tmp_path / "mine"), *SMALL[2:])
    done = run(*LOCAL, *own, "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [result(folder) for folder in folders(tmp_path)]
    assert [(one["budget"], one["config"]["clip"]) for one in found] == [(0.2, 3)] * 2


def test_runs_import_what_the_command_imports(tmp_path: Path) -> None:
    """PYTHONPATH has the network, and the folder in which the command is given another one of that name."""
    (tmp_path / "own_network.py").write_text("raise RuntimeError('another one')")
    done = run(*LOCAL, *SMALL, "budget=0.1", "seed=1,2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 2


def test_a_results_folder_of_the_time_is_that_of_the_sweep(tmp_path: Path) -> None:
    done = run(*LOCAL, *SMALL, "budget=0.1", "seed=1,2", "results_dir=at/${now:%S.%f}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (place,) = (tmp_path / "at").iterdir()
    assert len(list(place.glob("runs/*/*/*/*/result.json"))) == 2


def test_runs_in_several_results_folders_are_refused_ahead_of_all(tmp_path: Path) -> None:
    """Where they are finished or under way is looked up below one."""
    done = run(*LOCAL, *SMALL, "results_dir=one,other", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "broadopt-run: results_dir=other: the runs of a sweep that a launcher carries out share one results folder, "
        "another run has one; expected one results_dir\n"
    )
    assert not (tmp_path / "one").exists()
