"""The learning rate at every moment of a run.

The oracles: the formulas of the papers and the loops of their authors' code, each written out here with its lines.
"""

import math
from collections.abc import Iterator, Sequence

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from broadopt.config.compose import recipe_of
from broadopt.errors import InputError, RunFailed
from broadopt.methods.fge import SnapshotEnsemble
from broadopt.methods.schedule import Schedule, at_rest, learning_rate
from broadopt.methods.swa import WeightAverage

STEPS = 391  # of an epoch of CIFAR in batches of 128
WITHIN_AN_EPOCH = (0, 1, 97, 195, 196, 389, 390)


def arguments(group: str, *overrides: str) -> dict:
    return {key: value for key, value in recipe_of(overrides)[group].items() if key != "_target_"}


def of_row(row: str, method: str) -> Schedule:
    return Schedule(**arguments("schedule", f"experiment={row}", f"method={method}"))


def lr(schedule: Schedule, iteration: int) -> float:
    """As the training loop asks for it."""
    return schedule(iteration / STEPS, step=1 / STEPS)


def exactly(value: float) -> object:
    return pytest.approx(value, rel=1e-12)


def assert_once_an_epoch(schedule: Schedule, epoch: int, expected: float) -> None:
    for iteration in WITHIN_AN_EPOCH:
        assert lr(schedule, epoch * STEPS + iteration) == exactly(expected), (epoch, iteration)


def assert_each_step(schedule: Schedule, expected: Sequence[float], *, first: int = 0) -> None:
    """At all steps from `first` on; as `exactly`, for tens of thousands."""
    found = [lr(schedule, iteration) for iteration in range(first, first + len(expected))]
    numpy.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)


# The oracle: the published formulas, transcribed apart from broadopt's. e: index of the epoch from 0, E: the number of
# epochs in all, S: where the averaging starts.


def swa_code(e: int, *, until: float, lr: float, final: float) -> float:
    """train.py:94-103, `until` being E and final/lr 0.01 for SGD, S and swa_lr/lr for SWA. FGE's train.py has the same
    formula.
    """
    t, ratio = e / until, final / lr
    if t <= 0.5:
        return lr
    if t <= 0.9:
        return lr * (1 - (1 - ratio) * (t - 0.5) / 0.4)
    return lr * ratio


