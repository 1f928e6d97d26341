"""Hydra's launchers, sweepers, callbacks and options with broadopt-run: the real packages of others."""

import os
import signal
from pathlib import Path
from shutil import rmtree

import hydra
import pytest
from command import SMALL, Sweep, finish, folders, halted, result, run, start, stopped, until
from in_process import said
from omegaconf import OmegaConf

FAILURE = "features.0.weight is not finite in epoch 1 at lr 1e+30; last finite loss: "
ONE_OF_TWO = (*SMALL, "budget=1", "lr=0.1,1e30")


def sweep_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "results/sweeps").glob("*/*")
    return folder


@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=basic"],
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.launcher.batch_size=2"],  # both in one worker
        ["hydra/launcher=submitit_local"],
    ],
    ids=["basic", "joblib", "submitit"],
)
def test_a_failed_run_is_named_whoever_carries_it_out(launcher: list[str], tmp_path: Path) -> None:
    done = run("-m", *launcher, *ONE_OF_TWO, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    named = " ".join([*SMALL[2:], "budget=1", "lr=1e+30"])
    at_once, count, again = done.stderr.splitlines()
    assert at_once.startswith(f"broadopt-run: {named}: {FAILURE}")
    assert count == "broadopt-run: 1 of the sweep's runs failed:"
    assert again == f"  {at_once.removeprefix('broadopt-run: ')}"
    finished, failed = sorted(folders(tmp_path), key=lambda folder: result(folder)["state"] == "failed")
    assert result(failed)["state"] == "failed"
    last, best = (f"{result(finished)['metrics'][name]['test_accuracy']:.2f} %" for name in ("last", "best"))
    line = f"1 of 2 (lr=0.1): sgd, small, digits, seed 1: test accuracy last {last}, best {best}"
    assert line in done.stdout.splitlines()
    assert done.stdout.count("\n| sgd ") == 3  # the table: accuracies, calibration, cost
    assert {path.name for path in sweep_folder(tmp_path).iterdir()} - {".submitit"} == {"multirun.yaml"}


def test_optuna_finds_the_radius_that_is_best_on_held_out_images_and_goes_on_after_an_interruption(
    tmp_path: Path,
) -> None:
    cwd = tmp_path
    optuna = "hydra/sweeper=optuna hydra.sweeper.n_trials=3 hydra.sweeper.n_jobs=2 hydra.sweeper.sampler.seed=1"
    search = ("-m", *optuna.split(), "hydra.sweeper.direction=maximize", "step.rho=interval(0.01,0.5)")
    command = (*search, *SMALL, "budget=1", "method=sam", "dataset.validation=200")
    interrupted = stopped(*command, cwd=cwd, at="train 100", by=signal.SIGTERM)  # in the second run
    assert interrupted.returncode == 75, interrupted.stderr
    assert [result(folder)["state"] for folder in folders(cwd)].count("interrupted") == 1
    rmtree(cwd / "results/sweeps")
    first = run(*command, cwd=cwd)
    assert first.returncode == 0, first.stderr
    assert (first.stdout.count("already finished: "), first.stderr.count("going on from ")) == (1, 1)
    assert "objective=" not in first.stderr
    found = {result(folder)["config"]["step"]["rho"]: result(folder)["metrics"] for folder in folders(cwd)}
    assert len(found) == 3
    best = max(found, key=lambda rho: found[rho]["validation"]["last"]["validation_accuracy"])
    accuracy = found[best]["validation"]["last"]["validation_accuracy"]
    kept = OmegaConf.load(sweep_folder(cwd) / "optimization_results.yaml")
    assert kept == {"name": "optuna", "best_params": {"step.rho": best}, "best_value": accuracy}
    (folder,) = (folder for folder in folders(cwd) if result(folder)["config"]["step"]["rho"] == best)
    last = f"best of 3 by validation accuracy: {accuracy:.4f} with step.rho={best}: {folder.relative_to(cwd)}"
    assert first.stdout.splitlines()[-1] == last
    assert "3 of 3 (step.rho=" in first.stdout
    again = run(*command, "hydra/launcher=local", cwd=cwd)  # a launcher that answers by itself for what is finished
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished: ") == 3
    assert again.stdout.splitlines()[-1] == last


def test_the_objective_is_no_part_of_the_identity_and_is_that_of_what_was_collected(tmp_path: Path) -> None:
    command = (*SMALL, "budget=1", "method=swa", "weight_decay=choice(0.001,0.002)")
    search = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=grid")
    done = run(*search, *command, "objective=test_nll", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "objective=test_nll: the sweep chooses by the test set, so its best value is no estimate for new images; "
        "dataset.validation=5000 holds out images to choose by"
    )
    values = {folder: result(folder)["metrics"]["collected"]["1.5"]["test_nll"] for folder in folders(tmp_path)}
    best = min(values, key=lambda folder: values[folder])
    decay = result(best)["config"]["weight_decay"]
    assert done.stdout.splitlines()[-1] == (
        f"best of 2 by test nll: {values[best]:.4f} with weight_decay={decay}: {best.relative_to(tmp_path)}"
    )
    other = run(
        "-m", *SMALL, "budget=1", "method=swa", "weight_decay=0.001,0.002", "objective=test_accuracy", cwd=tmp_path
    )
    assert other.stdout.count("already finished: ") == 2


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((), "hydra.sweeper.direction=minimize: expected maximize for objective=test_accuracy"),
        (("plan=true",), "plan=true: hydra/sweeper=optuna chooses runs by their results, and these have none"),
        (
            ("objective=validation_nll",),
            "objective=validation_nll: expected dataset.validation=5000, or as many, with it",
        ),
    ],
)
def test_a_search_that_cannot_choose_is_one_line(given: tuple[str, ...], line: str, tmp_path: Path) -> None:
    code, _, errors = said("broadopt-run", "-m", "hydra/sweeper=optuna", *given, "lr=interval(0.1,1)", cwd=tmp_path)
    assert code == 2
    assert [one for one in errors.splitlines() if one.startswith("broadopt-run: ")] == [f"broadopt-run: {line}"]
    assert "Traceback" not in errors
    assert folders(tmp_path) == []


