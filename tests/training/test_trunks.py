"""Trunks without training: what two runs have in common, what each leaves, and in which order a sweep comes."""

import itertools
import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from documents import text
from in_process import said

from broadopt.analysis.status.cells import Cell, Status, commands
from broadopt.analysis.status.state import Run
from broadopt.analysis.tables.request import parse
from broadopt.config.compose import compose, run_config
from broadopt.config.identity import identity_of
from broadopt.config.run_config import Recipe
from broadopt.config.shipped import options
from broadopt.errors import InputError
from broadopt.methods.collect import Nothing
from broadopt.methods.schedule import Schedule
from broadopt.training.calendar import Calendar
from broadopt.training.planning.price import price, share_of_first
from broadopt.training.trunks import beginnings as trunks
from broadopt.training.trunks import store
from broadopt.training.trunks.beginnings import Beginnings
from broadopt.training.trunks.order import Start, beginnings_of, ordered
from broadopt.training.trunks.sweep import SharedSweep

ROWS = {  # epochs that two runs of a row of Table 1 have in common: SGD and SWA, SGD and FGE, SWA and FGE
    "vgg16_cifar10": (81, 100, 81),
    "vgg16_cifar100": (81, 100, 81),
    "preresnet164_cifar10": (64, 75, 64),
    "preresnet164_cifar100": (64, 75, 64),
    "wrn28_10_cifar10": (81, 100, 81),
    "wrn28_10_cifar100": (81, 100, 81),
    "pyramidnet272_cifar100": (300, 228, 228),
    "shakeshake26_2x64d_cifar10": (1800, 1368, 1368),
}
TAKEN = {  # the order of a row's runs, each with what it takes over and from which
    "vgg16": [("swa", 0, ""), ("sgd", 81, "swa"), ("fge", 100, "sgd")],
    "preresnet164": [("swa", 0, ""), ("sgd", 63, "swa"), ("fge", 75, "sgd")],
    "wrn28_10": [("swa", 0, ""), ("sgd", 81, "swa"), ("fge", 100, "sgd")],
    "pyramidnet272": [("sgd", 0, ""), ("swa", 300, "sgd"), ("fge", 225, "sgd")],
    "shakeshake26_2x64d": [("fge", 0, ""), ("sgd", 1368, "fge"), ("swa", 1800, "sgd")],
}
METHODS = ("sgd", "swa", "fge")
FEW_STEPS = "batch_size=12500"
"""Four steps an epoch: what an epoch has in common with another does not hang on how many they are."""


@cache
def recipe(*overrides: str) -> Recipe:
    return run_config(compose(list(overrides))).recipe


def beginnings(*overrides: str) -> Beginnings:
    return Beginnings.of(recipe(*overrides))


def of_row(row: str) -> list[Beginnings]:
    return [beginnings(f"experiment=table1/{row}", f"method={method}", FEW_STEPS) for method in METHODS]


def lrs(schedule: Any, epochs: int, steps: int) -> list[list[float]]:
    """By epoch, the lr of every step, as a training asks for it."""
    return [
        [schedule(step / steps, step=1 / steps) for step in range(epoch * steps, (epoch + 1) * steps)]
        for epoch in range(epochs)
    ]


# What runs have in common


def test_the_rows_are_all_of_table_1() -> None:
    assert {f"table1/{row}" for row in ROWS} == {name for name in options("experiment") if name.startswith("table1/")}


@pytest.mark.parametrize("row", ROWS)
def test_the_runs_of_a_row_have_exactly_these_epochs_in_common(row: str) -> None:
    runs = of_row(row)
    rates = [lrs(one.schedule, math.ceil(one.calendar.epochs), 4) for one in runs]
    for (first, second), expected in zip(itertools.combinations(range(3), 2), ROWS[row], strict=True):
        pairs = zip(rates[first], rates[second], strict=False)
        assert sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)) == expected
        mine, its = runs[first], runs[second]
        assert mine.common == its.common
        assert mine.rates.digest(expected) == its.rates.digest(expected)
        if expected < min(mine.calendar.epochs, its.calendar.epochs):
            assert mine.rates.digest(expected + 1) != its.rates.digest(expected + 1)
    starts = ordered(list(runs))
    found = [(METHODS[one.run], one.epochs, "" if one.of is None else METHODS[one.of]) for one in starts]
    assert found == TAKEN[row.partition("_cifar")[0]]