def pyramidnet_code(e: int, *, E: int, lr: float) -> float:
    """train.py:398-401: a tenth at 50 % and another at 75 %."""
    return lr * 0.1 ** (e // (E * 0.5)) * 0.1 ** (e // (E * 0.75))


def cosine(e: float, *, E: int, lr: float) -> float:
    return 0.5 * lr * (1 + math.cos(math.pi * e / E))


def fge_code(e: int, iteration: int, *, c: float, high: float, low: float) -> float:
    """utils.py:18-25; e counts from the start of the cycles."""
    t = (e % c + iteration / STEPS) / c
    return high * (1 - 2 * t) + low * 2 * t if t < 0.5 else high * (2 * t - 1) + low * (2 - 2 * t)


def fge_loops(*, E: int, lr: float, start: int, c: int, high: float, low: float) -> Iterator[tuple[float, bool]]:
    """lr of every iteration, and whether a snapshot follows: train.py as far as its checkpoint of epoch `start`, in
    which epochs are numbered from 1, then fge.py, which numbers its own from 0.
    """
    for epoch in range(1, start + 1):
        for _ in range(STEPS):
            yield swa_code(epoch, until=E, lr=lr, final=0.01 * lr), False
    for epoch in range(E - start):
        for iteration in range(STEPS):
            is_taken = epoch % c + 1 == c // 2 and iteration == STEPS - 1
            yield fge_code(epoch, iteration, c=c, high=high, low=low), is_taken


def shakeshake_code(epoch: int, iteration: int, *, E: int, lr: float) -> float:
    """train.lua:57-60,206-213 with one cosine cycle: epochs and iterations are both numbered from 1."""
    return 0.5 * lr * (1 + math.cos(math.pi * ((epoch - 1) * STEPS + iteration) / (E * STEPS)))


def alpha(i: int, *, c: int, high: float, low: float) -> float:
    """SWA: iterations i from 1, a cycle of c iterations."""
    t = ((i - 1) % c + 1) / c
    return (1 - t) * high + t * low


TABLE1 = {  # row: lr, budget, S, swa_lr
    "table1/vgg16_cifar100": (0.05, 200, 161, 0.01),
    "table1/vgg16_cifar10": (0.05, 200, 161, 0.01),
    "table1/preresnet164_cifar100": (0.1, 150, 126, 0.05),
    "table1/preresnet164_cifar10": (0.1, 150, 126, 0.01),
    "table1/wrn28_10_cifar100": (0.1, 200, 161, 0.05),
    "table1/wrn28_10_cifar10": (0.1, 200, 161, 0.05),
}

FGE = {  # network: epoch of the start, epochs a cycle, members, high, low
    "vgg16": (156, 2, 22, 1e-2, 5e-4),
    "preresnet164": (126, 4, 6, 5e-2, 5e-4),
    "wrn28_10": (152, 4, 12, 5e-2, 5e-4),
}


@pytest.mark.parametrize("row", TABLE1)
def test_sgd_of_table_1_is_the_decay_of_the_swa_code(row: str) -> None:
    start, budget, *_ = TABLE1[row]
    schedule = of_row(row, "sgd")
    for e in range(budget):
        assert_once_an_epoch(schedule, e, swa_code(e, until=budget, lr=start, final=0.01 * start))


@pytest.mark.parametrize("row", TABLE1)
def test_swa_of_table_1_is_the_decay_of_the_swa_code_over_the_epochs_before_the_average(row: str) -> None:
    start, budget, until, swa_lr = TABLE1[row]
    schedule = of_row(row, "swa")
    for e in range(round(1.5 * budget)):
        assert_once_an_epoch(schedule, e, swa_code(e, until=until, lr=start, final=swa_lr))


@pytest.mark.parametrize("row", TABLE1)
def test_fge_of_table_1_is_its_authors_two_loops(row: str) -> None:
    start, budget, *_ = TABLE1[row]
    begin, c, members, high, low = FGE[row.removeprefix("table1/").rpartition("_")[0]]
    schedule = of_row(row, "fge")
    collected = SnapshotEnsemble(**arguments("collect", f"experiment={row}", "method=fge")).collection_points(budget)
    loops = list(fge_loops(E=budget, lr=start, start=begin, c=c, high=high, low=low))
    assert_each_step(schedule, [expected for expected, _ in loops])
    taken = [iteration + 1 for iteration, (_, is_taken) in enumerate(loops) if is_taken]
    assert len(loops) == budget * STEPS
    assert [round(point * STEPS) for point in collected] == taken
    assert len(taken) == members


README = ("collect.start=0.8", "collect.cycle=0.01", "schedule.low=0.01")
"""FGE as the README of its repository runs it: from epoch 160 of 200 in cycles of 2 epochs, 20 members."""


@pytest.mark.parametrize(
    ("row", "others", "start", "high"),
    [
        ("table1/vgg16_cifar100", (), 0.05, 0.01),
        ("table1/preresnet164_cifar100", ("budget=200",), 0.1, 0.05),
        ("table1/wrn28_10_cifar10", (), 0.1, 0.05),
    ],
)
def test_fge_as_in_its_readme_is_one_command_line(row: str, others: tuple[str, ...], start: float, high: float) -> None:
    overrides = (f"experiment={row}", "method=fge", *README, *others)
    schedule = Schedule(**arguments("schedule", *overrides))
    collected = SnapshotEnsemble(**arguments("collect", *overrides)).collection_points(schedule.budget)
    loops = fge_loops(E=200, lr=start, start=160, c=2, high=high, low=0.01)
    assert_each_step(schedule, [expected for expected, _ in loops])
    assert [round(point, 9) for point in collected] == list(range(161, 201, 2))


def test_fges_epoch_before_the_cycles_has_the_number_160_and_not_159() -> None:
    counted_from = {
        first: Schedule(**arguments("schedule", "experiment=table1/wrn28_10_cifar100", "method=fge", *README, *more))
        for first, more in ((1, ()), (0, ("schedule.count_from=0",)))
    }
    assert_once_an_epoch(counted_from[1], 159, 0.02575)  # 0.1 (1 - 0.99 (160 / 200 - 0.5) / 0.4)
    assert_once_an_epoch(counted_from[0], 159, 0.0269875)  # 0.1 (1 - 0.99 (159 / 200 - 0.5) / 0.4)
    assert lr(counted_from[1], 160 * STEPS) == lr(counted_from[0], 160 * STEPS) == 0.05


def test_pyramidnet_of_table_1_takes_the_steps_of_its_code_and_then_swas_cycles_by_the_iteration() -> None:
    row, budget, c = "table1/pyramidnet272_cifar100", 300, 3 * STEPS
    plain, averaging = of_row(row, "sgd"), of_row(row, "swa")
    for e in range(budget):
        expected = pyramidnet_code(e, E=budget, lr=0.5)
        assert_once_an_epoch(plain, e, expected)
        assert_once_an_epoch(averaging, e, expected)
    cycles = [alpha(i, c=c, high=0.05, low=0.001) for i in range(1, 150 * STEPS + 1)]
    assert_each_step(averaging, cycles, first=budget * STEPS)


def nearly(value: float) -> object:
    """A cosine that ends at 0 cannot be compared relatively there: 1 + cos(pi) is a difference of rounded numbers."""
    return pytest.approx(value, rel=1e-12, abs=1e-16)


def test_shakeshake_of_table_1_is_a_cosine_by_the_iteration_and_then_its_epochs_1600_to_1700_again_and_again() -> None:
    row, budget = "table1/shakeshake26_2x64d_cifar10", 1800
    plain, averaging = of_row(row, "sgd"), of_row(row, "swa")
    for epoch in range(1, budget + 1):
        for iteration in (1, 2, 98, 196, 197, 390, 391):
            expected = nearly(shakeshake_code(epoch, iteration, E=budget, lr=0.2))
            passed = (epoch - 1) * STEPS + iteration - 1
            assert lr(plain, passed) == expected
            assert lr(averaging, passed) == expected
    for e in range(900):
        for iteration in (1, 2, 98, 196, 197, 390, 391):
            replayed = shakeshake_code(1601 + e % 100, iteration, E=budget, lr=0.2)
            assert lr(averaging, (1800 + e) * STEPS + iteration - 1) == nearly(replayed)


def test_shakeshakes_replayed_cosine_at_the_beginning_of_an_epoch_by_hand() -> None:
    averaging = of_row("table1/shakeshake26_2x64d_cifar10", "swa")
    for e in range(900):  # without a step's length the iterations are counted from 0
        assert averaging(1800 + e) == nearly(0.1 * (1 + math.cos(math.pi * (1600 + e % 100) / 1800)))
    assert round(averaging(1800), 4) == round(averaging(2600), 4) == 0.0060
    assert round(averaging(1900 - 1e-6), 4) == round(averaging(2700 - 1e-6), 4) == 0.0015


@pytest.mark.parametrize(
    ("row", "cycles", "low", "high"),
    [
        ("table1/pyramidnet272_cifar100", 50, 0.001, alpha(1, c=3 * STEPS, high=0.05, low=0.001)),
        (
            "table1/shakeshake26_2x64d_cifar10",
            9,
            0.1 * (1 + math.cos(math.pi * 1700 / 1800)),
            shakeshake_code(1601, 1, E=1800, lr=0.2),
        ),
    ],
)
def test_cyclical_swa_averages_after_the_iterations_with_the_lowest_lr(
    row: str, cycles: int, low: float, high: float
) -> None:
    schedule = of_row(row, "swa")
    average = WeightAverage(**arguments("collect", f"experiment={row}", "method=swa"))
    start, *ends = [round(point * STEPS) for point in average.collection_points(schedule.budget)]
    assert start == schedule.budget * STEPS
    assert len(ends) == cycles
    for end in ends:
        assert lr(schedule, end - 1) == exactly(low)
        assert lr(schedule, end) == exactly(high)


TABLE3 = {  # row: lr, budget of SGD, of SAM and ASAM
    "table3/densenet121": (0.1, 400, 200),
    "table3/resnet20": (0.1, 400, 200),
    "table3/resnet56": (0.1, 400, 200),
    "table3/vgg19_bn": (0.1, 400, 200),
    "table3/resnext29_32x4d": (0.1, 400, 200),
    "table3/wrn28_2": (0.1, 400, 200),
    "table3/wrn28_10": (0.1, 400, 200),
    "table3/pyramidnet272": (0.05, 1800, 900),
}


@pytest.mark.parametrize("method", ["sgd", "sam", "asam"])
@pytest.mark.parametrize("row", TABLE3)
def test_table_3_is_a_cosine_to_0_stepped_once_an_epoch(row: str, method: str) -> None:
    start, sgd_budget, sam_budget = TABLE3[row]
    budget = sgd_budget if method == "sgd" else sam_budget
    schedule = of_row(row, method)
    for e in range(budget):
        assert_once_an_epoch(schedule, e, cosine(e, E=budget, lr=start))


def test_snapshots_are_taken_at_the_lowest_lr_of_each_cycle() -> None:
    overrides = ("experiment=table1/wrn28_10_cifar100", "method=fge")
    schedule = Schedule(**arguments("schedule", *overrides))
    points = SnapshotEnsemble(**arguments("collect", *overrides)).collection_points(schedule.budget)
    lowest = []
    for cycle in range(12):
        iterations = range((152 + 4 * cycle) * STEPS, (156 + 4 * cycle) * STEPS)
        lowest.append(min(iterations, key=lambda iteration: lr(schedule, iteration)))
        assert lr(schedule, lowest[-1]) == exactly(5e-4)
        assert lr(schedule, iterations[0]) == exactly(0.05)
    assert [round(point * STEPS) for point in points] == lowest
    assert [iteration / STEPS for iteration in lowest] == list(range(154, 200, 4))


def test_swas_paper_schedule_is_sgds_until_three_quarters_and_then_constant() -> None:
    schedule = Schedule(**arguments("schedule", "experiment=table1/preresnet164_cifar100", "collect=swa_paper"))
    for e in range(112):
        assert_once_an_epoch(schedule, e, swa_code(e, until=150, lr=0.1, final=0.001))
    assert schedule(112.5 - 1e-6) == exactly(swa_code(112, until=150, lr=0.1, final=0.001))
    for e in (112.5, 113, 150, 187.5, 225):
        assert schedule(e) == 0.05


def test_whole_epochs_are_replayed_whole() -> None:
    schedule = Schedule(lr=0.1, budget=10, shape="linear", tail="replay", start=1.0, replay_from=0.6, cycle=0.3)
    for e in range(30):  # epochs 6, 7 and 8 of 10, in spite of cycles of 2.9999999999999996
        assert_once_an_epoch(schedule, 10 + e, swa_code(6 + e % 3, until=10, lr=0.1, final=0.001))


def test_constant_shape_is_constant() -> None:
    schedule = Schedule(lr=0.3, budget=10, shape="constant")
    assert {schedule(e / 4) for e in range(41)} == {0.3}


def test_decay_to_gives_the_cosine_its_floor() -> None:
    schedule = Schedule(lr=0.1, budget=10, shape="cosine", decay_to=0.02)
    for e in range(11):
        assert schedule(e) == exactly(0.02 + 0.08 * (1 + math.cos(math.pi * e / 10)) / 2)


def test_cosine_stays_at_its_end() -> None:
    for shape in ({"decay_to": 0.02}, {"decay_to": 0.02, "decay_over": 0.5}):
        assert Schedule(lr=0.1, budget=10, shape="cosine", **shape)(15) == exactly(0.02)


SHAPES = [
    {"shape": "constant"},
    {"shape": "linear"},
    {"shape": "linear", "decay_over": 0.805, "decay_to": 0.05, "tail": "constant", "start": 0.805, "high": 0.05},
    {"shape": "linear", "tail": "triangle", "start": 0.8, "high": 0.05, "low": 0.01, "cycle": 0.01},
    {"shape": "steps", "tail": "sawtooth", "start": 1.0, "high": 0.05, "low": 0.001, "cycle": 0.02},
    {"shape": "cosine"},
    {"shape": "cosine", "decay_over": 0.84, "decay_to": 0.02, "tail": "constant", "start": 0.84, "high": 0.02},
]
SHAPES_BY_STEP = [  # counted or replayed by whole epochs, these do not scale with the budget
    *SHAPES,
    {"shape": "cosine", "count_from": 1},
    {"shape": "linear", "count_from": 1, "tail": "triangle", "start": 0.8, "high": 0.05, "low": 0.01, "cycle": 0.01},
    {"shape": "cosine", "tail": "replay", "start": 1.0, "replay_from": 0.75, "cycle": 0.125},
    {"shape": "linear", "count_from": 1, "tail": "replay", "start": 0.5, "replay_from": 0.25, "cycle": 0.5},
]


def positions() -> st.SearchStrategy[int]:
    """1024ths of a budget, up to one and a half: the products below are exact, so no milestone lies between them."""
    return st.integers(0, 1536)


@pytest.mark.parametrize("shape", SHAPES_BY_STEP, ids=lambda shape: f"{shape['shape']}-{shape.get('tail', 'none')}")
@given(budget=st.integers(1, 1800), factor=st.sampled_from([0.5, 2, 3, 7, 40]), position=positions())
def test_every_milestone_scales_with_the_budget(shape: dict, budget: int, factor: float, position: int) -> None:
    one, other = (Schedule(lr=0.1, budget=each, per_step=True, **shape) for each in (budget, factor * budget))
    expected = one(position / 1024 * budget, step=budget / 1024)
    actual = other(factor * (position / 1024 * budget), step=factor * (budget / 1024))
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape['shape']}-{shape.get('tail', 'none')}")
@given(budget=st.integers(1, 400), factor=st.integers(1, 9), data=st.data())
def test_milestones_of_a_decay_once_an_epoch_scale_with_the_budget(
    shape: dict, budget: int, factor: int, data: st.DataObject
) -> None:
    epoch = data.draw(st.integers(0, budget + budget // 2))
    one, other = (Schedule(lr=0.1, budget=each, **shape) for each in (budget, factor * budget))
    expected, actual = one(epoch, step=1 / STEPS), other(factor * epoch, step=factor / STEPS)
    assert actual == pytest.approx(expected, rel=1e-12, abs=1e-16)


@given(shape=st.sampled_from(SHAPES_BY_STEP), budget=st.floats(0.05, 2000), position=st.floats(0, 1.5))
def test_lr_stays_between_its_extremes(shape: dict, budget: float, position: float) -> None:
    schedule = Schedule(lr=0.1, budget=budget, **shape)
    assert 0 <= schedule(position * budget, step=budget / 1000) <= 0.1


@pytest.mark.parametrize(
    ("start", "budget", "epoch"),
    [(0.805, 200, 161), (0.84, 150, 126), (0.8, 150, 120), (0.8, 200, 160), (0.07, 100, 7), (0.29, 100, 29)],
)
def test_tail_begins_with_the_epoch_that_start_means_in_spite_of_rounding(
    start: float, budget: float, epoch: int
) -> None:
    schedule = Schedule(lr=0.1, budget=budget, shape="constant", tail="constant", start=start, high=0.7)
    assert schedule(epoch) == 0.7
    assert schedule(epoch - 1 / STEPS) == 0.1


@pytest.mark.parametrize("cycle", [0.07, 0.14, 0.28, 0.29, 0.57])  # times 100 a little more, or less, than whole
def test_cycle_jumps_back_with_the_epoch_that_ends_it_in_spite_of_rounding(cycle: float) -> None:
    schedule = Schedule(
        lr=0.1, budget=100, shape="constant", tail="sawtooth", start=1.0, high=0.05, low=0.01, cycle=cycle
    )
    iterations = round(100 * cycle) * STEPS
    for k in range(1, 20):
        assert lr(schedule, 100 * STEPS + k * iterations - 1) == exactly(0.01)
        assert lr(schedule, 100 * STEPS + k * iterations) == exactly(alpha(1, c=iterations, high=0.05, low=0.01))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"shape": "cosin"},
            'schedule.shape=cosin: expected one of constant, linear, cosine, steps; did you mean "cosine"?',
        ),
        (
            {"shape": "cosine", "tail": "triangl"},
            'schedule.tail=triangl: expected one of constant, triangle, sawtooth, replay; did you mean "triangle"?',
        ),
        (
            {"shape": "cosine", "tail": "constant"},
            "schedule.high=null: schedule.tail=constant needs a number > 0",
        ),
        (
            {"shape": "cosine", "tail": "triangle", "high": 0.1, "cycle": 0.1},
            "schedule.low=null: schedule.tail=triangle needs a number > 0",
        ),
        (
            {"shape": "cosine", "tail": "sawtooth", "high": 0.1, "low": 0.01},
            "schedule.cycle=null: schedule.tail=sawtooth needs a number > 0",
        ),
        (
            {"shape": "cosine", "tail": "sawtooth", "high": 0.1, "low": 0.01, "cycle": 0},
            "schedule.cycle=0: schedule.tail=sawtooth needs a number > 0",
        ),
        (
            {"shape": "cosine", "tail": "sawtooth", "high": 3e-4, "low": 5e-4, "cycle": 0.1},
            "schedule.low=0.0005: expected at most schedule.high=0.0003",
        ),
        (
            {"shape": "cosine", "tail": "replay", "cycle": 0.1},
            "schedule.replay_from=null: schedule.tail=replay needs a number >= 0",
        ),
        (
            {"shape": "cosine", "tail": "replay", "replay_from": 8 / 9, "decay_over": 0.75, "cycle": 0.1},
            "schedule.replay_from=0.888889: the decay that is replayed is at its end by then; expected less than "
            "schedule.decay_over=0.75",
        ),
        (
            {"shape": "linear", "tail": "replay", "replay_from": 1.0, "cycle": 0.1},
            "schedule.replay_from=1: the decay that is replayed is at its end by then; expected less than "
            "schedule.decay_over=1",
        ),
        (
            {"shape": "cosine", "tail": "replay", "replay_from": 0.5},
            "schedule.cycle=null: schedule.tail=replay needs a number > 0",
        ),
    ],
)
def test_incomplete_schedules_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        Schedule(lr=0.1, budget=10, **values)
    assert str(error.value) == message


