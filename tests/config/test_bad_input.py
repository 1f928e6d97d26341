"""Bad input through the real command: one line on stderr, exit code 2, the nearest valid name, nothing written.

What the config alone shows is refused in this process, all the rest in processes of their own.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command import OWN, SMALL, folders, result, run
from in_process import said
from PIL import Image

# Told from the config alone, in the fraction of a second that comes before torch is imported.
METHODS = "asam, fge, friendly_sam, gsam, late_sam, looksam, msam, sam, sam_on, sgd, swa"
STEPS = "asam, friendly_sam, gsam, late_sam, looksam, msam, sam, sam_on, sgd"

OF_THE_CONFIG = {
    # keys
    ("sed=2",): 'unknown key sed; did you mean "seed"?',
    ("+sed=2",): 'unknown key sed; did you mean "seed"?',
    ("-m", "sed=1,2"): 'unknown key sed; did you mean "seed"?',
    ("label_noise=0.4",): 'unknown key label_noise; did you mean "dataset.label_noise"?',
    ("method=sam", "step.roh=1"): 'unknown key step.roh; did you mean "step.rho"?',
    ("step.rho=1",): "unknown key step.rho; step=asam or friendly_sam or gsam or looksam or msam or sam has it",
    ("dataset.path=x",): "unknown key dataset.path; dataset=image_folder has it",
    ("step.rh=1",): "unknown key step.rh",
    ("hydra/launcher=local",): "hydra/launcher distributes the runs of a sweep: expected -m as well",
    ("hydra/sweeper=basic",): "hydra/sweeper chooses the runs of a sweep: expected -m as well",
    (
        "-m",
        "hydra/launcher=local",
        "hydra.launcher.njobs=2",
    ): 'unknown key hydra.launcher.njobs; did you mean "hydra.launcher.n_jobs"?',
    ("-m", "hydra/launcher=slurm", "hydra.launcher.poll=1e10"): (
        "hydra.launcher.poll=10000000000.0: expected a number from 0.1 to 86,400"
    ),
    ("-m", "hydra/launcher=slurm", "hydra.launcher.gpus=0.5"): (
        "hydra.launcher.gpus=0.5: expected a whole number from 0 to 1,024"
    ),
    ("datset.validation=1",): 'unknown key datset.validation; did you mean "dataset.validation"?',
    ("+checkpoint.minute=1",): 'unknown key checkpoint.minute; did you mean "checkpoint.minutes"?',
    ("+method.stepp=sam",): 'unknown key method.stepp; did you mean "method.step"?',
    ("~lr",): "~lr: a key cannot be removed",
    ("~seed",): "seed is missing: a key cannot be removed",
    ("~method",): "method=null: expected a name",
    ("--seed=3",): "unknown option --seed=3: a key is given without dashes, seed=3",
    ("--mulitrun",): 'unknown option --mulitrun; did you mean "--multirun"?',
    ("--config-dir",): "expected one argument",
    ("--config-dir", "nowhere"): "nowhere' not found",
    ("-m", "seed=range(0)"): "-m: the sweep has no runs",
    ("repeat=\r",): r"repeat=\r: expected a run folder",
    # choices
    ("method.name=sam",): "method.name=sam: that is another method; this run is sgd",
    (
        "dataset=cifar11",
    ): 'dataset=cifar11: expected one of cifar10, cifar100, digits, image_folder; did you mean "cifar10"?',
    ("model=resnet57",): '; did you mean "resnet56"?',
    ("method=smg",): f'method=smg: expected one of {METHODS}; did you mean "sam" or "sgd"?',
    ("step=asma",): f'step=asma: expected one of {STEPS}; did you mean "asam"?',
    ("collect=swo",): 'collect=swo: expected one of ema, fge, lawa, none, swa, swa_paper, swag; did you mean "swa"?',
    ("schedule=cosin",): '; did you mean "cosine"?',
    ("protocol=asam2012",): 'protocol=asam2012: expected one of asam2021, swa2018; did you mean "asam2021"?',
    ("experiment=table3/resnet21",): '; did you mean "table3/resnet20"?',
    (
        "-m",
        "experiment=glob(table4/*)",
    ): "experiment=glob(table4/*): no experiment matches; expected some of label_noise/resnet32, quickstart, ",
    ("-m", "method=sgd,asma"): f'method=asma: expected one of {METHODS}; did you mean "asam"?',
    ("dataset=[cifar10,cifar100]",): (
        "dataset: expected one choice, found a list; several are the runs of a sweep, -m dataset=A,B"
    ),
    ("-m", "dataset=[cifar10,cifar100]"): "dataset: expected one choice, found a list",
    ("optimizer=[sgd,adamw]",): "optimizer: expected one choice, found a list",
    ("schedule=[cosine,constant]",): "schedule: expected one choice, found a list",
    ("protocol=[swa2018,asam2021]",): "protocol: expected one choice, found a list",
    ("model=[resnet20,resnet56]",): "model: expected one choice, found a list",
    ("method=[sgd,sam]",): "method: expected one choice, found a list",
    ("experiment=[quickstart,table3/resnet20]",): "experiment: expected one choice, found a list",
    ("~step",): "step is missing: a key cannot be removed",
    ("protocol=swa2018,asam2021",): "protocol=swa2018,asam2021: a list of values is a sweep and needs -m",
    ("collect=swa,ema",): "needs -m; several collectors are joined by +, as collect=swa+ema",
    # types and ranges
    ("method=fge", "collect.cycle=null"): "collect.cycle=null: expected a share of the budget above 0",
    ("dataset=image_folder", "dataset.path=null"): "dataset.path=null: expected a folder",
    ("lr=abc",): 'lr="abc": expected a number > 0',
    ("lr=",): 'lr="": expected a number > 0',
    ("lr=0",): "lr=0: expected a number > 0",
    ("lr=${nothing}",): "lr: Interpolation key 'nothing' not found",
    ("schedule=fge",): "this one has no collect.start; expected schedule.start=BUDGETS, or a collector with start",
    ("collect=ema", "schedule=swa"): "schedule.cycle: is that of the collector, and this one has no collect.cycle",
    ("lr=${recipe:lrr}",): 'protocol=swa2018 has no value for lrr; did you mean "lr"?',
    ("seed=1.5",): "seed=1.5: expected a whole number from 0 to 2^63 - 1",
    ("seed=9223372036854775808",): "seed=9223372036854775808: expected a whole number from 0 to 2^63 - 1",
    ("seed=" + "1" * 5000,): "...: expected a whole number from 0 to 2^63 - 1",
    ("lr=???",): "lr=???: expected a number > 0",
    ("+dataset=cifar10",): "+dataset: there is such a group, and its choice is given without the +",
    ("-m", "+experiment=glob(table4/*)"): "+experiment=glob(table4/*): no experiment matches; expected some of ",
    ("seed=1,2",): "seed=1,2: a list of values is a sweep and needs -m",
    ("nesterov=2",): "nesterov=2: expected true or false",
    ("batch_size=0",): "batch_size=0: expected a whole number >= 1",
    ("budget=0",): "budget=0: expected a number of epochs > 0",
    ("budget=-1",): "budget=-1: expected a number of epochs > 0",
    ("budget=nan",): "budget=NaN: expected a number of epochs > 0",
    ("budget=inf",): "budget=Infinity: expected a number of epochs > 0",
    ("method=sam", "step.rho=-1"): "step.rho=-1: expected a number >= 0",
    ("method=asam", "step.p=0.5"): "step.p=0.5: expected a number >= 1, or inf",
    ("augmentation.mean=3",): "augmentation.mean=3: expected a list of three numbers",
    ("augmentation=3",): "augmentation=3: expected the group's own keys",
    ("method=swa", "collect.budgets=[a]"): 'collect.budgets=["a"]: expected a list of numbers of budgets',
    ("method=swa", "collect.cycle=0"): "collect.cycle=0: expected a number of budgets > 0, or null",
    ("precision=fp16",): 'precision="fp16": expected one of auto, fp32, tf32, bf16',
    ("precision=tf32", "device=cpu"): "precision=tf32: expected a CUDA device, this run is on cpu",
    ("graphs=true", "device=cpu"): "graphs=true: expected a CUDA device, this run is on cpu",
    ("graphs=sometimes",): 'graphs="sometimes": expected one of auto, true, false',
    ("trunk=shared",): 'trunk="shared": expected one of none, share; did you mean "share"?',
    ("trunk=share", "keep=snapshots"): "trunk=share: the weights of epochs that another run has trained cannot be kept",
    ("cuda_graphs=true",): "unknown key cuda_graphs: graphs=auto, true or false says whether steps are recorded as a "
    "CUDA graph",
    ("memory_format=nhwc",): 'memory_format="nhwc": expected one of auto, channels_last, contiguous',
    ("device=gpu",): 'device="gpu": expected auto, cpu, cuda or cuda:N',
    ("model.name=../../x",): 'model.name="../../x": expected a name',
    ("dataset=image_folder",): "dataset.path: Missing mandatory value: path",
    # values that change nothing
    ("+model.num_classes=20",): "model.num_classes: the number of classes is that of the data set",
    ("method=swa", "schedule.low=0.001"): (
        "schedule.low=0.001: schedule.tail=constant has no use for it; expected schedule.low=null, or "
        "schedule.tail=triangle or sawtooth with it"
    ),
    ("method=swa", "schedule.replay_from=0.5"): "schedule.replay_from=0.5: schedule.tail=constant has no use for it",
    ("method=fge", "schedule.tail=null", "schedule.low=null", "schedule.high=0.1"): (
        "schedule.high=0.1: schedule.tail=null has no use for it"
    ),
    ("method=swa", "schedule.shape=steps", "schedule.decay_to=0.01"): (
        "schedule.decay_to=0.01: schedule.shape=steps has no use for it; expected schedule.decay_to=null, or "
        "schedule.shape=linear or cosine with it"
    ),
    ("method=swa", "schedule.cycle=0.3"): (
        "schedule.cycle=0.3: schedule.tail=constant has no use for it; expected schedule.cycle=null, or "
        "schedule.tail=triangle or sawtooth or replay with it"
    ),
    ("method=sgd", "+schedule.start=0.5"): (
        "schedule.start=0.5: schedule.tail=null has no use for it; expected it left out, or schedule.tail=constant or "
    ),
    ("schedule=constant", "+schedule.decay_over=0.5"): (
        "schedule.decay_over=0.5: schedule.shape=constant has no use for it; expected it left out, or "
        "schedule.shape=linear or cosine or steps with it"
    ),
    # overrides that are none
    ("lr=[1",): "lr=[1: expected KEY=VALUE or GROUP=CHOICE",
    ("method",): "method: expected KEY=VALUE or GROUP=CHOICE",
    ("=",): "=: expected a key or a group before the =",
    ("@lr=1",): "@lr=1: expected a key or a group before the =",
}

# Told by the parts of a run when they are built.
OF_THE_PARTS = {
    ("batch_size=2000",): "batch_size=2000: expected a whole number from 1 to 1438, the number of training images",
    (
        "dataset.validation=1438",
    ): "broadopt-run: dataset.validation=1438: expected a whole number from 0 to 1437, fewer than the 1438 training",
    (
        "method=sam",
        "+step.roh=1",
    ): 'unknown key step.roh; did you mean "step.rho"? (broadopt.methods.sam.sam has no such',
    ("+optimizer.lr=1",): "optimizer.lr: the schedule sets the learning rate of each step; expected lr= in its place",
    ("+optimizer.foo=1",): "unknown key optimizer.foo (broadopt.methods.steps.optimizers.sgd has no such argument)",
    (
        "+collect.start=1",
    ): "collect=ema or fge or swa or swa_paper or swag has it (broadopt.methods.collect.Nothing has no such argument)",
    ("+dataset.verify=false",): (
        "unknown key dataset.verify; dataset=cifar10 or cifar100 has it (broadopt.datasets.digits has no such argument)"
    ),
    ("+schedule.warmpu=1",): (
        'unknown key schedule.warmpu; did you mean "schedule.warmup"? (broadopt.schedule.Schedule has no such argument)'
    ),
    ("+augmentation.pda=1",): 'unknown key augmentation.pda; did you mean "augmentation.pad"? (broadopt.augment.Augme',
    ("dataset._target_=broadopt.datasets.digit",): '; did you mean "broadopt.datasets.digits"?',
    ("schedule._target_=broadopt.schedule.Scedule",): '; did you mean "broadopt.schedule.Schedule"?',
    ("model=pyramidnet272_shakedrop", "model.final_drop_probability=true"): (
        "model.final_drop_probability=True: expected a number from 0 to 1"
    ),
    ("model.depth=21",): "model.depth=21: a ResNet has depth 6n + 2 with n >= 1; nearest: 20",
}

OF_A_CONFIG_FILE = {
    "_target_: broadopt.models.resnet.ResNett": '; did you mean "broadopt.models.resnet.ResNet"?',
    "_target_: nowhere.Net": "model._target_=nowhere.Net: cannot be loaded (ModuleNotFoundError(",
    "_target_: builtins.dict": "model._target_=builtins.dict: expected a torch.nn.Module, found dict",
    "{_target_: broadopt.models.resnet.ResNet, deph: 8}": 'unknown key model.deph; did you mean "model.depth"?',
    "_target_: [": "while parsing a flow node",
}


def line_of(process: "subprocess.CompletedProcess[str]", folder: Path) -> str:
    """The one line that bad input gets; `folder` holds nothing that a run would have written."""
    assert process.returncode == 2, process.stderr
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("broadopt-run: ")
    assert not (folder / "results/runs").exists()
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"), OF_THE_CONFIG.items(), ids=[" ".join(words)[:80] for words in OF_THE_CONFIG]
)
def test_a_bad_config_is_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    done = said("broadopt-run", "experiment=quickstart", *arguments, cwd=tmp_path)
    assert expected in line_of(subprocess.CompletedProcess(arguments, *done), tmp_path)
    if "-m" not in arguments:
        assert list(tmp_path.iterdir()) == []


def test_no_list_is_offered_for_a_group(tmp_path: Path) -> None:
    _, _, line = said("broadopt-run", "protocol=swa2018,asam2021", cwd=tmp_path)
    assert "[a,b]" not in line
    _, _, line = said("broadopt-run", "collect.budgets=1,1.25", cwd=tmp_path)
    assert "[a,b]" in line


@pytest.mark.parametrize(("arguments", "expected"), OF_THE_PARTS.items(), ids=map(" ".join, OF_THE_PARTS))
def test_a_bad_part_is_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    assert expected in line_of(run("experiment=quickstart", *arguments, cwd=tmp_path), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "expected"), OF_A_CONFIG_FILE.items(), ids=OF_A_CONFIG_FILE)
def test_a_bad_network_of_a_user_is_one_line(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text(content)
    process = run("--config-dir", "own", "experiment=quickstart", "model=mine", cwd=tmp_path)
    assert expected in line_of(process, tmp_path)


@pytest.mark.parametrize(
    ("recipe", "key"),
    [
        ("lr: 0.3", "lr"),
        ("lr: [0.3]", "lr"),
        ("mean: [0.5, 0.5, 0.5]", "mean"),
        ("lr: [0.3, 0.1]", "lr"),
    ],
)
def test_a_value_without_its_source_in_a_protocol_of_the_user_is_one_line(
    recipe: str, key: str, tmp_path: Path
) -> None:
    (tmp_path / "own/protocol").mkdir(parents=True)
    (tmp_path / "own/protocol/mine.yaml").write_text(
        f"defaults: [asam2021, _self_]\nname: mine\nrecipe: {{{recipe}}}\n"
    )
    for plan in ([], ["plan=true"]):
        done = said("broadopt-run", "--config-dir", "own", "protocol=mine", *plan, cwd=tmp_path)
        line = f"broadopt-run: protocol=mine: recipe.{key}: expected [value, source], the source as text\n"
        assert done == (2, "", line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "name: mine\nrecipe: {learning_rate: [0.3, x]}",
            'no config has ${recipe:learning_rate}; did you mean "lr"?\n',
        ),
        ("name: mine\nrecipe: {swa_strat: [0.3, x]}", 'no config has ${recipe:swa_strat}; did you mean "swa_start"?\n'),
        ("name: mine\nrecipe: {k: [1, x]}", "no config has ${recipe:k}; expected some of autoaugment, batch_size, "),
        ("recipe: {lr: [0.3, x]}", "its name is asam2021, that of another; expected name: mine\n"),
    ],
)
def test_a_value_of_a_protocol_that_nothing_looks_up_is_not_passed_over(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "own/protocol").mkdir(parents=True)
    (tmp_path / "own/protocol/mine.yaml").write_text(f"defaults: [asam2021, _self_]\n{text}\n")
    code, output, errors = said("broadopt-run", "--config-dir", "own", "protocol=mine", "plan=true", cwd=tmp_path)
    assert (code, output) == (2, "")
    assert errors.startswith("broadopt-run: protocol=mine: ")
    assert line in errors


def test_a_protocol_may_have_a_value_that_a_step_of_ones_own_looks_up(tmp_path: Path) -> None:
    for group, text in (
        ("protocol", "defaults: [asam2021, _self_]\nname: mine\nrecipe: {k: [1, x]}\n"),
        ("step", "_target_: mine.mine\nrho: ${recipe:k}\n"),
    ):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "mine.yaml").write_text(text)
    code, output, _ = said("broadopt-run", "--config-dir", "own", "protocol=mine", "plan=true", cwd=tmp_path)
    assert (code, "protocol mine" in output) == (0, True)


def test_a_choice_of_the_user_in_any_language_is_named_as_it_has_to_be_given(tmp_path: Path) -> None:
    (tmp_path / "own/protocol").mkdir(parents=True)
    (tmp_path / "own/protocol/été.yaml").write_text("defaults: [asam2021, _self_]\nname: été\n")
    done = said("broadopt-run", "--config-dir", "own", "protocol=été", "plan=true", cwd=tmp_path)
    words = "expected a name that Hydra's grammar takes; in quotes: 'protocol=\"été\"'"
    assert done == (2, "", f"broadopt-run: protocol=été: {words}\n")
    code, output, _ = said("broadopt-run", "--config-dir", "own", 'protocol="été"', "plan=true", cwd=tmp_path)
    assert (code, "protocol été" in output) == (0, True)


def test_a_config_of_the_user_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_bytes(b"\xff\xfe_\0")
    code, output, errors = said("broadopt-run", "--config-dir", "own", "model=mine", "plan=true", cwd=tmp_path)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert errors.startswith("broadopt-run: own/model/mine.yaml: expected YAML, in UTF-8 (")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--config-dir="], "an empty name"),
        (["--config-dir", ""], "an empty name"),
        (["--config-dir", "own", "--config-dir=other"], "2"),
        (["-cd", "own", "--config-dir=other"], "2"),
    ],
)
def test_the_folder_of_the_users_configs_is_one(options: list[str], found: str, tmp_path: Path) -> None:
    """An empty variable of the shell would leave the user's own files out, a second option those of the first."""
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
    line = f"broadopt-run: --config-dir: expected one folder, found {found}\n"
    assert said("broadopt-run", *options, "plan=true", cwd=tmp_path) == (2, "", line)