CYCLES = {"high": 0.1, "low": 0.01, "cycle": 0.1}
SCHEDULES = [
    Schedule(lr=0.1, budget=7, shape="linear"),
    Schedule(lr=0.1, budget=7, shape="linear", count_from=1, tail="triangle", start=0.75, **CYCLES),
    Schedule(lr=0.1, budget=10, shape="steps", tail="constant", start=0.61, high=0.05),
    Schedule(lr=0.1, budget=10, shape="steps", decay_over=0.9, per_step=True, warmup=0.15),
    Schedule(lr=0.1, budget=6, shape="cosine", warmup=0.4),
    Schedule(lr=0.1, budget=6, shape="cosine", per_step=True, count_from=1, tail="sawtooth", start=0.5, **CYCLES),
    Schedule(lr=0.2, budget=9, shape="cosine", tail="replay", start=0.7, replay_from=0.5, cycle=0.2),
    Schedule(lr=0.2, budget=9, shape="constant", tail="constant", start=0.5, high=0.2),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_hash_is_of_every_single_lr(schedule: Schedule) -> None:
    node = {"_target_": "broadopt.schedule.Schedule", **vars(schedule)} | {"start": min(schedule.start, 1e9)}
    own = replace(recipe("method=sgd", "batch_size=7143"), schedule=node)
    found = Beginnings.of(own)
    assert found.calendar.steps_per_epoch == 7
    for epochs in (12, 1, 5):  # in any order
        rates = [lr for epoch in lrs(schedule, epochs, 7) for lr in epoch]
        assert found.rates.digest(epochs) == sha256(struct.pack(f"<{len(rates)}d", *rates)).hexdigest()
    for epoch, each in enumerate(lrs(schedule, 12, 7)):
        assert not schedule.is_constant_in(epoch) or len(set(each)) == 1
    assert lrs(schedule.without_tail(), 12, 7)[0] == lrs(schedule, 12, 7)[0]


def test_a_rate_that_is_the_same_throughout_an_epoch_is_known_to_be() -> None:
    once_an_epoch, with_tail, in_every_step = SCHEDULES[0], SCHEDULES[7], SCHEDULES[3]
    assert once_an_epoch.is_constant_in(3)
    assert with_tail.is_constant_in(2)  # ahead of its tail
    assert not in_every_step.is_constant_in(5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"shape": "linear"}, [100]),
        ({"shape": "linear", "count_from": 1}, [100]),
        ({"shape": "linear", "decay_over": 0.805}, [81]),
        ({"shape": "steps"}, [100, 150]),
        ({"shape": "steps", "decay_over": 0.805, "per_step": True}, [80, 120]),
        ({"shape": "steps", "tail": "constant", "start": 0.7512, "high": 0.1}, [100, 150]),
        ({"shape": "steps", "tail": "constant", "start": 0.5, "high": 0.1}, [100]),
        ({"shape": "cosine", "tail": "constant", "start": 0.805, "high": 0.1}, [161]),
        ({"shape": "cosine", "warmup": 0.1}, []),
        ({"shape": "constant", "tail": "constant", "start": 0, "high": 0.1}, []),
    ],
)
def test_joints_are_where_the_formula_goes_on_by_another_piece(options: dict[str, Any], expected: list[int]) -> None:
    assert Schedule(lr=0.1, budget=200, **options).joints() == expected


# Beginnings


@pytest.mark.parametrize(
    ("overrides", "taken_from", "left"),
    [
        (("method=sgd", "budget=20"), 20, (10, 20)),
        (("method=sgd", "budget=20", "evaluate_every=3"), 20, (10,)),  # row 20 is the last: another's is not evaluated
        (("method=sgd", "budget=20", "evaluate_every=5"), 20, (10, 20)),
        (("method=sgd", "budget=20.5"), 20, (11,)),  # the lr of epoch 11 begins before 10.25, and 20.5 is inside one
        (("method=swa", "budget=20"), 17, (9, 16, 17)),  # the tail begins after 16.1, and 17 is the first end then
        (("method=swa", "budget=20", "collect.cycle=0.1"), 16, (9, 16)),
        (("method=fge", "budget=20", "collect.start=0.6", "collect.cycle=0.1"), 13, (10, 12, 13)),
        (("collect=ema", "budget=20"), 0, ()),
        (("collect=ema", "budget=20", "collect.start=0.3"), 5, (5,)),  # step 24 is a part of what is collected
        (("collect=ema", "budget=20", "collect.start=0.32"), 6, (6,)),
        (("collect=lawa", "budget=20"), 16, (10, 16)),
        (("collect=swa+lawa", "budget=20", "collect.also.lawa.latest=6"), 15, (9, 15)),
    ],
)
def test_a_beginning_ends_before_a_collector_has_taken_anything(
    overrides: Sequence[str], taken_from: int, left: Sequence[int]
) -> None:
    found = beginnings("dataset=cifar10", "model=vgg16", "protocol=swa2018", FEW_STEPS, *overrides)
    assert found.taken_from == taken_from
    assert found.left == left
    assert [found.exists(epochs) for epochs in (0, taken_from + 1)] == [False, False]