def test_a_cosine_that_is_replayed_from_its_beginning_is_one_with_warm_restarts() -> None:
    """Loshchilov and Hutter 2017, with restarts of one length."""
    schedule = Schedule(lr=0.1, budget=10, shape="cosine", tail="replay", start=1, replay_from=0, cycle=1)
    for e in range(30):
        assert schedule(e) == exactly(0.1 * (1 + math.cos(math.pi * (e % 10) / 10)) / 2)


NOWHERE_TO_GO = "so that no weight changes before the evaluation points"


@pytest.mark.parametrize(
    ("values", "points", "said"),
    [
        ({"shape": "cosine"}, {"1": 10.0}, ""),
        ({"shape": "cosine", "decay_to": 0.01}, {"1": 10.0, "1.5": 15.0}, ""),
        ({"shape": "cosine"}, {"1": 10.0, "1.5": 15.0}, f"the lr is 0 from epoch 10 to 15, {NOWHERE_TO_GO} 1.5;"),
        ({"shape": "cosine"}, {"swa 1.05": 10.5}, f"the lr is 0 from epoch 10 to 10.5, {NOWHERE_TO_GO} swa 1.05;"),
        ({"shape": "cosine", "decay_over": 0}, {"1": 10.0}, f"the lr is 0 from epoch 0 to 10, {NOWHERE_TO_GO} 1;"),
        ({"shape": "cosine", "tail": "constant", "start": 1, "high": 0.01}, {"1": 10.0, "1.5": 15.0}, ""),
        ({"shape": "cosine", "warmup": 0.1}, {"1": 10.0}, ""),
        ({"shape": "linear"}, {"1": 10.0, "2": 20.0}, ""),
    ],
)
def test_evaluation_points_behind_epochs_of_lr_0_are_named(values: dict, points: dict, said: str) -> None:
    line = at_rest(Schedule(lr=0.1, budget=10, **values), 10, points)
    assert line.startswith(f"schedule: {said}") if said else line == ""


