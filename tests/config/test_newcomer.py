"""What a newcomer types: names of other programs, other spellings, own files with a line too few. Each gets the one
right answer; a handful through the real command, the others in one process.
"""

from pathlib import Path

import pytest
from command import SMALL, folders, run
from in_process import said

from broadopt.config.habits import RENAMED, SENTENCES
from broadopt.config.rules import RULES
from broadopt.config.run_config import GROUPS
from broadopt.config.shipped import config_dir, options
from broadopt.errors import nearest

LENGTH = ": the length of a run is budget, in epochs: budget=200"
KEYS = {
    **dict.fromkeys(("epochs=3", "num_epochs=3", "max_epochs=3", "n-epochs=3", "trainer.max_epochs=3"), LENGTH),
    "wd=1": '; did you mean "weight_decay"?',
    "learning_rate=1": '; did you mean "lr"?',
    "learningRate=1": '; did you mean "lr"?',
    "bs=3": '; did you mean "batch_size"?',
    "batch=3": '; did you mean "batch_size"?',
    "BATCH-SIZE=3": '; did you mean "batch_size"?',
    "arch=x": '; did you mean "model"?',
    "network=x": '; did you mean "model"?',
    "warmup_epochs=5": ": the lr rises over so many budgets: schedule.warmup=0.025 is 5 of 200 epochs",
    "max_grad_norm=5": '; did you mean "clip"?',
    "opt=adam": ": the optimizer is optimizer=sgd or adamw; what is built on it is the method, method=sam for example",
    "optimizer.lr=1": '; did you mean "lr"?',
    **dict.fromkeys(
        ("logger=x", "wandb=true"),
        ": the curves go to a tracker by tracker=tensorboard, wandb, mlflow or trackio, and to history.csv in any case",
    ),
    **dict.fromkeys(
        ("workers=3", "num_workers=3"),
        ": there are no data workers: images stay on the device and are augmented there",
    ),
    "resume=true": ": a run goes on from its checkpoint by itself: give the same command again",
    **dict.fromkeys(
        ("gpu=0", "gpus=1"),
        ": one run is on one device, device=cuda or device=cuda:N; torchrun spreads a run over several",
    ),
    **dict.fromkeys(("output=x", "output_dir=x", "log_dir=x"), ": the folder that results go to is results_dir=FOLDER"),
    **dict.fromkeys(
        ("amp=true", "fp16=true"),
        ": precision=bf16 is mixed precision, and precision=auto takes it where the device has it",
    ),
    **dict.fromkeys(
        ("data=x", "root=x"),
        ": the folder of CIFAR is data_dir=FOLDER, that of your own images dataset=image_folder dataset.path=FOLDER",
    ),
    "rho=0.1": "; step.rho is a key of method=asam or friendly_sam or gsam or looksam or msam or sam",
    "eta=0.1": "; step.eta is a key of method=asam",
    "partition=x": "; hydra.launcher.partition is a key of hydra/launcher=slurm",
    "depth=20": '; did you mean "model.depth"?',
    "Seed=3": '; did you mean "seed"?',
    "xyzzy=1": "",
}
"""What follows "unknown key KEY"."""