class Looks(Nothing):
    """A user's own collector: it predicts half-way, and takes in nothing."""

    def evaluation_points(self, budget: float) -> dict[str, float]:
        return {"0.5": 0.5 * budget, "1": budget}


def test_a_beginning_ends_before_anything_is_predicted() -> None:
    own = Calendar.of({"": Looks()}, budget=20, steps_per_epoch=4)
    found = Beginnings.of(recipe("method=sgd", *ALIKE), own)
    assert (found.taken_from, found.left) == (10, (10,))  # at its end the prediction is still to be made


def test_no_images_to_train_on_is_no_beginning() -> None:
    mine = recipe("method=sgd", *ALIKE)
    nothing = replace(mine, dataset=replace(mine.dataset, validation=50_000))
    with pytest.raises(InputError, match=r"^dataset\.validation=50000: no image is left to train on$"):
        Beginnings.of(nothing)
    assert beginnings_of([nothing, mine])[0] is None


def test_a_schedule_of_ones_own_that_fails_does_not_end_the_sweep(caplog: pytest.LogCaptureFixture) -> None:
    mine = recipe("method=sgd", *ALIKE)
    failing = replace(mine, schedule={"_target_": f"{__name__}.Failing"})
    assert [one is None for one in beginnings_of([failing, mine, failing])] == [True, False, True]
    assert caplog.messages == [  # once, of all that fail alike
        "trunk=share: sgd, vgg16, cifar10, seed 1 keeps its place in the order of the sweep: ZeroDivisionError"
    ]


class Failing:
    def __init__(self, **options: Any) -> None:
        pass

    def __call__(self, epochs: float, *, step: float = 0.0) -> float:
        raise ZeroDivisionError


ALIKE = ("dataset=cifar10", "model=vgg16", FEW_STEPS, "budget=20", "precision=fp32")
OTHERS: dict[str, Any] = {
    **{"seed": 2, "lr": 0.06, "budget": 21.0, "evaluate_every": 2, "batch_size": 12501, "clip": 1.0, "momentum": 0.8},
    **{"weight_decay": 0.1, "precision": "bf16", "label_smoothing": 0.1, "nesterov": True, "protocol": "mine"},
    "step": {"_target_": "broadopt.methods.sam.sam", "rho": 0.1},
    "optimizer": {"_target_": "torch.optim.AdamW"},
    "augmentation": {"_target_": "broadopt.augment.Augmentation", "pad": 3},
    "schedule": {"_target_": "broadopt.schedule.Schedule", "lr": 0.05, "budget": 20, "shape": "cosine"},
}


def test_a_beginning_is_that_of_all_that_train_alike_so_far() -> None:
    mine = beginnings("method=sgd", *ALIKE)
    assert mine.identity(5) == beginnings("method=swa", *ALIKE).identity(5)
    assert mine.identity(5) == beginnings("method=fge", *ALIKE).identity(5)
    assert mine.identity(9) != beginnings("method=swa", *ALIKE).identity(10)
    assert mine.identity(10) != beginnings("method=swa", *ALIKE).identity(10)
    record = mine.record(5)
    assert record.keys() & {"method", "collect", "schedule"} == set()
    assert (record["epochs"], record["lr_sha256"]) == (5, sha256(struct.pack("<20d", *[0.05] * 20)).hexdigest())
    assert mine.identity(5) == identity_of(record)


@pytest.mark.parametrize("key", OTHERS)
def test_whatever_else_decides_the_weights_makes_another_beginning(key: str) -> None:
    mine = recipe("method=sgd", *ALIKE)
    assert getattr(mine, key) != OTHERS[key]
    assert Beginnings.of(replace(mine, **{key: OTHERS[key]})).identity(5) != Beginnings.of(mine).identity(5)