def test_averaging_from_the_first_epoch_on_needs_no_decay() -> None:
    schedule = Schedule(
        lr=0.1, budget=10, shape="linear", decay_over=0, decay_to=0.05, tail="constant", start=0, high=0.05
    )
    assert [schedule(epoch) for epoch in (0, 5, 10)] == [0.05] * 3
    assert Schedule(lr=0.1, budget=10, shape="linear", decay_over=0, decay_to=0.05)(3) == pytest.approx(0.05, rel=1e-12)


@pytest.mark.parametrize(("row", "method"), [("table1/vgg16_cifar100", "sgd"), ("table3/resnet20", "sam")])
def test_the_warm_up_is_a_line_that_each_step_ends_and_leaves_the_rest_alone(row: str, method: str) -> None:
    overrides = (f"experiment={row}", f"method={method}", "schedule.warmup=0.025")  # 5 of 200 epochs
    warm, plain = Schedule(**arguments("schedule", *overrides)), of_row(row, method)
    budget = int(warm.budget)
    steps = round(0.025 * budget * STEPS)
    for iteration in (0, 1, 390, 391, steps // 2, steps - 2, steps - 1):
        assert lr(warm, iteration) == exactly((iteration + 1) / steps * lr(plain, iteration))
    for iteration in (steps, steps + 1, steps + 390, (budget - 1) * STEPS):
        assert lr(warm, iteration) == lr(plain, iteration)


@pytest.mark.parametrize("value", [numpy.float32(0.5), numpy.float64(0.5), numpy.array(0.5), torch.tensor(0.5), 0.5])
def test_what_a_schedule_gives_is_made_a_plain_number(value: object) -> None:
    given = learning_rate(lambda epochs, *, step: value, 1.5, step=0.25)
    assert type(given) is float
    assert given == 0.5


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (math.nan, "nan"),
        (numpy.float32(-math.inf), "-inf"),
        (None, "None"),
        ("0.1", "0.1"),
        (numpy.array([0.1, 0.2]), "[0.1 0.2]"),
        (torch.tensor([0.1, 0.2]), "tensor([0.1000, 0.2000])"),
        (10**400, "1000"),
    ],
)
def test_what_is_no_finite_number_fails_in_a_line_with_its_epoch(value: object, found: str) -> None:
    with pytest.raises(RunFailed) as error:
        learning_rate(lambda epochs, *, step: value, 2.999999999999, step=0.25)
    assert str(error.value).startswith(f"schedule: the lr that it gives in epoch 4 is {found}")
    assert str(error.value).endswith("; expected a finite number")