LIST = "expected one of asam, fge, friendly_sam, gsam, late_sam, looksam, msam, sam, sam_on, sgd, swa"
BELOW = "; that is an optimizer, and lies below a step: optimizer=adamw, or optimizer._target_=MODULE.CLASS"
LINES = {
    # choices: letter case and dashes, other libraries' names
    ("method=SAM",): f'method=SAM: {LIST}; did you mean "sam"?',
    ("method=adam",): f"method=adam: {LIST}{BELOW}",
    ("optimizer=muon",): "; your own, or torch's: optimizer._target_=torch.optim.RMSprop, say",
    ("dataset=CIFAR10",): '; did you mean "cifar10"?',
    ("dataset=Cifar-100",): '; did you mean "cifar100"?',
    ("dataset=imagenet",): "; your own images: dataset=image_folder dataset.path=FOLDER",
    ("dataset=/data/pets",): "; your own images: dataset=image_folder dataset.path=FOLDER",
    ("model=ResNet20",): '; did you mean "resnet20"?',
    ("model=wrn-28-10",): '; did you mean "wrn28_10"?',
    ("model=WideResNet28_10",): '; did you mean "wrn28_10"?',
    ("model=resnet18",): '; did you mean "resnet20", "resnet32" or "resnet56"?',
    ("model=resnet20.yaml",): "model=resnet20.yaml: a choice is given by its name alone, model=resnet20",
    ("model=./resnet20",): "model=./resnet20: a choice is given by its name alone, model=resnet20",
    ("method=sam", "step=sam.yaml"): "step=sam.yaml: a choice is given by its name alone, step=sam",
    ("experiment=resnet20",): '; did you mean "table3/resnet20"?',
    ("experiment=table3",): "; all 8 of table3: -m 'experiment=glob(table3/*)'",
    ("experiment=table3/*",): "; all 8 of table3: -m 'experiment=glob(table3/*)'",
    ("-m", "experiment=glob(table3)"): "; all 8 of table3: -m 'experiment=glob(table3/*)'",
    ("hydra/launcher=sbatch", "-m"): '; did you mean "slurm"?',
    ("hydra/sweeper=ax", "-m"): "; it comes with pip install hydra-ax-sweeper",
    # values
    ("device=gpu",): 'device="gpu": expected auto, cpu, cuda or cuda:N; did you mean "cuda"?',
    ("device=1",): '; did you mean "cuda:1"?',
    ("precision=fp16",): '; did you mean "bf16"?',
    ("precision=FP32",): '; did you mean "fp32"?',
    ("memory_format=NHWC",): '; did you mean "channels_last"?',
    ("force=yes",): 'force="yes": expected true or false; did you mean "true"?',
    ("wait=0",): 'wait=0: expected true or false; did you mean "false"?',
    ("seed=[1,2]",): "seed=[1, 2]: expected a whole number from 0 to 2^63 - 1; several values are a sweep, -m seed=1,2",
    ("seed=1..3",): "; a range of values is a sweep, -m 'seed=range(1,4)'",
    ("seed=1-3",): "; a range of values is a sweep, -m 'seed=range(1,4)'",
    # keys given like options
    ("--seed", "3"): "unknown option --seed: a key is given without dashes, seed=3",
    ("--seed=3",): "unknown option --seed=3: a key is given without dashes, seed=3",
    ("-seed", "3"): "unknown option -seed: a key is given without dashes, seed=3",
    ("--batch-size", "32"): "unknown option --batch-size: a key is given without dashes, batch_size=32",
    ("--wd", "0.1"): "unknown option --wd: a key is given without dashes, weight_decay=0.1",
    ("--epochs", "3"): f"unknown option --epochs{LENGTH}",
    ("method=ema",): f"{LIST}; it goes with any step: collect=ema",
    ("step=SWAG",): "late_sam, looksam, msam, sam, sam_on, sgd; it goes with any step: collect=swag",
    ("method=sam+swa",): "; a step and what it is averaged by are two choices: method=sam collect=swa",
    ("collect=polyak",): '; did you mean "ema"?',
    (
        "collect=[swa,ema]",
    ): "collect: expected one choice, found a list; several collectors are joined by +, as collect=swa+ema",
    ("collect=swa+emma",): '; of several, emma is none of these; did you mean "ema"?',
    ("collect=swa+",): "; of several, an empty name is none of these",
    ("collect=swa+ema+swa",): "; of several, each is given once",
    ("collect=none+ema",): "; of several, none stands alone",
    ("collect=ema", "collect.decy=0.9"): 'unknown key collect.decy; did you mean "collect.decay"?',
    (
        "collect=swa+ema",
        "collect.ema.decay=0.9",
    ): 'unknown key collect.ema.decay; did you mean "collect.also.ema.decay"?',
    (
        "collect=swa+ema",
        "collect.also.ema.decay=1",
    ): "collect.also.ema.decay=1: expected a number from 0 to below 1, or null",
    (
        "collect=swa+ema",
        "collect.also=3",
    ): "collect.also: expected collectors by name; they are chosen by collect=swa+ema, for example",
    (
        "collect=swa+ema",
        "collect.also.ema.start=2",
        "plan=true",
    ): "collect.also.ema.start=2.0: expected 0 to 1, the first evaluation point of collect.also.ema.budgets",
    ("collect=swag", "collect.rank=1"): "collect.rank=1: expected 0 (the diagonal alone) or a whole number >= 2",
    ("--method", "sam"): "unknown option --method: a key is given without dashes, method=sam",
}

