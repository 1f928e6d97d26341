"""SWA: the mean of the weights, and when they are taken.

The oracles: the arithmetic mean of weights kept apart, the paper's numbers of models, and a training without averaging.
"""

import copy
import io
import math

import pytest
import torch
from formulas import SmallNet, batches, weights_of
from short_training import STEPS_PER_EPOCH, TinyNet, assert_same_course, run, training
from torch import Tensor, nn

from broadopt.errors import InputError
from broadopt.methods.averaging.ema import MovingAverage
from broadopt.methods.averaging.swag import GaussianAverage
from broadopt.methods.batchnorm import reestimate
from broadopt.methods.collect import Collector, Nothing, Predict
from broadopt.methods.steps.sharp_steps import Course
from broadopt.methods.swa import WeightAverage
from broadopt.training.calendar import Calendar


def no_prediction(model: nn.Module) -> dict[str, Tensor]:
    raise AssertionError("averaging needs no prediction")


def no_statistics(model: nn.Module) -> None:
    """For tests in which the statistics do not matter."""


def collected(average: WeightAverage, seeds: range) -> list[list[Tensor]]:
    models = [SmallNet(seed=seed) for seed in seeds]
    for model in models:
        average.collect(model, no_prediction)
    return [list(weights_of(model).values()) for model in models]


@pytest.mark.parametrize("count", [1, 2, 3, 40, 140])
def test_average_is_the_arithmetic_mean_of_the_collected_weights(count: int) -> None:
    average = WeightAverage(start=0.5)
    weights = collected(average, range(count))
    assert average.members == count
    for position, mean in enumerate(average.average):
        expected = torch.stack([each[position] for each in weights]).sum(0) / count
        torch.testing.assert_close(mean, expected, rtol=1e-13, atol=1e-15)