def test_a_choice_of_the_user_is_listed_with_those_that_are_shipped(tmp_path: Path) -> None:
    line = line_of(run(*SMALL, "model=smal", cwd=tmp_path), tmp_path)
    assert "broken, densenet121, " in line
    assert line.endswith('; did you mean "small"?')


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "[a]"}, "own/collect/a.yaml: its defaults lead back to it; expected other files"),
        ({"a": "[swa, a, _self_]"}, "own/collect/a.yaml: its defaults lead back to it; expected other files"),
        ({"a": "[/collect/a]"}, "own/collect/a.yaml: its defaults lead back to it; expected other files"),
        (
            {"a": "[b]", "b": "[{/collect@_here_: c}]", "c": "[a]"},
            "own/collect/a.yaml: its defaults lead back to it, by ",
        ),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_configs_that_name_each_other_are_one_line(
    files: dict[str, str], expected: str, sweep: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "own/collect").mkdir(parents=True)
    for name, defaults in files.items():
        (tmp_path / f"own/collect/{name}.yaml").write_text(f"defaults: {defaults}\n")
    code, out, err = said("broadopt-run", "--config-dir", "own", "collect=a", *sweep, cwd=tmp_path)
    assert (code, out) == (2, "")
    assert err.startswith(f"broadopt-run: {expected}")
    assert err.endswith("; expected other files\n")
    assert err.count("\n") == 1