OWN_FILES = {
    "method/rsam": "defaults:\n  - override /protocol: asam2021\nmethod: {step: rsam, collect: none}\n",
    "method/averaged": "defaults:\n  - override /step: rsam\nmethod: {step: rsam, collect: swa}\n",
    "method/good": "defaults:\n  - override /step: rsam\nmethod: {step: rsam, collect: none}\n",
    "method/child": "defaults:\n  - good\n  - override /collect: swa\nmethod: {step: rsam, collect: swa}\n",
    "method/several": "defaults:\n  - override /collect: mine+ema\nmethod: {step: sgd, collect: mine+ema}\n",
    "method/keys": "step: {rho: 0.1}\nmethod: {step: {rho: 0.1}}\n",
    "experiment/body": "method: sam\n",
    "experiment/named": "method: {step: rsam}\n",
    "experiment/composed": "defaults:\n  - override /method: sam\n  - override /collect: swa\n",
}
SAYS_RSAM = (
    "method=rsam: its file says step: rsam, but its defaults choose step: sgd; "
    "expected the line `- override /step: rsam` in them"
)
OWN_LINES = {
    "method=rsam": SAYS_RSAM,
    "method=rsam collect=swa": SAYS_RSAM,
    "method=averaged": "method=averaged: its file says collect: swa, but its defaults choose collect: none; "
    "expected the line `- override /collect: swa` in them",
    "method=keys": "method.step: expected the name of a step; keys of the step itself are step.KEY",
    "method=bare": "method: the chosen file has to begin with the line # @package _global_",
    "method=nested": "method: the chosen file has to begin with the line # @package _global_",
    "method=target": "method._target_: a file with a _target_ is a step, and lies in the folder step",
    "experiment=body": "method=sam: expected the group's own keys, method.KEY=VALUE; "
    "in a file method=sam is `- override /method: sam` among the defaults",
    "experiment=named": "method.step=rsam: it is chosen by step=rsam",
    "method.step=sam": "method.step=sam: it is chosen by step=sam",
    "method=sam method.collect=swa": "method.collect=swa: it is chosen by collect=swa",
}
OWN_NAMES = {
    "method=good": "good",
    "method=child": "child",
    "method=good collect=swa": "rsam+swa",
    "method=good step=sam": "sam",
    "method=several": "several",
    "method=several step=sam": "sam+mine+ema",
    "collect=swa+mine": "sgd+swa+mine",
    "collect=mine+swa collect.latest=3 collect.also.swa.start=0.5": "sgd+mine+swa",
    "method=rsam step=rsam": "rsam",
    "experiment=composed": "sam+swa",
    "method=sam collect=swa": "sam+swa",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with configs of a user's own."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name, content in OWN_FILES.items():
        path = folder / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# @package _global_\n{content}")
    (folder / "own/step").mkdir()
    (folder / "own/step/rsam.yaml").write_text("_target_: broadopt.methods.sam.sam\nrho: 0.1\n")
    (folder / "own/collect").mkdir()
    (folder / "own/collect/mine.yaml").write_text(
        "_target_: broadopt.methods.averaging.lawa.LatestAverage\nlatest: 2\n"
    )
    (folder / "own/method/target.yaml").write_text("_target_: broadopt.methods.sam.sam\nrho: 0.1\n")
    (folder / "own/method/bare.yaml").write_text(OWN_FILES["method/good"])
    (folder / "own/method/nested.yaml").write_text("method: {step: rsam, collect: none}\n")
    return folder


def line_of(*arguments: str, cwd: Path) -> str:
    code, output, errors = said("broadopt-run", *arguments, cwd=cwd)
    assert (code, output) == (2, ""), (code, output, errors)
    (line,) = errors.splitlines()
    return line.removeprefix("broadopt-run: ")


@pytest.mark.parametrize(("override", "expected"), KEYS.items(), ids=KEYS)
def test_a_key_of_another_program_is_answered(override: str, expected: str, place: Path) -> None:
    assert line_of(override, cwd=place) == f"unknown key {override.partition('=')[0]}{expected}"


@pytest.mark.parametrize(("arguments", "expected"), LINES.items(), ids=map(" ".join, LINES))
def test_another_spelling_is_answered(arguments: tuple[str, ...], expected: str, place: Path) -> None:
    line = line_of(*arguments, cwd=place)
    assert line.endswith(expected)
    assert line.count(expected) == 1


@pytest.mark.parametrize(("arguments", "expected"), OWN_LINES.items(), ids=OWN_LINES)
def test_a_file_that_does_not_choose_what_it_says_is_refused(arguments: str, expected: str, place: Path) -> None:
    assert line_of("--config-dir", "own", *arguments.split(), "plan=true", cwd=place) == expected


@pytest.mark.parametrize(("arguments", "name"), OWN_NAMES.items(), ids=OWN_NAMES)
def test_a_composition_on_top_of_a_method_is_carried_out(arguments: str, name: str, place: Path) -> None:
    code, output, errors = said("broadopt-run", "--config-dir", "own", *arguments.split(), "plan=true", cwd=place)
    assert (code, errors) == (0, "")
    assert output.startswith(f"{name} on resnet20, cifar100, ")


@pytest.mark.parametrize("seed", ["[1,2]", "1..3"])
def test_a_sweep_of_one_bad_run_says_it_once(seed: str, place: Path) -> None:
    code, output, errors = said("broadopt-run", "-m", f"seed={seed}", cwd=place)
    assert (code, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.count("expected a whole number from 0 to 2^63 - 1; ") == 1


def test_own_experiments_are_found_by_a_glob(place: Path) -> None:
    sweep = ("--config-dir", "own", "-m", "experiment=glob(comp*)", "plan=true")
    code, output, errors = said("broadopt-run", *sweep, cwd=place)
    assert (code, errors) == (0, "")
    assert output.split()[:3] == ["cifar100", "resnet20", "sam+swa"]


def test_the_real_command_refuses_a_method_that_would_train_plain_sgd(place: Path) -> None:
    process = run(*SMALL[2:3], "--config-dir", "own", "method=rsam", cwd=place)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"broadopt-run: {SAYS_RSAM}\n"
    assert folders(place) == []


def test_every_habit_leads_to_a_key_that_exists_and_hides_none() -> None:
    keys = {*RULES, *(name for rule in RULES for name in rule.split(".")), *GROUPS, "method", "experiment"}
    assert set(RENAMED.values()) <= keys
    # `path`, `p` or `start` alone are keys of some group: these come first where the group is chosen.
    groups = {path.parent.relative_to(config_dir()).as_posix() for path in config_dir().rglob("*.yaml")}
    assert not {*SENTENCES, *RENAMED} & {*(key for key in RULES if "." not in key), *groups}
    assert not SENTENCES.keys() & RENAMED.keys()


GUESSES = {
    ("optimizer", "keys"): "",
    ("logger", "keys"): "",
    ("workers", "keys"): "",
    ("network", "keys"): "",
    ("root", "keys"): "",
    ("sed", "keys"): '; did you mean "seed"?',
    ("lrr", "keys"): '; did you mean "lr"?',
    ("bugdet", "keys"): '; did you mean "budget"?',
    ("predictor", "keys"): '; did you mean "checkpoint.predictor"?',
    ("wrn_28_10", "model"): '; did you mean "wrn28_10"?',
    ("alexnet", "model"): "",
    ("vit", "model"): "",
    ("mobilenet", "model"): "",
    ("svhn", "dataset"): "",
    ("ema", "method"): "",
    ("lookahead", "method"): "",
    ("asma", "method"): '; did you mean "asam"?',
    ("", "method"): "",
}


@pytest.mark.parametrize(("word", "group"), GUESSES)
def test_a_guess_is_right_or_not_made(word: str, group: str) -> None:
    valid = [key for key in RULES if "." not in key] + ["checkpoint.predictor"] if group == "keys" else options(group)
    assert nearest(word, valid) == GUESSES[word, group]