def test_first_weights_are_copied_and_count_once() -> None:
    average = WeightAverage(start=0.5)
    model = SmallNet(seed=1)
    average.collect(model, no_prediction)
    first = list(weights_of(model).values())
    assert all(torch.equal(mean, weight) for mean, weight in zip(average.average, first, strict=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(mean, weight) for mean, weight in zip(average.average, first, strict=True))
    average.collect(model, no_prediction)
    assert all(torch.equal(mean, weight / 2) for mean, weight in zip(average.average, first, strict=True))


def test_only_parameters_are_averaged() -> None:
    average = WeightAverage(start=0.5)
    model = SmallNet()
    for value in (1.0, 3.0):
        with torch.no_grad():
            model.bn.running_mean.fill_(value)
            model.bn.num_batches_tracked.fill_(int(value))
        average.collect(model, no_prediction)
    assert len(average.average) == len(list(model.parameters()))
    averaged = average.network(model, no_statistics)
    assert averaged.bn.running_mean.tolist() == [3.0] * 4  # the pattern's, until they are re-estimated
    assert averaged.bn.num_batches_tracked.item() == 3


def test_collecting_and_predicting_leave_the_model_as_it_is() -> None:
    for mode in (True, False):
        model = SmallNet(dropout=0.5).train(mode)
        average = WeightAverage(start=0.5)
        collected(average, range(3, 6))
        state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        places = [value.data_ptr() for value in model.state_dict().values()]
        evaluated: list[nn.Module] = []

        def predict(network: nn.Module, evaluated: list[nn.Module] = evaluated) -> dict[str, Tensor]:
            evaluated.append(network)
            return {"test": network(batches(1)[0][0])}

        average.collect(model, predict)
        average.predict(model, predict, lambda network: reestimate(network, [images for images, _ in batches(2)]))
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
        assert [value.data_ptr() for value in model.state_dict().values()] == places
        assert [module.training for module in model.modules()] == flags
        assert all(module.momentum == 0.1 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert len(evaluated) == 1
        assert evaluated[0] is not model
        for ours, mean in zip(evaluated[0].parameters(), average.average, strict=True):
            assert torch.equal(ours, mean)
            assert ours.data_ptr() != mean.data_ptr()


def test_prediction_is_that_of_the_averaged_weights_with_statistics_of_their_own() -> None:
    average, model, data = WeightAverage(start=0.5), SmallNet(), batches(3)
    weights = collected(average, range(4))
    images = data[0][0]
    predict: Predict = lambda network: {"test": network.eval()(images)}  # noqa: E731
    outputs = average.predict(model, predict, lambda network: reestimate(network, [each for each, _ in data]))
    twin = SmallNet(seed=9)
    with torch.no_grad():
        for position, parameter in enumerate(twin.parameters()):
            parameter.copy_(sum(each[position] for each in weights) / 4)
        inputs = [twin.conv(each).relu() for each, _ in data]
        twin.bn.running_mean.copy_(torch.stack([each.mean((0, 2, 3)) for each in inputs]).mean(0))
        twin.bn.running_var.copy_(torch.stack([each.var((0, 2, 3), unbiased=True) for each in inputs]).mean(0))
    torch.testing.assert_close(outputs["test"], twin.eval()(images), rtol=1e-12, atol=1e-14)


class Recording(WeightAverage):
    """Also keeps each of the weights that it is given."""

    def __init__(self, **options: float) -> None:
        super().__init__(**options)
        self.seen: list[list[Tensor]] = []

    def collect(self, model: nn.Module, predict: Predict) -> None:
        self.seen.append([parameter.detach().clone() for parameter in model.parameters()])
        super().collect(model, predict)


@pytest.mark.parametrize("cycle", [None, 0.1])
def test_training_is_bit_for_bit_the_one_without_averaging(cycle: float | None) -> None:
    average = Recording(start=0.5, cycle=cycle, budgets=(0.75, 1, 1.125))
    done = run(average, budget=4)
    assert average.members == (3 if cycle is None else 7)
    assert set(done.progress.collected) == {"0.75", "1", "1.125"}
    assert_same_course(done, run(Nothing(), budget=4.5))


def test_averages_of_a_training_are_those_of_its_weights_at_the_ends_of_epochs() -> None:
    average = Recording(start=0.625, budgets=(1, 1.25, 1.5))
    done = run(average, budget=4)
    assert {name: read["members"] for name, read in done.progress.collected.items()} == {"1": 2, "1.25": 3, "1.5": 4}
    assert {name: read["epochs"] for name, read in done.progress.collected.items()} == {"1": 4, "1.25": 5, "1.5": 6}
    for number, weights in enumerate(average.seen):
        stopped = training(Nothing(), budget=3 + number)
        stopped.run(lambda: None, minutes=60)
        assert all(map(torch.equal, weights, stopped.parts.model.parameters()))
    for mean, *weights in zip(average.average, *average.seen, strict=True):
        torch.testing.assert_close(mean.double(), torch.stack(weights).double().mean(0), rtol=1e-6, atol=1e-7)


def test_evaluation_points_of_one_training_are_those_of_trainings_that_end_there() -> None:
    long = run(WeightAverage(start=0.5, budgets=(1, 1.5)), budget=2).progress.collected
    short = run(WeightAverage(start=0.5, budgets=(1,)), budget=2).progress.collected
    assert long["1"] == short["1"]
    assert long["1.5"] != long["1"]


@pytest.mark.parametrize(
    ("budget", "start", "first", "members"),
    [  # the SWA repository's starts, and the budgets of Table 1
        (200, 0.805, 161, {"1": (40,), "1.25": (90,), "1.5": (140,)}),
        (150, 0.84, 126, {"1": (25,), "1.25": (62, 63), "1.5": (100,)}),
    ],
)
def test_published_runs_average_the_published_numbers_of_models(
    budget: float, start: float, first: int, members: dict[str, tuple[int, ...]]
) -> None:
    average = WeightAverage(start=start)
    points, evaluated = average.collection_points(budget), average.evaluation_points(budget)
    assert points == list(range(first, round(1.5 * budget) + 1))
    assert evaluated == {"1": budget, "1.25": 1.25 * budget, "1.5": 1.5 * budget}
    for name, expected in members.items():
        assert sum(point <= evaluated[name] for point in points) in expected


def test_cycles_are_averaged_at_their_ends_from_the_starting_point_on() -> None:
    average = WeightAverage(start=1.0, cycle=0.02, budgets=(1.25, 1.5))
    assert average.collection_points(300) == pytest.approx([300 + 6 * k for k in range(26)], abs=1e-9)
    assert average.evaluation_points(300) == {"1.25": 375, "1.5": 450}


@pytest.mark.parametrize(
    ("budget", "points"),
    [
        (10, [9, 10, 11, 12, 13, 14, 15]),
        (5, [5, 6, 7]),
        (2, [2, 3]),
        (1, [1]),
        (0.5, [0.5]),  # no epoch is complete: what there is at the first evaluation point
        (0.1, [0.1]),
    ],
)
def test_short_budgets_still_average_by_the_first_evaluation_point(budget: float, points: list[float]) -> None:
    average = WeightAverage(start=0.805)
    assert average.collection_points(budget) == pytest.approx(points, rel=1e-12)
    assert average.evaluation_points(budget) == pytest.approx({"1": budget, "1.25": 1.25 * budget, "1.5": 1.5 * budget})
    assert min(average.collection_points(budget)) <= average.evaluation_points(budget)["1"]


@pytest.mark.parametrize("budget", [0.25, 0.5, 1, 2])
def test_short_trainings_evaluate_an_average_at_every_budget(budget: float) -> None:
    done = run(WeightAverage(start=0.805), budget=budget)
    assert {name: read["epochs"] for name, read in done.progress.collected.items()} == {
        "1": budget,
        "1.25": math.floor(1.25 * budget * STEPS_PER_EPOCH + 0.5) / STEPS_PER_EPOCH,
        "1.5": math.floor(1.5 * budget * STEPS_PER_EPOCH + 0.5) / STEPS_PER_EPOCH,
    }
    assert done.progress.collected["1"]["members"] == 1


def test_state_survives_a_file_exactly() -> None:
    average = WeightAverage(start=0.5)
    collected(average, range(7))
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    resumed = WeightAverage(start=0.5)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for collector in (average, resumed):
        collected(collector, range(7, 12))
    assert resumed.members == average.members == 12
    assert all(map(torch.equal, resumed.average, average.average))


def test_state_before_the_first_average_is_a_beginning() -> None:
    resumed = WeightAverage(start=0.5)
    resumed.load_state_dict(WeightAverage(start=0.5).state_dict())
    weights = collected(resumed, range(1))
    assert resumed.members == 1
    assert all(map(torch.equal, resumed.average, weights[0]))


def test_average_keeps_the_dtype_and_memory_format_of_the_weights() -> None:
    model = TinyNet().to(memory_format=torch.channels_last)
    average = WeightAverage(start=0.5)
    for _ in range(2):
        average.collect(model, no_prediction)
    averaged = average.network(model, no_statistics)
    assert averaged.features[0].weight.dtype == torch.float32
    assert averaged.features[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(map(torch.equal, averaged.parameters(), model.parameters()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 0.5, "budgets": ()}, "collect.budgets=[]: expected numbers > 0, at most 1000, in ascending order"),
        (
            {"start": 0.5, "budgets": (1.5, 1)},
            "collect.budgets=[1.5, 1]: expected numbers > 0, at most 1000, in ascending order",
        ),
        (
            {"start": 0.5, "budgets": (1, 1)},
            "collect.budgets=[1, 1]: expected numbers > 0, at most 1000, in ascending order",
        ),
        (
            {"start": 0.0, "budgets": (0,)},
            "collect.budgets=[0]: expected numbers > 0, at most 1000, in ascending order",
        ),
        ({"start": 1.1}, "collect.start=1.1: expected 0 to 1, the first evaluation point of collect.budgets"),
        ({"start": -0.1}, "collect.start=-0.1: expected 0 to 1, the first evaluation point of collect.budgets"),
        ({"start": 0.5, "cycle": 0}, "collect.cycle=0: expected a number of budgets > 0, or null"),
    ],
)
def test_values_out_of_range_are_refused_in_one_line(values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        WeightAverage(**values)
    assert str(error.value) == message


def test_a_budget_that_ends_before_the_first_whole_epoch_averages_there_and_at_epoch_ends_after_it() -> None:
    assert WeightAverage(start=0.805).collection_points(2.6) == [2.6, 3.0]


@pytest.mark.parametrize(
    "collector",
    [
        WeightAverage(start=0.7, budgets=[0.7]),
        WeightAverage(start=0.7, cycle=0.1, budgets=[0.7]),
        GaussianAverage(start=0.7, budgets=[0.7]),
        MovingAverage(decay=0.9, start=0.7, budgets=[0.7]),
    ],
)
def test_what_is_evaluated_at_the_start_has_been_collected_where_that_lies_between_two_steps(
    collector: Collector,
) -> None:
    """0.7 of 3 epochs of 5 steps end half way from step 10 to 11; 0.7 * 3 * 5 is 10.499999999999998."""
    calendar = Calendar.of({"": collector}, budget=3, steps_per_epoch=5)
    first = min([*calendar.collection_points.get("", ()), *calendar.updates.get("", ())])
    assert (first, list(calendar.evaluation_points)) == (11, [11])


def test_collection_points_that_fall_on_one_step_are_said(caplog: pytest.LogCaptureFixture) -> None:
    average = WeightAverage(start=0.5, cycle=0.05, budgets=[1])
    calendar = Calendar.of({"": average}, budget=2, steps_per_epoch=5)
    assert calendar.collection_points[""] == set(range(5, 11))
    assert caplog.messages == ["11 collection points fall on 6 steps: that many are made"]
    Calendar.of({"": average}, budget=2, steps_per_epoch=10)
    assert len(caplog.messages) == 1


def test_a_training_that_ends_between_two_steps_is_planned_with_the_steps_that_it_has() -> None:
    average = WeightAverage(start=0.7, budgets=[0.7, 1.9])
    calendar = Calendar.of({"": average}, budget=3, steps_per_epoch=5)
    end = average.evaluation_points(3)["1.9"]
    assert end * 5 < 28.5
    assert calendar.total_steps == 29 == Course.of(images=5, batch_size=1, budget=3, epochs=end).steps


def test_an_average_from_the_start_on_leaves_the_start_out() -> None:
    """The authors' code averages at ends of epochs (`epoch + 1 >= swa_start`): the first weights never."""
    assert WeightAverage(start=0.0).collection_points(2) == [1, 2, 3]
    assert WeightAverage(start=0.25).collection_points(2) == [1, 2, 3]


@pytest.mark.parametrize(
    ("budget", "cycle", "count"), [(3.0, 0.1, 6), (300.0, 0.01, 51), (1800.0, 1 / 18, 10), (7.0, 0.1, 6)]
)
def test_the_last_cycle_ends_with_the_last_budget_whatever_rounding_makes_of_its_length(
    budget: float, cycle: float, count: int
) -> None:
    """Half a budget of cycles of 0.1 are five, though 1.5 epochs by 0.30000000000000004 are less."""
    points = WeightAverage(start=1, cycle=cycle, budgets=(1.25, 1.5)).collection_points(budget)
    assert points == pytest.approx([budget * (1 + number * cycle) for number in range(count)], rel=1e-12)
    assert points[-1] == pytest.approx(1.5 * budget, rel=1e-12)