def test_a_function_as_a_schedule_is_told_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "own/schedule").mkdir(parents=True)
    (tmp_path / "halving.py").write_text(
        "def halving(epochs, *, step, lr):\n    return lr\n\n"
        "class Halving:\n    def __init__(self, lr, missing):\n        pass\n\n"
        "def at_once(lr, epochs=0.0, step=0.0):\n    return lr\n"
    )
    for name in ("halving", "Halving", "at_once"):
        (tmp_path / f"own/schedule/{name}.yaml").write_text(f"_target_: halving.{name}\nlr: 1.0\n")
    given = ("--config-dir", "own", "experiment=quickstart", "device=cpu")
    line = line_of(run(*given, "schedule=halving", cwd=tmp_path, PYTHONPATH=str(tmp_path)), tmp_path)
    assert line.startswith("broadopt-run: schedule._target_=halving.halving: ")
    assert line.endswith("; a function that gives the lr needs _partial_: true beside its _target_")
    line = line_of(run(*given, "schedule=Halving", cwd=tmp_path, PYTHONPATH=str(tmp_path)), tmp_path)
    assert line.endswith("missing 1 required positional argument: 'missing'"), "a class needs no such key"
    line = line_of(run(*given, "schedule=at_once", cwd=tmp_path, PYTHONPATH=str(tmp_path)), tmp_path)
    said_of = "its _target_ gives 1.0; a function that gives the lr needs _partial_: true"
    assert line == f"broadopt-run: schedule: {said_of}"


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_not_there_is_one_line(device: str, tmp_path: Path) -> None:
    if torch.cuda.device_count() > int(device.partition(":")[2] or 0):
        pytest.skip("this machine has that GPU")
    count = torch.cuda.device_count()
    found = f"{count} CUDA device{'s' * (count != 1)}" if count else "no CUDA device"
    expected = f"device={device}: this machine has {found}; expected cpu, auto or one that exists"
    assert expected in line_of(run("experiment=quickstart", f"device={device}", cwd=tmp_path), tmp_path)