def test_a_search_whose_runs_fail_names_them(tmp_path: Path) -> None:
    search = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.direction=maximize")
    done = run(*search, *SMALL, "budget=1", "lr=choice(1e30)", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    count, *failed = done.stderr.splitlines()[-3:]
    assert count == "broadopt-run: 2 of the sweep's runs failed:"
    named = f"  lr=1e+30 {' '.join(SMALL[2:])} budget=1: {FAILURE}"
    assert [line.startswith(named) for line in failed] == [True, True]


def test_a_signal_to_the_command_saves_the_runs_of_joblibs_workers_and_the_sweep_goes_on(tmp_path: Path) -> None:
    sweep = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *SMALL, "budget=2", "seed=1,2")
    process = start(*sweep, cwd=tmp_path, HALT="train 60", HALT_FILE=str(tmp_path / "halted-PID"))
    until(lambda: len(list(tmp_path.glob("halted-*"))) == 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    until(lambda: process.stdout.readline() == "SIGTERM: the runs save their state and end\n", process)
    for file in tmp_path.glob("halted-*"):
        file.unlink()
    done = finish(process)
    assert done.returncode == 75, done.stderr
    assert done.stderr.splitlines()[-1] == "broadopt-run: stopped by SIGTERM: run the same command to go on"
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["interrupted"] * 2
    again = run("-m", *sweep[3:], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("going on from ") == 2
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"] * 2


@pytest.mark.long
def test_a_job_that_submitit_is_to_preempt_saves_its_state_and_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    """On USR2, as Slurm sends it; submitit's own handler then puts the job back into its queue."""
    sweep = ("-m", "hydra/launcher=submitit_local", *SMALL, "budget=2", "seed=1")
    process = start(*sweep, cwd=tmp_path, HALT="train 60", HALT_FILE=str(tmp_path / "halted-PID"))
    until(lambda: list(tmp_path.glob("halted-*")), process)
    (file,) = tmp_path.glob("halted-*")
    os.kill(int(file.name.removeprefix("halted-")), signal.SIGUSR2)
    file.unlink()
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"]
    (errors,) = sweep_folder(tmp_path).glob(".submitit/*/*_log.err")
    assert errors.read_text().count("going on from ") == 1


def diary(cwd: Path, *arguments: str, code: int) -> list[str]:
    """What a user's callback was called for."""
    path = cwd / "diary"
    given = ("+hydra.callbacks.diary._target_=own_callback.Diary", f"+hydra.callbacks.diary.path={path}")
    done = run(*given, *SMALL, "budget=0.1", *arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    lines = path.read_text().splitlines()
    path.unlink()
    return lines


def test_callbacks_are_called_for_each_run_and_see_what_became_of_it(tmp_path: Path) -> None:
    ran = ["start 0.1", "end 0.1 COMPLETED True", "start 1e+30", "end 1e+30 FAILED True"]
    assert diary(tmp_path, "-m", "lr=0.1,1e30", code=1) == [*ran, "multirun"]
    assert diary(tmp_path, "lr=1e30", code=1) == [*ran[2:], "run FAILED"]
    # Each run is a command of its own, which has the sweep's own settings of Hydra and of the environment.
    assert diary(tmp_path, "-m", "hydra/launcher=local", "lr=1e30", code=1) == [*ran[2:], "run FAILED", "multirun"]
    (output,) = (tmp_path / "results/local").glob("*/0.out")
    assert "Traceback" not in output.read_text()


def test_hydras_folders_are_hydras_alone_and_are_kept_where_it_writes_there(tmp_path: Path) -> None:
    one = (*SMALL, "budget=0.1")
    line = "{}: only Hydra's own files go there; results go below results_dir, to a folder named by the recipe\n"
    single = run("hydra.run.dir=mine", *one, cwd=tmp_path)
    assert (single.returncode, single.stderr) == (0, line.format("hydra.run.dir"))
    assert {path.name for path in tmp_path.iterdir()} == {"results"}
    sweep = run("-m", "hydra.sweep.dir=mine", "hydra.output_subdir=.hydra", *one, "seed=1,2", cwd=tmp_path)
    assert (sweep.returncode, sweep.stderr) == (0, line.format("hydra.sweep.dir"))
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"multirun.yaml", "0", "1"}
    assert OmegaConf.load(tmp_path / "mine/1/.hydra/overrides.yaml") == [*one[2:], "seed=2"]
    assert len(folders(tmp_path)) == 2


def test_hydra_full_error_shows_where_a_run_failed_and_verbose_what_hydra_does(tmp_path: Path) -> None:
    failing = (*SMALL, "budget=0.1", "lr=1e30")
    failed = run(*failing, cwd=tmp_path)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert failed.stderr.startswith(f"broadopt-run: {FAILURE}")
    assert run(*failing, cwd=tmp_path, HYDRA_FULL_ERROR="1").stderr.count("in check_finite\n") == 1
    code, _, errors = said("broadopt-run", "lr=-1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert code == 2
    assert errors.startswith("Traceback (most recent call last)")
    assert errors.splitlines()[-1] == "broadopt-run: lr=-1: expected a number > 0"
    code, _, errors = said("broadopt-run", "hydra.verbose=true", "plan=true", cwd=tmp_path)
    assert code == 0
    assert errors.startswith(f"Hydra {hydra.__version__}\n")
    assert said("broadopt-run", "plan=true", cwd=tmp_path)[2] == ""


def test_a_sweep_that_mixes_recipes_says_so_once(tmp_path: Path) -> None:
    def remarks(*arguments: str) -> list[str]:
        code, _, errors = said("broadopt-run", "-m", *arguments, "plan=true", cwd=tmp_path)
        assert code == 0
        return errors.splitlines()

    (line,) = remarks("method=sgd,swa,sam", "seed=1,2")
    assert line == (
        "recipes are compared, not methods alone: sgd and swa by swa2018, sam by asam2021; "
        "protocol=swa2018 or protocol=asam2021 trains all by one"
    )
    assert remarks("method=sgd,sam", "protocol=swa2018,asam2021") == []
    assert remarks("experiment=table1/vgg16_cifar10,table3/resnet20") == []


def test_history_grows_with_every_epoch_and_ends_as_ever(five_runs: Sweep, tmp_path: Path) -> None:
    whole = (five_runs.folders["sgd"] / "history.csv").read_text()
    with halted(*SMALL, "budget=2", "method=sgd", cwd=tmp_path, at="train 60") as process:
        (folder,) = folders(tmp_path)
        assert (folder / "history.csv").read_text().splitlines() == whole.splitlines()[:2]
        process.kill()
    process = start(*SMALL, "budget=2", "method=sgd", cwd=tmp_path)
    assert finish(process).returncode == 0
    assert (folder / "history.csv").read_text() == whole
    assert not list(folder.glob(".*.tmp"))