@pytest.mark.parametrize("change", [{"label_noise": 0.1}, {"validation": 5}, {"name": "cifar100"}])
def test_other_images_or_labels_make_another_beginning(change: dict[str, Any]) -> None:
    mine = recipe("method=sgd", *ALIKE)
    other = Beginnings.of(replace(mine, dataset=replace(mine.dataset, **change)))
    assert other.identity(5) != Beginnings.of(mine).identity(5)


def test_processes_data_and_code_are_part_of_a_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = recipe("method=sgd", *ALIKE)
    sure = Beginnings.of(mine).identity(5)
    for other in ({"processes": 2}, {"fingerprint": "sha256:0"}):
        decided = mine.decided(**({"precision": "fp32", "fingerprint": None} | other))  # type: ignore[arg-type]
        assert Beginnings.of(decided).identity(5) != sure
    (tmp_path / "my_trunk_code.py").write_text(
        "from broadopt.methods.schedule import Schedule\nfrom broadopt.methods.steps.optimizers import sgd\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    # A schedule of one's own counts by its rates, an optimizer by its source.
    scheduled = replace(mine, schedule={**mine.schedule, "_target_": "my_trunk_code.Schedule"}, code={"x": "y"})
    assert Beginnings.of(scheduled).identity(5) == sure
    optimized = Beginnings.of(replace(mine, optimizer={"_target_": "my_trunk_code.sgd"})).record(5)
    assert list(optimized["code"]) == ["my_trunk_code"]


# Order


def runs_of(*changes: Sequence[str]) -> list[Recipe]:
    return [recipe(*ALIKE, *each) for each in changes]


def in_order(recipes: Sequence[Recipe | None], places: Sequence[str] = ()) -> list[tuple[int, int, int | None]]:
    return [(one.run, one.epochs, one.of) for one in ordered(beginnings_of(recipes), places)]


def test_runs_that_share_nothing_keep_their_order() -> None:
    recipes = runs_of(["method=sgd"], ["method=sgd", "lr=0.1"], ["method=sgd", "seed=2"], ["method=swa", "seed=3"])
    assert in_order(recipes) == [(0, 0, None), (1, 0, None), (2, 0, None), (3, 0, None)]
    assert in_order([None, recipes[0], None, recipes[0]]) == [(0, 0, None), (1, 0, None), (2, 0, None), (3, 20, 1)]
    assert in_order([recipes[0], recipes[0]], ["here", "there"]) == [(0, 0, None), (1, 0, None)]


def test_groups_come_in_waves() -> None:
    seeds = [[f"method={method}", f"seed={seed}"] for method in METHODS for seed in (1, 2)]
    found = in_order(runs_of(["method=sgd", "lr=0.3"], *seeds))
    assert found == [
        (0, 0, None),
        *((3, 0, None), (4, 0, None)),  # SWA leaves its state after 9 epochs
        *((1, 9, 3), (2, 9, 4)),
        *((5, 10, 1), (6, 10, 2)),
    ]


def test_the_run_that_saves_the_others_most_comes_first() -> None:
    tails = [["method=swa", f"schedule.high={high}"] for high in (0.01, 0.02, 0.03)]
    # All three share 16 epochs with each other and 9 with the others, of which the first leaves its state after 10.
    found = in_order(runs_of(["method=fge"], ["method=sgd"], *tails))
    assert found == [(2, 0, None), (0, 9, 2), (1, 10, 0), (3, 16, 2), (4, 16, 2)]


def test_a_state_is_only_taken_where_it_is_left() -> None:
    found = beginnings_of(runs_of(["method=sgd"], ["method=sgd", "schedule=cosine"]))
    assert [one and one.left for one in found] == [(10, 20), (20,)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].rates.digest(1) == found[1].rates.digest(1)
    assert ordered(found) == [Start(0), Start(1)]


def test_hundreds_of_runs_are_put_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: the schedules are asked for no more rates than a few runs have."""
    for known in (trunks._decay, trunks._schedule_of, trunks._rates_of):
        known.cache_clear()
    asked = []
    call = Schedule.__call__
    monkeypatch.setattr(Schedule, "__call__", lambda *a, **k: asked.append(1) or call(*a, **k))  # type: ignore[func-returns-value]
    recipes = [
        replace(
            recipe("method=swa", *ALIKE), seed=seed, schedule={**recipe("method=swa", *ALIKE).schedule, "high": high}
        )
        for seed in range(20)
        for high in (0.01, 0.011, 0.012, 0.013, 0.014)
    ] * 3
    found = ordered(beginnings_of(recipes))
    assert len(found) == 300
    assert sum(start.epochs for start in found) == 20 * (4 * 16 + 10 * 17)
    assert 0 < len(asked) < 60  # 36 with five schedules of 20 epochs


# plan=true, and the commands of a table


def plan(*arguments: str, cwd: Path) -> list[str]:
    code, output, errors = said("broadopt-run", "-m", *arguments, "trunk=share", "plan=true", cwd=cwd)
    assert code == 0, errors
    return [line for line in output.splitlines() if line.startswith(("  ", "trunk=share"))]


def test_plan_says_what_is_shared_and_why_no_more(tmp_path: Path) -> None:
    assert plan("experiment=table1/vgg16_cifar10", "method=sgd,swa,fge", cwd=tmp_path) == [
        "  trains all its 300 epochs; 1 run begins from what it leaves",
        "  takes 81 epochs from method=swa: from epoch 82 on its lr is another",
        "  takes 100 epochs from method=sgd: from epoch 101 on its lr is another",
        "trunk=share: trains 519 of 700 epochs, 2.595 of 3.5 budgets, about 0.11 of 0.15 h on an H100",
    ]


def test_plan_says_why_nothing_is_shared(tmp_path: Path) -> None:
    row = "experiment=table1/pyramidnet272_cifar100"
    assert plan(row, "collect=none,swa,ema,fge", "seed=1,2", cwd=tmp_path) == [
        *["  trains all its 300 epochs; 2 runs begin from what it leaves"] * 2,
        *["  trains all its 300 epochs: its collector begins in the first epoch"] * 2,
        "  takes 300 epochs from collect=none seed=1: its collector begins there",
        "  takes 300 epochs from collect=none seed=2: its collector begins there",
        "  takes 225 epochs from collect=none seed=1: they are equal up to epoch 228, but that leaves no later state",
        "  takes 225 epochs from collect=none seed=2: they are equal up to epoch 228, but that leaves no later state",
        "trunk=share: trains 1650 of 2700 epochs, 5.5 of 9 budgets, about 18 of 29 h on an H100",
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("lr=0.1", "lr=0.2", "lr is not as in lr=0.2, which is nearest to it"),
        ("seed=2", "step=sam", "seed, step are not as in step=sam, which is nearest to it"),
        (
            "schedule=linear",
            "schedule=cosine",
            "schedule=cosine leaves no state in the 1 epoch that they have in common",
        ),
        ("clip=null", "schedule.warmup=0.1", "its lr is another than that of schedule.warmup=0.1 from epoch 1 on"),
        ("collect=ema", "seed=2", "its collector begins in the first epoch"),
        ("clip=null", "trunk=none", "no other run of the sweep shares trunks"),
        ("budget=0.5", "seed=2", "it trains no whole epoch"),
    ],
)
def test_plan_says_why_a_run_shares_nothing(first: str, second: str, expected: str) -> None:
    runs = [run_config(compose([*ALIKE, "trunk=share", override])) for override in (first, second)]
    epochs = 0.5 if first == "budget=0.5" else 20
    assert SharedSweep(runs, [first, second]).line(0) == f"trains all its {epochs:g} epochs: {expected}"


def test_the_hours_that_are_saved_are_those_of_the_gradients_that_are() -> None:
    """The first ten of twenty epochs of a SAM that is plain in them have a third of its gradients."""
    late = recipe("dataset=cifar10", "model=resnet20", "method=sam", FEW_STEPS, "budget=20", "step.from=0.5")
    assert share_of_first(late, price(late), 10) == pytest.approx(1 / 3, rel=1e-12)
    assert share_of_first(late, price(late), 20) == 1


def test_plan_counts_the_hours_of_the_epochs_that_are_shared_by_their_gradients(tmp_path: Path) -> None:
    """A SAM that is plain in its first 100 epochs: 500 and 300 epochs' gradients, of which 81 are made once."""
    late = ("experiment=table1/vgg16_cifar10", "method=late_sam", "protocol=swa2018", "step.from=0.5")
    lines = plan(*late, "collect=swa,none", cwd=tmp_path)
    each = 50_000 / 62_730 / 3600  # hours of an epoch's gradients, measured on an H100
    hours = f"about {719 * each:.2g} of {800 * each:.2g} h on an H100"
    assert lines[-1] == f"trunk=share: trains 419 of 500 epochs, 2.095 of 2.5 budgets, {hours}"


def test_the_commands_that_fill_a_table_come_with_trunks_first() -> None:
    def cell(method: str) -> Cell:
        record = recipe("experiment=table1/vgg16_cifar10", f"method={method}").record()
        runs = [Run({**record, "seed": seed, "precision": "fp32"}, "missing", 0, 1, 0, "") for seed in (1, 2)]
        return Cell(("VGG-16",), record, None, (f"method={method}",), tuple(runs))

    status, folder = Status((cell("fge"), cell("sgd"), cell("swa")), ()), Path("results")
    assert parse(["table1", "--missing", "trunk=share"]).overrides == ("trunk=share",)
    assert commands(status, folder, ["trunk=share", "device=cpu"]) == [
        f"broadopt-run method={method} seed={seed} trunk=share device=cpu"
        for method in ("swa", "fge", "sgd")
        for seed in (1, 2)
    ]
    usual = [f"broadopt-run method={method} seed={seed}" for method in ("fge", "sgd", "swa") for seed in (1, 2)]
    assert commands(status, folder, []) == usual
    assert commands(status, folder, ["trunk=none"]) == [f"{line} trunk=none" for line in usual]


def test_a_cluster_is_given_trunks_first(tmp_path: Path) -> None:
    for command, answer in (("squeue", ""), ("sbatch", "7"), ("scontrol", "")):
        (tmp_path / command).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / command).chmod(0o755)
    sweep = ("experiment=table1/vgg16_cifar10", "method=fge,sgd,swa", "trunk=share", "seed=1")
    slurm = ("hydra/launcher=slurm", "hydra.launcher.wait=false")
    path = f"{tmp_path}:{os.environ['PATH']}"
    code, output, errors = said("broadopt-run", "-m", *slurm, *sweep, cwd=tmp_path, PATH=path)
    assert (code, errors) == (0, "")
    assert output.startswith("submitted: 3 runs as job 7; ")
    commands = (tmp_path / "results/slurm/7/commands.txt").read_text().splitlines()
    assert [re.findall(r"BROADOPT_PLACE=(\d of 3 \(method=\w+\))", line.replace("'", "")) for line in commands] == [
        ["1 of 3 (method=swa)"],
        ["2 of 3 (method=fge)"],
        ["3 of 3 (method=sgd)"],
    ]