def test_missing_files_that_cannot_be_downloaded_are_one_line(tmp_path: Path) -> None:
    # Nothing answers at this proxy, whether the machine has a network or not.
    process = run("dataset=cifar10", "data_dir=data", cwd=tmp_path, https_proxy="http://127.0.0.1:9")
    line = line_of(process, tmp_path)
    assert "no data_batch_1, data_batch_2, " in line
    assert "in data/cifar-10-batches-py, and the download of https://" in line


def test_damaged_files_are_one_line_each_way(tmp_path: Path, small_cifar: Callable[..., Path]) -> None:
    folder = small_cifar()
    (folder / "data_batch_2").write_bytes((folder / "data_batch_2").read_bytes()[:-20])
    command = ("dataset=cifar10", f"data_dir={tmp_path}")
    line = line_of(run(*command, cwd=tmp_path), tmp_path)
    assert f"{folder / 'data_batch_1'}: MD5 " in line
    line = line_of(run(*command, "dataset.verify=false", cwd=tmp_path), tmp_path)
    assert f"{folder / 'data_batch_2'}: truncated, or not a file of the CIFAR layout" in line


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(tmp_path / "pets" / split / name / "1.png")
    bad = tmp_path / "pets/train/dog/1.png"
    bad.write_bytes(bad.read_bytes()[:50])
    process = run("dataset=image_folder", "dataset.path=pets", cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path))
    assert "pets/train/dog/1.png: cannot be read as an image" in line_of(process, tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_results_folder_that_cannot_be_made_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    line = line_of(run(*SMALL, f"results_dir={place}", cwd=tmp_path), tmp_path)
    assert line.startswith(f"broadopt-run: results_dir: {place}/runs/digits/small/sgd/seed1-")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_sweep_of_nothing_but_bad_runs_exits_with_2_and_names_them_all(tmp_path: Path) -> None:
    process = run("-m", "experiment=quickstart", "seed=-1,-2", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.splitlines()[-3:] == [
        "broadopt-run: 2 of the sweep's runs failed:",
        "  experiment=quickstart seed=-1: seed=-1: expected a whole number from 0 to 2^63 - 1",
        "  experiment=quickstart seed=-2: seed=-2: expected a whole number from 0 to 2^63 - 1",
    ]
    assert not (tmp_path / "results/runs").exists()


def test_data_that_cannot_be_used_are_said_once_and_read_once(tmp_path: Path, small_cifar: Callable[..., Path]) -> None:
    """The runs with other data are trained."""
    folder = small_cifar()
    sweep = (*SMALL, "budget=0.1", f"data_dir={tmp_path}", "dataset=cifar10,digits", "seed=1,2", "method=sgd,sam")
    process = run("-m", *sweep, cwd=tmp_path)
    assert process.returncode == 1
    reason = f"{folder / 'data_batch_1'}: MD5 "
    first, last = [line for line in process.stderr.splitlines() if reason in line]
    assert first.startswith("broadopt-run: ")
    assert first.endswith(" by dataset.verify=false; no run with these data can be carried out")
    assert "dataset=cifar10 seed=1 method=sgd and 3 other runs with these data: " in last
    assert "broadopt-run: 4 of the sweep's runs failed:" in process.stderr
    assert [result(path)["dataset"] for path in folders(tmp_path)] == ["digits"] * 4


def test_a_sweep_of_bad_data_alone_ends_with_2(tmp_path: Path) -> None:
    process = run("-m", *SMALL, "dataset=image_folder", "dataset.path=nowhere", "seed=1,2,3", cwd=tmp_path)
    assert process.returncode == 2
    assert process.stderr.count("nowhere/train: cannot be listed") == 2
    assert process.stderr.splitlines()[-2] == "broadopt-run: 3 of the sweep's runs failed:"
    assert " seed=1 and 2 other runs with these data: " in process.stderr.splitlines()[-1]
    assert not (tmp_path / "results/runs").exists()


def test_a_sweep_that_has_finished_a_run_does_not_say_that_nothing_was_trained(tmp_path: Path) -> None:
    process = run("-m", *SMALL, "budget=0.1", "device=cpu,cuda:99", cwd=tmp_path)
    assert process.returncode == 1
    assert "device=cuda:99: this machine has " in process.stderr.splitlines()[-1]
    assert [result(folder)["state"] for folder in folders(tmp_path)] == ["finished"]


def test_the_users_folder_is_no_part_of_the_shipped_configs(tmp_path: Path) -> None:
    line = line_of(run("experiment=quickstart", "model=small", cwd=tmp_path), tmp_path)
    assert OWN.is_dir()
    assert "small," not in line