# On disk


def test_a_trunk_is_written_whole_or_not_at_all_and_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = beginnings("method=sgd", *ALIKE).record(5)
    folder = store.folder_of(tmp_path, config)
    assert folder == tmp_path / "trunks/cifar10/vgg16" / f"seed1-{identity_of(config)[:8]}"
    own = {"config": config, "steps": 20, "train_seconds": 1.5, "deterministic": False, "begun_from": {}}

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(OSError, match="No space left"):
            store.write(folder, {"of": 1}, run="runs/a-1", **own)
    assert list(folder.parent.iterdir()) == []
    (folder.parent / f".{folder.name}.1.tmp").mkdir()  # of a run that was killed
    store.write(folder, {"of": 1}, run="runs/a-1", **own)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert sorted(path.name for path in before) == ["checkpoint-0000000020.ckpt", "trunk.json"]
    exists, rename, refused = os.path.exists, os.rename, []

    def second(source: Path, target: Path) -> None:
        with pytest.raises(OSError, match="not empty") as error:
            rename(source, target)
        refused.append(target)
        raise error.value

    with monkeypatch.context() as patch:  # another run has begun to write it before this one was there
        answers = iter([False])
        patch.setattr(os.path, "exists", lambda path: next(answers, True) if path == folder else exists(path))
        patch.setattr(os, "rename", second)
        store.write(folder, {"of": 2}, run="runs/a-2", **own)
    assert refused == [folder]
    store.write(folder, {"of": 2}, run="runs/a-2", **own)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    described = set(re.findall(r"`([^`\n]+)`", text("docs/reference.md")))
    assert {*store.read(folder).content, "trunk", "epochs", "lr_sha256"} <= described | {"schema"}
    named = {"identity": identity_of(config), "epochs": 5, "run": "runs/a-1", "train_seconds": 1.5}
    assert store.read(folder).named == named
